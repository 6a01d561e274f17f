// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
	"unsafe"

	"github.com/klauspost/compress/zstd"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Decoder reads blocks. It is for one goroutine and keeps its buffers for the next block: from the
// second of a size on it does not allocate. What it allocates for a block is bounded by sixteen times
// the size of the records (two to four times in practice), which the head declares and which is
// checked against MaxRaw and the block's length, and 3 MiB beside (FuzzDecode asks for that).
//
// Speed on one core of a shared two-core Xeon: 50 to 75 ns for a packet and 170 to 270 ns for a sample
// (BenchmarkDecodeSegments, BenchmarkDecodeSamples), about 120 ns for an entry of a directory
// (BenchmarkDirectory).
type Decoder struct {
	past
	r      sectionReader
	cols   [][]uint64
	dirs   [][]uint64
	zeros  []uint64
	shapes []uint64
	short  int // 1 + column that had no value left
}

// NewDecoder returns a Decoder.
func NewDecoder() *Decoder {
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(4*MaxRaw), zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		panic("BUG: block.NewDecoder: " + err.Error())
	}
	return &Decoder{r: sectionReader{zr: zr}, cols: make([][]uint64, columnCount), dirs: make([][]uint64, dirColumns)}
}

// take returns the next value of a column. If there is none it returns 0 and remembers that.
func (d *Decoder) take(col int) uint64 {
	if v := d.cols[col]; len(v) > 0 {
		d.cols[col] = v[1:]
		return v[0]
	}
	d.short = col + 1
	return 0
}

// Decode appends the records of the block src to dst and returns the result: the same bytes in the
// same order as they were added. It checks every CRC and copies all it needs. On error dst is
// returned as it was. len(dst) must be a multiple of 8.
func (d *Decoder) Decode(dst, src []byte) ([]byte, error) {
	var h head
	if err := h.read(src); err != nil {
		return dst, err
	}
	if err := h.complete(src, false); err != nil {
		return dst, err
	}
	end := h.Encoded - 4
	if got, want := crc32.Checksum(src[h.Head:end], castagnoli), binary.LittleEndian.Uint32(src[end:]); got != want {
		return dst, fmt.Errorf("%w: columns, offset %d to %d: CRC-32C is %08x, want %08x", ErrCorrupt, h.Head, end, got, want)
	}
	if err := d.directory(&h, src); err != nil {
		return dst, err
	}
	d.past.reset()
	d.conns = slices.Grow(d.conns, h.Connections)
	ks := keys{dirs: d.dirs}
	d.conns[0].key = ks.at(0)
	for i := 1; i < h.Connections; i++ {
		d.addConn(ks.at(i))
	}
	pl := place{"columns", columnName}
	used, err := d.r.read(d.cols, src[h.Head:end], h.Head, valuesLimit(h.Raw), pl)
	if err != nil {
		return dst, err
	}
	for i, x := range src[h.Head+used : end] {
		if x != 0 {
			return dst, pl.at(h.Head+used+i, "padding is not zero")
		}
	}
	if err := d.lists(pl, h.Head); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = slices.Grow(dst, h.Raw+event.MaxSize)
	if uintptr(unsafe.Pointer(unsafe.SliceData(dst)))&7 != 0 || start&7 != 0 {
		panic("BUG: block.Decoder.Decode: dst is not 8-byte aligned")
	}
	out := dst[:start+h.Raw+event.MaxSize]
	at, err := d.records(out, start, &h, pl)
	if err != nil {
		return dst[:start], err
	}
	return out[:at], nil
}

// valuesLimit bounds the number of values in the columns of a block with raw bytes of records. No
// kind of record has more than 0.56 a byte, its shape and template included.
func valuesLimit(raw int) int { return raw/8*5 + 64 }

