// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"errors"
	"slices"

	badger "github.com/dgraph-io/badger/v4"
)

// NextID is the ID that the next block will get.
func (w *Writer) NextID() ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nextID
}

// Read appends the block id to dst and returns the result: it lets the recording process itself follow what it
// records, without a rotation. A block that is not there any more is a *DamageError. Read is for one goroutine, which may be
// another one than that which appends; it must not be called during or after Close.
func (w *Writer) Read(ctx context.Context, id ID, dst []byte) ([]byte, error) {
	w.mu.Lock()
	w.forgetDone()
	open := append(slices.Clone(w.ended), w.cur)
	w.mu.Unlock()
	for _, s := range slices.Backward(open) {
		out, ok, err := s.read(id, dst)
		if ok || err != nil {
			return out, err
		}
		if s.mayHold(id) { // it is being closed: below it is read as a closed one
			select {
			case <-s.done:
			case <-ctx.Done():
				return dst, ctx.Err()
			}
		}
	}
	return w.readBehind(ctx, id, dst)
}

// read takes a block out of a segment that is still open. It returns false if it is not, or has no such block.
func (s *segment) read(id ID, dst []byte) (out []byte, ok bool, err error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.shut {
		return dst, false, nil
	}
	var key [8]byte
	out = dst
	err = guard(func() error {
		return s.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(blockKey(&key, id))
			if errors.Is(err, badger.ErrKeyNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			return value(item, func(v []byte) { out, ok = append(out, v...), true })
		})
	})
	return out, ok, err
}

// mayHold tells whether the segment is being closed and begins before the block.
func (s *segment) mayHold(id ID) bool {
	s.using.RLock()
	defer s.using.RUnlock()
	return s.shut && id >= s.info.First
}

// readBehind reads a block of a closed segment.
func (w *Writer) readBehind(ctx context.Context, id ID, dst []byte) ([]byte, error) {
	var err error
	if w.behind == nil {
		w.behind, err = Open(ctx, w.cfg.Dir, ReadOptions{Encryption: w.cfg.Encryption, NoRotate: true, Log: w.log})
	} else if n := len(w.behind.segs); n == 0 || w.behind.segs[n-1].Last < id {
		err = w.behind.Refresh(ctx)
	}
	if err != nil {
		return dst, err
	}
	if w.behind.next != id || w.behind.held {
		if err := w.behind.Seek(id); err != nil {
			return dst, err
		}
	}
	got, b, err := w.behind.Next(ctx)
	if err != nil {
		return dst, err
	}
	if got != id {
		return dst, &DamageError{First: id, Last: got - 1, Err: ErrRemoved}
	}
	return append(dst, b...), nil
}
