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

// A block is sealed when it is full or when its first event is as old as maxBlockAge, so that
// a recorder that is killed loses at most that and what the kernel had gathered: together well
// under a second.
const (
	maxBlockEvents = 32 << 10
	maxBlockRaw    = 8 << 20
	maxBlockAge    = 400 * time.Millisecond
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
	var oldest time.Time // when the block's first record was added
	for {
		batch, err := src.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return seal()
		case err != nil:
			return errors.Join(fmt.Errorf("read events: %w", err), seal())
		}
		if len(batch) > 0 {
			if b.Events() == 0 {
				oldest = time.Now()
			}
			b.Add(batch)
		}
		full := b.Events() >= maxBlockEvents || b.Raw() >= maxBlockRaw
		if full || b.Events() > 0 && time.Since(oldest) >= maxBlockAge || ends(batch) {
			if err := seal(); err != nil {
				return err
			}
		}
	}
}

// ends says whether the batch is the session's first or last anchor: blocks do not cross sessions, and
// a session is on disk as soon as it begins.
func ends(batch []byte) bool {
	if len(batch) == 0 {
		return false
	}
	h := event.At(batch)
	return h.Kind == event.KindAnchor && h.Anchor().Phase != event.AnchorPeriodic
}