// lists decodes the shapes and templates.
func (d *Decoder) lists(pl place, base int) error {
	n := len(d.cols[colShapeKind])
	for _, col := range [...]int{colShapeHook, colShapeDir, colShapeFlags, colShapeMask} {
		if len(d.cols[col]) != n {
			return pl.column(col, base, fmt.Sprintf("%d values, want %d", len(d.cols[col]), n))
		}
	}
	d.shapes = d.shapes[:0]
	for i := range n {
		k, hook, dir := d.cols[colShapeKind][i], d.cols[colShapeHook][i], d.cols[colShapeDir][i]
		flags, mask := d.cols[colShapeFlags][i], d.cols[colShapeMask][i]
		if k >= kindSlots || (structs[k].slots() == 0 && k != uint64(event.KindSegment) && k != uint64(event.KindTick)) {
			return pl.column(colShapeKind, base, fmt.Sprintf("value %d: unknown kind %d", i, k))
		}
		if hook > 0xff || dir > 0xff || flags > 0xffff || mask >= 1<<maskBits {
			return pl.column(colShapeMask, base, fmt.Sprintf("value %d: impossible shape", i))
		}
		d.shapes = append(d.shapes, k<<kindShift|hook<<hookShift|dir<<dirShift|flags<<flagShift|mask)
	}
	b := d.cols[colOptByte]
	for i, n := range d.cols[colOptLen] {
		if n > event.OptionsMax || int(n) > len(b) {
			return pl.column(colOptLen, base, fmt.Sprintf("value %d: template of %d bytes", i, n))
		}
		var o [event.OptionsMax]byte
		for j := range o[:n] {
			o[j] = byte(b[j])
		}
		b = b[n:]
		var t template
		t.layout(&o, int(n))
		d.templates = append(d.templates, t)
	}
	if len(b) != 0 {
		return pl.column(colOptByte, base, fmt.Sprintf("%d values too many", len(b)))
	}
	for _, col := range [...]int{colShapeKind, colShapeHook, colShapeDir, colShapeFlags, colShapeMask, colOptLen, colOptByte} {
		d.cols[col] = nil
	}
	return nil
}

// records decodes all records into out from at on and returns the offset after them.
func (d *Decoder) records(out []byte, at int, h *head, pl place) (int, error) {
	end := at + h.Raw
	shapes := d.cols[colShape]
	if len(shapes) != h.Events {
		return 0, pl.column(colShape, h.Head, fmt.Sprintf("%d values, want %d", len(shapes), h.Events))
	}
	d.cols[colShape] = nil
	d.short = 0
	newConn := uint32(1)
	bad := func(n int, what string) error {
		return pl.at(h.Head, fmt.Sprintf("record %d: %s", n, what))
	}
	for n, si := range shapes {
		if si >= uint64(len(d.shapes)) {
			return 0, bad(n, fmt.Sprintf("shape %d of %d", si, len(d.shapes)))
		}
		if at+event.HeaderSize > end {
			return 0, bad(n, "more records than declared bytes")
		}
		shape := d.shapes[si]
		e := event.At(out[at:])
		e.Kind, e.Hook, e.Dir = event.Kind(shape>>kindShift), event.Hook(shape>>hookShift), event.Dir(shape>>dirShift)
		s := side(e.Dir)
		cl := class(e.Kind, e.Dir)

		// Connection.
		next := &d.conns[d.conn].next[cl]
		if shape&hasConn != 0 {
			switch x := d.take(colConn); x {
			case 0:
				*next = d.conn
			case 1:
				*next = newConn
				newConn++
			default:
				*next = uint32(min(x-2, maxLen))
			}
			if int(*next) >= len(d.conns) {
				return 0, bad(n, fmt.Sprintf("connection %d of %d", *next, len(d.conns)))
			}
		}
		ci := *next
		d.conn = ci
		c := &d.conns[ci]
		w := words(e)
		w[2], w[4], w[5], w[6], w[7] = c.key[0], c.key[1], c.key[2], c.key[3], c.key[4]

		// Time.
		if shape&hasCPU != 0 {
			d.cpu = uint16(d.take(colCPU))
		}
		w[8] = c.key[5] | uint64(d.cpu)<<32 | uint64(e.Dir)<<56
		clock := d.clock(d.cpu)
		if *clock == 0 {
			*clock = d.lastTime
		}
		delta := d.take(colTime + cl)
		if shape&hasBack != 0 {
			delta = -delta
		}
		e.Time = *clock + delta
		*clock, d.lastTime = e.Time, e.Time

		// Socket.
		if shape&hasCookie != 0 {
			c.cookie[cl] = d.cookie + unzigzag(d.take(colCookie))
		}
		e.Cookie = c.cookie[cl]
		if e.Cookie != 0 {
			d.cookie = e.Cookie
		}
		e.SockSeq = c.expectSockSeq(e.Cookie)
		if shape&hasSockSeq != 0 {
			e.SockSeq += unzigzag32(d.take(colSockSeq))
		}
		if e.SockSeq != 0 {
			c.sockSeq = e.SockSeq
		}

		size := event.HeaderSize
		switch e.Kind {
		case event.KindSegment:
			size = d.segment(e.Segment(), c, s, shape)
		case event.KindSample:
			size = event.SampleSize
			d.sample(e.Sample(), c, s)
		case event.KindTick:
		default:
			size += 8 * structs[e.Kind].words()
			d.other(e, c)
		}
		e.Size = uint16(size)
		at += size
		if d.short != 0 {
			return 0, pl.column(d.short-1, h.Head, fmt.Sprintf("record %d: unexpected end", n))
		}
	}
	if at != end {
		return 0, pl.at(h.Head, fmt.Sprintf("records of %d bytes, %d declared", at-end+h.Raw, h.Raw))
	}
	for id, v := range d.cols {
		if len(v) != 0 {
			return 0, pl.column(id, h.Head, fmt.Sprintf("%d values too many", len(v)))
		}
	}
	return at, nil
}

