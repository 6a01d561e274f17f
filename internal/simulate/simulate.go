// SPDX-License-Identifier: Apache-2.0

// Package simulate records a long time in a short one: synthetic traffic of hours goes through the real write half into a spool whose
// retention removes the oldest, while its rate, memory and files are watched.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Options say how a long recording is simulated.
type Options struct {
	// Spool is the spool's configuration. Dir is the parent of the spool that is made and removed; empty: the system's for temporary files.
	// MaxAge and SegmentAge are of the simulated time.
	Spool spool.Config

	Span        time.Duration // simulated time
	For         time.Duration // that it takes: both clocks run evenly
	Quiet       time.Duration // of Span, in its middle: a tenth of the rate, so that age removes what bytes do not
	Rate        int           // events a second that For takes; 0: as fast as they are stored
	Connections int           // at a time
	Seed        uint64        // of the traffic; 0: a random one
}

// DefaultOptions simulate a day in ten minutes, with 2,000 connections at a time, in 1 GiB and for at most 3 h.
func DefaultOptions() Options {
	o := Options{Spool: spool.DefaultConfig(), Span: 24 * time.Hour, For: 10 * time.Minute, Quiet: 4 * time.Hour, Connections: 2000}
	o.Spool.MaxBytes, o.Spool.MaxAge = 1<<30, 3*time.Hour
	return o
}

// Validate reports the first fault by the name of its flag, or by its key.
func (o Options) Validate() error {
	switch {
	case o.For < time.Second || o.For > 24*time.Hour:
		return fmt.Errorf("--for: %v is not between 1s and 24h", o.For)
	case o.Span < o.For || o.Span > 1000*time.Hour:
		return fmt.Errorf("--span: %v is not between --for and 1000h", o.Span)
	case o.Quiet < 0 || o.Quiet > o.Span/2:
		return fmt.Errorf("--quiet: %v is not between 0 and half of --span", o.Quiet)
	case o.Rate < 0:
		return fmt.Errorf("--rate: %d is negative", o.Rate)
	case o.Connections < 1 || o.Connections > 1_000_000:
		return fmt.Errorf("--connections: %d is not between 1 and 1000000", o.Connections)
	}
	if err := o.scaled().Validate(); err != nil {
		return fmt.Errorf("%w (ages are divided by %.4g: %v are simulated in %v)", err, o.speed(), o.Span, o.For)
	}
	return nil
}

// speed is how much faster the simulated clock runs.
func (o Options) speed() float64 { return float64(o.Span) / float64(o.For) }

// LeastAge is the smallest MaxAge that the spool takes at this speed.
func (o Options) LeastAge() time.Duration { return time.Duration(o.speed() * float64(time.Minute)) }

// scaled is the configuration with its ages in the recorder's time, which the spool goes by.
func (o Options) scaled() spool.Config {
	cfg := o.Spool
	cfg.MaxAge = time.Duration(float64(cfg.MaxAge) / o.speed())
	cfg.SegmentAge = max(time.Duration(float64(cfg.SegmentAge)/o.speed()), time.Second)
	return cfg
}

// Sample is the state of a simulated recording once a second, and what has been since the sample before.
type Sample struct {
	Seconds   float64 `json:"seconds"` // since the start
	Hours     float64 `json:"hours"`   // simulated
	Events    uint64  `json:"events"`  // stored so far
	PerSecond float64 `json:"events_per_second"`
	Bytes     float64 `json:"bytes_per_second"` // of blocks
	Written   uint64  `json:"device_written_bytes"`
	Anon      uint64  `json:"rss_anon_bytes"`
	Directory int64   `json:"directory_bytes"` // the most, as the file system counts
	Kept      float64 `json:"kept_hours"`      // simulated: how old the oldest block is
	Removed   uint64  `json:"removed_blocks"`  // by retention so far
	Files     int     `json:"open_files"`
	P50       float64 `json:"append_p50_us"`
	P99       float64 `json:"append_p99_us"`
	Max       float64 `json:"append_max_us"`
	Quiet     bool    `json:"quiet"`
}

