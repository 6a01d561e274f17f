// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Progress is called now and then with the blocks done and the number of all.
type Progress func(done, all uint64)

// Session is one run of a recorder as the spool tells it.
type Session struct {
	ID     string    `json:"id"`
	Start  time.Time `json:"start"` // wall clock of its first record
	End    time.Time `json:"end"`   // of its newest record
	Events uint64    `json:"events"`
	Blocks int       `json:"blocks"`
	// Complete says that the recorder ended in order. Otherwise it was killed or is still at work,
	// and what it had not stored yet, at most a second, is missing at the end.
	Complete bool `json:"complete"`
}

// Hole is a time in which one CPU's events were lost.
type Hole struct {
	CPU   int       `json:"cpu"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count uint64    `json:"count"`
}

// Summary is what a spool holds.
type Summary struct {
	Blocks       int               `json:"blocks"`
	EncodedBytes uint64            `json:"encoded_bytes"` // of the blocks
	RecordBytes  uint64            `json:"record_bytes"`  // of the records in them
	Events       uint64            `json:"events"`        // records of hooks
	Kinds        map[string]uint64 `json:"kinds"`
	Sessions     []Session         `json:"sessions"`
	Hooks        []HookCount       `json:"hooks"`
	Holes        []Hole            `json:"holes"`
	Late         uint64            `json:"late_records,omitempty"` // came after their Tick (only Verify tells)
	Damaged      []Damage          `json:"damaged"`
}

// inspector gathers a Summary block by block.
type inspector struct {
	Summary
	tally   Tally
	dec     *block.Decoder
	buf     []byte
	session uint64
	pending []byte // the newest block with Accounting records that are not in the tally yet
	verify  bool
	mark    uint64 // of the last Tick
}

// Inspect reads the heads of all blocks, and of the rest only what the account needs. A damaged
// block is reported in the Summary and left out.
func Inspect(ctx context.Context, r *spool.Reader, progress Progress) (Summary, error) {
	return inspect(ctx, r, progress, false)
}

// Verify decodes everything: every checksum, every record, every directory, and the order that
// Ticks promise.
func Verify(ctx context.Context, r *spool.Reader, progress Progress) (Summary, error) {
	return inspect(ctx, r, progress, true)
}

func inspect(ctx context.Context, r *spool.Reader, progress Progress, all bool) (Summary, error) {
	in := inspector{dec: block.NewDecoder(), verify: all}
	in.Kinds = map[string]uint64{}
	in.Sessions, in.Holes, in.Damaged = []Session{}, []Hole{}, []Damage{}
	look := in.look
	if all {
		look = nil
	}
	err := walk(ctx, r, nil, progress, &in.Damaged, look, func(_ spool.ID, src []byte) error { return in.block(src) })
	if err != nil {
		return in.Summary, err
	}
	if err := in.account(); err != nil {
		return in.Summary, err
	}
	in.tally.killed = slices.ContainsFunc(in.Sessions, func(s Session) bool { return !s.Complete })
	in.Hooks = in.tally.Hooks()
	return in.Summary, nil
}

// eachBlock calls fn for every block that can be read. Damage, in the spool or told by fn as an error
// of the codec, is noted and passed over; any other error ends it.
func eachBlock(ctx context.Context, r *spool.Reader, progress Progress, damaged *[]Damage, fn func(spool.ID, []byte) error) error {
	return eachSelected(ctx, r, nil, progress, damaged, fn)
}

// eachSelected is eachBlock for the blocks in the ranges, or for all of them if ranges is nil.
func eachSelected(ctx context.Context, r *spool.Reader, ranges []idRange, progress Progress, damaged *[]Damage, fn func(spool.ID, []byte) error) error {
	return walk(ctx, r, ranges, progress, damaged, nil, fn)
}

// eachHead is eachBlock for those who need the heads alone.
func eachHead(ctx context.Context, r *spool.Reader, progress Progress, damaged *[]Damage, fn func(spool.ID, *block.Info) error) error {
	look := func(id spool.ID, head []byte) (bool, error) {
		info, err := block.ReadInfo(head)
		if err != nil {
			return false, err
		}
		return false, fn(id, &info)
	}
	return walk(ctx, r, nil, progress, damaged, look, nil)
}

// leastPeek is how much of a block is read at first where its head is wanted.
const leastPeek = 4 << 10

// walk is eachSelected that calls look, unless that is nil, with the head of each block, and fn only where look says so: so much of a block
// is read.
func walk(ctx context.Context, r *spool.Reader, ranges []idRange, progress Progress, damaged *[]Damage, look func(spool.ID, []byte) (bool, error), fn func(spool.ID, []byte) error) error {
	peek := leastPeek
	next := func() (spool.ID, []byte, error) {
		if look == nil {
			return r.Next(ctx)
		}
		id, head, err := r.Head(ctx, peek)
		if err != nil {
			return id, nil, err
		}
		n, err := block.HeadSize(head)
		if err != nil {
			r.Skip()
			return id, nil, &headError{err}
		}
		if n > len(head) {
			peek = n + n/8 // the next one will be about as large
			if id, head, err = r.Head(ctx, n); err != nil {
				return id, nil, err
			}
		}
		want, err := look(id, head[:min(n, len(head))])
		switch {
		case err != nil:
			r.Skip()
			return id, nil, &headError{err}
		case want:
			return r.Next(ctx)
		}
		r.Skip()
		return id, nil, nil
	}
	all, _ := r.Size()
	if ranges != nil {
		all = 0
		for _, x := range ranges {
			all += uint64(x.last-x.first) + 1
		}
	}
	last := spool.ID(math.MaxUint64)
	after := spool.ID(0)
	for done := uint64(0); ; done++ {
		if progress != nil {
			progress(done, all)
		}
		if ranges != nil && (after == 0 || after > last) {
			if len(ranges) == 0 {
				return nil
			}
			if ranges[0].first != after {
				if err := r.Seek(ranges[0].first); err != nil {
					return err
				}
			}
			last, ranges = ranges[0].last, ranges[1:]
		}
		id, src, err := next()
		after = id + 1
		var hurt *spool.DamageError
		var head *headError
		switch {
		case errors.As(err, &head):
			err = head.err
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &hurt):
			*damaged = append(*damaged, Damage{Block: hurt.First, Err: err, Text: err.Error()})
			if after = hurt.Last + 1; hurt.Last == 0 {
				after = hurt.First // it is not known where it goes on
			}
			continue
		case err != nil:
			return err
		case src == nil: // look wanted no more
			continue
		default:
			err = fn(id, src)
		}
		if errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrVersion) {
			*damaged = append(*damaged, Damage{Block: id, Err: err, Text: fmt.Sprintf("block %d: %v", id, err)})
			continue
		}
		if err != nil {
			return err
		}
	}
}

// headError is an error of look or of the codec, and not of the spool.
type headError struct{ err error }

func (e *headError) Error() string { return e.err.Error() }

// look works off a block by its head if that is enough.
func (in *inspector) look(_ spool.ID, head []byte) (bool, error) {
	info, err := block.ReadInfo(head)
	if err != nil {
		return false, err
	}
	if info.Kinds[event.KindLost] > 0 || info.Kinds[event.KindAnchor] > 0 || info.Kinds[event.KindAccounting] > 0 {
		return true, nil
	}
	return false, in.block(head)
}

func (in *inspector) block(src []byte) error {
	info, err := block.ReadInfo(src)
	if err != nil {
		return err
	}
	if info.Anchored && (len(in.Sessions) == 0 || info.Anchor.Session != in.session) {
		if err := in.begin(&info); err != nil {
			return err
		}
	}
	// Whole records are looked at only where they tell of sessions or losses.
	whole := in.verify || info.Kinds[event.KindLost] > 0 || info.Kinds[event.KindAnchor] > 0
	if whole {
		if err := in.account(); err != nil {
			return err
		}
		if in.buf, err = in.dec.Decode(in.buf[:0], src); err != nil {
			return err
		}
		if in.verify {
			if err := event.Check(in.buf); err != nil {
				return fmt.Errorf("%w: %w", block.ErrCorrupt, err)
			}
		}
		for h := range event.All(in.buf) {
			in.record(h, &info)
		}
	} else if info.Kinds[event.KindAccounting] > 0 {
		in.pending = append(in.pending[:0], src...)
	}
	in.Blocks++
	in.EncodedBytes += uint64(info.Encoded)
	in.RecordBytes += uint64(info.Raw)
	in.tally.Block(&info)
	var events uint64
	for h := event.HookNone + 1; h < event.Hooks; h++ {
		events += info.Hooks[h]
	}
	in.Events += events
	for k, n := range info.Kinds {
		if n > 0 {
			in.Kinds[event.Kind(k).String()] += n
		}
	}
	if n := len(in.Sessions); n > 0 {
		s := &in.Sessions[n-1]
		s.Events += events
		s.Blocks++
		if last, ok := info.Wall(info.Last); ok && last.After(s.End) {
			s.End = last.UTC()
		}
	}
	return nil
}

// account takes the counters out of the newest block that has some.
func (in *inspector) account() error {
	if len(in.pending) == 0 {
		return nil
	}
	buf, err := in.dec.Decode(in.buf[:0], in.pending)
	in.pending = in.pending[:0]
	if err != nil {
		return err
	}
	in.buf = buf
	for h := range event.All(buf) {
		in.tally.Observe(h)
	}
	return nil
}

// begin opens a session with the first of its blocks that is there.
func (in *inspector) begin(info *block.Info) error {
	if err := in.account(); err != nil {
		return err
	}
	in.tally.fold()
	in.mark = 0
	in.session = info.Anchor.Session
	start, _ := info.Wall(info.First)
	in.Sessions = append(in.Sessions, Session{ID: fmt.Sprintf("%016x", in.session), Start: start.UTC(), End: start.UTC()})
	return nil
}

func (in *inspector) record(h *event.Header, info *block.Info) {
	switch h.Kind {
	case event.KindAnchor:
		if n := len(in.Sessions); n > 0 && h.Anchor().Phase == event.AnchorEnd {
			in.Sessions[n-1].Complete = true
		}
	case event.KindLost:
		l := h.Lost()
		hole := Hole{CPU: int(h.CPU)}
		hole.First, _ = info.Wall(l.First)
		hole.Last, _ = info.Wall(l.Last)
		for _, n := range l.Count {
			hole.Count += uint64(n)
		}
		in.Holes = append(in.Holes, hole)
	case event.KindTick:
		in.mark = max(in.mark, h.Time)
	default:
		if in.verify && h.Kind < event.KindTick && h.Time < in.mark {
			in.Late++
		}
	}
	in.tally.Observe(h)
}
