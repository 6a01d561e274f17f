// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"reflect"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"

	badger "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
)

// This file holds what is known here of Badger's inside (v4.9.6). It is needed because Badger writes through memory maps, in goroutines of its
// own: a page that the file system has no space for ends the process there (SIGBUS), and nobody can catch it. So space is set aside
// before Badger writes (segment.reserve), and a segment is closed without writing anything new (closeBadger).

// Upper bounds of what Badger writes. TestReservationCoversWrites compares them with it.
const (
	memTableBytes = 2 << 20 // a memtable; its write-ahead log is a file twice as large, sparse
	logHeader     = 20      // key ID and IV at the start of a value log and of a write-ahead log
	vlogOverhead  = 64      // of one entry of the value log: header (22), key and version (16), CRC (4)
	walOverhead   = 192     // of one transaction in the write-ahead log: entry with pointer, end mark, and the zeros behind it; in the skip list about the same
	inlineBytes   = 64      // smaller blocks lie in the write-ahead log, not in the value log

	// walLimit ends a segment before its memtable is full: so there is exactly one memtable and one value log to a
	// segment, and space can be set aside for all that Badger is going to write.
	walLimit = memTableBytes - 256<<10

	openBytes = 64 << 10 // what a new database takes before its first block
)

// Names of the two files of a segment that hold blocks.
const (
	vlogName = "000001.vlog"
	walName  = "00001.mem"
)

// badgerOptions are the options for a database whose value log will take up to vlogBytes; 0 when none will be written.
func badgerOptions(dir string, vlogBytes int64, key []byte, log *slog.Logger) badger.Options {
	o := badger.DefaultOptions(dir)
	o.Logger = badgerLog{log}
	o.ExternalMagicVersion = Version
	o.SyncWrites = false // see Writer.Sync
	o.DetectConflicts = false
	o.NumVersionsToKeep = 1
	o.Compression = options.None
	o.ValueThreshold = inlineBytes
	o.ValueLogFileSize = max(vlogBytes, 1<<20) // the file is twice as large, sparse
	o.ValueLogMaxEntries = math.MaxUint32 - 1
	o.MemTableSize = memTableBytes
	o.NumMemtables = 1
	o.NumCompactors = 0 // no tables: nothing to compact, and no tickers that wake an idle host
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	o.MetricsEnabled = false
	o.VerifyValueChecksum = true
	o.ChecksumVerificationMode = options.OnTableAndBlockRead
	if len(key) > 0 {
		o.EncryptionKey = key
		// A segment has one data key. It must be made: Badger takes the time of the last one for 1970 and, were this
		// longer ago than that, would write in plain text.
		o.EncryptionKeyRotationDuration = 10 * 365 * 24 * time.Hour
		o.BlockCacheSize = 1 << 20 // Badger wants one when it encrypts
	}
	return o
}

// fault is a memory access that failed: the file behind a memory map cannot be read (device error) or has no room.
type fault struct{ what any }

func (f *fault) Error() string {
	if _, ok := f.what.(interface{ Addr() uintptr }); ok {
		return fmt.Sprintf("the device failed under a memory map: %v", f.what)
	}
	return fmt.Sprintf("badger: %v", f.what)
}

// guard runs fn and turns a panic in it, that of a failing memory map too, into an error of type *fault.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &fault{r}
		}
	}()
	return fn()
}

// openBadger opens the database, and gives the errors that a person can do something about their names. A new one writes
// through memory maps only in this goroutine, where it is guarded.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	err = guard(func() (err error) {
		db, err = badger.Open(o)
		return err
	})
	var f *fault
	switch {
	case err == nil:
		return db, nil
	case errors.As(err, &f) && !o.ReadOnly, isNoSpace(err), says(err, "no space left"):
		return nil, fmt.Errorf("%w: %s: %w", ErrFull, o.Dir, err)
	case says(err, badger.ErrEncryptionKeyMismatch.Error()):
		if len(o.EncryptionKey) == 0 {
			return nil, withHint(fmt.Errorf("%w: %s is encrypted", ErrKey, o.Dir), "give the key by spool.encryption.key_file or spool.encryption.key_env")
		}
		return nil, withHint(fmt.Errorf("%w: the key does not open %s", ErrKey, o.Dir), "check spool.encryption: the spool may have another key, or none")
	case errors.Is(err, fs.ErrPermission), says(err, "permission denied"):
		return nil, withHint(fmt.Errorf("%s: %w", o.Dir, err), "read it as its owner or as root: sudo")
	default:
		return nil, fmt.Errorf("%s: %w", o.Dir, err)
	}
}

