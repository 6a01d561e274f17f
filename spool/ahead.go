// SPDX-License-Identifier: Apache-2.0

package spool

// stayAhead does beside Append what an Append would have to wait for: it sets space aside before it is needed, brings its
// pages into the page cache, lets the device begin to write what is complete, and writes the sidecar of a segment that was begun. Whatever it cannot do, because
// there is no room or because blocks come faster, is left to Append. (BenchmarkAppendLatency shows what is left.)
func (w *Writer) stayAhead() {
	defer w.tasks.Done()
	for {
		select {
		case <-w.stop:
			return
		case <-w.early:
		}
		w.mu.Lock()
		s := w.cur
		// It is not closed before it is ended, which takes mu.
		s.using.RLock()
		vlog, wal := s.vlogRes, s.walRes
		lacksVlog := vlog < s.vlogEnd+w.step() && vlog < w.cfg.SegmentBytes
		lacksWAL := wal < s.walEnd+walChunk && wal < walLimit
		end, si := s.vlogEnd, s.info
		w.mu.Unlock()

		if lacksVlog && w.setAside(s, func() error { return allocate(s.vlog, vlog, w.step()) }, w.step()) {
			s.vlogAhead.Store(vlog + w.step())
			populate(s.vlog, vlog, w.step())
		}
		if lacksWAL && w.setAside(s, func() error { return allocate(s.wal, wal, walChunk) }, walChunk) {
			s.walAhead.Store(wal + walChunk)
			populate(s.wal, wal, walChunk)
		}
		s.announce(si)
		s.startWriteback(end)
		s.using.RUnlock()
		if lacksVlog {
			w.nudge() // retention stays ahead, too
		}
	}
}

// setAside takes n bytes of the device for the segment, if there are so many to spare.
func (w *Writer) setAside(s *segment, take func() error, n int64) bool {
	if !w.mayTake(n) {
		return false
	}
	defer w.settle(n)
	s.reserved.Add(n)
	w.openBytes.Add(n)
	if take() == nil {
		return true
	}
	s.reserved.Add(-n)
	w.openBytes.Add(-n)
	return false
}

// mayTake claims n bytes, if there are so many to spare without removing anything for them.
func (w *Writer) mayTake(n int64) bool {
	if w.cfg.MaxBytes > 0 && w.used()+n > w.cfg.MaxBytes {
		return false
	}
	_, ok, err := w.claim(n)
	return ok && err == nil
}

// claim promises n bytes of the device to the caller, if there are so many to spare beyond what is promised to others: Append, stayAhead and
// prepare take space side by side, and none may count on what another one is about to take. After ok the caller takes them, and
// calls settle. The state has what is promised taken off.
func (w *Writer) claim(n int64) (disk diskState, ok bool, err error) {
	w.spaceMu.Lock()
	defer w.spaceMu.Unlock()
	if disk, err = diskOf(w.cfg.Dir); err != nil || disk.readOnly {
		return disk, false, err
	}
	disk.free -= w.claimed
	if disk.free-n < w.cfg.MinFreeBytes {
		return disk, false, nil
	}
	w.claimed += n
	return disk, true, nil
}

// settle ends a claim: the bytes have been taken, or will not be.
func (w *Writer) settle(n int64) {
	w.spaceMu.Lock()
	w.claimed -= n
	w.spaceMu.Unlock()
}

// startWriteback lets the device begin early, so that closing finds little left to do: with what lies before end, in whole pages of the
// largest size that the page cache uses. One that is still being written would be written twice (measured: 1.18 instead of 1.00 times the
// blocks' bytes).
func (s *segment) startWriteback(end int64) {
	if end &^= 2<<20 - 1; end-s.kicked >= vlogChunk {
		startWriteback(s.vlog, s.kicked, end-s.kicked)
		s.kicked = end
	}
}
