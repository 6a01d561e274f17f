// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Facts of Badger v4.9.6 that the reservation of space rests on. Each is an upper bound; TestReservationCoversWrites
// compares them with what Badger writes.
const (
	memTableBytes = 2 << 20 // a memtable; its write-ahead log is a file twice as large, sparse
	vlogHeader    = 20      // key ID and IV at the start of a value log and of a write-ahead log
	vlogOverhead  = 64      // of one entry of the value log: header (22), key and version (16), CRC (4)
	walOverhead   = 192     // of one transaction in the write-ahead log: entry with pointer, end mark, and the zeros behind it; in the skip list and the table about the same
	inlineBytes   = 64      // smaller blocks lie in the tables, not in the value log

	// walLimit ends a segment before its memtable is full: so there is exactly one memtable, one table and one value log
	// to a segment, and space can be set aside for all that Badger is going to write.
	walLimit = memTableBytes - 256<<10

	vlogChunk = 8 << 20   // what is set aside at a time in the value log …
	walChunk  = 256 << 10 // … and in the write-ahead log

	openBytes = 256 << 10 // what a new database takes before its first block
)

var metaKey = []byte("m") // blocks have keys of eight bytes

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
	o.NumCompactors = 0 // one table: nothing to compact, and no tickers that wake an idle host
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	o.MetricsEnabled = false
	o.VerifyValueChecksum = true
	o.ChecksumVerificationMode = options.OnTableAndBlockRead
	if len(key) > 0 {
		o.EncryptionKey = key
		o.EncryptionKeyRotationDuration = math.MaxInt64
		o.BlockCacheSize = 1 << 20 // Badger wants one for encrypted tables
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

// openBadger opens the database, and gives the errors that a person can do something about their names.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	err = guard(func() (err error) {
		db, err = badger.Open(o)
		return err
	})
	var f *fault
	switch {
	case err == nil:
		return db, nil
	case errors.As(err, &f) && !o.ReadOnly, isNoSpace(err):
		return nil, fmt.Errorf("%w: %s: %w", ErrFull, o.Dir, err)
	case errors.Is(err, badger.ErrEncryptionKeyMismatch), errors.Is(err, badger.ErrInvalidDataKeyID) && len(o.EncryptionKey) == 0:
		if len(o.EncryptionKey) == 0 {
			return nil, withHint(fmt.Errorf("%w: %s is encrypted", ErrKey, o.Dir), "give the key by spool.encryption.key_file or spool.encryption.key_env")
		}
		return nil, withHint(fmt.Errorf("%w: the key does not open %s", ErrKey, o.Dir), "check spool.encryption: the spool may have another key, or none")
	case errors.Is(err, fs.ErrPermission):
		return nil, withHint(fmt.Errorf("%s: %w", o.Dir, err), "read it as its owner or as root: sudo")
	default:
		return nil, fmt.Errorf("%s: %w", o.Dir, err)
	}
}

func blockKey(dst *[8]byte, id ID) []byte {
	binary.BigEndian.PutUint64(dst[:], uint64(id))
	return dst[:]
}

// A segment is one that is written.
type segment struct {
	info SegmentInfo // guarded by the Writer
	db   *badger.DB
	vlog *os.File // second descriptors of Badger's files, to set space aside and to synchronise without
	wal  *os.File // Badger's locks
	key  [8]byte

	vlogEnd, walEnd int64        // where Badger has written up to, or less
	vlogRes, walRes int64        // where space is set aside up to
	reserved        atomic.Int64 // sum of what is set aside, and openBytes
	kicked          int64        // where writeback was started up to
	dirty           atomic.Bool  // appended to since the last synchronisation
	broken          error        // Badger refused a write: not to be written again
	reading         sync.RWMutex // held by Writer.Read while it takes a block out of db
	shut            bool         // db is being closed; guarded by reading
	done            chan struct{}
	closeErr        error // valid after done
}

