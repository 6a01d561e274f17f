// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"unsafe"

	"github.com/klauspost/compress/zstd"
)

// A section is a set of columns of whole numbers. Each column is written in the encoding that
// costs least for its values in this block. docs/format.md draws the bytes.

// Encodings of a column, in the low four bits of its entry's encoding byte.
const (
	encConst  = 0 // one value, repeated
	encPlane1 = 1 // one byte each
	encPlane2 = 2 // two bytes each: all low bytes, then all high bytes
	encPlane3 = 3 // three
	encHybrid = 4 // a token byte each, and bits that follow from the token
	encDict   = 5 // a list of values, then an index byte each
	encEscape = 6 // one byte each, 255: the value is in a list of two bytes each
	encLast   = encEscape

	encMask = 0x0f
	ownBit  = 0x80 // the column's bytes are a frame of their own
)

// ownFrom is the length from which a column's bytes get a frame of their own, and with it
// Huffman tables of their own.
const ownFrom = 2048

// hint tells the encoder what a column's values are like.
type hint uint8

const (
	hintNumber hint = iota // sizes and differences: small ones are frequent
	hintIndex              // names of things, no order among them
	hintNoise              // a dictionary is not worth a try
)

// token returns the hybrid token of x, the number of bits that follow it and these bits. Numbers
// below 16 are their own token. Above, a token holds the place of the highest bit and the
// two bits below it.
func token(x uint64) (tok uint8, n uint, low uint64) {
	if x < 16 {
		return uint8(x), 0, 0
	}
	top := uint(63 - bits.LeadingZeros64(x))
	n = top - 2
	return uint8(16 + (top-4)*4 + uint(x>>n)&3), n, x & (1<<n - 1)
}

// tokenBase and tokenBits invert token.
var tokenBase, tokenBits = func() (base [256]uint64, n [256]uint8) {
	for t := range 256 {
		if t < 16 {
			base[t] = uint64(t)
			continue
		}
		n[t] = uint8((t-16)/4 + 2)
		base[t] = (4 | uint64(t-16)%4) << n[t]
	}
	return base, n
}()

// sectionWriter encodes sections. It keeps its buffers for the next one.
type sectionWriter struct {
	zw     *zstd.Encoder
	head   []byte // entries of the columns
	small  []byte // bytes of columns that share the first frame
	big    []byte // frames of the others
	bits   []byte // bits after the tokens
	tokens []byte
	tbits  []byte
	index  []byte
	frame  []byte
	dict   dictBuilder
}

// write appends a section of the columns to dst. hints has one for each column.
func (w *sectionWriter) write(dst []byte, cols [][]uint64, hints []hint) []byte {
	w.head, w.small, w.big, w.bits = w.head[:0], w.small[:0], w.big[:0], w.bits[:0]
	n, last := 0, -1
	for _, v := range cols {
		if len(v) > 0 {
			n++
		}
	}
	w.head = binary.AppendUvarint(w.head, uint64(n))
	for id, v := range cols {
		if len(v) == 0 {
			continue
		}
		w.head = binary.AppendUvarint(w.head, uint64(id-last-1))
		last = id
		w.column(v, hints[id])
	}
	w.head = append(w.head, w.small...)
	dst = w.appendFrame(dst, w.head)
	dst = append(dst, w.big...)
	return append(dst, w.bits...)
}

// appendFrame appends the length of p, the length of its frame and the frame itself: zstd, or
// p as it is (and the length 0) where zstd does not make it shorter.
func (w *sectionWriter) appendFrame(dst, p []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(p)))
	w.frame = w.zw.EncodeAll(p, w.frame[:0])
	if len(w.frame) >= len(p) {
		dst = append(dst, 0)
		return append(dst, p...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(w.frame)))
	return append(dst, w.frame...)
}