// Result is what became of a simulated recording.
type Result struct {
	CPUs        int     `json:"cpus"`
	Seed        uint64  `json:"seed"`
	Hours       float64 `json:"hours"` // simulated
	Seconds     float64 `json:"seconds"`
	Events      uint64  `json:"events"`
	Connections uint64  `json:"connections"` // opened
	Blocks      uint64  `json:"blocks"`
	Bytes       uint64  `json:"bytes"` // of blocks
	Written     uint64  `json:"device_written_bytes"`
	WriteHalf   float64 `json:"write_half_ns_per_event"` // CPU time of the process, that of making the traffic not included
	MaxBytes    int64   `json:"max_bytes"`
	MaxAge      float64 `json:"max_age_hours"` // simulated
	Segments    uint64  `json:"segments"`
	Stalls      uint64  `json:"stalls"` // rotations that waited for the next segment

	Rate      Range   `json:"events_per_second"` // of the samples after the first tenth, the quiet hours not included
	Anon      Range   `json:"rss_anon_bytes"`    // of those after the first tenth
	Directory int64   `json:"directory_bytes"`   // the most
	Files     int     `json:"open_files"`        // the most
	P50       float64 `json:"append_p50_us"`     // of all
	P99       float64 `json:"append_p99_us"`
	P999      float64 `json:"append_p99_9_us"`
	Max       float64 `json:"append_max_us"`

	Removed  uint64   `json:"removed_blocks"`   // by retention
	Verified uint64   `json:"verified_records"` // all that was left, read back and decoded
	Samples  []Sample `json:"samples"`
}

// Range is the spread of a figure.
type Range struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func rangeOf(v []float64) Range {
	if len(v) == 0 {
		return Range{}
	}
	slices.Sort(v)
	return Range{v[0], v[len(v)/2], v[len(v)-1]}
}

const (
	chunkBytes   = 256 << 10 // of records that the generator hands over
	chunks       = 4
	sampleEvery  = time.Second
	measureEvery = 50 * time.Millisecond // of the directory
	quietShare   = 0.1

	trafficStart = 1e12 // time of the first record, ns
)

// ErrPromise says that the spool did not keep what it promises.
var ErrPromise = errors.New("the spool did not keep its promise")

