// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxClosing is how many segments may wait to be closed before Append waits: closing waits for the device.
const maxClosing = 2

// A Writer appends blocks to a spool. All its methods may be called from any goroutine.
type Writer struct {
	cfg  Config
	meta Meta
	key  []byte
	log  *slog.Logger
	lock *dirLock
	home os.FileInfo // the directory as it was found

	mu          sync.Mutex // of what follows; held while a block is appended
	cur         *segment
	lastClosing *segment   // the newest that was handed to the closer
	ended       []*segment // all that were, and that are perhaps not closed yet
	nextID      ID
	closed      bool
	full        bool // the last Append met a full file system
	segments    int  // ended ones, with blocks; like the next two with those that retention has removed since
	blocks      uint64
	bytes       int64

	prepMu sync.Mutex // of nextNumber, and serializes preparing; taken after mu or alone
	number uint64     // the newest segment's
	next   atomic.Pointer[segment]

	segMu   sync.Mutex // of what follows; taken last
	segs    []SegmentInfo
	starved chan struct{}
	oldest  ID
	dropped Dropped
	warned  bool // of the first removal by retention

	spaceMu sync.Mutex // taken last
	claimed int64      // of the device: see claim

	closedBytes atomic.Int64 // of the device: closed segments, and trash until it is gone
	openBytes   atomic.Int64 // of the device: segments that are not closed

	syncs, rotations, stalls atomic.Uint64

	rotMu   sync.Mutex // serializes Rotate
	closing chan *segment
	slots   chan struct{} // one for each segment in closing, bounds them
	wake    chan struct{} // asks for a prepared segment and for retention
	early   chan struct{} // asks for what the next Appends need
	stop    chan struct{} // closed by Close
	behind  *Reader       // of Read, for segments that are closed already; nil if none was needed
	tasks   sync.WaitGroup
	closer  sync.WaitGroup
	control *control
}

// Dropped counts what retention has removed since the Writer was made.
type Dropped struct {
	Segments uint64 `json:"segments"`
	Blocks   uint64 `json:"blocks"`
	Bytes    int64  `json:"bytes"` // of the blocks
}

// Stats is the state of a spool that is being recorded.
type Stats struct {
	Segments    int     `json:"segments"` // with blocks
	First       ID      `json:"first_id"` // the oldest block that is there; Last+1 if there is none
	Last        ID      `json:"last_id"`
	Blocks      uint64  `json:"blocks"`
	Bytes       int64   `json:"bytes"`        // of the blocks
	DeviceBytes int64   `json:"device_bytes"` // what the directory takes of the device, with what is set aside
	Dropped     Dropped `json:"dropped"`      // by retention, since the Writer was made
	Syncs       uint64  `json:"syncs"`        // synchronisations with the device
	Rotations   uint64  `json:"rotations"`    // segments that were ended
	Stalls      uint64  `json:"stalls"`       // rotations that had to wait because the next segment was not ready
	Full        bool    `json:"full"`         // the last Append met a full file system
}