func (w *sectionWriter) column(v []uint64, h hint) {
	first := v[0]
	var or, diff uint64
	for _, x := range v {
		or |= x
		diff |= x ^ first
	}
	if diff == 0 {
		w.head = append(w.head, encConst)
		w.head = binary.AppendUvarint(w.head, uint64(len(v)))
		w.head = binary.AppendUvarint(w.head, first)
		return
	}
	switch {
	case or < 1<<8:
		w.planes(v, 1)
		return
	case h == hintIndex && or < 1<<16:
		w.index16(v)
		return
	case h == hintIndex && or < 1<<24:
		w.planes(v, 3)
		return
	}
	hybrid := w.hybrid(v)
	if h != hintNoise && len(v) >= 8 && w.dict.build(v) {
		if cost := w.dict.cost(); cost < hybrid {
			w.writeDict(len(v))
			return
		}
	}
	w.entry(encHybrid, len(v), w.tokens, uint64(len(w.tbits)))
	w.bits = append(w.bits, w.tbits...)
}

// entry writes the entry of a column whose bytes are p and puts these in their place.
func (w *sectionWriter) entry(enc byte, n int, p []byte, params ...uint64) {
	own := len(p) >= ownFrom
	if own {
		enc |= ownBit
	}
	w.head = append(w.head, enc)
	w.head = binary.AppendUvarint(w.head, uint64(n))
	for _, x := range params {
		w.head = binary.AppendUvarint(w.head, x)
	}
	if !own {
		w.small = append(w.small, p...)
		return
	}
	w.frame = w.zw.EncodeAll(p, w.frame[:0])
	if len(w.frame) >= len(p) {
		w.head = append(w.head, 0)
		w.big = append(w.big, p...)
		return
	}
	w.head = binary.AppendUvarint(w.head, uint64(len(w.frame)))
	w.big = append(w.big, w.frame...)
}

func (w *sectionWriter) planes(v []uint64, width int) {
	n := len(v)
	p := slices.Grow(w.index[:0], n*width)[:n*width]
	w.index = p
	for i := range width {
		plane := p[i*n : (i+1)*n]
		shift := 8 * uint(i)
		for j, x := range v {
			plane[j] = byte(x >> (shift & 63))
		}
	}
	w.entry(byte(encPlane1+width-1), n, p)
}

// index16 writes indices of which some are above 255. An escaped value costs 16 bits and more; a
// second plane costs each value a little.
func (w *sectionWriter) index16(v []uint64) {
	n := 0
	for _, x := range v {
		n += int((254 - x) >> 63)
	}
	if n > len(v)/4 || n > len(v)/16 && !escapes(v, n) {
		w.planes(v, 2)
		return
	}
	p := slices.Grow(w.index[:0], len(v))[:len(v)]
	w.index = p
	list := slices.Grow(w.tbits[:0], 2*n)
	for i, x := range v {
		if x >= 255 {
			list = binary.LittleEndian.AppendUint16(list, uint16(x))
			x = 255
		}
		p[i] = byte(x)
	}
	w.tbits = list
	w.entry(encEscape, len(v), p, uint64(len(list)))
	w.bits = append(w.bits, list...)
}

// escapes tells whether n escapes among v cost less than a second plane.
func escapes(v []uint64, n int) bool {
	var low, high, esc [256]uint32
	for _, x := range v {
		low[x&0xff]++
		high[x>>8&0xff]++
		esc[min(x, 255)]++
	}
	return entropy(esc[:], len(v))+16*float64(n) < entropy(low[:], len(v))+entropy(high[:], len(v))
}

// hybrid fills tokens and tbits and returns what they will cost, in bits, about.
func (w *sectionWriter) hybrid(v []uint64) float64 {
	var count [256]uint32
	tok := slices.Grow(w.tokens[:0], len(v))[:len(v)]
	w.tokens = tok
	buf := slices.Grow(w.tbits[:0], 8*len(v)+16)
	buf = buf[:cap(buf)]
	var acc uint64
	var have uint
	pos, total := 0, 0
	for i, x := range v {
		t, n, low := token(x)
		tok[i] = t
		count[t]++
		if n == 0 {
			continue
		}
		total += int(n)
		acc |= low << have
		have += n
		if have >= 64 {
			binary.LittleEndian.PutUint64(buf[pos:], acc)
			pos += 8
			have -= 64
			acc = low >> (n - have)
		}
	}
	binary.LittleEndian.PutUint64(buf[pos:], acc)
	w.tbits = buf[:pos+int(have+7)/8]
	return entropy(count[:], len(v)) + float64(total)
}

