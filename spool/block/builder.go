// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Options of a Builder.
type Options struct {
	// Compression is the level of zstd: fastest, default, better or best.
	Compression string `mapstructure:"compression"`
}

// DefaultOptions returns what NewBuilder takes for the zero Options: the fastest level.
func DefaultOptions() Options { return Options{Compression: "fastest"} }

// Validate reports a fault by its key path.
func (o Options) Validate() error {
	if _, err := o.level(); err != nil {
		return fmt.Errorf("block.compression: %w", err)
	}
	return nil
}

func (o Options) level() (zstd.EncoderLevel, error) {
	switch o.Compression {
	case "", "fastest":
		return zstd.SpeedFastest, nil
	case "default":
		return zstd.SpeedDefault, nil
	case "better":
		return zstd.SpeedBetterCompression, nil
	case "best":
		return zstd.SpeedBestCompression, nil
	}
	return 0, fmt.Errorf("unknown level %q, want fastest, default, better or best", o.Compression)
}

// Builder makes blocks from records. It is for one goroutine. Its buffers grow with the
// first blocks; from then on neither Add nor Seal allocates.
//
// Speed, Add and Seal together on one core of a shared two-core Xeon: 100 to 140 ns for a packet and 280 to 420
// ns for a sample (BenchmarkEncodeSegments, BenchmarkEncodeSamples; recorded and generated traffic).
type Builder struct {
	past
	table  connTable
	shapes shapeTable
	opts   templateTable
	cols   [][]uint64
	hints  []hint
	dirs   [][]uint64
	dirHnt []hint
	w      sectionWriter
	pred   event.Sample

	events      int
	raw         int
	first, last uint64 // smallest and largest time
	kinds       [Kinds]uint64
	hooks       [event.Hooks]uint64

	now    Anchor // the last one, over blocks
	isNow  bool
	begin  Anchor // of this block
	isOpen bool   // begin is set
	filter []byte

	connects connects // whose port is not known yet
}

// NewBuilder returns a Builder for options that Validate accepts; it panics for others.
func NewBuilder(o Options) *Builder {
	level, err := o.level()
	if err != nil {
		panic("BUG: block.NewBuilder: " + err.Error())
	}
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithWindowSize(1<<20), zstd.WithAllLitEntropyCompression(true))
	if err != nil {
		panic("BUG: block.NewBuilder: " + err.Error())
	}
	b := &Builder{
		cols:   make([][]uint64, columnCount),
		hints:  recordHints(),
		dirs:   make([][]uint64, dirColumns),
		dirHnt: make([]hint, dirColumns),
		w:      sectionWriter{zw: zw},
	}
	b.table.init()
	b.shapes.init()
	b.opts.init()
	b.reset()
	return b
}

func (b *Builder) reset() {
	b.past.reset()
	b.table.reset()
	b.table.insert(b.conns, 0)
	b.shapes.reset()
	b.opts.reset()
	b.opts.insert(b.templates, 0)
	for i := range b.cols {
		b.cols[i] = b.cols[i][:0]
	}
	b.events, b.raw, b.first, b.last = 0, 0, 0, 0
	b.kinds = [Kinds]uint64{}
	b.hooks = [event.Hooks]uint64{}
	b.begin, b.isOpen = b.now, b.isNow
	b.connects.reset()
}

// Events returns the number of records added since the last Seal.
func (b *Builder) Events() int { return b.events }

// Raw returns the bytes of the records added since the last Seal.
func (b *Builder) Raw() int { return b.raw }

// First returns the smallest time of the records added since the last Seal, ns
// CLOCK_MONOTONIC; 0 if there are none.
func (b *Builder) First() uint64 { return b.first }

// Last returns the largest time of the records added since the last Seal.
func (b *Builder) Last() uint64 { return b.last }

// Full tells whether a batch of n bytes has no room in this block: Seal first. A block holds MaxRaw
// bytes of records; good sizes are far below, 16,384 to 65,536 records.
func (b *Builder) Full(n int) bool { return b.raw+n > MaxRaw }

func (b *Builder) put(col int, v uint64) { b.cols[col] = append(b.cols[col], v) }

