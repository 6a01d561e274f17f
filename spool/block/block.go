// SPDX-License-Identifier: Apache-2.0

// Package block is the codec between batches of records (see bpf/event) and blocks, the values
// that a spool keeps. A block is self-contained: it needs nothing from blocks before it.
//
// Inside, the fields of the records are columns. Each value is what is left after a prediction
// from the connection's earlier records in the block, and a column holds only the values that were
// predicted wrongly. Columns are packed by the encoding that is cheapest for them and compressed by
// zstd. The head of a block tells its counts, times and connections without a look at the columns.
// docs/format.md draws every byte.
package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"time"
	"unsafe"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Versions that this package writes. It reads all from 1 on.
const (
	Version       = 1 // of the block format
	SchemaVersion = 1 // of the records in bpf/event
)

// Limits of every block. A decoder refuses what lies beyond before it allocates.
const (
	// MaxRaw bounds the bytes of the records in one block; see Builder.Full.
	MaxRaw = 64 << 20

	// maxRatio bounds how many bytes of records a byte of block can become. A builder pads
	// blocks that would exceed it.
	maxRatio = 1 << 14

	maxHead  = 2 << 20 // bytes of a section's first frame
	maxLen   = 1 << 30 // any length or count in a block
	minBlock = fixedSize + 4 + 4
)

// Errors of the decoders. Texts add the place and what is wrong there.
var (
	ErrCorrupt = errors.New("block is corrupt")
	ErrVersion = errors.New("block is of a newer version")

	errEnd = errors.New("unexpected end")
)

// magic begins every block. Its first byte is no ASCII and no UTF-8.
const magic = "\xf5tcb"

// The fixed part of the head, little endian.
const (
	offVersion = 4  // uint8
	offSchema  = 5  // uint8
	offFlags   = 6  // uint16, 0
	offLength  = 8  // uint32: bytes of the whole block
	offHead    = 12 // uint32: bytes of the head with its CRC
	fixedSize  = 16
)

// castagnoli is never written to.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Anchor is the clock anchor of a block: at Time (CLOCK_MONOTONIC, ns) the other clocks showed
// Realtime and TAI (ns since 1970). It is the last event.Anchor before the block's first record,
// or the block's first one.
type Anchor struct {
	Time        uint64
	Session     uint64 // random, the same in the whole session
	Realtime    int64
	TAI         int64
	Uncertainty uint32 // ns
}

// Kinds is the length of Info.Kinds: one more than the highest event.Kind.
const Kinds = int(event.KindLink) + 1

// Info is what a block's head tells of it.
type Info struct {
	Version     int
	Schema      int
	Events      int    // records
	Raw         int    // bytes of the records
	Encoded     int    // bytes of the block
	Head        int    // bytes of the head, directory included
	First       uint64 // smallest Header.Time, ns CLOCK_MONOTONIC
	Last        uint64 // largest
	Connections int    // entries of the directory
	Kinds       [Kinds]uint64
	Hooks       [event.Hooks]uint64 // records by hook; those of hooks that the schema does not know are in none
	Anchored    bool                // Anchor is set
	Anchor      Anchor
}

// Wall returns the wall time of the monotonic time t by the block's anchor, and false if the block
// has none.
func (i *Info) Wall(t uint64) (time.Time, bool) {
	if !i.Anchored {
		return time.Time{}, false
	}
	return time.Unix(0, i.Anchor.Realtime+int64(t-i.Anchor.Time)), true
}

// head is a parsed head: Info, and where the rest is.
type head struct {
	Info
	filter    []byte // Bloom filter of the tuples, empty: none
	directory int    // offset of the directory's section
	dirLen    int    // its bytes
}

// HeadSize tells how many bytes the head of a block has, of which src is the beginning, at least 16 bytes. ReadInfo, MayHold and
// Decoder.Directory need no more of a block than that.
func HeadSize(src []byte) (int, error) {
	var h head
	err := h.preamble(src)
	return h.Head, err
}

// ReadInfo reads the head of the block src, or src that is such a head, and checks its CRC. It does not look at the columns, whose
// damage only Decode finds. It copies all that it returns.
func ReadInfo(src []byte) (Info, error) {
	var h head
	err := h.read(src)
	return h.Info, err
}

// preamble reads what comes before the CRC can be checked: magic, version and lengths.
func (h *head) preamble(src []byte) error {
	if len(src) < fixedSize {
		return fmt.Errorf("%w: header, offset %d: unexpected end: a block has at least %d bytes", ErrCorrupt, len(src), minBlock)
	}
	if string(src[:4]) != magic {
		return fmt.Errorf("%w: header, offset 0: bad magic % x: this is no block", ErrCorrupt, src[:4])
	}
	h.Version, h.Schema = int(src[offVersion]), int(src[offSchema])
	if h.Version > Version || h.Schema > SchemaVersion {
		return fmt.Errorf("%w: format %d of records %d, this program reads up to %d of %d: use a newer one",
			ErrVersion, h.Version, h.Schema, Version, SchemaVersion)
	}
	if h.Version == 0 || h.Schema == 0 {
		return fmt.Errorf("%w: header, offset %d: version 0", ErrCorrupt, offVersion)
	}
	if f := binary.LittleEndian.Uint16(src[offFlags:]); f != 0 {
		return fmt.Errorf("%w: header, offset %d: unknown flags %#x", ErrCorrupt, offFlags, f)
	}
	length := uint64(binary.LittleEndian.Uint32(src[offLength:]))
	headLen := uint64(binary.LittleEndian.Uint32(src[offHead:]))
	if headLen < fixedSize+4 || headLen+4 > length {
		return fmt.Errorf("%w: header, offset %d: head of %d bytes in a block of %d", ErrCorrupt, offHead, headLen, length)
	}
	h.Encoded, h.Head = int(length), int(headLen)
	return nil
}

