// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

var discard = slog.New(slog.DiscardHandler)

// TestRetentionOfASimulatedDay lets the smallest spool overflow. Run itself compares what is left with what was stored: the newest
// blocks, in order, and every record of them.
func TestRetentionOfASimulatedDay(t *testing.T) {
	o := DefaultOptions()
	o.Connections = 300
	o.Spool.SegmentBytes = 1 << 20
	o.Spool.MaxBytes = 5 << 20
	o.For = 2 * time.Second
	var res Result
	for res.Removed == 0 { // how much is stored in that time is the machine's affair
		require.Less(t, o.For, 3*time.Minute, "nothing was removed: %d bytes stored", res.Bytes)
		o.Spool.Dir = t.TempDir()
		o.Spool.MaxAge = o.LeastAge()
		var stored, read uint64
		var err error
		res, err = Run(t.Context(), o, discard, func(done, _ uint64) { stored = done }, func(done, _ uint64) { read = done })
		require.NoError(t, err)
		require.Positive(t, stored)
		require.Equal(t, res.Blocks-res.Removed, read)
		entries, err := os.ReadDir(o.Spool.Dir)
		require.NoError(t, err)
		require.Empty(t, entries, "the spool of the simulation is left behind")
		o.For *= 2
	}
	require.LessOrEqual(t, res.Directory, o.Spool.MaxBytes+o.Spool.MaxBytes/10)
	if !raced { // the race detector remembers much
		require.LessOrEqual(t, res.Anon.Max, float64(256<<20))
	}
	require.Greater(t, res.Events, res.Connections)
	require.Less(t, res.Verified, res.Events)
	require.NotEmpty(t, res.Samples)
	last := res.Samples[len(res.Samples)-1]
	require.Equal(t, res.Events, last.Events)
	require.Less(t, last.Kept, last.Hours, "the oldest blocks are gone")
}