// Add adds the records of a batch, which event.Check has accepted and for which Full is false. It
// copies what it needs.
func (b *Builder) Add(batch []byte) {
	if b.Full(len(batch)) {
		panic(fmt.Sprintf("BUG: block.Builder.Add: %d bytes in a block that holds %d of at most %d; call Full and Seal before", len(batch), b.raw, MaxRaw))
	}
	b.raw += len(batch)
	for len(batch) > 0 {
		h := event.At(batch)
		b.add(h)
		batch = batch[h.Size:]
	}
}

func (b *Builder) add(h *event.Header) {
	w := words(h)
	s := side(h.Dir)
	cl := class(h.Kind, h.Dir)
	var mask uint64

	// Connection.
	next := &b.conns[b.conn].next[cl]
	ci := *next
	if !b.conns[ci].key.names(w) {
		mask |= hasConn
		k := keyOf(w)
		i := b.table.find(b.conns, &k)
		switch {
		case i < 0:
			ci = b.addConn(k)
			b.table.insert(b.conns, ci)
			b.put(colConn, 1)
			next = &b.conns[b.conn].next[cl]
			b.conns[ci].digest.first = h.Time
		case uint32(i) == b.conn:
			ci = uint32(i)
			b.put(colConn, 0)
		default:
			ci = uint32(i)
			b.put(colConn, uint64(i)+2)
		}
		*next = ci
	}
	b.conn = ci
	c := &b.conns[ci]

	// Time.
	if h.CPU != b.cpu {
		mask |= hasCPU
		b.put(colCPU, uint64(h.CPU))
		b.cpu = h.CPU
	}
	clock := b.clock(h.CPU)
	if *clock == 0 {
		*clock = b.lastTime
	}
	delta := h.Time - *clock
	if int64(delta) < 0 {
		mask |= hasBack
		delta = -delta
	}
	b.put(colTime+cl, delta)
	*clock, b.lastTime = h.Time, h.Time
	if b.events == 0 {
		b.first, b.last = h.Time, h.Time
	}
	b.first, b.last = min(b.first, h.Time), max(b.last, h.Time)

	// Socket.
	if h.Cookie != c.cookie[cl] {
		mask |= hasCookie
		b.put(colCookie, zigzag(h.Cookie-b.cookie))
		c.cookie[cl] = h.Cookie
	}
	if h.Cookie != 0 {
		b.cookie = h.Cookie
	}
	want := c.expectSockSeq(h.Cookie)
	if h.SockSeq != want {
		mask |= hasSockSeq
		b.put(colSockSeq, zigzag32(h.SockSeq-want))
	}
	if h.SockSeq != 0 {
		c.sockSeq = h.SockSeq
	}

	b.events++
	b.kinds[h.Kind]++
	if h.Hook < event.Hooks {
		b.hooks[h.Hook]++
	}
	d := &c.digest
	d.first, d.last = min(d.first, h.Time), max(d.last, h.Time)
	shape := uint64(h.Dir)<<dirShift | uint64(h.Hook)<<hookShift | uint64(h.Kind)<<kindShift
	switch h.Kind {
	case event.KindSegment:
		e := h.Segment()
		d.segment(e, s)
		if e.TCPFlags&event.SYN != 0 && opens(h) {
			b.connects.join(d, h.Cookie)
		}
		mask |= b.segment(e, c, s)
		shape |= uint64(e.TCPFlags) << flagShift
	case event.KindSample:
		d.sample(h.Sample())
		b.sample(h.Sample(), c, s)
	case event.KindTick:
	default:
		switch h.Kind {
		case event.KindIncident:
			d.incident(h.Incident())
			switch {
			case h.LocalPort == 0 && h.PeerPort != 0 && h.Hook == event.HookSetState && h.Incident().NewState == event.SynSent:
				b.connects.add(h)
			case opens(h):
				b.connects.join(d, h.Cookie)
			}
		case event.KindAnchor:
			a := h.Anchor()
			b.now = Anchor{Time: a.Time, Session: a.Session, Realtime: a.Realtime, TAI: a.TAI, Uncertainty: a.Uncertainty}
			b.isNow = true
			if !b.isOpen || b.events == 1 {
				b.begin, b.isOpen = b.now, true
			}
		}
		b.other(h, c)
	}
	b.put(colShape, uint64(b.shapes.index(shape|mask)))
}