// Create opens the spool at cfg.Dir for appending, and makes it if it is not there. Segments that a dead recorder
// left open are recovered first. A second recorder gets ErrLocked. The context bounds only the opening. meta is stored with
// each segment. The log may be nil.
func Create(ctx context.Context, cfg Config, meta Meta, log *slog.Logger) (_ *Writer, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dir == "" {
		return nil, errors.New("spool.dir: no directory is given")
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	key, err := cfg.Encryption.Key()
	if err != nil {
		return nil, err
	}
	if err := makeSpool(cfg.Dir); err != nil {
		return nil, err
	}
	w := &Writer{
		cfg: cfg, meta: meta, key: key, log: log,
		closing: make(chan *segment, maxClosing+1), // Close needs no slot
		slots:   make(chan struct{}, maxClosing),
		starved: make(chan struct{}),
		wake:    make(chan struct{}, 1),
		early:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	if w.lock, err = takeLock(cfg.Dir, roleRecord); err != nil {
		return nil, createError(cfg.Dir, err)
	}
	defer func() {
		if err != nil {
			w.abandon()
		}
	}()
	if w.home, err = os.Stat(cfg.Dir); err != nil {
		return nil, err
	}
	if err := w.takeOver(ctx); err != nil {
		return nil, createError(cfg.Dir, err)
	}
	if err := w.prepare(); err != nil {
		return nil, createError(cfg.Dir, err)
	}
	w.cur = w.next.Swap(nil)
	if err := w.cur.activate(w.nextID, w.now()); err != nil {
		return nil, createError(cfg.Dir, err)
	}
	if w.control, err = listen(w); err != nil {
		log.Warn("spool: readers cannot ask for the newest blocks: they see closed segments only", "dir", cfg.Dir, "error", err)
	}
	w.closer.Add(1)
	go w.closeSegments()
	w.tasks.Add(2)
	go w.maintain()
	go w.stayAhead()
	if cfg.Sync == SyncInterval {
		w.tasks.Add(1)
		go w.syncAtIntervals()
	}
	return w, nil
}

// makeSpool makes the directory a spool, unless it is one or holds anything else.
func makeSpool(dir string) error {
	_, err := readSpoolFile(dir)
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return createError(dir, err)
		}
	case errors.Is(err, ErrNotSpool):
		entries, rerr := os.ReadDir(dir)
		if rerr != nil {
			return err
		}
		for _, e := range entries {
			if e.Name() != "lost+found" { // the root of a file system
				return err
			}
		}
	default:
		return err
	}
	text, err := json.Marshal(spoolFile{spoolFormat, Version, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, segmentsName), 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return createError(dir, err)
	}
	return createError(dir, writeAtomic(filepath.Join(dir, spoolName), append(text, '\n'), true))
}

// createError names the place of a failure to record, and says what to do about the common ones.
func createError(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case isReadOnly(err):
		return withHint(fmt.Errorf("cannot record into %s: %w: %w", dir, ErrReadOnly, err), "choose another --spool")
	case isNoSpace(err):
		return withHint(fmt.Errorf("cannot record into %s: %w: %w", dir, ErrFull, err), "free some space or choose another --spool")
	case errors.Is(err, fs.ErrPermission):
		return withHint(fmt.Errorf("cannot record into %s: %w", dir, err), "choose a --spool that you may write, or use sudo")
	}
	return err
}

// takeOver brings what is there into order: trash is removed, open segments are closed.
func (w *Writer) takeOver(ctx context.Context) error {
	dir := w.cfg.Dir
	for _, sub := range []string{segmentsName, trashName} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o750); err != nil {
			return err
		}
	}
	if err := emptyDir(filepath.Join(dir, trashName)); err != nil {
		return err
	}
	numbers, err := listSegments(dir)
	if err != nil {
		return err
	}
	w.nextID = 1
	for _, n := range numbers {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.number = n
		path := segmentDir(dir, n)
		si, err := readSidecar(path)
		switch {
		case errors.Is(err, ErrVersion):
			return err
		case err == nil && si.State == StateClosed:
			if si.Device, err = diskUse(path); err != nil {
				return err
			}
		default:
			first := max(si.First, w.nextID)
			si, err = recoverSegment(path, n, w.key, w.log)
			for errors.Is(err, ErrFull) && w.cfg.OnFull == FullDropOldest && w.dropOldest() {
				si, err = recoverSegment(path, n, w.key, w.log)
			}
			if errors.Is(err, ErrFull) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrKey) {
				return err
			}
			if err != nil {
				// What is broken must not keep anybody from recording. It stays as it is, and its IDs stay free.
				w.log.Error("spool: a segment that was not closed cannot be recovered; it is left as it is", "segment", n, "error", err)
				si = SegmentInfo{Version: Version, Number: n, State: StateActive, First: first, Last: first + mostBlocks(path), LastAt: w.now(), Dir: path, Err: err}
				if si.Device, err = diskUse(path); err != nil {
					return err
				}
			} else if si.State != StateClosed {
				continue // it was prepared, never used, and is gone
			}
		}
		w.nextID = max(w.nextID, si.Last+1)
		w.closedBytes.Add(si.Device)
		w.segs = append(w.segs, si)
		if si.Blocks > 0 {
			w.segments++
			w.blocks += si.Blocks
			w.bytes += si.Bytes
		}
	}
	w.oldest = w.nextID
	if len(w.segs) > 0 {
		w.oldest = w.segs[0].First
	}
	return nil
}