func TestStoppedSimulationLeavesNothing(t *testing.T) {
	o := DefaultOptions()
	o.Spool.Dir = t.TempDir()
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	_, err := Run(ctx, o, discard, func(uint64, uint64) { stop(errors.New("stopped")) }, nil)
	require.ErrorIs(t, err, context.Canceled)
	entries, err := os.ReadDir(o.Spool.Dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestValidateNamesTheFlag(t *testing.T) {
	require.NoError(t, DefaultOptions().Validate())
	tests := map[string]struct {
		set  func(*Options)
		want string
	}{
		"for":         {func(o *Options) { o.For = 0 }, "--for: 0s"},
		"span":        {func(o *Options) { o.Span = time.Minute }, "--span: 1m0s"},
		"quiet":       {func(o *Options) { o.Quiet = 13 * time.Hour }, "--quiet: 13h0m0s"},
		"rate":        {func(o *Options) { o.Rate = -1 }, "--rate: -1"},
		"connections": {func(o *Options) { o.Connections = 0 }, "--connections: 0"},
		"age":         {func(o *Options) { o.For = time.Minute }, "spool.max_age: 7.5s is below the minimum 1m0s; give 0 for no limit (ages are divided by 1440: 24h0m0s are simulated in 1m0s)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			tt.set(&o)
			require.ErrorContains(t, o.Validate(), tt.want)
		})
	}
}

// TestTrafficIsWellFormed looks at what the write half is given: all kinds of records, both directions, connections that come and go.
func TestTrafficIsWellFormed(t *testing.T) {
	tr := newTraffic(1, 200, trafficStart, 1.7e18)
	kinds := map[event.Kind]uint64{}
	hooks := map[event.Hook]uint64{}
	states := map[event.TCPState]int{}
	options, flags := map[uint8]int{}, uint16(0)
	tick := uint64(0)
	look := func(records []byte) {
		require.NoError(t, event.Check(records))
		for h := range event.All(records) {
			kinds[h.Kind]++
			hooks[h.Hook]++
			if h.Time < tick {
				require.Fail(t, "older than the last Tick", "%d, %d", h.Time, tick)
			}
			switch h.Kind {
			case event.KindTick:
				require.LessOrEqual(t, h.Time-max(tick, trafficStart), uint64(1e9))
				tick = h.Time
			case event.KindSegment:
				options[h.Segment().OptionsLen]++
				flags |= h.Segment().TCPFlags
			case event.KindIncident:
				states[h.Incident().NewState]++
			}
		}
	}
	var buf []byte
	for i := range 60 {
		tr.pace(trafficStart+uint64(i)*uint64(time.Minute), tr.model/uint64(i+1))
		buf = tr.records(buf[:0], chunkBytes)
		look(buf)
	}
	look(tr.end(buf[:0]))
	require.Equal(t, tr.events, kinds[event.KindSegment]+kinds[event.KindSample]+kinds[event.KindIncident])
	for _, k := range []event.Kind{event.KindSegment, event.KindSample, event.KindIncident, event.KindTick, event.KindAnchor, event.KindAccounting, event.KindLink} {
		require.Positive(t, kinds[k], k)
	}
	for _, h := range []event.Hook{event.HookTCIngress, event.HookTCEgress, event.HookTCPProbe, event.HookTransmit, event.HookSetState, event.HookRetransmitSKB,
		event.HookSendReset, event.HookReceiveReset, event.HookCongStateSet, event.HookDestroySock, event.HookRcvSpaceAdjust} {
		require.Positive(t, hooks[h], h)
	}
	require.Positive(t, options[12])
	require.Positive(t, options[20], "SYN")
	require.Positive(t, options[24], "SACK")
	require.Equal(t, uint16(event.FIN|event.SYN|event.RST|event.PSH|event.ACK), flags)
	require.Positive(t, states[event.Established])
	require.Positive(t, states[event.Closed])
	require.Greater(t, tr.opened, uint64(len(tr.conns)))
}

// TestTimersComeInOrder is about the heap.
func TestTimersComeInOrder(t *testing.T) {
	tr := newTraffic(3, 1000, trafficStart, 0)
	last := uint64(0)
	for range 1000 {
		x := tr.pop()
		require.GreaterOrEqual(t, x.at, last)
		last = x.at
	}
	require.Empty(t, tr.queue)
}

// samples of a day whose directory fills up to its limit.
func samples(n int) *Result {
	r := &Result{Hours: 24, Seconds: float64(n), Events: uint64(n) * 1e6, MaxBytes: 1 << 30, MaxAge: 3}
	for i := range n {
		at := float64(i+1) / float64(n)
		r.Samples = append(r.Samples, Sample{
			Seconds: float64(i + 1), Hours: 24 * at, Events: uint64(i+1) * 1e6, PerSecond: 1e6, Bytes: 5e6, Anon: 40 << 20,
			Directory: min(int64(at*4*(1<<30)), 1<<30), Quiet: at > 0.4 && at < 0.6, Max: float64(i),
		})
	}
	return r
}

func TestPartsMergeSamples(t *testing.T) {
	parts := samples(600).Parts(24)
	require.Len(t, parts, 24)
	for i, p := range parts {
		require.InDelta(t, 1e6, p.PerSecond, 1, i)
		require.InDelta(t, 5e6, p.Bytes, 1, i)
		require.InDelta(t, float64(i+1), p.Hours, 0.05, i)
	}
	require.Equal(t, uint64(600e6), parts[23].Events)
	require.InDelta(t, 599, parts[23].Max, 0)
	require.Len(t, samples(5).Parts(24), 5)
}

func TestSVGIsSmallAndWellFormed(t *testing.T) {
	for _, n := range []int{0, 1, 10, 600, 20000} {
		b := samples(n).SVG()
		require.Less(t, len(b), 40<<10)
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
		}
		require.NotContains(t, string(b), "NaN")
		require.NotContains(t, string(b), "Inf")
	}
}

func TestNiceStep(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 1: 1, 1.1: 2, 3: 5, 7: 10, 0.03: 0.05, 341: 500, 1000: 1000} {
		require.InDelta(t, want, niceStep(v), want*1e-9, v)
	}
}

// BenchmarkTraffic is the making of records alone.
func BenchmarkTraffic(b *testing.B) {
	tr := newTraffic(1, 2000, trafficStart, 1.7e18)
	tr.pace(trafficStart+longestStep, longestStep)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = tr.records(buf[:0], chunkBytes)
	}
	b.ReportMetric(float64(tr.events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(tr.events), "ns/event")
}
