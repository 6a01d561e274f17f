// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ReadOptions say how a spool is read. The zero value is right for a spool that is not encrypted.
type ReadOptions struct {
	Encryption Encryption   // where the key of an encrypted spool is
	Log        *slog.Logger // nil: no log

	// NoRotate leaves a living recorder alone: only segments that are closed already are read.
	NoRotate bool

	// Trust leaves out the store's own checksum of a block, which costs as much as reading it: for blocks that check themselves, when they are
	// decoded anyway.
	Trust bool
}

// dying is how long a Reader waits for a recorder that holds the lock and whose socket is closed.
const dying = controlTimeout

// A Reader reads the blocks of a spool in the order of their IDs. Any number of Readers, in any number of processes, may read a spool, also
// while it is recorded: they never hold the recorder up. A Reader is used by one goroutine at a time.
type Reader struct {
	dir  string
	lone bool // dir is a single segment
	key  []byte
	log  *slog.Logger
	opts ReadOptions

	segs    []SegmentInfo // in the order of their numbers
	notices []error
	at      int  // the segment that is read
	next    ID   // the block that is read next, if it is there
	strict  bool // that next is not there is damage: a block before it was asked for
	closed  bool

	src source // of the segment at, nil if it is not open

	buf  []byte // the block that was read last
	held bool   // buf holds the block next, found behind damage
}