// mostBlocks bounds how many blocks the files of a broken segment can hold.
func mostBlocks(path string) ID {
	use, err := diskUse(path)
	if err != nil {
		return 1 << 32
	}
	return ID(use/logHeader) + 1
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// abandon undoes a Create that failed.
func (w *Writer) abandon() {
	for _, s := range []*segment{w.cur, w.next.Load()} {
		if s != nil {
			s.discard()
		}
	}
	_ = w.lock.release()
}

func (w *Writer) now() time.Time { return time.Now().UTC() }

// Append stores the block behind all others and returns its ID. It copies b. When it returns without an error, the block survives
// the death of the process, and in mode SyncBlock the loss of power. An error with an ID says that the block is stored, but that the device failed to make
// it safe from a loss of power. After any other error it was not stored, and Append works again once there is space (ErrFull), the directory is back (ErrGone) or
// can be written again (ErrReadOnly). (BenchmarkAppend and BenchmarkAppendLatency measure it.)
func (w *Writer) Append(b []byte) (ID, error) {
	n := int64(len(b))
	if n == 0 || n > MaxBlock {
		return 0, fmt.Errorf("block of %d bytes: want 1 to %d", n, MaxBlock)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	id, err := w.store(b)
	w.full = errors.Is(err, ErrFull)
	switch {
	case err == nil && w.cfg.Sync == SyncBlock:
		w.syncs.Add(1)
		if _, err := w.cur.sync(); err != nil {
			w.distrust(w.cur, err)
			return id, fmt.Errorf("block %d is stored, but not safe from a loss of power: %w", id, err)
		}
	case isReadOnly(err) && !errors.Is(err, ErrReadOnly):
		err = readOnlyError(w.cfg.Dir, err)
	}
	return id, err
}

// store puts the block into the segment that is written, or the next one. mu must be held.
func (w *Writer) store(b []byte) (ID, error) {
	n := int64(len(b))
	if err := w.present(); err != nil {
		return 0, err
	}
	if w.cur.broken != nil || !w.cur.fits(n, w.cfg.SegmentBytes) {
		if err := w.swap(); err != nil {
			return 0, err
		}
		w.nudge() // blocks come in numbers: the segment after this one will be needed soon
	}
	if err := w.makeRoom(w.cur, n); err != nil {
		return 0, err
	}
	id := w.nextID
	if err := w.cur.append(id, b, w.now()); err != nil {
		return 0, fmt.Errorf("segment %08d: block %d: %w", w.cur.info.Number, id, err)
	}
	w.nextID++
	w.blocks++
	w.bytes += n
	if w.next.Load() == nil && (w.cur.vlogEnd > w.cfg.SegmentBytes/8 || w.cur.walEnd > walLimit/8) {
		w.nudge()
	}
	if w.cur.vlogEnd >= w.cur.calm || w.cur.walRes-w.cur.walEnd < walChunk {
		w.cur.calm = w.cur.vlogEnd + w.step()/4
		w.hurry()
	}
	return id, nil
}

// present tells whether the directory is still the one that was opened, and can be written.
func (w *Writer) present() error {
	fi, err := os.Stat(w.cfg.Dir)
	if err != nil || !os.SameFile(fi, w.home) {
		return withHint(fmt.Errorf("%w: %s", ErrGone, w.cfg.Dir), "mount it again, and the recording goes on; if it was removed, start the recording anew")
	}
	return nil
}

// nudge wakes maintain.
func (w *Writer) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// hurry wakes stayAhead.
func (w *Writer) hurry() {
	select {
	case w.early <- struct{}{}:
	default:
	}
}

// used is what the spool takes of the device.
func (w *Writer) used() int64 {
	return w.closedBytes.Load() + w.openBytes.Load() + fixedBytes
}

// step is how much is set aside in a value log at a time.
func (w *Writer) step() int64 { return min(vlogChunk, max(w.cfg.SegmentBytes/8, 64<<10)) }

// makeRoom sets space aside for a block of n bytes, unless stayAhead has done so. mu must be held.
func (w *Writer) makeRoom(s *segment, n int64) error {
	step := w.step()
	for {
		vlog, wal := s.lacks(n)
		if vlog == 0 && wal == 0 {
			return nil
		}
		need := int64(0) // what reserve takes
		if vlog > 0 {
			need += max(vlog, step)
		}
		if wal > 0 {
			need += max(wal, walChunk)
		}
		if w.cfg.MaxBytes > 0 && w.used()+need > w.cfg.MaxBytes {
			if w.dropOldest() || w.waitClosing() {
				continue
			}
		}
		disk, ok, err := w.claim(need)
		if err != nil {
			return err
		}
		if disk.readOnly {
			return readOnlyError(s.info.Dir, nil)
		}
		if ok {
			sum, err := s.reserve(n, step, walChunk)
			w.settle(need)
			w.openBytes.Add(sum)
			if err == nil {
				return nil
			}
			if !isNoSpace(err) {
				s.broken = err // the file system may come back, but not with this file
				return err
			}
		}
		if w.cfg.OnFull == FullDropOldest && w.dropOldest() {
			continue
		}
		if step > 0 && !ok && need > vlog+wal {
			step = 0 // less will do for this block
			if wal == 0 {
				continue
			}
		}
		return w.fullError(disk)
	}
}

// readOnlyError is for a file system that takes no writes any more; err may be nil.
func readOnlyError(dir string, err error) error {
	if err == nil {
		err = fmt.Errorf("%w: %s", ErrReadOnly, dir)
	} else {
		err = fmt.Errorf("%w: %s: %w", ErrReadOnly, dir, err)
	}
	return withHint(err, "mount it for writing again; the recording then goes on")
}

func (w *Writer) fullError(disk diskState) error {
	return withHint(fmt.Errorf("%w: %s: %d bytes are free, spool.min_free_bytes leaves %d to others", ErrFull, w.cfg.Dir, disk.free, w.cfg.MinFreeBytes),
		"free some space, or set spool.on_full: drop_oldest; the recording goes on when there is room")
}

// waitClosing waits for the segment that is being closed, so that retention may remove one. It tells whether there was
// one to wait for. mu must be held.
func (w *Writer) waitClosing() bool {
	s := w.lastClosing
	if s == nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
	}
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		return false
	}
	return true
}

