// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	badger "github.com/dgraph-io/badger/v4"
)

// recoverSegment closes a segment that its recorder did not close, and returns what is in it. The lock must be held. Every
// block that was acknowledged is kept, unless the loss of power took it: torn blocks at the end are taken out and counted.
// It can be interrupted anywhere and done again.
func recoverSegment(path string, number uint64, key []byte, log *slog.Logger) (SegmentInfo, error) {
	si, err := readSidecar(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errSidecar) {
		return si, err
	}
	known := err == nil
	if !known {
		si = SegmentInfo{Version: Version, Number: number, Encrypted: len(key) > 0, Dir: path}
	}
	disk, err := diskOf(path)
	if err != nil {
		return si, err
	}
	if disk.readOnly {
		return si, withHint(fmt.Errorf("%w: %w", ErrUnclosed, ErrReadOnly), "copy the spool to a writable place and read the copy")
	}
	if need := int64(memTableBytes + openBytes); disk.free < need {
		return si, withHint(fmt.Errorf("%w: recovery of %s takes up to %d bytes, %d are free", ErrFull, path, need, disk.free),
			"free some space, or copy the spool elsewhere and read the copy")
	}
	if err := errors.Join(removeEmpty(path), keepValues(path)); err != nil {
		return si, writeAccess(err)
	}
	db, err := openBadger(badgerOptions(path, 0, key, log))
	if err != nil {
		return si, writeAccess(err)
	}
	err = guard(func() error { return takeStock(db, &si) })
	if cerr := guard(db.Close); err == nil {
		err = cerr
	}
	if err != nil {
		return si, err
	}
	if err := trimValues(path); err != nil {
		return si, err
	}
	if si.FirstAt.IsZero() && si.Blocks > 0 {
		si.FirstAt = si.Opened
	}
	if si.LastAt, err = lastWrite(path, si); err != nil {
		return si, err
	}
	si.Recovered = true
	if err := finishSegment(&si, time.Now().UTC()); err != nil {
		return si, err
	}
	log.Info("spool: recovered a segment that its recorder had not closed",
		"segment", number, "blocks", si.Blocks, "torn", si.LostTail)
	return si, nil
}

// writeAccess explains why a segment cannot be recovered by this process.
func writeAccess(err error) error {
	if errors.Is(err, fs.ErrPermission) || isReadOnly(err) {
		return withHint(fmt.Errorf("%w: %w", ErrUnclosed, err), "read the spool once as its owner or as root, or read a copy of it")
	}
	return err
}

// lastWrite estimates when the last block was appended, for retention by age.
func lastWrite(path string, si SegmentInfo) (time.Time, error) {
	if !si.LastAt.IsZero() || si.Opened.IsZero() {
		return si.LastAt, nil
	}
	fi, err := os.Stat(filepath.Join(path, "MANIFEST"))
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime().UTC(), nil
}

// removeEmpty removes logs of length 0. Badger leaves one when it dies between creating a log and giving it its length, or
// between emptying one whose contents are safe elsewhere and removing it, and then cannot open the database.
func removeEmpty(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".mem") && !isVlog(e.Name()) {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if fi.Size() == 0 {
			if err := os.Remove(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepValues keeps Badger from cutting the value log. When it opens a database to write, it walks through the last value log and
// truncates it at the first entry that it cannot read: a single flipped bit would cost all blocks behind it. So an
// empty value log is put behind it, which may be cut.
func keepValues(path string) error {
	last, err := lastVlog(path)
	if err != nil || last == 0 {
		return err
	}
	f, err := os.Open(vlogPath(path, last))
	if err != nil {
		return err
	}
	defer f.Close()
	var header [vlogHeader]byte
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return nil // shorter than a header: there is nothing to keep
	}
	return os.WriteFile(vlogPath(path, last+1), header[:], 0o640)
}

func vlogPath(path string, n uint64) string { return filepath.Join(path, fmt.Sprintf("%06d.vlog", n)) }

func lastVlog(path string) (last uint64, err error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if base, ok := strings.CutSuffix(e.Name(), ".vlog"); ok {
			if n, err := strconv.ParseUint(base, 10, 32); err == nil {
				last = max(last, n)
			}
		}
	}
	return last, nil
}

// trimValues cuts the unused ends of the value logs of a closed database, and removes empty ones.
func trimValues(path string) error {
	last, err := lastVlog(path)
	if err != nil {
		return err
	}
	for n := uint64(1); n <= last; n++ {
		f, err := os.OpenFile(vlogPath(path, n), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		end, size, err := dataEnd(f)
		switch {
		case err != nil:
		case end <= vlogHeader:
			err = os.Remove(f.Name())
		default:
			// The last block may end with zeros.
			if end = (end + 4096) &^ 4095; end < size {
				err = f.Truncate(end)
			}
		}
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
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

// takeStock finds which blocks the database holds, and takes torn ones out of its end.
func takeStock(db *badger.DB, si *SegmentInfo) error {
	var first, last ID
	var blocks uint64
	var size int64
	torn := []ID{} // unreadable blocks behind the last readable one
	err := db.View(func(txn *badger.Txn) error {
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
			if err := item.Value(func(v []byte) error { n = len(v); return nil }); err != nil {
				torn = append(torn, id)
				continue
			}
			blocks += uint64(len(torn)) + 1 // those in the middle are damaged, not torn: the reader tells
			torn = torn[:0]
			size += int64(n)
			last = id
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(torn) > 0 {
		if err := db.Update(func(txn *badger.Txn) error {
			for _, id := range torn {
				var key [8]byte
				if err := txn.Delete(blockKey(&key, id)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if blocks > 0 {
		si.First, si.Last = first, last
	} else if si.First > 0 {
		si.Last = si.First - 1
	} else {
		si.First, si.Last = first, max(first, 1)-1
	}
	si.Blocks, si.Bytes, si.LostTail = blocks, size, si.LostTail+uint64(len(torn))
	return nil
}
