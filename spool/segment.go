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
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v4"
)

const (
	vlogChunk = 8 << 20  // what is set aside at a time in the value log …
	walChunk  = 64 << 10 // … and in the write-ahead log
)

var metaKey = []byte("m") // blocks have keys of eight bytes

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
	meta []byte // written by activate

	vlogEnd, walEnd int64        // where Badger has written up to, or less
	vlogRes, walRes int64        // where space is set aside up to
	reserved        atomic.Int64 // sum of what is set aside, and openBytes
	vlogAhead       atomic.Int64 // like vlogRes and walRes, by stayAhead; Append takes them over
	walAhead        atomic.Int64
	kicked          int64        // where writeback was started up to; stayAhead's alone
	announced       bool         // the sidecar knows of activate; stayAhead's alone
	calm            int64        // vlogEnd before which stayAhead need not be woken
	dirty           atomic.Bool  // appended to since the last synchronisation
	fresh           atomic.Bool  // its directory and sidecar were never synchronised
	broken          error        // Badger refused a write: not to be written again
	syncing         sync.Mutex   // held while it is synchronised; taken before using
	using           sync.RWMutex // held by others than Append while they use the database or its files
	shut            bool         // both are closed, or being closed; guarded by using
	shutErr         error        // of the device, while they were closed; guarded by syncing
	done            chan struct{}
	closeErr        error // valid after done
}

// createSegment makes a segment in state prepared. What is left of a failed attempt is removed.
func createSegment(dir string, number uint64, limit int64, meta Meta, key []byte, log *slog.Logger) (_ *segment, err error) {
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
	if s.vlog, err = os.OpenFile(filepath.Join(path, vlogName), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if s.wal, err = os.OpenFile(filepath.Join(path, walName), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	s.vlogEnd, s.walEnd = logHeader, logHeader
	s.reserved.Store(openBytes)

	if s.meta, err = json.Marshal(meta); err != nil {
		return nil, err
	}
	if _, err := s.reserve(int64(len(s.meta)), int64(len(s.meta))+4096, walChunk); err != nil {
		return nil, err
	}
	return s, nil
}

// activate makes the segment the one that blocks go to; its first will be first. The sidecar is left to announce, and synchronising to sync,
// since a rotation must not wait for the device: until then the segment looks prepared, and recovery looks what is in it.
func (s *segment) activate(first ID, now time.Time) error {
	s.info.State, s.info.First, s.info.Last, s.info.Opened = StateActive, first, first-1, now
	s.fresh.Store(true)
	if s.meta != nil {
		if err := s.put(metaKey, s.meta); err != nil {
			return err
		}
		s.meta = nil
	}
	return nil
}

// announce writes the sidecar of a segment that was activated; si is a copy of its description. Nothing depends on it but what a person
// sees who looks into the directory: that it cannot be written is no error.
func (s *segment) announce(si SegmentInfo) {
	if !s.announced {
		si.Last, si.Blocks, si.Bytes, si.FirstAt, si.LastAt = si.First-1, 0, 0, time.Time{}, time.Time{}
		s.announced = writeSidecar(si, false) == nil
	}
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
	s.vlogRes, s.walRes = max(s.vlogRes, s.vlogAhead.Load()), max(s.walRes, s.walAhead.Load())
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
	return nil
}

// sync forces what was appended to the device: first the values, then what points to them. It does nothing if all is there already, and waits
// for a segment that is being closed, which synchronises as well. It tells whether there was something to do.
func (s *segment) sync() (did bool, err error) {
	s.syncing.Lock() // whoever comes meanwhile waits for what is under way
	defer s.syncing.Unlock()
	s.using.RLock()
	defer s.using.RUnlock()
	if s.shut {
		return false, s.shutErr
	}
	if !s.dirty.Swap(false) {
		return false, nil
	}
	err = errors.Join(dataSync(s.vlog), dataSync(s.wal))
	if err == nil && s.fresh.Swap(false) {
		err = errors.Join(syncFile(filepath.Join(s.info.Dir, sidecarName)), syncDir(s.info.Dir), syncDir(filepath.Dir(s.info.Dir)))
		if err != nil {
			s.fresh.Store(true)
		}
	}
	if err != nil {
		s.dirty.Store(true)
	}
	return true, err
}

// close ends the writing for ever. It takes no space; finishSegment, which must follow, takes a little for the sidecar.
func (s *segment) close() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.using.Lock()
	s.shut = true
	s.using.Unlock()
	err := errors.Join(closeBadger(s.db), s.vlog.Close(), s.wal.Close())
	if s.fresh.Swap(false) {
		err = errors.Join(err, syncDir(s.info.Dir), syncDir(filepath.Dir(s.info.Dir)))
	}
	s.shutErr = err
	if err == nil {
		_, err = cutWAL(filepath.Join(s.info.Dir, walName))
	}
	return err
}

// discard closes a segment that holds nothing, and removes it.
func (s *segment) discard() {
	if s.db != nil {
		_ = closeBadger(s.db)
	}
	if s.vlog != nil {
		_ = s.vlog.Close()
	}
	if s.wal != nil {
		_ = s.wal.Close()
	}
	_ = os.RemoveAll(s.info.Dir)
}

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
	return name == "MANIFEST" || name == "KEYREGISTRY" || strings.HasSuffix(name, ".mem") || strings.HasSuffix(name, ".sst") || isVlog(name)
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

// checkFiles compares the files of a closed segment with its sidecar. Badger ends the process over some damage: files are not
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
