// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"

	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// reader is the read half: blocks in, metrics out. It has no clock; what it does depends on the
// blocks alone.
type reader struct {
	meta  func(spool.ID) spool.Meta // who recorded the block
	opts  ReadOptions
	dec   *block.Decoder
	part  *part // nil: everything is read
	order order
	sink  Sink // nil: nothing is collected

	// Each session has its own: what one run of a recorder gives depends on no other.
	table *processors.Table
	build *exporter.Builder

	ended    func(*processors.Table) // called at the end of a session, may be nil
	interval uint64                  // ns between collections
	session  uint64                  // the one that is open, or was last
	next     uint64                  // time of the next collection; 0: no session is open
	last     uint64                  // newest time seen in the session
	sinkErr  func(error) error
	buf      []byte
	tick     event.Tick
}

// always is the metadata of a spool that has one recorder.
func always(meta spool.Meta) func(spool.ID) spool.Meta {
	return func(spool.ID) spool.Meta { return meta }
}

func newReader(meta func(spool.ID) spool.Meta, opts ReadOptions, sink Sink) (*reader, error) {
	r := &reader{
		meta:     meta,
		opts:     opts,
		dec:      block.NewDecoder(),
		sink:     sink,
		interval: uint64(opts.Export.Interval),
		sinkErr:  func(err error) error { return &SinkError{err} },
	}
	return r, r.fresh(0)
}

// fresh forgets all connections. A session begins with the block id.
func (r *reader) fresh(id spool.ID) error {
	table, err := processors.NewTable(r.opts.Process)
	if err != nil {
		return err
	}
	r.table = table
	r.build = exporter.NewBuilder(r.opts.Export, resource(r.meta(id)))
	r.order = order{}
	return nil
}

// feed decodes a block and works off its records. An error of the decoder leaves everything as
// it was; one of the sink is a *SinkError.
func (r *reader) feed(ctx context.Context, id spool.ID, src []byte) error {
	if r.part != nil {
		batch, damage := r.part.block(src)
		if err := r.records(ctx, id, batch); err != nil {
			return err
		}
		return damage
	}
	info, err := block.ReadInfo(src)
	if err != nil {
		return err
	}
	if r.buf, err = r.dec.Decode(r.buf[:0], src); err != nil {
		return err
	}
	if info.Anchored && (r.next == 0 || info.Anchor.Session != r.session) {
		if err := r.start(ctx, id, &info.Anchor); err != nil {
			return err
		}
	}
	return r.records(ctx, id, r.buf)
}

// records works off the records of the block id.
func (r *reader) records(ctx context.Context, id spool.ID, raw []byte) (err error) {
	for len(raw) > 0 {
		h := event.At(raw)
		raw = raw[h.Size:]
		switch h.Kind {
		case event.KindTick:
			err = r.advance(ctx, h.Time)
		case event.KindAnchor:
			switch a := h.Anchor(); a.Phase {
			case event.AnchorStart:
				// The block's own anchor has opened the session, unless this is a part of one.
				if r.next == 0 || a.Session != r.session {
					err = r.start(ctx, id, &block.Anchor{Time: a.Time, Session: a.Session, Realtime: a.Realtime, TAI: a.TAI, Uncertainty: a.Uncertainty})
				}
			case event.AnchorEnd:
				err = r.end(ctx, h)
			default:
				r.order.add(h)
			}
		default:
			r.order.add(h)
			if r.order.full() {
				err = r.advance(ctx, h.Time)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// start opens a session, from the anchor of its first block that is there: the very first may be gone
// by retention. A session that has not ended is ended first: its recorder was killed.
func (r *reader) start(ctx context.Context, id spool.ID, a *block.Anchor) error {
	if err := r.close(ctx); err != nil {
		return err
	}
	if err := r.fresh(id); err != nil {
		return err
	}
	anchor := event.Anchor{Session: a.Session, Realtime: a.Realtime, TAI: a.TAI, Uncertainty: a.Uncertainty, Phase: event.AnchorStart}
	anchor.Header = event.Header{Time: a.Time, Kind: event.KindAnchor, Size: uint16(event.AnchorSize)}
	r.table.Observe(&anchor.Header)
	r.session, r.last = a.Session, a.Time
	// Collections lie on whole multiples of the interval of the wall clock.
	r.next = a.Time + r.interval - uint64(a.Realtime)%r.interval
	return nil
}

// end closes the session that the recorder ended in order.
func (r *reader) end(ctx context.Context, anchor *event.Header) error {
	if err := r.advance(ctx, anchor.Time); err != nil {
		return err
	}
	if err := r.order.release(^uint64(0), r.observe); err != nil {
		return err
	}
	r.table.Observe(anchor)
	r.last = max(r.last, anchor.Time)
	return r.close(ctx)
}

// finish ends what is read.
func (r *reader) finish(ctx context.Context) error {
	if r.part != nil {
		if err := r.records(ctx, 0, r.part.finish(nil)); err != nil {
			return err
		}
	}
	return r.close(ctx)
}

// close ends the open session, if any, with a last collection at its newest event.
func (r *reader) close(ctx context.Context) error {
	if r.next == 0 {
		return nil
	}
	if err := r.order.release(^uint64(0), r.observe); err != nil {
		return err
	}
	r.table.Finish()
	r.next = 0
	if err := r.collect(ctx, r.last); err != nil {
		return err
	}
	if r.ended != nil {
		r.ended(r.table)
	}
	return nil
}

// advance brings the time to mark: everything earlier is processed, and the collections that
// fall due on the way take place at their own time, not at the Tick's.
func (r *reader) advance(ctx context.Context, mark uint64) error {
	for r.next != 0 && r.next <= mark {
		if err := r.order.release(r.next, r.observe); err != nil {
			return err
		}
		if err := r.collect(ctx, r.next); err != nil {
			return err
		}
		r.next += r.interval
	}
	if err := r.order.release(mark, r.observe); err != nil {
		return err
	}
	r.pass(mark)
	return nil
}

func (r *reader) observe(h *event.Header) error {
	r.last = max(r.last, h.Time)
	r.table.Observe(h)
	return nil
}

// pass tells the table that time has gone on.
func (r *reader) pass(to uint64) {
	r.last = max(r.last, to)
	r.tick.Header = event.Header{Time: to, Kind: event.KindTick, Size: uint16(event.TickSize)}
	r.table.Observe(&r.tick.Header)
}

func (r *reader) collect(ctx context.Context, at uint64) error {
	r.pass(at)
	if r.sink == nil {
		return nil
	}
	// After a failure the rest of the collection is left out, but the builder still has to see it all.
	var err error
	r.build.Begin(r.table.Wall(), func(part pmetric.Metrics) {
		if err == nil {
			err = r.sink.ConsumeMetrics(exporter.WithMore(ctx), part)
		}
	})
	r.table.Collect(r.build)
	if last := r.build.End(); err == nil && last.DataPointCount() > 0 {
		err = r.sink.ConsumeMetrics(ctx, last)
	}
	if err != nil {
		return r.sinkErr(err)
	}
	return nil
}

// ReadOptions are what the read half needs to know.
type ReadOptions struct {
	Process processors.Config
	Export  exporter.Config
	// Select is what of a recording is replayed; Run takes everything, whatever it says.
	Select Selection
}
