// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	badger "github.com/dgraph-io/badger/v4"
)

// A source gives the blocks of one closed segment. What it returns replaces what is in buf.
type source interface {
	get(id ID, buf []byte) ([]byte, error)
	head(id ID, buf []byte, n int) ([]byte, error) // the first n bytes, or all if there are less
	close()
}

// database is the source of encrypted segments, and of any whose files are not as this package leaves them.
type database struct {
	db    *badger.DB
	txn   *badger.Txn
	key   [8]byte
	short error // why the value log cannot be whole, nil if it may be
	leaky bool  // a fault left Badger's locks as they were: closing it would wait for ever
}

func (d *database) get(id ID, buf []byte) ([]byte, error) { return d.head(id, buf, MaxBlock) }

func (d *database) head(id ID, buf []byte, n int) ([]byte, error) {
	err := guard(func() error {
		item, err := d.txn.Get(blockKey(&d.key, id))
		if err != nil {
			return err
		}
		return value(item, func(v []byte) { buf = append(buf[:0], v[:min(n, len(v))]...) })
	})
	var f *fault
	switch {
	case err == nil:
	case errors.As(err, &f):
		d.leaky = true
	case errors.Is(err, badger.ErrKeyNotFound):
		err = errMissing
	case d.short != nil:
		err = d.short
	}
	return buf, err
}

func (d *database) close() {
	d.txn.Discard()
	if !d.leaky {
		_ = guard(d.db.Close)
	}
}

var errMissing = errors.New("missing in the segment")

// plainLog reads blocks straight from the value log of a segment that is not encrypted, as docs/format.md has it. That spares Badger's memory maps
// and the copying, and a head costs no more than itself.
type plainLog struct {
	f       *os.File
	spans   map[ID]span   // entries of the value log
	small   map[ID][]byte // blocks that lie in the write-ahead log
	missing error         // why a block is in neither
	short   error         // why the value log cannot be whole, nil if it may be
	trust   bool          // the checksum of entries is not looked at: what is read is checked by who reads it
}

// span is where an entry of the value log lies.
type span struct {
	off  int64
	size int
}

func (l *plainLog) get(id ID, buf []byte) ([]byte, error) {
	s, ok := l.spans[id]
	if !ok {
		return l.inline(id, buf)
	}
	buf, err := l.read(s.off, s.size, buf)
	if err != nil {
		return buf, err
	}
	e := parseEntry(buf)
	if !e.is(id, s.size) || !l.trust && !e.whole() {
		return buf, l.hurt()
	}
	return buf[:copy(buf, e.value)], nil
}

func (l *plainLog) head(id ID, buf []byte, n int) ([]byte, error) {
	s, ok := l.spans[id]
	if !ok {
		buf, err := l.inline(id, buf)
		return buf[:min(n, len(buf))], err
	}
	buf, err := l.read(s.off, min(s.size, n+vlogOverhead), buf)
	if err != nil {
		return buf, err
	}
	e := parseEntry(buf)
	if !e.is(id, s.size) {
		return buf, l.hurt()
	}
	return buf[:copy(buf, e.value[:min(n, len(e.value))])], nil
}

func (l *plainLog) inline(id ID, buf []byte) ([]byte, error) {
	if v, ok := l.small[id]; ok {
		return append(buf[:0], v...), nil
	}
	return buf, l.missing
}

func (l *plainLog) read(off int64, n int, buf []byte) ([]byte, error) {
	if cap(buf) < n {
		buf = make([]byte, n+n/4)
	}
	buf = buf[:n]
	_, err := l.f.ReadAt(buf, off)
	if errors.Is(err, io.EOF) {
		err = l.hurt()
	}
	return buf, err
}

// hurt is what is known of an entry that is not whole.
func (l *plainLog) hurt() error {
	if l.short != nil {
		return l.short
	}
	return errDamaged
}

func (l *plainLog) close() { _ = l.f.Close() }

// entry is what begins at some place of a value log or write-ahead log.
type entry struct {
	raw   []byte // up to the end of its checksum, or less
	size  int    // of the whole
	meta  byte
	key   []byte
	value []byte // as much of it as is there
}

// Bits of entry.meta.
const (
	bitValuePointer = 0x02 // the value is a pointer into the value log
	bitTxn          = 0x40
	bitFinTxn       = 0x80
)