// says looks into the text of an error: most of Badger's do not wrap their cause.
func says(err error, text string) bool { return strings.Contains(err.Error(), text) }

// errDamaged is what is known of a value that Badger cannot read.
var errDamaged = errors.New("damaged: its checksum does not fit, or it lies outside of the value log")

// value hands the item's value to use, for as long as that runs. Badger only logs when it cannot read a value, and gives an empty one
// instead. No value of the spool is empty.
func value(item *badger.Item, use func(v []byte)) error {
	return item.Value(func(v []byte) error {
		if len(v) == 0 {
			return errDamaged
		}
		use(v)
		return nil
	})
}

// closeBadger closes a database that was written, and leaves its write-ahead log in place instead of turning it into a table: a table is
// written through a memory map into space that nobody set aside, in a goroutine that nobody guards. Read-only, Badger reads a
// write-ahead log as well as a table, provided that it ends where its last entry ends: see cutWAL.
//
// For that the memtable is taken away from the database, whose field is not exported. Should a later Badger name it otherwise, the
// database is closed in the ordinary way; TestCloseWritesNoTable notices.
func closeBadger(db *badger.DB) error {
	return guard(func() error {
		var wal *z.MmapFile
		if mt := reflect.ValueOf(db).Elem().FieldByName("mt"); mt.IsValid() && mt.Kind() == reflect.Pointer && !mt.IsNil() {
			if log := mt.Elem().FieldByName("wal"); log.IsValid() && log.Kind() == reflect.Pointer && !log.IsNil() {
				if file := log.Elem().FieldByName("MmapFile"); file.IsValid() && file.Type() == reflect.TypeFor[*z.MmapFile]() {
					wal = (*z.MmapFile)(file.UnsafePointer())
					*(*unsafe.Pointer)(mt.Addr().UnsafePointer()) = nil
				}
			}
		}
		err := db.Close()
		if wal != nil {
			err = errors.Join(err, wal.Close(-1)) // synchronises, too
		}
		return err
	})
}

// A walScan tells what lies in a write-ahead log.
type walScan struct {
	ends []int64 // where each whole transaction ends, in order
	size int64   // of the file

	changed time.Time // when the file was written last, as far as the file system knows
}

// end is where the last whole transaction ends.
func (s walScan) end() int64 {
	if len(s.ends) == 0 {
		return logHeader
	}
	return s.ends[len(s.ends)-1]
}

// scanWAL walks through a write-ahead log as Badger does when it recovers: up to the first entry that is not whole. An entry is
//
//	meta (1 byte), user meta (1), key length, value length, expiry (varints), key, value, CRC-32C of all that (4, big-endian)
//
// and a transaction is one or more entries with the bit 0x40 in meta, and an end mark with the bit 0x80. Keys and values may be encrypted.
func scanWAL(path string) (s walScan, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	s.size = int64(len(data))
	if fi, err := os.Stat(path); err == nil {
		s.changed = fi.ModTime().UTC()
	}
	for off := logHeader; ; {
		e := parseEntry(data[min(off, len(data)):])
		if !e.whole() {
			return s, nil
		}
		off += e.size
		switch {
		case e.meta&bitFinTxn != 0:
			s.ends = append(s.ends, int64(off))
		case e.meta&bitTxn == 0:
			return s, nil // the spool writes transactions only
		}
	}
}

// cutWAL cuts the write-ahead log of a closed database behind its last whole transaction, as read-only databases must have it. What
// is cut was never acknowledged.
func cutWAL(path string) (walScan, error) {
	s, err := scanWAL(path)
	if err == nil && s.end() < s.size {
		err = os.Truncate(path, s.end())
	}
	return s, err
}