// swap ends the segment that is written and goes on in the next. mu must be held.
func (w *Writer) swap() error {
	select {
	case w.slots <- struct{}{}:
	default:
		select {
		case w.slots <- struct{}{}:
		case <-w.starving():
			return w.starvedError()
		}
	}
	if err := w.activateNext(); err != nil {
		<-w.slots
		return err
	}
	old := w.cur
	w.cur = w.next.Swap(nil)
	w.lastClosing = old
	w.forgetDone()
	w.ended = append(w.ended, old)
	if old.info.Blocks > 0 {
		w.segments++
	}
	w.rotations.Add(1)
	w.closing <- old // has room: there is a slot
	return nil
}

// activateNext makes the prepared segment ready for blocks, and prepares it if need be. mu must be held.
func (w *Writer) activateNext() error {
	if w.next.Load() == nil {
		w.stalls.Add(1)
		if err := w.prepare(); err != nil {
			return err
		}
	}
	return w.next.Load().activate(w.nextID, w.now())
}

// prepare opens the next segment, unless there is one.
func (w *Writer) prepare() error {
	w.prepMu.Lock()
	defer w.prepMu.Unlock()
	if w.next.Load() != nil {
		return nil
	}
	w.number++
	s, err := w.openNext()
	for errors.Is(err, ErrFull) && w.cfg.OnFull == FullDropOldest && w.dropOldest() {
		s, err = w.openNext()
	}
	if err != nil {
		return err
	}
	w.openBytes.Add(s.reserved.Load())
	w.next.Store(s)
	return nil
}