// Open opens a spool for reading, from its first block on. dir may also be a single segment that was copied out of a spool. If the spool
// is being recorded, the recorder is asked to end its segment, so that everything up to a second before the call can be read; if its recorder
// died, what it left open is recovered. The context bounds only the opening.
func Open(ctx context.Context, dir string, opts ReadOptions) (*Reader, error) {
	r := &Reader{dir: dir, opts: opts, log: opts.Log}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if r.key, err = opts.Encryption.Key(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, sidecarName)); err == nil {
		r.lone = true
	} else if _, err := readSpoolFile(dir); err != nil {
		return nil, err
	}
	if err := r.Refresh(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Refresh looks for blocks that have come since, as Open does. Reading goes on where it was.
func (r *Reader) Refresh(ctx context.Context) error {
	if r.closed {
		return ErrClosed
	}
	r.notices = nil
	if r.lone {
		return r.loadLone()
	}
	live, err := r.rotate(ctx)
	if err != nil {
		return err
	}
	segs, open, err := r.load()
	if err == nil && !live && len(open) > 0 {
		failed, rerr := r.recover(ctx, open)
		if rerr != nil {
			return rerr
		}
		segs, open, err = r.load()
		for i := range open {
			if why := failed[open[i].Number]; why != nil {
				open[i].Err = why
			}
		}
	}
	if err != nil {
		return err
	}
	if !live {
		segs = append(segs, open...)
		slices.SortFunc(segs, func(a, b SegmentInfo) int { return int(int64(a.Number - b.Number)) })
	}
	r.take(segs)
	return nil
}

// take replaces the list of segments and keeps the place.
func (r *Reader) take(segs []SegmentInfo) {
	var current uint64
	if r.at < len(r.segs) {
		current = r.segs[r.at].Number
	} else if len(r.segs) > 0 {
		current = r.segs[len(r.segs)-1].Number + 1
	}
	at := 0
	for at < len(segs) && segs[at].Number < current {
		at++
	}
	if r.src != nil && (at >= len(segs) || segs[at].Number != current) {
		// It was removed while it was open. It can still be read to its end.
		segs = slices.Insert(segs, at, r.segs[r.at])
	}
	r.segs, r.at = segs, at
}

func (r *Reader) loadLone() error {
	si, err := readSidecar(r.dir)
	if err != nil {
		return err
	}
	if si.State != StateClosed {
		return withHint(fmt.Errorf("%s: %w", r.dir, ErrUnclosed), "open the whole spool instead, or its recorder once more: that closes the segment")
	}
	if si.Device, err = diskUse(r.dir); err != nil {
		return err
	}
	r.segs = []SegmentInfo{si}
	return nil
}

// rotate asks a living recorder to end its segment, and tells whether there is one.
func (r *Reader) rotate(ctx context.Context) (live bool, err error) {
	patience := time.Now().Add(dying)
	for {
		held, h, err := lockHeld(r.dir)
		if err != nil || !held {
			if errors.Is(err, fs.ErrPermission) {
				// What is closed can be read without the lock.
				r.notice(fmt.Errorf("%s: %w: it is not known whether the spool is being recorded", filepath.Join(r.dir, lockName), fs.ErrPermission))
				return true, nil
			}
			return false, err
		}
		if h.Role == roleRecover { // another reader, for a moment
			select {
			case <-ctx.Done():
				return false, ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		if r.opts.NoRotate {
			return true, nil
		}
		if _, err := ask(ctx, r.dir, opRotate); err != nil {
			if ctx.Err() != nil {
				return true, ctx.Err()
			}
			if again, _, _ := lockHeld(r.dir); !again {
				continue // it ended meanwhile
			}
			// A process that is killed closes its socket before it lets go of its lock; one that has just started
			// has them in the other order.
			if !errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(patience) {
				select {
				case <-ctx.Done():
					return true, ctx.Err()
				case <-time.After(10 * time.Millisecond):
				}
				continue
			}
			r.notice(fmt.Errorf("%s: the recorder (pid %d) did not end its segment, the newest blocks are not seen: %w", r.dir, h.PID, err))
		}
		return true, nil
	}
}

func (r *Reader) notice(err error) {
	r.notices = append(r.notices, err)
	r.log.Warn("spool: not everything is seen", "dir", r.dir, "error", err)
}

// Notices tells what has gone wrong since the last Open or Refresh without making any block unreadable that is told of otherwise: a recorder that
// does not answer, or damage that could be worked around.
func (r *Reader) Notices() []error { return r.notices }

// load lists the segments that can be read, and those that a recorder has open or left open.
func (r *Reader) load() (segs, open []SegmentInfo, err error) {
	numbers, err := listSegments(r.dir)
	if err != nil {
		return nil, nil, err
	}
	known := r.segs // in order, like numbers; a closed segment does not change
	for _, n := range numbers {
		for len(known) > 0 && known[0].Number < n {
			known = known[1:]
		}
		if len(known) > 0 && known[0].Number == n && known[0].State == StateClosed && known[0].Err == nil {
			segs = append(segs, known[0])
			continue
		}
		path := segmentDir(r.dir, n)
		si, err := readSidecar(path)
		switch {
		case err == nil && si.State == StateClosed:
			if si.Device, err = diskUse(path); err != nil {
				return nil, nil, err
			}
			segs = append(segs, si)
		case err == nil:
			si.Err = ErrUnclosed
			open = append(open, si)
		default:
			if _, serr := os.Stat(path); errors.Is(serr, fs.ErrNotExist) {
				continue // removed by retention just now
			}
			si.Number, si.Dir, si.Err = n, path, err
			if errors.Is(err, ErrVersion) || errors.Is(err, fs.ErrPermission) {
				segs = append(segs, si)
			} else {
				open = append(open, si)
			}
		}
	}
	return segs, open, nil
}

// recover closes what a dead recorder left open, and tells why it could not, by the segments' numbers.
func (r *Reader) recover(ctx context.Context, open []SegmentInfo) (map[uint64]error, error) {
	failed := make(map[uint64]error)
	lock, err := takeLock(r.dir, roleRecover)
	switch {
	case errors.Is(err, ErrLocked):
		return nil, nil // a recorder has come: it recovers them
	case err != nil:
		for _, si := range open {
			failed[si.Number] = writeAccess(err)
		}
		return failed, nil
	}
	defer func() { _ = lock.release() }()
	for _, si := range open {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := recoverSegment(si.Dir, si.Number, r.key, r.log); err != nil {
			failed[si.Number] = err
		}
	}
	return failed, nil
}

// Next returns the next block and its ID. The block is valid until the next call. At the end of what was there when the
// spool was opened, or refreshed last, the error is io.EOF. A *DamageError tells of blocks that cannot be read; the next call goes on behind
// them. Other errors are final. (BenchmarkRead measures it.)
func (r *Reader) Next(ctx context.Context) (ID, []byte, error) {
	id, b, err := r.read(ctx, MaxBlock)
	if err == nil {
		r.Skip()
	}
	return id, b, err
}

// Head returns the first n bytes of the block that Next returns next, or all if it has less, without their checksum and without going on. It
// reads no more of the block than that, unless the spool is encrypted. Otherwise it is like Next.
func (r *Reader) Head(ctx context.Context, n int) (ID, []byte, error) {
	id, b, err := r.read(ctx, n)
	return id, b[:min(n, len(b))], err
}

// Skip goes on behind the block that Head has returned.
func (r *Reader) Skip() {
	r.held = false
	r.next++
}

// read finds the next block and reads it: the first n bytes, or all of it if n is MaxBlock.
func (r *Reader) read(ctx context.Context, n int) (ID, []byte, error) {
	if r.closed {
		return 0, nil, ErrClosed
	}
	if r.held {
		return r.next, r.buf, nil
	}
	for r.at < len(r.segs) {
		if err := ctx.Err(); err != nil {
			return 0, nil, err
		}
		si := &r.segs[r.at]
		if r.src == nil {
			if err := r.enter(si); err != nil {
				return 0, nil, err
			}
			if r.src == nil {
				r.at++
				continue
			}
		}
		if r.next > si.Last {
			r.leave()
			r.at++
			continue
		}
		r.strict = true
		err := r.get(r.next, n)
		if err == nil {
			return r.next, r.buf, nil
		}
		return 0, nil, r.pass(ctx, si, err)
	}
	return 0, nil, io.EOF
}

// enter opens the segment, unless there is nothing left to read in it.
func (r *Reader) enter(si *SegmentInfo) error {
	if si.Err != nil {
		d := &DamageError{Segment: si.Number, First: max(r.next, si.First), Last: si.Last, Err: si.Err}
		if si.State != StateClosed { // its sidecar does not know its end
			d.Last = 0
			if r.at+1 < len(r.segs) && r.segs[r.at+1].First > 0 {
				d.Last = r.segs[r.at+1].First - 1
			}
		}
		if d.Last > 0 && d.Last < d.First {
			return nil
		}
		r.at++
		r.next = max(r.next, d.Last+1)
		return d
	}
	if r.next < si.First {
		hole := &DamageError{First: r.next, Last: si.First - 1, Err: r.missing()}
		r.next = si.First
		if r.strict {
			return hole
		}
	}
	if r.next > si.Last {
		return nil
	}
	err := r.openSegment(si)
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrKey) {
		return err // the same for all segments, and nothing is damaged
	}
	if _, serr := os.Stat(si.Dir); errors.Is(serr, fs.ErrNotExist) {
		err = ErrRemoved
	}
	d := &DamageError{Segment: si.Number, First: r.next, Last: si.Last, Err: err}
	r.next, r.strict = si.Last+1, true
	r.at++
	return d
}

// missing says why there are no blocks before the present segment.
func (r *Reader) missing() error {
	if r.at == 0 {
		return ErrRemoved
	}
	return fmt.Errorf("missing between segments %08d and %08d: %w", r.segs[r.at-1].Number, r.segs[r.at].Number, fs.ErrNotExist)
}

// openSegment opens the segment: by its write-ahead log, by Badger if it is encrypted, or where its bookkeeping is damaged, by its value log
// alone.
func (r *Reader) openSegment(si *SegmentInfo) error {
	short, err := checkFiles(*si)
	if err == nil && !si.Encrypted {
		plain, perr := openPlain(si, short, r.opts.Trust)
		if perr == nil {
			r.src = plain
			return nil
		}
		r.log.Debug("spool: left to Badger", "segment", si.Number, "reason", perr)
	}
	if err == nil {
		var db *database
		if db, err = r.openDatabase(si); err == nil {
			db.short = short
			r.src = db
			return nil
		}
		err = errors.Join(short, err)
	}
	if si.Encrypted || errors.Is(err, ErrKey) {
		return err
	}
	bare, berr := openBareLog(si, err)
	if berr != nil {
		return err
	}
	r.notice(fmt.Errorf("segment %08d: %w; its blocks are read from its value log alone", si.Number, err))
	r.src = bare
	return nil
}

// openDatabase opens the segment by Badger. Its files must have been checked.
func (r *Reader) openDatabase(si *SegmentInfo) (*database, error) {
	o := badgerOptions(si.Dir, 0, si.keyOf(r.key), r.log)
	o.ReadOnly = true
	db, err := openBadger(o)
	if err != nil {
		return nil, err
	}
	return &database{db: db, txn: db.NewTransaction(false)}, nil
}

func (r *Reader) leave() {
	if r.src != nil {
		r.src.close()
	}
	r.src, r.held = nil, false
}

// get reads the first n bytes of the block into buf, or all of it if n is MaxBlock.
func (r *Reader) get(id ID, n int) (err error) {
	if n >= MaxBlock {
		r.buf, err = r.src.get(id, r.buf)
	} else {
		r.buf, err = r.src.head(id, r.buf, n)
	}
	return err
}

// pass finds the next block that can be read, and tells what lies before it.
func (r *Reader) pass(ctx context.Context, si *SegmentInfo, err error) error {
	d := &DamageError{Segment: si.Number, First: r.next, Last: si.Last, Err: err}
	for id := r.next + 1; id <= si.Last; id++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if r.get(id, MaxBlock) == nil {
			d.Last, r.held = id-1, true
			break
		}
	}
	r.next = d.Last + 1
	return d
}

// Seek makes the block id the next one that is read. If it is not there any more, Next first tells so by a *DamageError, and goes on with the
// oldest one; Seek(0) goes to the oldest block without that. An ID behind the end is the end. Within a segment it costs nothing.
func (r *Reader) Seek(id ID) error {
	if r.closed {
		return ErrClosed
	}
	at := 0
	for at < len(r.segs) && r.segs[at].State == StateClosed && r.segs[at].Last < id {
		at++
	}
	if at != r.at || at == len(r.segs) || id < r.segs[at].First {
		r.leave()
	}
	r.at, r.next, r.strict, r.held = at, id, id > 0, false
	return nil
}

// Segments describes the segments, the oldest first. Err is set where one cannot be read. The slice is the caller's.
func (r *Reader) Segments() []SegmentInfo {
	for i := range r.segs {
		if si := &r.segs[i]; si.Encrypted && si.Meta == nil && si.Err == nil && r.key != nil {
			r.loadMeta(si)
		}
	}
	return slices.Clone(r.segs)
}

// loadMeta reads the metadata that lies inside an encrypted segment.
func (r *Reader) loadMeta(si *SegmentInfo) {
	_, err := checkFiles(*si)
	var db *database
	if err == nil {
		db, err = r.openDatabase(si)
	}
	if err != nil {
		si.Meta = new(Meta)
		r.log.Debug("spool: metadata cannot be read", "segment", si.Number, "error", err)
		return
	}
	defer db.close()
	meta := new(Meta)
	si.Meta = meta // whatever comes of it: it is tried once
	err = guard(func() error {
		item, err := db.txn.Get(metaKey)
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error { return json.Unmarshal(v, meta) })
	})
	if err != nil {
		var f *fault
		db.leaky = errors.As(err, &f)
		r.log.Debug("spool: metadata cannot be read", "segment", si.Number, "error", err)
	}
}

// Size tells how many blocks can be read, from the oldest on, and how many bytes they have together.
func (r *Reader) Size() (blocks uint64, bytes int64) {
	for _, si := range r.segs {
		blocks += si.Blocks
		bytes += si.Bytes
	}
	return blocks, bytes
}

// LoadCursor is the function of that name for this spool.
func (r *Reader) LoadCursor(name string) (ID, error) { return LoadCursor(r.dir, name) }

// SaveCursor is the function of that name for this spool.
func (r *Reader) SaveCursor(name string, id ID) error { return SaveCursor(r.dir, name, id) }

// Close frees what the Reader holds.
func (r *Reader) Close() error {
	r.leave()
	r.closed = true
	return nil
}
