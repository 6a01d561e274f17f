// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool/block"
)

// A block is sealed when it is full, or at the tick by which its first event is as old as maxBlockAge, so that
// a recorder that is killed loses at most that or what the kernel had gathered between two ticks, whichever is more; on a host
// where nothing happens ticks come once a second.
const (
	maxBlockEvents = 32 << 10
	maxBlockRaw    = 8 << 20
	maxBlockAge    = 400 * time.Millisecond
	clockStep      = 200_000 // ns: what differs more was not read apart, but set
)

// Encode is the write half up to the spool: it moves batches from the source into blocks and hands each
// sealed block to put, which must copy what it keeps. It returns after the source's end, with everything sealed.
func Encode(ctx context.Context, src Source, put func(sealed []byte) error) error {
	b := block.NewBuilder(block.Options{})
	var buf []byte
	seal := func() error {
		if b.Events() == 0 {
			return nil
		}
		buf = b.Seal(buf[:0])
		return put(buf)
	}
	var ahead int64 // of the wall clock over the monotonic one
	for {
		batch, err := src.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return seal()
		case err != nil:
			return errors.Join(fmt.Errorf("read events: %w", err), seal())
		}
		if a := anchor(batch); a != nil {
			// A block begins where the clock was set: its head alone tells the wall time of what follows.
			was := ahead
			if ahead = a.Realtime - int64(a.Time); max(ahead-was, was-ahead) > clockStep {
				if err := seal(); err != nil {
					return err
				}
			}
		}
		if len(batch) > 0 {
			b.Add(batch)
		}
		full := b.Events() >= maxBlockEvents || b.Raw() >= maxBlockRaw
		if full || ticks(batch) && b.Last()-b.First() >= uint64(maxBlockAge) || ends(batch) {
			if err := seal(); err != nil {
				return err
			}
		}
	}
}

// ticks says whether there is a tick among the records of user space, which have batches of their own.
func ticks(batch []byte) bool {
	if len(batch) == 0 || event.At(batch).Kind < event.KindTick {
		return false
	}
	for h := range event.All(batch) {
		if h.Kind == event.KindTick {
			return true
		}
	}
	return false
}

// ends says whether the batch is the session's first or last anchor: blocks do not cross sessions, and
// a session is on disk as soon as it begins.
func ends(batch []byte) bool {
	a := anchor(batch)
	return a != nil && a.Phase != event.AnchorPeriodic
}

// anchor returns the anchor that a batch begins with, or nil.
func anchor(batch []byte) *event.Anchor {
	if len(batch) == 0 || event.At(batch).Kind != event.KindAnchor {
		return nil
	}
	return event.At(batch).Anchor()
}