// openNext creates the next segment if there is room for it.
func (w *Writer) openNext() (*segment, error) {
	disk, ok, err := w.claim(openBytes + walChunk)
	switch {
	case err != nil:
		return nil, err
	case disk.readOnly:
		return nil, withHint(fmt.Errorf("cannot record into %s: %w", w.cfg.Dir, ErrReadOnly), "choose another --spool")
	case !ok:
		return nil, w.fullError(disk)
	}
	s, err := createSegment(w.cfg.Dir, w.number, w.cfg.SegmentBytes, w.meta, w.key, w.log)
	w.settle(openBytes + walChunk)
	if isNoSpace(err) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	if err != nil {
		return nil, err
	}
	if first := w.step() + s.reserved.Load(); w.mayTake(first) {
		defer w.settle(first)
		// What the first blocks need. If it cannot be had, Append sees to it.
		if _, err := s.reserve(w.step(), w.step(), walChunk); err == nil {
			populate(s.vlog, 0, s.vlogRes)
			populate(s.wal, 0, s.walRes)
		}
	}
	return s, nil
}

// Rotate ends the segment that is written, so that others can read all blocks appended before the call, and returns
// when it is closed. Without new blocks it only waits for what is being closed.
func (w *Writer) Rotate(ctx context.Context) error {
	w.rotMu.Lock()
	defer w.rotMu.Unlock()
	w.mu.Lock()
	idle, closed, wait := w.cur.info.Blocks == 0, w.closed, w.lastClosing
	w.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if !idle {
		if err := w.prepare(); err != nil {
			return err
		}
		w.mu.Lock()
		err := error(nil)
		if w.closed {
			err = ErrClosed
		} else if w.cur.info.Blocks > 0 {
			err = w.swap()
		}
		wait = w.lastClosing
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if wait == nil {
		return nil
	}
	select {
	case <-wait.done:
		return wait.closeErr
	case <-w.starving():
		return w.starvedError()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// starving returns a channel that is closed while there is no room to close a segment.
func (w *Writer) starving() <-chan struct{} {
	w.segMu.Lock()
	defer w.segMu.Unlock()
	return w.starved
}

// starvedError is for segments that cannot be closed for want of space.
func (w *Writer) starvedError() error {
	return withHint(fmt.Errorf("%w: %s: there is no room to close a segment, so that the newest blocks, though stored, cannot be read yet", ErrFull, w.cfg.Dir),
		"free some space; the recording goes on when there is room")
}

// Sync forces all blocks appended before the call to the device.
func (w *Writer) Sync() error {
	w.mu.Lock()
	w.forgetDone()
	segs := append(slices.Clone(w.ended), w.cur)
	closed := w.closed
	w.mu.Unlock()
	if closed {
		return ErrClosed
	}
	var errs error
	for _, s := range segs {
		did, err := s.sync()
		if did {
			w.syncs.Add(1)
		}
		if err != nil {
			errs = errors.Join(errs, err)
			w.mu.Lock()
			w.distrust(s, err)
			w.mu.Unlock()
		}
	}
	return errs
}

// distrust takes a segment that the device failed out of use, and the prepared one with it: no block is acknowledged any longer before a new one
// can be made. mu must be held.
func (w *Writer) distrust(s *segment, err error) {
	s.broken = err
	if next := w.next.Swap(nil); next != nil {
		next.discard()
		w.openBytes.Add(-next.reserved.Load())
	}
}

// forgetDone drops closed segments from ended. mu must be held.
func (w *Writer) forgetDone() {
	w.ended = slices.DeleteFunc(w.ended, func(s *segment) bool {
		select {
		case <-s.done:
			return true
		default:
			return false
		}
	})
}

func (w *Writer) syncAtIntervals() {
	defer w.tasks.Done()
	tick := time.NewTicker(w.cfg.SyncInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		err := w.Sync()
		if err != nil && !failed && !errors.Is(err, ErrClosed) {
			w.log.Error("spool: synchronisation failed: the newest blocks are not safe from a loss of power", "dir", w.cfg.Dir, "error", err)
		}
		failed = err != nil
	}
}

// maintain prepares segments ahead of their use, and ends and removes old ones.
func (w *Writer) maintain() {
	defer w.tasks.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-w.stop:
			return
		case <-w.wake:
			err := w.prepare()
			if err != nil && !errors.Is(err, ErrFull) && !failed {
				w.log.Error("spool: the next segment cannot be opened", "dir", w.cfg.Dir, "error", err)
			}
			failed = err != nil
		case <-tick.C:
			if w.overAge() {
				if err := w.Rotate(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
					w.log.Error("spool: a segment cannot be ended at its age", "dir", w.cfg.Dir, "error", err)
				}
			}
		}
		w.retain()
	}
}

// overAge tells whether the segment that is written has reached its age.
func (w *Writer) overAge() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cur.info.Blocks > 0 && w.now().Sub(w.cur.info.FirstAt) >= w.cfg.SegmentAge
}

