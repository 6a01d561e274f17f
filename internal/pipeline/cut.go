// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Derived tells what a tool made of spools.
type Derived struct {
	Dir      string    `json:"dir"` // of the new spool
	Blocks   uint64    `json:"blocks"`
	Bytes    uint64    `json:"bytes"`  // of the blocks
	Events   uint64    `json:"events"` // records of hooks
	Sessions int       `json:"sessions"`
	Start    time.Time `json:"start,omitzero"` // wall clock of its first record, UTC
	End      time.Time `json:"end,omitzero"`   // of its last record
	Source   Amount    `json:"source"`
	Damaged  []Damage  `json:"damaged"` // what could not be read and is missing
}

// Amount counts what was looked at.
type Amount struct {
	Blocks uint64 `json:"blocks"`
	Bytes  uint64 `json:"bytes"`
	Events uint64 `json:"events"`
}

func (s *Amount) add(info *block.Info) {
	s.Blocks++
	s.Bytes += uint64(info.Encoded)
	s.Events += hookEvents(info)
}

// hookEvents counts the records that hooks made.
func hookEvents(info *block.Info) (n uint64) {
	for h := event.HookNone + 1; h < event.Hooks; h++ {
		n += info.Hooks[h]
	}
	return n
}

// note counts a block of the new spool.
func (d *Derived) note(info *block.Info) {
	d.Events += hookEvents(info)
	if t := wall(info, info.First).UTC(); d.Start.IsZero() || t.Before(d.Start) {
		d.Start = t
	}
	if t := wall(info, info.Last).UTC(); t.After(d.End) {
		d.End = t
	}
}

// maxCutSpan bounds the time that a block of a cut spool covers, so that a window of it costs little again.
const maxCutSpan = 10 * time.Second

// derived writes records as blocks of a new spool.
type derived struct {
	target *target
	build  *block.Builder
	buf    []byte
	out    *Derived
}