// expectSockSeq predicts Header.SockSeq.
func (c *conn) expectSockSeq(cookie uint64) uint32 {
	if cookie == 0 {
		return 0
	}
	return c.sockSeq + 1
}

// segment encodes what follows the header and returns the bits of the shape's mask.
func (b *Builder) segment(e *event.Segment, c *conn, s int) uint64 {
	var mask uint64
	li := c.lane[s]
	l := &b.lanes[li]
	if li == 0 || l.ifindex != e.Ifindex {
		mask |= hasIfindex
		b.put(colIfindex, uint64(e.Ifindex))
		l = b.enterLane(c, s, e.Ifindex)
	}
	o := &b.lanes[c.lane[s^1]]
	flags := e.TCPFlags

	if e.Seq != l.maxEnd {
		mask |= hasSeq
		if e.Seq == l.end {
			b.put(colSeq, 0)
		} else {
			b.put(colSeq, 1+zigzag32(e.Seq-l.maxEnd))
		}
	}
	if ack := l.lastAck(flags); e.Ack != ack {
		mode := uint64(ackColumn)
		switch {
		case e.Ack == o.maxEnd && (l.ackMode == ackEnd || e.Ack != ack+l.ackStep):
			mode = ackEnd
		case e.Ack == ack+l.ackStep:
			mode = ackStep
		default:
			b.put(colAck, inUnits(e.Ack-ack, uint32(o.gsoSize)))
		}
		l.ackMode = uint8(mode)
		mask |= mode << ackShift
	}
	slot := lengthSlot(flags)
	if e.PayloadLen != l.length[slot] {
		mask |= hasPayload
		b.put(colPayload, inUnits(e.PayloadLen, uint32(l.gsoSize)))
	}
	if e.Window != l.window {
		mask |= hasWindow
		b.put(colWindow, zigzag32(uint32(int32(int16(e.Window-l.window)))))
	}
	if gso := l.expectGSOSize(e.PayloadLen); e.GSOSize != gso {
		mask |= hasGSOSize
		b.put(colGSOSize, uint64(e.GSOSize))
	}
	if segs := expectGSOSegs(e); e.GSOSegs != segs {
		mask |= hasGSOSegs
		b.put(colGSOSegs, uint64(e.GSOSegs))
	}
	if id := l.expectIPID(e.Family); e.IPID != id {
		mask |= hasIPID
		b.put(colIPID, zigzag32(e.IPID-id))
	}

	// Options.
	syn := int(flags>>1) & 1
	ti := l.template[syn]
	t := &b.templates[ti]
	if !t.match(e) {
		mask |= hasTemplate
		ti = b.opts.find(b, e)
		t = &b.templates[ti]
		b.put(colTemplate, uint64(ti))
	}
	if t.ts >= 0 {
		tsval := binary.BigEndian.Uint32(e.Options[t.ts:])
		tsecr := binary.BigEndian.Uint32(e.Options[t.ts+4:])
		if want := clockTS(e.Time, l.tsPhase); tsval != want {
			mask |= hasTSVal
			b.put(colTSVal, zigzag32(tsval-want))
			l.settleTS(e.Time, tsval)
		}
		mode := l.ecrMode
		clock := clockTS(e.Time, l.ecrPhase)
		switch {
		case mode == ecrOther && tsecr == o.tsval, mode == ecrSame && tsecr == l.tsecr, mode == ecrClock && tsecr == clock:
		case tsecr == o.tsval:
			mode = ecrOther
		case tsecr == l.tsecr:
			mode = ecrSame
		case tsecr == clock:
			mode = ecrClock
		default:
			mode = ecrColumn
			b.put(colTSEcr, zigzag32(tsecr-o.tsval))
		}
		if tsecr != clock {
			l.settleEcr(e.Time, tsecr)
		}
		l.ecrMode = mode
		mask |= uint64(mode) << ecrShift
		l.tsval, l.tsecr = tsval, tsecr
	}
	if t.blocks != 0 {
		b.sack(e, t, l)
	}
	if want := l.overhead + uint32(e.IPLen) + uint32(e.TCPLen) + e.PayloadLen; e.WireLen != want {
		mask |= hasWireLen
		b.put(colWireLen, zigzag32(e.WireLen-want))
	}
	if miscOf(e) != l.misc || e.IPLen != l.ipLen || e.TCPLen != l.tcpPad+e.OptionsLen || e.Urgent != l.urgent || e.Checksum != 0 {
		mask |= hasRare
		b.rare(e, l)
	}
	l.update(e, syn, ti, slot)
	return mask
}

