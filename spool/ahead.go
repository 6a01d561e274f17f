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
	s.reserved.Add(n)
	w.openBytes.Add(n)
	if take() == nil {
		return true
	}
	s.reserved.Add(-n)
	w.openBytes.Add(-n)
	return false
}

// mayTake tells whether there are n bytes to spare on the device, without removing anything for them.
func (w *Writer) mayTake(n int64) bool {
	if w.cfg.MaxBytes > 0 && w.used()+n > w.cfg.MaxBytes {
		return false
	}
	disk, err := diskOf(w.cfg.Dir)
	return err == nil && !disk.readOnly && disk.free-n >= w.cfg.MinFreeBytes
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