// Run makes the traffic of a long time and stores it through the real write half, while retention removes the oldest. Then it reads all
// that was left. It returns ErrPromise if the spool took more than its limit and a tenth, or if anything else is left than the newest blocks,
// whole and in order.
func Run(ctx context.Context, o Options, log *slog.Logger, storing, reading pipeline.Progress) (_ Result, err error) {
	res := Result{CPUs: runtime.NumCPU(), Seed: o.Seed, Hours: o.Span.Hours(), MaxBytes: o.Spool.MaxBytes, MaxAge: o.Spool.MaxAge.Hours()}
	if err := o.Validate(); err != nil {
		return res, err
	}
	if res.Seed == 0 {
		res.Seed = rand.Uint64()
	}
	dir, err := os.MkdirTemp(o.Spool.Dir, "tcbee-bench-")
	if err != nil {
		return res, fmt.Errorf("make a spool for the simulation: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cfg := o.scaled()
	cfg.Dir = dir
	w, err := spool.Create(ctx, cfg, pipeline.HostMeta(), log)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()

	runtime.GC()
	cpu := processCPU()
	m := newMeter(o, w, dir)
	g := newGenerator(o, res.Seed, m.start)
	making, stop := context.WithCancel(ctx)
	var maker sync.WaitGroup
	maker.Go(func() { g.run(making) })
	err = pipeline.Encode(ctx, g, func(sealed []byte) error {
		info, err := block.ReadInfo(sealed)
		if err != nil {
			panic("BUG: sealed block: " + err.Error())
		}
		before := time.Now()
		if _, err := w.Append(sealed); err != nil {
			return err
		}
		now := time.Now()
		m.appended(&info, now.Sub(before))
		if m.due(now) && storing != nil {
			share := min(float64(now.Sub(m.start))/float64(o.For), 1)
			storing(uint64(len(m.blocks)), uint64(float64(len(m.blocks))/share))
		}
		return nil
	})
	stop()
	maker.Wait()
	if err = errors.Join(err, w.Sync()); err != nil {
		return res, err
	}
	m.sample(time.Now())
	if err := w.Close(); err != nil {
		return res, err
	}
	cpu = processCPU() - cpu - g.cpu
	m.summary(&res)
	res.Connections = g.t.opened
	res.WriteHalf = cpu * 1e9 / float64(max(res.Events, 1))
	if o.Spool.MaxBytes > 0 && res.Directory > o.Spool.MaxBytes+o.Spool.MaxBytes/10 {
		return res, fmt.Errorf("%w: the directory took %d bytes with a limit of %d", ErrPromise, res.Directory, o.Spool.MaxBytes)
	}
	return res, readBack(ctx, dir, m, &res, reading)
}

// readBack reads all that is left and compares it with what was stored.
func readBack(ctx context.Context, dir string, m *meter, res *Result, progress pipeline.Progress) (err error) {
	r, err := spool.Open(ctx, dir, spool.ReadOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	sum, err := pipeline.Verify(ctx, r, progress)
	if err != nil {
		return err
	}
	for _, n := range sum.Kinds {
		res.Verified += n
	}
	next := spool.ID(res.Removed + 1)
	for _, s := range r.Segments() {
		if s.Err != nil {
			return fmt.Errorf("%w: segment %d: %w", ErrPromise, s.Number, s.Err)
		}
		if s.First != next {
			return fmt.Errorf("%w: segment %d begins with block %d, want %d", ErrPromise, s.Number, s.First, next)
		}
		next = s.Last + 1
	}
	want := uint64(0)
	for _, b := range m.blocks[res.Removed:] {
		want += uint64(b.records)
	}
	switch left := len(m.blocks) - int(res.Removed); {
	case len(sum.Damaged) > 0:
		return fmt.Errorf("%w: %d blocks cannot be read; the first: %w", ErrPromise, len(sum.Damaged), sum.Damaged[0])
	case sum.Blocks != left || uint64(next) != res.Blocks+1:
		return fmt.Errorf("%w: %d blocks up to %d are left, want %d up to %d", ErrPromise, sum.Blocks, next-1, left, res.Blocks)
	case res.Verified != want:
		return fmt.Errorf("%w: %d records are left, want %d", ErrPromise, res.Verified, want)
	case sum.Late > 0:
		return fmt.Errorf("%w: %d records are out of order", ErrPromise, sum.Late)
	case len(sum.Sessions) != 1 || !sum.Sessions[0].Complete:
		return fmt.Errorf("%w: %d sessions are left, want one that ended in order", ErrPromise, len(sum.Sessions))
	}
	return nil
}

// generator makes traffic ahead of the write half, in a goroutine of its own. It is a pipeline.Source.
type generator struct {
	o       Options
	t       *traffic
	start   time.Time
	full    chan []byte
	empty   chan []byte
	current []byte
	cpu     float64 // seconds that run took, valid after it
}

func newGenerator(o Options, seed uint64, start time.Time) *generator {
	g := &generator{
		o: o, start: start, full: make(chan []byte, chunks), empty: make(chan []byte, chunks),
		t: newTraffic(seed, o.Connections, trafficStart, start.UnixNano()),
	}
	for range chunks {
		g.empty <- make([]byte, 0, chunkBytes+chunkBytes/4)
	}
	return g
}

// run makes chunks until the time is over.
func (g *generator) run(ctx context.Context) {
	defer close(g.full)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu := threadCPU()
	defer func() { g.cpu = threadCPU() - cpu }()
	speed := g.o.speed()
	tick := time.NewTimer(0)
	defer tick.Stop()
	var model uint64                          // that the last chunk took
	before, took := g.start, time.Duration(0) // when it was made, and how long one takes of late
	quiet, limit := false, float64(g.o.Rate)
	from, events := g.start, uint64(0) // of the part of the time that limit is for
	for ended := false; !ended; {
		var buf []byte
		select {
		case buf = <-g.empty:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		since := now.Sub(g.start)
		if q := g.o.quiet(since); q != quiet {
			if limit = float64(g.o.Rate); q {
				limit = quietShare * float64(g.t.events) / since.Seconds()
			}
			quiet, from, events = q, now, g.t.events
		}
		if limit > 0 {
			due := from.Add(time.Duration(float64(g.t.events-events) / limit * 1e9))
			if d := due.Sub(now); d > 0 {
				tick.Reset(d)
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				now = time.Now()
				since = now.Sub(g.start)
			}
		}
		if ended = since >= g.o.For; ended {
			buf = g.t.end(buf[:0])
		} else {
			took, before = (3*took+now.Sub(before))/4, now
			g.t.pace(g.t.start+uint64(float64(since+took)*speed), model)
			m := g.t.model
			buf = g.t.records(buf[:0], chunkBytes)
			model = g.t.model - m
		}
		select {
		case g.full <- buf:
		case <-ctx.Done():
			return
		}
	}
}

// quiet tells whether a time since the start lies in the quiet hours.
func (o Options) quiet(since time.Duration) bool {
	half := time.Duration(float64(o.Quiet) / o.speed() / 2)
	return since > o.For/2-half && since <= o.For/2+half
}

// Next is pipeline.Source's.
func (g *generator) Next(ctx context.Context) ([]byte, error) {
	if g.current != nil {
		g.empty <- g.current // has room: there are as many as fit
		g.current = nil
	}
	select {
	case records, ok := <-g.full:
		if !ok {
			return nil, io.EOF
		}
		g.current = records
		return records, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close is pipeline.Source's.
func (g *generator) Close() error { return nil }

// meter measures a recording once a second.
type meter struct {
	o        Options
	w        *spool.Writer
	dir      string
	start    time.Time
	written0 uint64 // to the device, before the start

	blocks    []stored  // all
	took      []float64 // of all Appends, µs
	now       uint64    // time of the newest record
	events    uint64
	bytes     uint64
	samples   []Sample
	counted   int // of took, in samples
	at        time.Time
	atBytes   uint64
	measured  time.Time
	directory int64 // the most since the last sample
}

// stored is what is remembered of a block.
type stored struct {
	first   uint64 // time of its oldest record
	records uint32
}

func newMeter(o Options, w *spool.Writer, dir string) *meter {
	now := time.Now()
	room := int(o.For.Seconds()+1) * 512 // blocks a second: what grows here is not the recorder's memory
	return &meter{o: o, w: w, dir: dir, start: now, at: now, written0: deviceWritten(), blocks: make([]stored, 0, room), took: make([]float64, 0, room)}
}

func (m *meter) appended(info *block.Info, took time.Duration) {
	m.took = append(m.took, float64(took.Nanoseconds())/1e3)
	m.blocks = append(m.blocks, stored{info.First, uint32(info.Events)})
	m.bytes += uint64(info.Encoded)
	m.now = max(m.now, info.Last)
	for k, n := range info.Kinds {
		if event.Kind(k) < event.KindTick {
			m.events += n
		}
	}
}

// due measures what is to be measured now, and tells whether that was a sample.
func (m *meter) due(now time.Time) bool {
	if now.Sub(m.measured) >= measureEvery {
		m.measured = now
		m.directory = max(m.directory, deviceUse(m.dir))
	}
	if now.Sub(m.at) < sampleEvery {
		return false
	}
	m.sample(now)
	return true
}

// hours are those of the simulated clock between its start and a record's time.
func hours(t uint64) float64 { return float64(t-trafficStart) / float64(time.Hour) }

func (m *meter) sample(now time.Time) {
	since := now.Sub(m.start)
	s := Sample{
		Seconds: since.Seconds(), Hours: hours(max(m.now, trafficStart)), Events: m.events, Written: deviceWritten() - m.written0,
		Anon: rssAnon(), Directory: max(m.directory, deviceUse(m.dir)), Files: openFiles(),
		Removed: m.w.Stats().Dropped.Blocks, Quiet: m.o.quiet(since),
	}
	if s.Removed < uint64(len(m.blocks)) {
		s.Kept = s.Hours - hours(m.blocks[s.Removed].first)
	}
	if d := now.Sub(m.at).Seconds(); d > 0 {
		before := uint64(0)
		if n := len(m.samples); n > 0 {
			before = m.samples[n-1].Events
		}
		s.PerSecond, s.Bytes = float64(s.Events-before)/d, float64(m.bytes-m.atBytes)/d
	}
	took := slices.Clone(m.took[m.counted:])
	slices.Sort(took)
	s.P50, s.P99, s.Max = quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1)
	m.counted, m.directory, m.at, m.atBytes = len(m.took), 0, now, m.bytes
	m.samples = append(m.samples, s)
}

// quantile of sorted figures, 0 if there are none.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return v[min(int(q*float64(len(v))), len(v)-1)]
}

func (m *meter) summary(res *Result) {
	last := m.samples[len(m.samples)-1]
	st := m.w.Stats()
	res.Seconds, res.Events, res.Blocks, res.Bytes, res.Samples = last.Seconds, m.events, uint64(len(m.blocks)), m.bytes, m.samples
	res.Written, res.Segments, res.Stalls, res.Removed = deviceWritten()-m.written0, st.Rotations+1, st.Stalls, st.Dropped.Blocks
	slices.Sort(m.took)
	res.P50, res.P99, res.P999, res.Max = quantile(m.took, 0.5), quantile(m.took, 0.99), quantile(m.took, 0.999), quantile(m.took, 1)
	var anon, rate []float64
	for i, s := range m.samples {
		res.Directory, res.Files = max(res.Directory, s.Directory), max(res.Files, s.Files)
		if s.Seconds < m.o.For.Seconds()/10 {
			continue
		}
		anon = append(anon, float64(s.Anon))
		// A sample beside the quiet hours is of both, the last one is short.
		if i > 0 && i < len(m.samples)-1 && !m.samples[i-1].Quiet && !s.Quiet && !m.samples[i+1].Quiet {
			rate = append(rate, s.PerSecond)
		}
	}
	res.Anon, res.Rate = rangeOf(anon), rangeOf(rate)
}

// Parts merges the samples into n of equally long simulated times, those without a sample left out.
func (r *Result) Parts(n int) []Sample {
	var parts []Sample
	part := -1
	var from Sample
	for i, s := range r.Samples {
		if p := min(int(s.Hours/r.Hours*float64(n)), n-1); p != part {
			part = p
			if i > 0 {
				from = r.Samples[i-1]
			}
			parts = append(parts, Sample{})
		}
		p := &parts[len(parts)-1]
		seconds, share := s.Seconds-from.Seconds, (s.Seconds - max(from.Seconds, p.Seconds))
		p.Bytes = (p.Bytes*(seconds-share) + s.Bytes*share) / max(seconds, 1e-9)
		p.PerSecond = float64(s.Events-from.Events) / max(seconds, 1e-9)
		p.Seconds, p.Hours, p.Events, p.Written, p.Kept, p.Removed, p.Quiet = s.Seconds, s.Hours, s.Events, s.Written, s.Kept, s.Removed, s.Quiet
		p.Anon, p.Directory, p.Files = max(p.Anon, s.Anon), max(p.Directory, s.Directory), max(p.Files, s.Files)
		p.P50, p.P99, p.Max = max(p.P50, s.P50), max(p.P99, s.P99), max(p.Max, s.Max)
	}
	return parts
}

// deviceUse is what the files below a directory take of the device. A file that is moved meanwhile counts once.
func deviceUse(dir string) (sum int64) {
	seen := make(map[string]bool)
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // retention removes files under way
		}
		fi, err := e.Info()
		key := filepath.Join(filepath.Base(filepath.Dir(path)), e.Name())
		if err == nil && !seen[key] {
			seen[key] = true
			sum += allocatedBytes(fi)
		}
		return nil
	})
	return sum
}

var _ pipeline.Source = (*generator)(nil)