func (b *Builder) rare(e *event.Segment, l *lane) {
	var r uint64
	set := func(bit uint64, col int, differs bool, v uint64) {
		if differs {
			r |= bit
			b.put(col, v)
		}
	}
	m := l.misc
	set(rareUrgent, colUrgent, e.Urgent != l.urgent, uint64(e.Urgent))
	set(rareChecksum, colChecksum, e.Checksum != 0, uint64(e.Checksum))
	set(rareIPOff, colIPOff, e.IPOff != uint16(m), uint64(e.IPOff))
	set(rareVLAN, colVLAN, e.VLAN != uint16(m>>16), uint64(e.VLAN))
	set(rareVLANIn, colVLANIn, e.VLANInner != uint16(m>>32), uint64(e.VLANInner))
	set(rareTOS, colTOS, e.TOS != uint8(m>>48), uint64(e.TOS))
	set(rareTTL, colTTL, e.TTL != uint8(m>>56), uint64(e.TTL))
	set(rareIPLen, colIPLen, e.IPLen != l.ipLen, uint64(e.IPLen))
	set(rareTCPLen, colTCPLen, e.TCPLen != l.tcpPad+e.OptionsLen, uint64(e.TCPLen))
	b.put(colRare, r)
}

func (b *Builder) sack(e *event.Segment, t *template, l *lane) {
	var code uint64
	p := e.Options[t.sack:]
	last := l.sack
	for i := range int(t.blocks) {
		left, right := binary.BigEndian.Uint32(p[8*i:]), binary.BigEndian.Uint32(p[8*i+4:])
		switch {
		case left == last[i][0] && right == last[i][1]:
		case left == last[i][0]:
			code |= sackGrown << (2 * i)
			b.put(colSackEdge, zigzag32(right-last[i][1]))
		case i > 0 && left == last[i-1][0] && right == last[i-1][1]:
			code |= sackMoved << (2 * i)
		default:
			code |= sackNew << (2 * i)
			b.put(colSackLeft, zigzag32(left-e.Ack))
			b.put(colSackLen, zigzag32(right-left))
		}
		l.sack[i] = [2]uint32{left, right}
	}
	b.put(colSackCode, code)
}

// sample encodes what follows the header.
func (b *Builder) sample(e *event.Sample, c *conn, s int) {
	pred := &b.pred
	b.expectSample(pred, c, s)
	b.deriveSample(pred, e, c, s, e.Time)
	b.diff(&structs[event.KindSample], &sampleBit, bodyOf(&e.Header, sampleWords), bodyOf(&pred.Header, sampleWords))
	b.keepSample(c, e)
}

// other encodes what follows the header of a record of the rarer kinds.
func (b *Builder) other(h *event.Header, c *conn) {
	st := &structs[h.Kind]
	var pred [maxWords]uint64
	last := b.expectOther(pred[:st.words()], c, h)
	act := bodyOf(h, st.words())
	b.diff(st, &sameOrder, act, pred[:st.words()])
	copy(last, act)
	b.anchorAt(h)
}