// parseEntry takes apart what b begins with: at least up to the key, or the size is 0.
func parseEntry(b []byte) (e entry) {
	if len(b) < 2 {
		return e
	}
	var v [3]uint64
	n := 2
	for i := range v {
		var m int
		if v[i], m = binary.Uvarint(b[n:]); m <= 0 {
			return e
		}
		n += m
	}
	klen, vlen := v[0], v[1]
	if klen == 0 || klen > uint64(len(b)-n) || vlen > 2*MaxBlock {
		return e
	}
	end := n + int(klen)
	e = entry{size: end + int(vlen) + crc32.Size, meta: b[0], key: b[n:end], value: b[end:min(len(b), end+int(vlen))]}
	e.raw = b[:min(len(b), e.size)]
	return e
}

// whole tells whether all of the entry is there, and its checksum fits.
func (e *entry) whole() bool {
	end := e.size - crc32.Size
	return e.size > 0 && len(e.raw) == e.size && crc32.Checksum(e.raw[:end], castagnoli) == binary.BigEndian.Uint32(e.raw[end:])
}

// block tells which block the entry is of, 0 if it is of none. Behind the ID is Badger's version of the key.
func (e *entry) block() ID {
	if len(e.key) != 16 {
		return 0
	}
	return ID(binary.BigEndian.Uint64(e.key))
}

// is tells whether the entry is that of the block, and as long as it should be. No block is empty.
func (e *entry) is(id ID, size int) bool {
	return e.size == size && e.block() == id && len(e.value) > 0
}

// openPlain finds the blocks of a segment by its write-ahead log, which checkFiles has found to be whole. short says what is wrong with
// the value log.
func openPlain(si *SegmentInfo, short error, trust bool) (*plainLog, error) {
	wal, err := os.ReadFile(filepath.Join(si.Dir, walName))
	if err != nil {
		return nil, err
	}
	// The sidecar only hints at how many there are.
	l := &plainLog{spans: make(map[ID]span, min(si.Blocks, uint64(len(wal)/walOverhead))), missing: errMissing, short: short, trust: trust}
	for off := logHeader; off < len(wal); {
		e := parseEntry(wal[off:])
		if !e.whole() {
			return nil, fmt.Errorf("%s, offset %d: the entry is not whole", filepath.Join(si.Dir, walName), off)
		}
		off += e.size
		id := e.block()
		switch {
		case id == 0 || e.meta&bitFinTxn != 0 || len(e.value) == 0:
		case e.meta&bitValuePointer == 0:
			if l.small == nil {
				l.small = make(map[ID][]byte)
			}
			l.small[id] = e.value
		case len(e.value) == 12 && binary.LittleEndian.Uint32(e.value) == 1: // the only value log
			size := binary.LittleEndian.Uint32(e.value[4:])
			if size > MaxBlock+vlogOverhead {
				return nil, fmt.Errorf("%s, offset %d: an entry of %d bytes in the value log", filepath.Join(si.Dir, walName), off, size)
			}
			l.spans[id] = span{int64(binary.LittleEndian.Uint32(e.value[8:])), int(size)}
		default:
			return nil, fmt.Errorf("%s, offset %d: a pointer to another value log", filepath.Join(si.Dir, walName), off)
		}
	}
	l.f, err = os.Open(filepath.Join(si.Dir, vlogName))
	return l, err
}

// openBareLog finds the blocks of a segment in its value log alone: its entries tell which block they are. why says what is wrong with
// the segment otherwise.
func openBareLog(si *SegmentInfo, why error) (*plainLog, error) {
	path := filepath.Join(si.Dir, vlogName)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l := &plainLog{spans: make(map[ID]span), missing: why}
	for off := logHeader; off < len(data); {
		// Behind damage the next entry is looked for. Its key begins with many zeros, so that few places must be tried.
		if e := parseEntry(data[off:]); e.whole() && len(e.value) > 0 && e.block() >= si.First && e.block() <= si.Last {
			l.spans[e.block()] = span{int64(off), e.size}
			off += e.size
			continue
		}
		off++
		for off+32 < len(data) && !mayBeEntry(data[off:]) {
			off++
		}
	}
	if len(l.spans) == 0 {
		return nil, fmt.Errorf("%s holds no block", path)
	}
	l.f, err = os.Open(path)
	return l, err
}

// mayBeEntry looks at the start of an entry: meta, user meta and the length of a block's key.
func mayBeEntry(b []byte) bool { return b[0]&^bitValuePointer == 0 && b[1] == 0 && b[2] == 16 }