// retain removes segments that are too old, and makes room early, so that Append need not.
func (w *Writer) retain() {
	if w.cfg.MaxAge > 0 {
		for {
			w.segMu.Lock()
			old := len(w.segs) > 0 && w.now().Sub(w.segs[0].newest()) > w.cfg.MaxAge
			w.segMu.Unlock()
			if !old || !w.dropOldest() {
				break
			}
		}
	}
	if w.cfg.MaxBytes > 0 {
		for w.used()+w.cfg.SegmentBytes/2 > w.cfg.MaxBytes && w.dropOldest() {
		}
	}
}

// dropOldest removes the oldest closed segment, and tells whether there was one. It is put aside in one step, so
// that no reader ever finds half of it.
func (w *Writer) dropOldest() bool {
	w.segMu.Lock()
	if len(w.segs) == 0 {
		w.segMu.Unlock()
		return false
	}
	si := w.segs[0]
	w.segs = append(w.segs[:0], w.segs[1:]...)
	w.oldest = max(w.oldest, si.Last+1)
	if si.Blocks > 0 {
		w.dropped.Segments++
	}
	w.dropped.Blocks += si.Blocks
	w.dropped.Bytes += si.Bytes
	first := !w.warned
	w.warned = true
	w.segMu.Unlock()
	if first {
		w.log.Warn("spool: the oldest blocks are removed by retention from here on", "dir", w.cfg.Dir,
			"max_bytes", w.cfg.MaxBytes, "max_age", w.cfg.MaxAge, "on_full", string(w.cfg.OnFull))
	}
	trash := filepath.Join(w.cfg.Dir, trashName, segmentBase(si.Number))
	err := os.Rename(si.Dir, trash)
	if err == nil {
		err = os.RemoveAll(trash)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Error("spool: a segment cannot be removed", "segment", si.Number, "error", err)
		return true // the next one may
	}
	w.closedBytes.Add(-si.Device)
	return true
}