// complete compares the block's length with what is there: all of it, or, if alone allows that, the head.
func (h *head) complete(src []byte, alone bool) error {
	switch {
	case len(src) == h.Encoded, alone && len(src) == h.Head:
		return nil
	case len(src) < h.Encoded:
		return fmt.Errorf("%w: torn: offset %d: unexpected end: %d of %d bytes are there", ErrCorrupt, len(src), len(src), h.Encoded)
	default:
		return fmt.Errorf("%w: header, offset %d: %d bytes after the block's end", ErrCorrupt, offLength, len(src)-h.Encoded)
	}
}

func (h *head) read(src []byte) error {
	*h = head{}
	if err := h.preamble(src); err != nil {
		return err
	}
	if err := h.complete(src, true); err != nil {
		return err
	}
	end := h.Head - 4
	if got, want := crc32.Checksum(src[:end], castagnoli), binary.LittleEndian.Uint32(src[end:]); got != want {
		return fmt.Errorf("%w: header and directory, offset 0 to %d: CRC-32C is %08x, want %08x", ErrCorrupt, end, got, want)
	}
	r := reader{b: src[:end], off: fixedSize}
	h.Events = r.int("events")
	h.Raw = r.int("raw size")
	h.First = r.uint("first time")
	h.Last = h.First + r.uint("last time")
	n := r.int("kinds")
	for range n {
		k := r.byte("kind")
		c := r.uint("count of the kind")
		if r.err == nil && (int(k) >= Kinds || h.Kinds[k] != 0) {
			r.fail("kind")
		}
		if r.err != nil {
			return r.err
		}
		h.Kinds[k] = c
	}
	hooks := r.uint("hooks")
	if hooks>>event.Hooks != 0 {
		r.fail("hooks")
	}
	for ; hooks != 0 && r.err == nil; hooks &= hooks - 1 {
		h.Hooks[bits.TrailingZeros64(hooks)] = r.uint("count of the hook")
	}
	switch r.byte("anchor") {
	case 0:
	case 1:
		h.Anchored = true
		h.Anchor.Session = r.fixed64("session")
		h.Anchor.Time = r.uint("anchor time")
		h.Anchor.Realtime = int64(r.fixed64("anchor realtime"))
		h.Anchor.TAI = h.Anchor.Realtime + int64(unzigzag(r.uint("anchor TAI")))
		h.Anchor.Uncertainty = uint32(r.uint("anchor uncertainty"))
	default:
		r.fail("anchor")
	}
	h.Connections = r.int("connections")
	h.filter = r.bytes(r.int("filter"), "filter")
	if n := len(h.filter); n&(n-1) != 0 {
		r.fail("filter")
	}
	h.dirLen = r.int("directory")
	h.directory = r.off
	if r.err == nil && h.dirLen != end-r.off {
		r.fail("directory")
	}
	if r.err != nil {
		return r.err
	}
	var sum uint64
	for _, c := range h.Kinds {
		sum += min(c, maxLen)
	}
	switch {
	case h.Raw > MaxRaw || h.Events > h.Raw/event.HeaderSize || sum != uint64(h.Events):
		return fmt.Errorf("%w: header, offset %d: impossible sizes: %d records in %d bytes", ErrCorrupt, fixedSize, h.Events, h.Raw)
	case h.Raw > h.Encoded*maxRatio:
		return fmt.Errorf("%w: header, offset %d: %d bytes cannot hold %d", ErrCorrupt, fixedSize, h.Encoded, h.Raw)
	case h.Connections == 0 || h.Connections > h.Events+1:
		return fmt.Errorf("%w: header, offset %d: impossible number of connections: %d", ErrCorrupt, fixedSize, h.Connections)
	}
	return nil
}

// reader reads the variable part of a head. After an error it returns zeros.
type reader struct {
	b   []byte
	off int
	err error
}

func (r *reader) fail(field string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: header, field %q, offset %d: bad value or unexpected end", ErrCorrupt, field, r.off)
		r.off = len(r.b)
	}
}

func (r *reader) uint(field string) uint64 {
	x, n := binary.Uvarint(r.b[r.off:])
	if n <= 0 {
		r.fail(field)
		return 0
	}
	r.off += n
	return x
}

func (r *reader) int(field string) int {
	x := r.uint(field)
	if x > maxLen {
		r.fail(field)
		return 0
	}
	return int(x)
}

func (r *reader) byte(field string) byte {
	if r.off >= len(r.b) {
		r.fail(field)
		return 0
	}
	r.off++
	return r.b[r.off-1]
}

func (r *reader) fixed64(field string) uint64 {
	if len(r.b)-r.off < 8 {
		r.fail(field)
		return 0
	}
	r.off += 8
	return binary.LittleEndian.Uint64(r.b[r.off-8:])
}

func (r *reader) bytes(n int, field string) []byte {
	if len(r.b)-r.off < n {
		r.fail(field)
		return nil
	}
	r.off += n
	return r.b[r.off-n : r.off]
}

// words returns a record's header as the nine words that it is.
func words(h *event.Header) *[9]uint64 { return (*[9]uint64)(unsafe.Pointer(h)) }