// put adds records, which may be a part of a block.
func (d *derived) put(batch []byte) error {
	for len(batch) > 0 {
		// Whole blocks of a source fit; what is put together from several may not.
		n := 0
		for n < len(batch) {
			size := int(event.At(batch[n:]).Size)
			if d.build.Raw()+n+size > maxBlockRaw && d.build.Raw()+n > 0 {
				break
			}
			n += size
		}
		d.build.Add(batch[:n])
		batch = batch[n:]
		if len(batch) > 0 {
			if err := d.seal(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *derived) full() bool {
	b := d.build
	return b.Events() >= maxBlockEvents || b.Raw() >= maxBlockRaw || b.Events() > 0 && b.Last()-b.First() >= uint64(maxCutSpan)
}

func (d *derived) seal() error {
	if d.build.Events() == 0 {
		return nil
	}
	d.buf = d.build.Seal(d.buf[:0])
	return d.copy(d.buf)
}

// copy appends a block as it is.
func (d *derived) copy(src []byte) error {
	info, err := block.ReadInfo(src)
	if err != nil {
		return err
	}
	d.out.note(&info)
	return d.target.append(src)
}

// cutter is Cut at work: it holds back a session until it has an event, so that none is empty.
type cutter struct {
	derived
	meta    func(spool.ID) spool.Meta
	extra   map[string]string
	pending []byte // of the session that has no event yet
	meant   spool.Meta
	live    bool   // the session has events
	copied  bool   // the session current is copied as it is
	current uint64 // if copied
}

// Cut writes the selected part of r to a new spool at dir, which must not exist or be empty. The new spool replays like any other: its sessions
// have anchors, ticks, the interfaces that were there at the beginning of the window, and the losses within it. Sessions without a
// selected event are left out, and so is the capture's account (event.Accounting): it counted what is not there any more. A session that is
// selected as a whole is copied as it is.
func Cut(ctx context.Context, r *spool.Reader, dir string, enc spool.Encryption, sel Selection, progress Progress) (result Derived, err error) {
	result = Derived{Dir: dir, Damaged: []Damage{}}
	s, err := sel.resolve(ctx, r)
	if err != nil {
		return result, err
	}
	if s == nil {
		return result, &SelectionError{"nothing says what to cut out"}
	}
	t, err := newTarget(dir, enc)
	if err != nil {
		return result, err
	}
	defer func() { err = t.close(err) }()

	c := cutter{
		derived: derived{target: t, build: block.NewBuilder(block.Options{}), out: &result},
		meta:    metaOf(r), extra: map[string]string{},
	}
	for key, val := range sel.describe() {
		c.extra["cut."+key] = val
	}
	p := newPart(s)
	p.keepLinks = true
	whole, err := s.wholeSessions(ctx, r)
	if err != nil {
		return result, err
	}
	var last clock
	err = eachBlock(ctx, r, progress, &result.Damaged, func(id spool.ID, src []byte) error {
		info, err := block.ReadInfo(src)
		if err != nil {
			return err
		}
		result.Source.add(&info)
		last.carry(&info)
		if info.Anchored && whole[info.Anchor.Session] {
			if err := c.take(ctx, 0, p.pass(&info)); err != nil {
				return err
			}
			return c.whole(ctx, id, &info, src)
		}
		batch, damage := p.block(src)
		if err := c.take(ctx, id, batch); err != nil {
			return err
		}
		return damage
	})
	if err == nil {
		err = c.take(ctx, 0, p.finish(nil))
	}
	if err == nil {
		err = c.seal()
	}
	result.Blocks, result.Bytes = t.blocks, t.bytes
	return result, err
}

// take stores the selected records of the block id.
func (c *cutter) take(ctx context.Context, id spool.ID, batch []byte) error {
	// Sessions do not share blocks. The end of one and the beginning of the next can be in one batch.
	for len(batch) > 0 {
		n := 0
		for n < len(batch) {
			h := event.At(batch[n:])
			if n > 0 && h.Kind == event.KindAnchor && h.Anchor().Phase == event.AnchorStart {
				break
			}
			n += int(h.Size)
		}
		if err := c.session(ctx, id, batch[:n]); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

func (c *cutter) session(ctx context.Context, id spool.ID, batch []byte) error {
	if h := event.At(batch); h.Kind == event.KindAnchor && h.Anchor().Phase == event.AnchorStart {
		if err := c.seal(); err != nil {
			return err
		}
		c.live, c.copied, c.pending = false, false, c.pending[:0]
	}
	if !c.live {
		if len(c.pending) == 0 {
			c.meant = c.meta(id)
		}
		for h := range event.All(batch) {
			c.live = c.live || h.Kind < event.KindTick
			if c.live || h.Kind != event.KindTick {
				c.pending = append(c.pending, h.Bytes()...)
			}
		}
		if !c.live {
			return nil
		}
		meta := c.meant
		extra := maps.Clone(meta.Extra)
		if extra == nil {
			extra = map[string]string{}
		}
		// A cut of a cut keeps what was asked for before.
		for key, val := range c.extra {
			if old, ok := extra[key]; ok {
				val = fmt.Sprintf("%s; %s", old, val)
			}
			extra[key] = val
		}
		meta.Extra = extra
		if err := c.target.as(ctx, meta, true); err != nil {
			return err
		}
		c.out.Sessions++
		batch = c.pending
	}
	if err := c.put(batch); err != nil {
		return err
	}
	if c.full() {
		return c.seal()
	}
	return nil
}

// whole copies a block of a session that is selected as a whole.
func (c *cutter) whole(ctx context.Context, id spool.ID, info *block.Info, src []byte) error {
	if !c.copied || info.Anchor.Session != c.current {
		if err := c.seal(); err != nil {
			return err
		}
		if err := c.target.as(ctx, c.meta(id), true); err != nil {
			return err
		}
		c.copied, c.live, c.current = true, false, info.Anchor.Session
		c.out.Sessions++
	}
	return c.copy(src)
}

// wholeSessions looks at the heads of all blocks for the sessions that lie in the window with all their records. Connections that are
// selected one by one make none of them whole.
func (s *selector) wholeSessions(ctx context.Context, r *spool.Reader) (map[uint64]bool, error) {
	whole := map[uint64]bool{}
	if len(s.patterns) > 0 {
		return whole, nil
	}
	var damaged []Damage
	var last clock
	err := eachHead(ctx, r, nil, &damaged, func(_ spool.ID, info *block.Info) error {
		if last.carry(info); !info.Anchored {
			return nil
		}
		lo, hi := s.window(info)
		in, seen := whole[info.Anchor.Session]
		whole[info.Anchor.Session] = (in || !seen) && info.First >= lo && info.Last < hi
		return nil
	})
	if err != nil {
		return nil, err
	}
	return whole, r.Seek(0)
}
