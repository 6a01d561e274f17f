// SPDX-License-Identifier: Apache-2.0

package block

import (
	"math/bits"
	"math/rand/v2"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// What the encoder and the decoder know of the past. Both change it by the same steps, so that
// they predict the same.

// key names a connection: netns, local and peer address (two words each, as they lie in memory), and
// the ports with the family (word 8 of a header without CPU and direction).
type key [6]uint64

// is tells whether two keys are the same.
func (k *key) is(o *key) bool {
	return (k[0]^o[0])|(k[1]^o[1])|(k[2]^o[2])|(k[3]^o[3])|(k[4]^o[4])|(k[5]^o[5]) == 0
}

const portMask = 0x00ff_0000_ffff_ffff

// names tells whether k is the key of the record whose header is w. It makes no key, which would be written in words and
// read back in halves of a vector: a wait at every record.
func (k *key) names(w *[9]uint64) bool {
	return (k[0]^w[2])|(k[1]^w[4])|(k[2]^w[5])|(k[3]^w[6])|(k[4]^w[7])|(k[5]^w[8]&portMask) == 0
}

// keyOf returns the key of the record whose header is w.
func keyOf(w *[9]uint64) key { return key{w[2], w[4], w[5], w[6], w[7], w[8] & portMask} }

// classes of records, for what is predicted apart by class.
const (
	classSegment = 0 // + direction
	classSample  = 2 // + direction
	classOther   = 4
	classes      = 5
)

// side maps a direction to 0 (in, none) or 1 (out).
func side(d event.Dir) int { return int(d>>1) & 1 }

func class(k event.Kind, d event.Dir) int {
	switch k {
	case event.KindSegment:
		return classSegment + side(d)
	case event.KindSample:
		return classSample + side(d)
	}
	return classOther
}

// conn is the state of a connection within a block.
type conn struct {
	key     key
	next    [classes]uint32 // the connection of the record that followed one of this, by class
	lane    [2]uint32       // lane of the last segment, by side; 0 none
	sample  uint32          // its last sample, 1 + index; 0 none
	sockSeq uint32
	cookie  [classes]uint64
	digest  digest
}

// lane is the state of one direction of a connection on one interface.
type lane struct {
	ifindex uint32
	next    uint32 // another lane of this connection and side; 0 none

	seq, ack, plen uint32 // of the last segment
	end            uint32 // sequence number after the last segment
	maxEnd         uint32 // and after the furthest one
	ackStep        uint32 // last difference of ack that was not 0
	length         [3]uint32
	window         uint16
	gsoSize        uint16
	gsoSegs        uint16
	ipIDStep       bool
	fresh          bool // without a segment yet
	ipID           uint32
	misc           uint64 // IPOff, VLAN, VLANInner, TOS, TTL
	ipLen          uint16
	tcpPad         uint8 // TCPLen - OptionsLen
	overhead       uint32
	urgent         uint16
	template       [2]uint32 // by SYN
	tsval          uint32
	tsecr          uint32
	tsSet, ecrSet  bool // the phases mean something
	tsPhase        uint64
	ecrPhase       uint64
	ackMode        uint8 // how the last was predicted, for the encoder alone
	ecrMode        uint8
	sack           [4][2]uint32
}

// template is a layout of TCP options: their bytes with timestamps and SACK edges zeroed.
type template struct {
	word   [5]uint64
	mask   [5]uint64
	n      uint8 // bytes
	ts     int8  // offset of TSval, -1 none
	sack   int8  // offset of the first SACK edge, -1 none
	blocks uint8 // SACK blocks
}

// layout finds the timestamp and the SACK blocks in the n option bytes of o and sets the
// other fields of t. o is not zeroed.
func (t *template) layout(o *[event.OptionsMax]byte, n int) {
	t.n, t.ts, t.sack, t.blocks = uint8(n), -1, -1, 0
	var m [event.OptionsMax]byte
	for i := range n {
		m[i] = 0xff
	}
	for i := 0; i < n; {
		switch o[i] {
		case 0:
			i = n
			continue
		case 1:
			i++
			continue
		}
		if i+1 >= n || o[i+1] < 2 || i+int(o[i+1]) > n {
			break
		}
		l := int(o[i+1])
		switch {
		case o[i] == 8 && l == 10 && t.ts < 0:
			t.ts = int8(i + 2)
			clear(m[i+2 : i+10])
		case o[i] == 5 && l > 2 && l <= 34 && (l-2)%8 == 0 && t.sack < 0:
			t.sack = int8(i + 2)
			t.blocks = uint8((l - 2) / 8)
			clear(m[i+2 : i+l])
		}
		i += l
	}
	for w := range t.word {
		var x, y uint64
		for b := range 8 {
			x |= uint64(o[8*w+b]&m[8*w+b]) << (8 * b)
			y |= uint64(m[8*w+b]) << (8 * b)
		}
		t.word[w], t.mask[w] = x, y
	}
}

// past is all state of a block but the columns.
type past struct {
	conns     []conn // 0: the host, for records without a connection
	lanes     []lane // 0: none
	proto     [2]uint32
	templates []template // 0: no options
	samples   []event.Sample
	anySample uint32                           // 1 + index of the last sample of any connection
	last      [kindSlots][32][lastWords]uint64 // last record by kind and hook
	accounts  [][maxWords]uint64               // last Accountings
	accountOf []uint32                         // 1 + index of a CPU's; 0 none
	cpuTime   []uint64
	lastTime  uint64
	cpu       uint16
	conn      uint32 // of the last record
	cookie    uint64 // the last one that was not 0
	anchor    uint64 // time of the last one
}

func (p *past) reset() {
	p.conns = append(p.conns[:0], conn{})
	p.lanes = append(p.lanes[:0], lane{})
	p.templates = append(p.templates[:0], template{ts: -1, sack: -1})
	p.samples = p.samples[:0]
	p.proto = [2]uint32{}
	p.anySample = 0
	clear(p.last[event.KindIncident][:])
	for k := event.KindTick; k < kindSlots; k++ {
		clear(p.last[k][:])
	}
	p.accounts = p.accounts[:0]
	clear(p.accountOf)
	p.anchor = 0
	clear(p.cpuTime)
	p.lastTime, p.cpu, p.conn, p.cookie = 0, 0, 0, 0
}

// clock returns the time that the CPU's next record is compared with, and where it is kept.
func (p *past) clock(cpu uint16) *uint64 {
	if int(cpu) >= len(p.cpuTime) {
		p.cpuTime = append(p.cpuTime, make([]uint64, int(cpu)+1-len(p.cpuTime))...)
	}
	return &p.cpuTime[cpu]
}

// addConn adds a connection and returns its index.
func (p *past) addConn(k key) uint32 {
	i := uint32(len(p.conns))
	p.conns = append(p.conns, conn{key: k, next: [classes]uint32{i, i, i, i, i}})
	return i
}

// maxLanes bounds the search for a lane: beyond so many interfaces a connection's lane is new.
const maxLanes = 8

// enterLane returns the lane of connection c, side d and the interface, and makes it the
// current one. The lanes of a connection and side form a list, the current one first.
func (p *past) enterLane(c *conn, d int, ifindex uint32) *lane {
	first := c.lane[d]
	for i, before, n := first, uint32(0), 0; i != 0 && n < maxLanes; i, before, n = p.lanes[i].next, i, n+1 {
		if p.lanes[i].ifindex == ifindex {
			if before != 0 {
				p.lanes[before].next = p.lanes[i].next
				p.lanes[i].next = first
				c.lane[d] = i
			}
			return &p.lanes[i]
		}
	}
	l := p.lanes[p.proto[d]]
	l.ifindex, l.next = ifindex, first
	l.fresh = true
	l.tsPhase, l.ecrPhase = 0, 0
	l.tsSet, l.ecrSet = false, false
	l.length = [3]uint32{}
	l.sack = [4][2]uint32{}
	if o := c.lane[d^1]; o != 0 {
		l.maxEnd, l.ack = p.lanes[o].ack, p.lanes[o].maxEnd
		l.tsval, l.tsecr = p.lanes[o].tsecr, p.lanes[o].tsval
	}
	i := uint32(len(p.lanes))
	p.lanes = append(p.lanes, l)
	c.lane[d] = i
	p.proto[d] = i
	return &p.lanes[i]
}

// connTable finds connections by key: open addressing, seeded, half full at most.
type connTable struct {
	seed [4]uint64
	slot []uint32 // index + 1
	used int
}

func (t *connTable) init() {
	for i := range t.seed {
		t.seed[i] = rand.Uint64() | 1
	}
	t.slot = make([]uint32, 1024)
}

func (t *connTable) reset() {
	clear(t.slot)
	t.used = 0
}

func (t *connTable) hash(k *key) uint64 {
	a, b := bits.Mul64(k[2]^t.seed[0], k[4]^t.seed[1])
	c, d := bits.Mul64(k[5]^bits.RotateLeft64(k[0], 29)^a^t.seed[2], k[1]^bits.RotateLeft64(k[3], 32)^b^t.seed[3])
	return c ^ d
}

// find returns the index of the connection with this key, or -1.
func (t *connTable) find(conns []conn, k *key) int {
	mask := uint64(len(t.slot) - 1)
	for at := t.hash(k); ; at++ {
		s := t.slot[at&mask]
		if s == 0 {
			return -1
		}
		if conns[s-1].key.is(k) {
			return int(s - 1)
		}
	}
}

// insert adds the connection with index i, which is not there yet.
func (t *connTable) insert(conns []conn, i uint32) {
	t.used++
	if 2*t.used > len(t.slot) {
		t.slot = make([]uint32, 2*len(t.slot))
		for j := range conns[:i] {
			t.put(&conns[j].key, uint32(j))
		}
	}
	t.put(&conns[i].key, i)
}

func (t *connTable) put(k *key, i uint32) {
	mask := uint64(len(t.slot) - 1)
	at := t.hash(k)
	for t.slot[at&mask] != 0 {
		at++
	}
	t.slot[at&mask] = i + 1
}