// segment is the inverse of Builder.segment and returns the record's size.
func (d *Decoder) segment(e *event.Segment, c *conn, s int, shape uint64) int {
	l := &d.lanes[c.lane[s]]
	if shape&hasIfindex != 0 {
		l = d.enterLane(c, s, uint32(d.take(colIfindex)))
	} else if c.lane[s] == 0 {
		d.short = colIfindex + 1 // a first segment tells its interface
	}
	o := &d.lanes[c.lane[s^1]]
	flags := uint16(shape >> flagShift)
	e.Ifindex, e.TCPFlags = l.ifindex, flags

	e.Seq = l.maxEnd
	if shape&hasSeq != 0 {
		if x := d.take(colSeq); x == 0 {
			e.Seq = l.end
		} else {
			e.Seq += unzigzag32(x - 1)
		}
	}
	e.Ack = l.lastAck(flags)
	switch shape >> ackShift & 3 {
	case ackEnd:
		e.Ack = o.maxEnd
	case ackStep:
		e.Ack += l.ackStep
	case ackColumn:
		e.Ack += fromUnits(d.take(colAck), uint32(o.gsoSize))
	}
	slot := lengthSlot(flags)
	e.PayloadLen = l.length[slot]
	if shape&hasPayload != 0 {
		e.PayloadLen = fromUnits(d.take(colPayload), uint32(l.gsoSize))
	}
	e.Window = l.window
	if shape&hasWindow != 0 {
		e.Window += uint16(unzigzag32(d.take(colWindow)))
	}
	e.GSOSize = l.expectGSOSize(e.PayloadLen)
	if shape&hasGSOSize != 0 {
		e.GSOSize = uint16(d.take(colGSOSize))
	}
	e.GSOSegs = expectGSOSegs(e)
	if shape&hasGSOSegs != 0 {
		e.GSOSegs = uint16(d.take(colGSOSegs))
	}
	e.IPID = l.expectIPID(e.Family)
	if shape&hasIPID != 0 {
		e.IPID += unzigzag32(d.take(colIPID))
	}

	syn := int(flags>>1) & 1
	ti := l.template[syn]
	if shape&hasTemplate != 0 {
		x := d.take(colTemplate)
		if x >= uint64(len(d.templates)) {
			x = 0
			d.short = colTemplate + 1
		}
		ti = uint32(x)
	}
	t := &d.templates[ti]
	e.OptionsLen = t.n
	*(*[5]uint64)(unsafe.Pointer(&e.Options)) = t.word
	if t.ts >= 0 {
		tsval := clockTS(e.Time, l.tsPhase)
		if shape&hasTSVal != 0 {
			tsval += unzigzag32(d.take(colTSVal))
			l.settleTS(e.Time, tsval)
		}
		tsecr := o.tsval
		clock := clockTS(e.Time, l.ecrPhase)
		switch shape >> ecrShift & 3 {
		case ecrSame:
			tsecr = l.tsecr
		case ecrClock:
			tsecr = clock
		case ecrColumn:
			tsecr += unzigzag32(d.take(colTSEcr))
		}
		if tsecr != clock {
			l.settleEcr(e.Time, tsecr)
		}
		binary.BigEndian.PutUint32(e.Options[t.ts:], tsval)
		binary.BigEndian.PutUint32(e.Options[t.ts+4:], tsecr)
		l.tsval, l.tsecr = tsval, tsecr
	}
	if t.blocks != 0 {
		d.sack(e, t, l)
	}
	e.Urgent, e.Checksum = l.urgent, 0
	*(*uint64)(unsafe.Pointer(&e.IPOff)) = l.misc
	e.IPLen = l.ipLen
	e.TCPLen = l.tcpPad + e.OptionsLen
	if shape&hasRare != 0 {
		d.rare(e)
	}
	e.WireLen = l.overhead + uint32(e.IPLen) + uint32(e.TCPLen) + e.PayloadLen
	if shape&hasWireLen != 0 {
		e.WireLen += unzigzag32(d.take(colWireLen))
	}
	l.update(e, syn, ti, slot)
	return event.SegmentSize(int(t.n))
}