// entropy returns the bits that n symbols with these counts take at least.
func entropy(count []uint32, n int) float64 {
	sum := float64(n) * math.Log2(float64(n))
	for _, c := range count {
		if c > 1 {
			sum -= float64(c) * math.Log2(float64(c))
		}
	}
	return sum
}

func (w *sectionWriter) writeDict(n int) {
	d := &w.dict
	w.entry(encDict, n, d.index, uint64(len(d.values)))
	// The values follow the entry.
	for _, x := range d.values {
		w.head = binary.AppendUvarint(w.head, x)
	}
}

// dictBuilder finds the distinct values of a column, if they are few.
type dictBuilder struct {
	values []uint64
	count  [256]uint32
	index  []byte
	slots  [1024]uint16 // index into values + 1
}

func (d *dictBuilder) build(v []uint64) bool {
	d.values = d.values[:0]
	clear(d.slots[:])
	clear(d.count[:])
	idx := slices.Grow(d.index[:0], len(v))[:len(v)]
	d.index = idx
	for i, x := range v {
		at := (x * 0x9e3779b97f4a7c15) >> 54
		for {
			s := d.slots[at&1023]
			if s == 0 {
				if len(d.values) == 255 {
					return false
				}
				d.values = append(d.values, x)
				s = uint16(len(d.values))
				d.slots[at&1023] = s
			} else if d.values[s-1] != x {
				at++
				continue
			}
			idx[i] = byte(s - 1)
			d.count[s-1]++
			break
		}
	}
	return true
}

func (d *dictBuilder) cost() float64 {
	listed := 0
	for _, x := range d.values {
		listed += (bits.Len64(x)+6)/7*8 + 4
	}
	return entropy(d.count[:len(d.values)], len(d.index)) + float64(listed)
}

// sectionReader decodes sections. The columns it returns are valid until the next read.
type sectionReader struct {
	zr    *zstd.Decoder
	head  []byte
	bytes []byte
	arena []uint64
	cols  []columnEntry
}

type columnEntry struct {
	id     int
	enc    byte
	own    bool
	n      int    // values
	p      int    // encHybrid: bytes of bits; encEscape: bytes of the list; encDict: values
	value  uint64 // encConst: the value; encDict: where in the first frame its values are
	frame  int    // length of the own frame, 0: as it is
	length int    // of the column's bytes
}

// place tells where in a section an error is.
type place struct {
	section string
	names   func(id int) string
}

func (pl place) column(id, off int, what string) error {
	return fmt.Errorf("%w: %s, column %s, offset %d: %s", ErrCorrupt, pl.section, pl.names(id), off, what)
}

func (pl place) at(off int, what string) error {
	return fmt.Errorf("%w: %s, offset %d: %s", ErrCorrupt, pl.section, off, what)
}

// frame reads a frame at off of src that must hold want bytes after decompression, and
// returns these and the offset after it. clen 0 says that it is stored as it is.
func (r *sectionReader) frame(dst, src []byte, off, clen, want int) ([]byte, int, error) {
	if clen == 0 {
		if want > len(src)-off {
			return nil, 0, errEnd
		}
		return append(dst, src[off:off+want]...), off + want, nil
	}
	if clen > len(src)-off {
		return nil, 0, errEnd
	}
	start := len(dst)
	dst = slices.Grow(dst, want)
	out, err := r.zr.DecodeAll(src[off:off+clen], dst[:start:start+want])
	if err != nil {
		return nil, 0, err
	}
	if len(out)-start != want {
		return nil, 0, fmt.Errorf("zstd gave %d bytes, want %d", len(out)-start, want)
	}
	dst = dst[:start+want]
	if unsafe.SliceData(out) != unsafe.SliceData(dst) {
		copy(dst[start:], out[start:])
	}
	return dst, off + clen, nil
}

