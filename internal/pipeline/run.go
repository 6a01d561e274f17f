// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Result tells what a run did.
type Result struct {
	Blocks  int         `json:"blocks"`
	Hooks   []HookCount `json:"hooks"`   // of a capture
	Damaged []Damage    `json:"damaged"` // of a replay
	// Unstored counts events that the spool refused (a full disk); Hooks holds them under Dropped.
	Unstored uint64 `json:"unstored,omitempty"`
	// SinkErrors counts the collections that the sink refused while a capture went on, SinkErr is
	// the last reason.
	SinkErrors int   `json:"sink_errors,omitempty"`
	SinkErr    error `json:"-"`
}

// writer is the write half: batches in, blocks in the spool out.
type writer struct {
	spool  *spool.Writer
	log    *slog.Logger
	result *Result
	tally  Tally
	lost   refusals
	fails  int
	unsafe bool // a block was stored that the device did not confirm
	notify func(spool.ID)
}

// put appends a sealed block. A spool that is full, gone or broken does not end the recording: what it refuses is
// counted, and the recording tells so as soon as it goes on.
func (w *writer) put(sealed []byte) error {
	info, err := block.ReadInfo(sealed)
	if err != nil {
		panic("BUG: sealed block: " + err.Error())
	}
	id, err := w.spool.Append(sealed)
	switch {
	case errors.Is(err, spool.ErrClosed):
		return err
	case err != nil && id != 0:
		if !w.unsafe {
			w.log.Warn("the device does not confirm what it is given", "error", err)
		}
		w.unsafe = true
	case err != nil:
		if w.fails++; w.fails == 1 {
			w.log.Warn("the spool takes nothing, events are being lost", "error", err)
		}
		w.result.Unstored += hookEvents(&info)
		w.lost.add(sealed)
		return nil
	}
	if w.fails > 0 {
		w.log.Info("the spool takes events again", "blocks_lost", w.fails)
		w.fails = 0
	}
	w.tally.Block(&info)
	w.result.Blocks++
	if w.notify != nil {
		w.notify(id)
	}
	return nil
}

// run pumps the source dry. Records that the capture itself makes are looked at for the account.
func (w *writer) run(ctx context.Context, src Source) error {
	err := Encode(ctx, &observed{src, &w.tally, &w.lost}, w.put)
	if serr := w.spool.Sync(); serr != nil {
		err = errors.Join(err, serr)
	}
	w.result.Hooks = w.tally.Hooks()
	for i := range w.result.Hooks {
		for h := range event.Hook(event.Hooks) {
			if h.String() == w.result.Hooks[i].Hook {
				w.result.Hooks[i].Dropped += w.lost.rest(h)
			}
		}
	}
	return err
}

// observed shows a source's batches of user-space records to a tally. What the spool has refused is told among them.
type observed struct {
	Source
	tally *Tally
	lost  *refusals
}

func (o *observed) Next(ctx context.Context) ([]byte, error) {
	if batch := o.lost.pending(); len(batch) > 0 {
		return batch, nil
	}
	batch, err := o.Source.Next(ctx)
	if len(batch) > 0 && event.At(batch).Kind >= event.KindTick {
		batch = o.lost.account(batch)
		for h := range event.All(batch) {
			o.tally.Observe(h)
		}
	}
	return batch, err
}

// Record is the write half alone: it stores what the source gives until the source ends (stop it
// to end in order) and tells the account. It does not close either side.
func Record(ctx context.Context, src Source, w *spool.Writer, log *slog.Logger) (Result, error) {
	var result Result
	err := (&writer{spool: w, log: log, result: &result}).run(ctx, src)
	return result, err
}

// Run is both halves: it stores what the source gives and works off each block as soon as it is
// stored. The sink may fail without harm to the recording: failures are counted in the Result. When the
// source ends, the read half catches up and makes the last collection before Run returns.
func Run(ctx context.Context, src Source, w *spool.Writer, meta spool.Meta, opts ReadOptions, sink Sink, log *slog.Logger) (Result, error) {
	var result Result
	read, err := newReader(always(meta), opts, sink)
	if err != nil {
		return result, err
	}
	read.sinkErr = func(err error) error {
		if result.SinkErrors++; result.SinkErrors == 1 {
			log.Warn("the sink refuses metrics, recording goes on", "error", err)
		}
		result.SinkErr = err
		return nil
	}

	var (
		mu     sync.Mutex
		news   = sync.NewCond(&mu)
		newest spool.ID
		done   bool
	)
	var wrote error
	var wg sync.WaitGroup
	half := &writer{spool: w, log: log, result: &result}
	half.notify = func(id spool.ID) {
		mu.Lock()
		newest = id
		mu.Unlock()
		news.Signal()
	}
	var written Result
	half.result = &written
	wg.Go(func() {
		wrote = half.run(ctx, src)
		mu.Lock()
		done = true
		mu.Unlock()
		news.Signal()
	})

	// The read half takes its blocks from the spool, where they wait for it however slow it is.
	readErr := func() error {
		next := w.NextID()
		var buf []byte
		for {
			mu.Lock()
			for newest < next && !done {
				news.Wait()
			}
			end := newest
			mu.Unlock()
			if end < next {
				return read.close(ctx)
			}
			for ; next <= end; next++ {
				var err error
				if buf, err = w.Read(ctx, next, buf[:0]); err == nil {
					err = read.feed(ctx, next, buf)
				}
				if err != nil {
					// Retention can overtake a read half that is far behind.
					result.Damaged = append(result.Damaged, Damage{Block: next, Err: err, Text: err.Error()})
					log.Warn("block skipped by the read half", "block", next, "error", err)
				}
			}
		}
	}()
	wg.Wait()
	result.Blocks, result.Hooks, result.Unstored = written.Blocks, written.Hooks, written.Unstored
	return result, errors.Join(wrote, readErr)
}

// Replay is the read half alone: it works off a recording and gives the sink the metrics that Run
// gave when it was made. Damaged blocks are passed over and listed in the Result. An error of
// the sink ends it, as a *SinkError.
func Replay(ctx context.Context, r *spool.Reader, opts ReadOptions, sink Sink, progress Progress) (Result, error) {
	var result Result
	read, err := newReader(metaOf(r), opts, sink)
	if err != nil {
		return result, err
	}
	sel, err := opts.Select.resolve(ctx, r)
	if err != nil {
		return result, err
	}
	var ranges []idRange
	if sel != nil {
		read.part = newPart(sel)
		if ranges, err = sel.ranges(ctx, r); err != nil {
			return result, err
		}
	}
	err = eachSelected(ctx, r, ranges, progress, &result.Damaged, func(id spool.ID, src []byte) error {
		result.Blocks++
		return read.feed(ctx, id, src)
	})
	if err != nil {
		return result, err
	}
	return result, read.finish(ctx)
}

// metaOf returns who recorded each block: segments of merged spools have different recorders.
func metaOf(r *spool.Reader) func(spool.ID) spool.Meta {
	segs := r.Segments()
	return func(id spool.ID) spool.Meta {
		var meta *spool.Meta
		for i := range segs {
			if segs[i].Meta != nil {
				meta = segs[i].Meta
			}
			if segs[i].Last >= id && meta != nil {
				break
			}
		}
		if meta == nil {
			return spool.Meta{}
		}
		return *meta
	}
}