// createSegment makes a segment in state prepared. What is left of a failed attempt is removed.
func createSegment(dir string, number uint64, limit int64, meta Meta, key []byte, sync bool, log *slog.Logger) (_ *segment, err error) {
	path := segmentDir(dir, number)
	tmp := filepath.Join(dir, segmentsName, ".new-"+segmentBase(number))
	if err := os.RemoveAll(tmp); err != nil {
		return nil, err
	}
	if err := os.Mkdir(tmp, 0o750); err != nil {
		return nil, err
	}
	s := &segment{
		info: SegmentInfo{Version: Version, Number: number, State: StatePrepared, Dir: tmp, Encrypted: len(key) > 0},
		done: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			s.discard()
			_ = os.RemoveAll(tmp)
		}
	}()
	if len(key) == 0 {
		s.info.Meta = &meta
	}
	if err := writeSidecar(s.info, false); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	s.info.Dir = path
	if s.db, err = openBadger(badgerOptions(path, limit+MaxBlock, key, log)); err != nil {
		return nil, err
	}
	if s.vlog, err = os.OpenFile(filepath.Join(path, "000001.vlog"), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if s.wal, err = os.OpenFile(filepath.Join(path, "00001.mem"), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	s.vlogEnd, s.walEnd = vlogHeader, vlogHeader
	s.reserved.Store(openBytes)

	text, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if _, err := s.reserve(int64(len(text)), int64(len(text))+4096, walChunk); err != nil {
		return nil, err
	}
	if err := s.put(metaKey, text); err != nil {
		return nil, err
	}
	if sync {
		if err := errors.Join(s.sync(), syncDir(path), syncDir(filepath.Dir(path))); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// activate makes the segment the one that blocks go to; its first will be first.
func (s *segment) activate(first ID, now time.Time, sync bool) error {
	si := s.info
	si.State, si.First, si.Last, si.Opened = StateActive, first, first-1, now
	if err := writeSidecar(si, sync); err != nil {
		return err
	}
	s.info = si
	return nil
}

// takes tells how far a block of n bytes moves the ends of the value log and of the write-ahead log.
func takes(n int64) (vlog, wal int64) {
	if n < inlineBytes {
		return 0, n + walOverhead
	}
	return n + vlogOverhead, walOverhead
}

// fits tells whether a block of n bytes still belongs into the segment.
func (s *segment) fits(n int64, limit int64) bool {
	if s.info.Blocks == 0 {
		return true
	}
	vlog, wal := takes(n)
	return s.vlogEnd+vlog <= limit && s.walEnd+wal <= walLimit
}

// lacks tells how many bytes must be set aside before a block of n bytes can be written.
func (s *segment) lacks(n int64) (vlog, wal int64) {
	v, w := takes(n)
	return max(0, s.vlogEnd+v-s.vlogRes), max(0, s.walEnd+w-s.walRes)
}

// reserve sets space aside for a block of n bytes, in steps of at least the sizes given, and returns how much.
func (s *segment) reserve(n, vlogStep, walStep int64) (int64, error) {
	vlog, wal := s.lacks(n)
	var sum int64
	if vlog > 0 {
		vlog = max(vlog, vlogStep)
		if err := allocate(s.vlog, s.vlogRes, vlog); err != nil {
			return sum, err
		}
		s.vlogRes += vlog
		sum += vlog
	}
	if wal > 0 {
		wal = max(wal, walStep)
		if err := allocate(s.wal, s.walRes, wal); err != nil {
			s.reserved.Add(sum)
			return sum, err
		}
		s.walRes += wal
		sum += wal
	}
	s.reserved.Add(sum)
	return sum, nil
}

// put writes one pair. It returns when Badger has copied it into the page cache, through its memory maps: from then on
// it survives the death of the process.
func (s *segment) put(key, value []byte) error {
	if vlog, wal := s.lacks(int64(len(value))); vlog > 0 || wal > 0 {
		panic("BUG: a block is written without space set aside")
	}
	txn := s.db.NewTransaction(true)
	defer txn.Discard()
	if err := txn.SetEntry(badger.NewEntry(key, value)); err != nil {
		return err
	}
	if err := txn.Commit(); err != nil {
		s.broken = err
		return err
	}
	vlog, wal := takes(int64(len(value)))
	s.vlogEnd += vlog
	s.walEnd += wal
	s.dirty.Store(true)
	return nil
}

// append stores the block under the ID.
func (s *segment) append(id ID, b []byte, now time.Time) error {
	if err := s.put(blockKey(&s.key, id), b); err != nil {
		return err
	}
	if s.info.Blocks == 0 {
		s.info.FirstAt = now
	}
	s.info.Last = id
	s.info.LastAt = now
	s.info.Blocks++
	s.info.Bytes += int64(len(b))
	if s.vlogEnd-s.kicked > vlogChunk {
		from := s.kicked &^ 4095
		startWriteback(s.vlog, from, (s.vlogEnd&^4095)-from)
		s.kicked = s.vlogEnd
	}
	return nil
}

// sync forces what was appended to the device: first the values, then what points to them.
func (s *segment) sync() error {
	s.dirty.Store(false)
	if err := errors.Join(dataSync(s.vlog), dataSync(s.wal)); err != nil {
		s.dirty.Store(true)
		return err
	}
	return nil
}

// closeNeeds is how much space closing takes: the table, the manifest, the sidecar.
func (s *segment) closeNeeds() int64 { return s.walEnd + openBytes }

// close ends the writing for ever. There must be closeNeeds bytes of room: Badger writes its table through a memory map, in a goroutine of its
// own, where a full file system would end the process.
func (s *segment) close(now time.Time) error {
	s.reading.Lock()
	s.shut = true
	s.reading.Unlock()
	err := guard(s.db.Close)
	if err == nil {
		err = finishSegment(&s.info, now)
	}
	return errors.Join(err, s.vlog.Close(), s.wal.Close())
}

// discard closes a segment that holds nothing, and forgets it.
func (s *segment) discard() {
	if s.db != nil {
		_ = guard(s.db.Close)
	}
	if s.vlog != nil {
		_ = s.vlog.Close()
	}
	if s.wal != nil {
		_ = s.wal.Close()
	}
	_ = os.RemoveAll(s.info.Dir)
}

// leave gives up a segment that cannot be closed for want of space. The next recorder or reader recovers it.
func (s *segment) leave() { _ = errors.Join(s.vlog.Close(), s.wal.Close()) }

// finishSegment writes the sidecar of a database that was just closed.
func finishSegment(si *SegmentInfo, now time.Time) error {
	// Statistics for the collection of garbage, which never happens here.
	if err := os.Remove(filepath.Join(si.Dir, "DISCARD")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	files, err := fileList(si.Dir)
	if err != nil {
		return err
	}
	si.State, si.Closed, si.Files = StateClosed, now, files
	if err := writeSidecar(*si, true); err != nil {
		return err
	}
	si.Device, err = diskUse(si.Dir)
	return err
}

func isBadgerFile(name string) bool {
	return name == "MANIFEST" || name == "KEYREGISTRY" || strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".vlog")
}

func isVlog(name string) bool { return strings.HasSuffix(name, ".vlog") }

func fileList(dir string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		if !isBadgerFile(e.Name()) {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return nil, err
		}
		f := File{Name: e.Name(), Bytes: fi.Size()}
		if !isVlog(f.Name) {
			if f.CRC, err = fileCRC(filepath.Join(dir, f.Name)); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	return files, nil
}

func fileCRC(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%08x", h.Sum32()), nil
}

// checkFiles compares the files of a closed segment with its sidecar. Badger ends the process over some damage of its tables: they are not
// shown to it unless they are whole. A value log that is too short is no reason not to open the segment: damaged says what is wrong with it.
func checkFiles(si SegmentInfo) (damaged, err error) {
	for _, f := range si.Files {
		path := filepath.Join(si.Dir, f.Name)
		fi, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s is missing", path)
		} else if err == nil && fi.Size() < f.Bytes {
			err = fmt.Errorf("%s is truncated: %d of %d bytes are left", path, fi.Size(), f.Bytes)
		}
		if err != nil {
			if !isVlog(f.Name) {
				return nil, err
			}
			damaged = errors.Join(damaged, err)
			continue
		}
		if f.CRC == "" {
			continue
		}
		crc, err := fileCRC(path)
		if err != nil {
			return nil, err
		}
		if crc != f.CRC {
			return nil, fmt.Errorf("%s is damaged: CRC-32C %s, want %s", path, crc, f.CRC)
		}
	}
	return damaged, nil
}