// closeSegments closes the segments that swap hands over, one after the other.
func (w *Writer) closeSegments() {
	defer w.closer.Done()
	for s := range w.closing {
		s.closeErr = w.closeSegment(s)
		if s.closeErr != nil {
			w.log.Error("spool: a segment could not be closed; it is recovered when the spool is opened next", "segment", s.info.Number, "error", s.closeErr)
		}
		close(s.done)
		select {
		case <-w.slots:
		default:
		}
		if w.cfg.MaxBytes > 0 && w.used()+w.cfg.SegmentBytes/2 > w.cfg.MaxBytes {
			w.nudge()
		}
	}
}

func (w *Writer) closeSegment(s *segment) error {
	if s.info.Blocks == 0 && s.broken == nil && len(w.snapshot()) > 0 {
		s.discard()
		w.openBytes.Add(-s.reserved.Load())
		return nil
	}
	if err := s.close(); err != nil {
		return err
	}
	if err := w.seal(s); err != nil {
		return err
	}
	w.openBytes.Add(-s.reserved.Load())
	w.closedBytes.Add(s.info.Device)
	w.segMu.Lock()
	w.segs = append(w.segs, s.info)
	w.segMu.Unlock()
	return nil
}

// seal writes the sidecar of a closed segment. It waits for the few KiB that this takes, unless the Writer is closed.
func (w *Writer) seal(s *segment) error {
	now := w.now()
	err := finishSegment(&s.info, now)
	if !isNoSpace(err) {
		return err
	}
	close(w.starved) // only this goroutine replaces it
	defer func() {
		w.segMu.Lock()
		w.starved = make(chan struct{})
		w.segMu.Unlock()
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for isNoSpace(err) {
		if w.cfg.OnFull != FullDropOldest || !w.dropOldest() {
			select {
			case <-tick.C:
			case <-w.stop: // once more
				if err := finishSegment(&s.info, now); err != nil {
					return fmt.Errorf("%w: %w", ErrFull, err)
				}
				return nil
			}
		}
		err = finishSegment(&s.info, now)
	}
	return err
}

// Stats tells the state of the spool.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	st := Stats{Last: w.nextID - 1, Full: w.full, Segments: w.segments, Blocks: w.blocks, Bytes: w.bytes}
	if w.cur.info.Blocks > 0 {
		st.Segments++
	}
	w.mu.Unlock()
	w.segMu.Lock()
	st.First, st.Dropped = w.oldest, w.dropped
	w.segMu.Unlock()
	st.Segments -= int(st.Dropped.Segments)
	st.Blocks -= st.Dropped.Blocks
	st.Bytes -= st.Dropped.Bytes
	st.DeviceBytes = w.used()
	st.Syncs, st.Rotations, st.Stalls = w.syncs.Load(), w.rotations.Load(), w.stalls.Load()
	return st
}

// Dir returns the directory of the spool.
func (w *Writer) Dir() string { return w.cfg.Dir }

// Close ends the recording: all segments are closed and safe on the device when it returns. If there is no room for
// the few KiB that this takes, the last one is recovered when the spool is opened next; the error says so.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()

	if w.behind != nil {
		_ = w.behind.Close()
	}
	w.control.close()
	close(w.stop)
	w.tasks.Wait()

	// Nobody else appends, rotates or prepares from here on.
	w.rotMu.Lock()
	defer w.rotMu.Unlock()
	if next := w.next.Swap(nil); next != nil {
		next.discard()
	}
	w.closing <- w.cur
	close(w.closing)
	w.closer.Wait()
	err := w.cur.closeErr
	if w.lastClosing != nil {
		err = errors.Join(w.lastClosing.closeErr, err)
	}
	return errors.Join(err, syncDir(filepath.Join(w.cfg.Dir, segmentsName)), w.lock.release())
}

func (w *Writer) snapshot() []SegmentInfo {
	w.segMu.Lock()
	defer w.segMu.Unlock()
	return append([]SegmentInfo(nil), w.segs...)
}
