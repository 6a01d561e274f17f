// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	badger "github.com/dgraph-io/badger/v4"
)

// A source gives the blocks of one closed segment. get replaces what is in buf.
type source interface {
	get(id ID, buf []byte) ([]byte, error)
	close()
}

// database is the usual source.
type database struct {
	db    *badger.DB
	txn   *badger.Txn
	key   [8]byte
	short error // why the value log cannot be whole, nil if it may be
	leaky bool  // a fault left Badger's locks as they were: closing it would wait for ever
}

func (d *database) get(id ID, buf []byte) ([]byte, error) {
	err := guard(func() error {
		item, err := d.txn.Get(blockKey(&d.key, id))
		if err != nil {
			return err
		}
		return value(item, func(v []byte) { buf = append(buf[:0], v...) })
	})
	var f *fault
	switch {
	case err == nil:
	case errors.As(err, &f):
		d.leaky = true
	case errors.Is(err, badger.ErrKeyNotFound):
		err = errors.New("missing in the segment")
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

// bareLog reads the value log of a segment whose other files are damaged. Each of its entries tells which block it is, and has a checksum.
type bareLog struct {
	f     *os.File
	spans map[ID]span
	why   error // what is wrong with the other files
}

type span struct {
	off  int64
	size int
}

func (l *bareLog) get(id ID, buf []byte) ([]byte, error) {
	s, ok := l.spans[id]
	if !ok {
		return buf, l.why
	}
	if cap(buf) < s.size {
		buf = make([]byte, s.size)
	}
	buf = buf[:s.size]
	if _, err := l.f.ReadAt(buf, s.off); err != nil {
		return buf, err
	}
	_, v := vlogEntry(buf)
	if v == nil {
		return buf, errDamaged
	}
	return buf[:copy(buf, v)], nil
}

func (l *bareLog) close() { _ = l.f.Close() }

// vlogEntry takes the entry of a block apart that b begins with. The value is nil if it is not whole.
func vlogEntry(b []byte) (id ID, value []byte) {
	n, _ := walEntry(b)
	if n == 0 {
		return 0, nil
	}
	at := 2
	var v [3]uint64
	for i := range v {
		var m int
		v[i], m = binary.Uvarint(b[at:])
		at += m
	}
	if v[0] != 16 { // a block's key and Badger's version of it
		return 0, nil
	}
	return ID(binary.BigEndian.Uint64(b[at:])), b[at+16 : at+16+int(v[1])]
}

// openBareLog finds the blocks of a segment in its value log. why says what is wrong with the segment otherwise.
func openBareLog(si *SegmentInfo, why error) (*bareLog, error) {
	path := filepath.Join(si.Dir, vlogName)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l := &bareLog{spans: make(map[ID]span), why: why}
	for off := logHeader; off < len(data); {
		// Behind damage the next entry is looked for. Its key begins with many zeros, so that few places must be tried.
		if id, v := vlogEntry(data[off:]); v != nil && id >= si.First && id <= si.Last {
			n, _ := walEntry(data[off:])
			l.spans[id] = span{int64(off), n}
			off += n
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
func mayBeEntry(b []byte) bool { return b[0]&^0x02 == 0 && b[1] == 0 && b[2] == 16 }