// read decodes the section in src, whose first byte is at offset base of the block. It sets
// cols[id] for each column that the section has and returns the section's length. limit bounds
// the sum of the numbers of values.
func (r *sectionReader) read(cols [][]uint64, src []byte, base, limit int, pl place) (int, error) {
	clear(cols)
	raw, off, ok := uvarintInt(src, 0)
	if !ok || raw > maxHead {
		return 0, pl.at(base, "bad length of the first frame")
	}
	clen, off, ok := uvarintInt(src, off)
	if !ok {
		return 0, pl.at(base, "bad length of the first frame")
	}
	head, off, err := r.frame(r.head[:0], src, off, clen, raw)
	if err != nil {
		return 0, pl.at(base, "first frame: "+err.Error())
	}
	r.head = head
	n, p, ok := uvarintInt(head, 0)
	if !ok || n > len(cols) {
		return 0, pl.at(base, "bad number of columns")
	}
	r.cols = r.cols[:0]
	id, total, smallLen := -1, 0, 0
	for range n {
		gap, q, ok := uvarintInt(head, p)
		if !ok || q >= len(head) || gap >= len(cols)-id-1 {
			return 0, pl.at(base, "list of columns: unexpected end or unknown column")
		}
		id += gap + 1
		e := columnEntry{id: id, enc: head[q] & encMask, own: head[q]&ownBit != 0}
		if head[q]&^(encMask|ownBit) != 0 || e.enc > encLast {
			return 0, pl.column(id, base, fmt.Sprintf("unknown encoding %#x", head[q]))
		}
		if e.n, p, ok = uvarintInt(head, q+1); !ok || e.n == 0 || e.n > limit-total {
			return 0, pl.column(id, base, "bad number of values")
		}
		total += e.n
		switch e.enc {
		case encConst:
			if e.own {
				return 0, pl.column(id, base, "a constant has no frame")
			}
			var w int
			if e.value, w = binary.Uvarint(head[p:]); w <= 0 {
				return 0, pl.column(id, base, "unexpected end")
			}
			p += w
		case encPlane1, encPlane2, encPlane3:
			e.length = e.n * int(e.enc-encPlane1+1)
		case encHybrid, encEscape:
			e.length = e.n
			if e.p, p, ok = uvarintInt(head, p); !ok || e.p > len(src) {
				return 0, pl.column(id, base, "bad number of bits")
			}
		case encDict:
			e.length = e.n
			if e.p, p, ok = uvarintInt(head, p); !ok || e.p == 0 || e.p > 255 {
				return 0, pl.column(id, base, "bad size of the dictionary")
			}
		}
		if e.own {
			if e.frame, p, ok = uvarintInt(head, p); !ok {
				return 0, pl.column(id, base, "unexpected end")
			}
		} else {
			smallLen += e.length
		}
		if e.enc == encDict {
			e.value = uint64(p) // of its list, in head
			for range e.p {
				_, w := binary.Uvarint(head[p:])
				if w <= 0 {
					return 0, pl.column(id, base, "dictionary: unexpected end")
				}
				p += w
			}
		}
		r.cols = append(r.cols, e)
	}
	if smallLen != len(head)-p {
		return 0, pl.at(base, fmt.Sprintf("%d bytes of columns in the first frame, want %d", len(head)-p, smallLen))
	}
	// The arena never moves while columns point into it.
	if cap(r.arena) < total {
		r.arena = make([]uint64, total)
	}
	arena := r.arena[:0]
	bitsOff := off // where the bits begin, known after the frames
	for i := range r.cols {
		e := &r.cols[i]
		if !e.own {
			continue
		}
		if e.frame == 0 {
			bitsOff += e.length
		} else {
			bitsOff += e.frame
		}
		if bitsOff > len(src) || bitsOff < off {
			return 0, pl.column(e.id, base+off, "unexpected end")
		}
	}
	for i := range r.cols {
		e := &r.cols[i]
		out := arena[len(arena) : len(arena)+e.n : len(arena)+e.n]
		arena = arena[:len(arena)+e.n]
		cols[e.id] = out
		var data []byte
		switch {
		case e.enc == encConst:
			for j := range out {
				out[j] = e.value
			}
			continue
		case e.own:
			b, next, err := r.frame(r.bytes[:0], src, off, e.frame, e.length)
			if err != nil {
				return 0, pl.column(e.id, base+off, err.Error())
			}
			data, off, r.bytes = b, next, b
		default:
			data = head[p : p+e.length]
			p += e.length
		}
		switch e.enc {
		case encPlane1:
			for j, x := range data {
				out[j] = uint64(x)
			}
		case encPlane2:
			lo, hi := data[:e.n], data[e.n:]
			for j := range out {
				out[j] = uint64(lo[j]) | uint64(hi[j])<<8
			}
		case encPlane3:
			lo, mid, hi := data[:e.n], data[e.n:2*e.n], data[2*e.n:]
			for j := range out {
				out[j] = uint64(lo[j]) | uint64(mid[j])<<8 | uint64(hi[j])<<16
			}
		case encDict:
			var dict [256]uint64
			q := int(e.value)
			for j := range e.p {
				x, w := binary.Uvarint(head[q:])
				dict[j] = x
				q += w
			}
			for j, x := range data {
				if int(x) >= e.p {
					return 0, pl.column(e.id, base+off, fmt.Sprintf("value %d: index %d of a dictionary of %d", j, x, e.p))
				}
				out[j] = dict[x]
			}
		case encEscape:
			if e.p > len(src)-bitsOff {
				return 0, pl.column(e.id, base+bitsOff, "list of escaped values: unexpected end")
			}
			list := src[bitsOff : bitsOff+e.p]
			for j, x := range data {
				if x != 255 {
					out[j] = uint64(x)
					continue
				}
				if len(list) < 2 {
					return 0, pl.column(e.id, base+bitsOff, fmt.Sprintf("value %d: list of escaped values: unexpected end", j))
				}
				out[j] = uint64(binary.LittleEndian.Uint16(list))
				list = list[2:]
			}
			if len(list) != 0 {
				return 0, pl.column(e.id, base+bitsOff, fmt.Sprintf("%d escaped values too many", len(list)/2))
			}
			bitsOff += e.p
		case encHybrid:
			if e.p > len(src)-bitsOff {
				return 0, pl.column(e.id, base+bitsOff, "bits: unexpected end")
			}
			sum := 0
			for _, t := range data {
				sum += int(tokenBits[t])
			}
			if (sum+7)/8 != e.p {
				return 0, pl.column(e.id, base+bitsOff, fmt.Sprintf("%d bytes of bits, want %d", e.p, (sum+7)/8))
			}
			readHybrid(out, data, src[bitsOff:bitsOff+e.p])
			bitsOff += e.p
		}
	}
	return bitsOff, nil
}