func (d *Decoder) rare(e *event.Segment) {
	r := d.take(colRare)
	if r&rareUrgent != 0 {
		e.Urgent = uint16(d.take(colUrgent))
	}
	if r&rareChecksum != 0 {
		e.Checksum = uint16(d.take(colChecksum))
	}
	if r&rareIPOff != 0 {
		e.IPOff = uint16(d.take(colIPOff))
	}
	if r&rareVLAN != 0 {
		e.VLAN = uint16(d.take(colVLAN))
	}
	if r&rareVLANIn != 0 {
		e.VLANInner = uint16(d.take(colVLANIn))
	}
	if r&rareTOS != 0 {
		e.TOS = uint8(d.take(colTOS))
	}
	if r&rareTTL != 0 {
		e.TTL = uint8(d.take(colTTL))
	}
	if r&rareIPLen != 0 {
		e.IPLen = uint16(d.take(colIPLen))
	}
	if r&rareTCPLen != 0 {
		e.TCPLen = uint8(d.take(colTCPLen))
	}
}

func (d *Decoder) sack(e *event.Segment, t *template, l *lane) {
	code := d.take(colSackCode)
	p := e.Options[t.sack:]
	last := l.sack
	for i := range int(t.blocks) {
		x := last[i]
		switch code >> (2 * i) & 3 {
		case sackGrown:
			x[1] += unzigzag32(d.take(colSackEdge))
		case sackMoved:
			x = last[max(i-1, 0)]
		case sackNew:
			x[0] = e.Ack + unzigzag32(d.take(colSackLeft))
			x[1] = x[0] + unzigzag32(d.take(colSackLen))
		}
		binary.BigEndian.PutUint32(p[8*i:], x[0])
		binary.BigEndian.PutUint32(p[8*i+4:], x[1])
		l.sack[i] = x
	}
}

func (d *Decoder) sample(e *event.Sample, c *conn, s int) {
	st := &structs[event.KindSample]
	var mask [maskLen]byte
	d.mask(st, &mask)
	h := e.Header
	d.expectSample(e, c, s)
	e.Header = h
	act := bodyOf(&e.Header, sampleWords)
	d.undiff(st, &sampleOrder, act, &mask, &sampleFirst, 0)
	d.deriveSample(e, e, c, s, e.Time)
	d.undiff(st, &sampleOrder, act, &mask, &sampleFirst, 0xff)
	d.keepSample(c, e)
}

func (d *Decoder) other(h *event.Header, c *conn) {
	st := &structs[h.Kind]
	act := bodyOf(h, st.words())
	last := d.expectOther(act, c, h)
	var mask [maskLen]byte
	d.mask(st, &mask)
	d.undiff(st, &sameOrder, act, &mask, &noSlots, 0xff)
	copy(last, act)
	d.anchorAt(h)
}

// mask reads which words differ from the prediction.
func (d *Decoder) mask(st *structKind, mask *[maskLen]byte) {
	for p := range st.planes {
		mask[p] = byte(d.take(st.base + p))
	}
	if extra := st.planes*8 - st.slots(); mask[st.planes-1]>>(8-extra) != 0 {
		d.short = st.base + st.planes
		mask[st.planes-1] = 0
	}
}

// undiff turns the prediction in act into the record's words, those of the mask that are in
// the set or, if invert is 0xff, not in it.
func (d *Decoder) undiff(st *structKind, order *[8 * maskLen]uint8, act []uint64, mask, set *[maskLen]byte, invert byte) {
	col := st.base + st.planes
	for p := range st.planes {
		for m := mask[p] & (set[p] ^ invert); m != 0; m &= m - 1 {
			slot := int(order[8*p+bits.TrailingZeros8(m)])
			x := d.take(col + slot)
			if slot < st.wide {
				act[slot] += unzigzag(x)
				continue
			}
			i := st.wide + (slot-st.wide)/2
			if (slot-st.wide)&1 == 0 {
				act[i] = act[i]&^0xffffffff | uint64(uint32(act[i])+unzigzag32(x))
			} else {
				act[i] = act[i]&0xffffffff | uint64(uint32(act[i]>>32)+unzigzag32(x))<<32
			}
		}
	}
}
