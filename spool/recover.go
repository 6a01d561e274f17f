// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	badger "github.com/dgraph-io/badger/v4"
)

// recoverSegment closes a segment that its recorder did not close, and returns what is in it. The lock must be held. Every
// block that was acknowledged is kept, unless the loss of power took it: torn blocks at the end are taken out and counted.
// It can be interrupted anywhere and done again. A segment that really holds nothing is removed; its state is StatePrepared then.
//
// Badger could do this when it opens the database for writing. But it cuts the value log at the first entry that it cannot read, so that one
// flipped bit would cost all blocks behind it; and it needs space on a file system that may be full, see badger.go.
func recoverSegment(path string, number uint64, key []byte, log *slog.Logger) (SegmentInfo, error) {
	si, err := readSidecar(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errSidecar) {
		return si, err
	}
	known := err == nil
	if !known {
		si = SegmentInfo{Version: Version, Number: number, Encrypted: len(key) > 0, Dir: path}
	}
	wal, err := cutWAL(filepath.Join(path, walName))
	unused := len(wal.ends) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
	if unused && (si.State == StatePrepared || empty(path)) {
		// The loss of power can have taken all of a segment but its name.
		si.State = StatePrepared
		return si, writeAccess(os.RemoveAll(path))
	}
	if err != nil {
		return si, writeAccess(err)
	}
	torn, err := readStock(path, &si, key, log)
	if errors.Is(err, ErrKey) && !known && len(key) > 0 { // it may be one without
		si.Encrypted = false
		torn, err = readStock(path, &si, key, log)
	}
	if err != nil {
		return si, err
	}
	if torn > 0 {
		// One transaction for each block, the last one for the last.
		end := int64(logHeader)
		if n := len(wal.ends) - torn; n > 0 {
			end = wal.ends[n-1]
		}
		if err := os.Truncate(filepath.Join(path, walName), end); err != nil {
			return si, writeAccess(err)
		}
		si.LostTail += uint64(torn)
	}
	if err := trimValues(filepath.Join(path, vlogName)); err != nil {
		return si, writeAccess(err)
	}
	if si.FirstAt.IsZero() && si.Blocks > 0 {
		si.FirstAt = si.Opened
	}
	if si.LastAt.IsZero() && si.Blocks > 0 { // for retention by age
		si.LastAt = wal.changed
	}
	si.Recovered = true
	if err := finishSegment(&si, time.Now().UTC()); err != nil {
		return si, writeAccess(err)
	}
	log.Info("spool: recovered a segment that its recorder had not closed",
		"segment", number, "blocks", si.Blocks, "torn", si.LostTail)
	return si, nil
}

// empty tells whether the segment holds nothing but files of its own, and no block in its value log.
func empty(path string) bool {
	entries, err := os.ReadDir(path)
	if err != nil {
		return false
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case isVlog(name):
			f, err := os.Open(filepath.Join(path, name))
			if err != nil {
				return false
			}
			end, _, err := dataEnd(f)
			_ = f.Close()
			if err != nil || end > logHeader {
				return false
			}
		case isBadgerFile(name), name == "LOCK", name == "DISCARD", name == sidecarName, strings.HasPrefix(name, ".tmp-"):
		default:
			return false
		}
	}
	return true
}

// writeAccess explains why a segment cannot be recovered by this process.
func writeAccess(err error) error {
	if errors.Is(err, fs.ErrPermission) || isReadOnly(err) {
		return withHint(fmt.Errorf("%w: %w", ErrUnclosed, err), "read the spool once as its owner or as root, or read a copy of it")
	}
	return err
}

// trimValues cuts the unused end of the value log.
func trimValues(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the reader tells of it
	}
	if err != nil {
		return err
	}
	end, size, err := dataEnd(f)
	// The last block may end with zeros, and Badger wants a whole header.
	if end = max((end+4096)&^4095, logHeader); err == nil && end < size {
		err = f.Truncate(end)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// dataEnd finds the end of the last byte that is not zero.
func dataEnd(f *os.File) (end, size int64, err error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 1<<20)
	for end = fi.Size(); end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, 0, err
		}
		if used := len(bytes.TrimRight(buf[:n], "\x00")); used > 0 {
			return end - n + int64(used), fi.Size(), nil
		}
		end -= n
	}
	return 0, fi.Size(), nil
}

// readStock finds which blocks the segment holds. It returns how many at its end are torn.
func readStock(path string, si *SegmentInfo, key []byte, log *slog.Logger) (torn int, err error) {
	o := badgerOptions(path, 0, si.keyOf(key), log)
	o.ReadOnly = true
	db, err := openBadger(o)
	if err != nil {
		return 0, err
	}
	err = guard(func() error {
		torn, err = takeStock(db, si)
		return err
	})
	var f *fault
	if errors.As(err, &f) {
		return 0, err // Badger's locks are as the fault left them: closing would wait for ever
	}
	return torn, errors.Join(err, guard(db.Close))
}

func takeStock(db *badger.DB, si *SegmentInfo) (torn int, err error) {
	var first, last ID
	var blocks uint64
	var size int64
	err = db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			if bytes.Equal(item.Key(), metaKey) {
				if !si.Encrypted && si.Meta == nil {
					si.Meta = new(Meta)
					_ = item.Value(func(v []byte) error { return json.Unmarshal(v, si.Meta) })
				}
				continue
			}
			if len(item.Key()) != 8 {
				return fmt.Errorf("%w: %s holds a key of %d bytes", ErrNotSpool, si.Dir, len(item.Key()))
			}
			id := ID(binary.BigEndian.Uint64(item.Key()))
			if first == 0 {
				first = id
			}
			var n int
			if err := value(item, func(v []byte) { n = len(v) }); err != nil {
				torn++
				continue
			}
			blocks += uint64(torn) + 1 // those in the middle are damaged, not torn: the reader tells
			torn = 0
			size += int64(n)
			last = id
		}
		return nil
	})
	switch {
	case blocks > 0:
		si.First, si.Last = first, last
	case si.First == 0:
		si.First, si.Last = max(first, 1), max(first, 1)-1
	default:
		si.Last = si.First - 1
	}
	si.Blocks, si.Bytes = blocks, size
	return torn, err
}