// diff puts the words of act that are not as in pred into their columns, and which these are
// into the columns of the mask. order gives the mask's bit of a slot.
func (b *Builder) diff(st *structKind, order *[8 * maskLen]uint8, act, pred []uint64) {
	var mask [maskLen]byte
	col := st.base + st.planes
	pred = pred[:len(act)]
	for i, x := range act {
		p := pred[i]
		if x == p {
			continue
		}
		slot := 2*i - st.wide
		if i < st.wide {
			bit := order[i]
			mask[bit>>3] |= 1 << (bit & 7)
			b.put(col+i, zigzag(x-p))
			continue
		}
		if uint32(x) != uint32(p) {
			bit := order[slot]
			mask[bit>>3] |= 1 << (bit & 7)
			b.put(col+slot, zigzag32(uint32(x)-uint32(p)))
		}
		if x>>32 != p>>32 {
			slot++
			bit := order[slot]
			mask[bit>>3] |= 1 << (bit & 7)
			b.put(col+slot, zigzag32(uint32(x>>32)-uint32(p>>32)))
		}
	}
	for i := range st.planes {
		b.put(st.base+i, uint64(mask[i]))
	}
}

// Seal appends the block of all records added so far to dst and returns the result; the builder
// is then empty and ready for the next block. Without records Seal returns dst as it is.
func (b *Builder) Seal(dst []byte) []byte {
	if b.events == 0 {
		return dst
	}
	start := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, Version, SchemaVersion, 0, 0)
	dst = append(dst, make([]byte, fixedSize-8)...)

	u := binary.AppendUvarint
	dst = u(dst, uint64(b.events))
	dst = u(dst, uint64(b.raw))
	dst = u(dst, b.first)
	dst = u(dst, b.last-b.first)
	n := 0
	for _, c := range b.kinds {
		if c != 0 {
			n++
		}
	}
	dst = u(dst, uint64(n))
	for k, c := range b.kinds {
		if c != 0 {
			dst = append(dst, byte(k))
			dst = u(dst, c)
		}
	}
	var hooks uint64
	for i, c := range b.hooks {
		if c != 0 {
			hooks |= 1 << i
		}
	}
	dst = u(dst, hooks)
	for _, c := range b.hooks {
		if c != 0 {
			dst = u(dst, c)
		}
	}
	if b.isOpen {
		dst = append(dst, 1)
		dst = binary.LittleEndian.AppendUint64(dst, b.begin.Session)
		dst = u(dst, b.begin.Time)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(b.begin.Realtime))
		dst = u(dst, zigzag(uint64(b.begin.TAI-b.begin.Realtime)))
		dst = u(dst, uint64(b.begin.Uncertainty))
	} else {
		dst = append(dst, 0)
	}
	dst = u(dst, uint64(len(b.conns)))
	b.fillFilter()
	dst = u(dst, uint64(len(b.filter)))
	dst = append(dst, b.filter...)
	b.fillDirectory()
	// The directory's length is known after it: it is written behind and turned in front.
	mark := len(dst)
	dst = b.w.write(dst, b.dirs, b.dirHnt)
	var lead [binary.MaxVarintLen64]byte
	dst = slices.Insert(dst, mark, lead[:binary.PutUvarint(lead[:], uint64(len(dst)-mark))]...)
	headLen := len(dst) - start + 4
	crcAt := len(dst)
	dst = append(dst, 0, 0, 0, 0)

	b.fillLists()
	body := len(dst)
	dst = b.w.write(dst, b.cols, b.hints)
	if short := b.raw/maxRatio + 1 - (len(dst) + 4 - start); short > 0 {
		dst = append(dst, make([]byte, short)...)
	}
	binary.LittleEndian.PutUint32(dst[start+offLength:], uint32(len(dst)+4-start))
	binary.LittleEndian.PutUint32(dst[start+offHead:], uint32(headLen))
	binary.LittleEndian.PutUint32(dst[crcAt:], crc32.Checksum(dst[start:crcAt], castagnoli))
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[body:], castagnoli))
	b.reset()
	return dst
}

// fillLists numbers the shapes by how frequent they are and fills the columns of the shapes and
// the templates.
func (b *Builder) fillLists() {
	b.shapes.rank(b.cols[colShape])
	for _, s := range b.shapes.list {
		b.put(colShapeKind, s>>kindShift)
		b.put(colShapeHook, s>>hookShift&0xff)
		b.put(colShapeDir, s>>dirShift&0xff)
		b.put(colShapeFlags, s>>flagShift&0xffff)
		b.put(colShapeMask, s&(1<<maskBits-1))
	}
	for i := range b.templates[1:] {
		t := &b.templates[i+1]
		b.put(colOptLen, uint64(t.n))
		for j := range int(t.n) {
			b.put(colOptByte, t.word[j/8]>>(8*(j%8))&0xff)
		}
	}
}