// readHybrid sets out from tokens and their bits, of which there are enough.
func readHybrid(out []uint64, tokens, b []byte) {
	pos := uint(0)
	i := 0
	// As long as 9 bytes can be read anywhere.
	for ; i < len(tokens); i++ {
		t := tokens[i]
		at := pos >> 3
		if at+9 > uint(len(b)) {
			break
		}
		n := uint(tokenBits[t])
		x := binary.LittleEndian.Uint64(b[at:at+8]) >> (pos & 7)
		if n > 57 {
			x |= uint64(b[at+8]) << (64 - pos&7)
		}
		out[i] = tokenBase[t] | x&(1<<(n&63)-1)
		pos += n
	}
	if i == len(tokens) {
		return
	}
	var tail [32]byte
	at := pos >> 3
	copy(tail[:], b[min(at, uint(len(b))):])
	pos &= 7
	for ; i < len(tokens); i++ {
		t := tokens[i]
		n := uint(tokenBits[t])
		at := pos >> 3
		x := binary.LittleEndian.Uint64(tail[at:]) >> (pos & 7)
		if n > 57 {
			x |= uint64(tail[at+8]) << (64 - pos&7)
		}
		out[i] = tokenBase[t] | x&(1<<(n&63)-1)
		pos += n
	}
}

func uvarintInt(b []byte, off int) (int, int, bool) {
	if off >= len(b) {
		return 0, off, false
	}
	x, w := binary.Uvarint(b[off:])
	if w <= 0 || x > maxLen {
		return 0, off, false
	}
	return int(x), off + w, true
}

func zigzag(x uint64) uint64     { return x<<1 ^ uint64(int64(x)>>63) }
func unzigzag(x uint64) uint64   { return x>>1 ^ -(x & 1) }
func zigzag32(x uint32) uint64   { return uint64(x<<1 ^ uint32(int32(x)>>31)) }
func unzigzag32(x uint64) uint32 { return uint32(x)>>1 ^ -uint32(x&1) }