// shapeTable numbers the shapes of a block, first in order of appearance.
type shapeTable struct {
	list  []uint64
	slot  []uint32 // index + 1
	order []uint64 // for rank: count<<32 | ^index
	to    []uint64
}

// rank changes the indices v and the list so that frequent shapes have small numbers.
func (t *shapeTable) rank(v []uint64) {
	t.order = t.order[:0]
	for i := range t.list {
		t.order = append(t.order, uint64(^uint32(i)))
	}
	for _, i := range v {
		t.order[i] += 1 << 32
	}
	slices.Sort(t.order)
	slices.Reverse(t.order)
	t.to = slices.Grow(t.to[:0], 2*len(t.list))[:2*len(t.list)]
	to, old := t.to[:len(t.list)], t.to[len(t.list):]
	copy(old, t.list)
	for i, o := range t.order {
		from := ^uint32(o)
		to[from] = uint64(i)
		t.list[i] = old[from]
	}
	for i, x := range v {
		v[i] = to[x]
	}
}

func (t *shapeTable) init() { t.slot = make([]uint32, 1024) }

func (t *shapeTable) reset() {
	t.list = t.list[:0]
	clear(t.slot)
}

func (t *shapeTable) index(s uint64) uint32 {
	mask := uint64(len(t.slot) - 1)
	for at := hash64(s); ; at++ {
		x := t.slot[at&mask]
		if x == 0 {
			return t.add(s)
		}
		if t.list[x-1] == s {
			return x - 1
		}
	}
}

func (t *shapeTable) add(s uint64) uint32 {
	t.list = append(t.list, s)
	if 2*len(t.list) > len(t.slot) {
		t.slot = make([]uint32, 2*len(t.slot))
		for i, s := range t.list[:len(t.list)-1] {
			t.put(s, uint32(i))
		}
	}
	t.put(s, uint32(len(t.list)-1))
	return uint32(len(t.list) - 1)
}

func (t *shapeTable) put(s uint64, i uint32) {
	mask := uint64(len(t.slot) - 1)
	at := hash64(s)
	for t.slot[at&mask] != 0 {
		at++
	}
	t.slot[at&mask] = i + 1
}

// hash64 spreads x over the low bits.
func hash64(x uint64) uint64 {
	hi, lo := bits.Mul64(x, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// templateTable finds templates by their bytes.
type templateTable struct {
	slot []uint32 // index + 1
}

func (t *templateTable) init()  { t.slot = make([]uint32, 256) }
func (t *templateTable) reset() { clear(t.slot) }

func (t *template) hash() uint64 {
	h := uint64(t.n)
	for _, w := range t.word {
		h = hash64(h ^ w + 0x632be59bd9b4e019)
	}
	return h
}

// find returns the index of the template of e's options and adds it if it is new.
func (t *templateTable) find(b *Builder, e *event.Segment) uint32 {
	var x template
	var o [event.OptionsMax]byte
	copy(o[:], e.Options[:e.OptionsLen])
	x.layout(&o, int(e.OptionsLen))
	mask := uint64(len(t.slot) - 1)
	for at := x.hash(); ; at++ {
		s := t.slot[at&mask]
		if s == 0 {
			break
		}
		if y := &b.templates[s-1]; y.word == x.word && y.n == x.n {
			return s - 1
		}
	}
	b.templates = append(b.templates, x)
	i := uint32(len(b.templates) - 1)
	t.insert(b.templates, i)
	return i
}

func (t *templateTable) insert(list []template, i uint32) {
	if 2*len(list) > len(t.slot) {
		t.slot = make([]uint32, 2*len(t.slot))
		for j := range list[:i] {
			t.put(&list[j], uint32(j))
		}
	}
	t.put(&list[i], i)
}

func (t *templateTable) put(x *template, i uint32) {
	mask := uint64(len(t.slot) - 1)
	at := x.hash()
	for t.slot[at&mask] != 0 {
		at++
	}
	t.slot[at&mask] = i + 1
}
