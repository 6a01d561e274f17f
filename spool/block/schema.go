// SPDX-License-Identifier: Apache-2.0

package block

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Columns of the record section. Their numbers are part of the format.
const (
	colShape = iota // index of the record's shape
	colConn
	colCPU
	colTime                         // one for each class
	colCookie   = colTime + classes // from here on: only where the prediction failed
	colSockSeq  = colCookie + 1
	colSeq      = colSockSeq + 1
	colAck      = colSeq + 1
	colPayload  = colAck + 1
	colWindow   = colPayload + 1
	colGSOSize  = colWindow + 1
	colGSOSegs  = colGSOSize + 1
	colIPID     = colGSOSegs + 1
	colTemplate = colIPID + 1
	colTSVal    = colTemplate + 1
	colTSEcr    = colTSVal + 1
	colSackCode = colTSEcr + 1 // for each segment with SACK blocks
	colSackEdge = colSackCode + 1
	colSackLeft = colSackEdge + 1
	colSackLen  = colSackLeft + 1
	colWireLen  = colSackLen + 1
	colIfindex  = colWireLen + 1
	colRare     = colIfindex + 1 // which of the following differ
	colUrgent   = colRare + 1
	colChecksum = colUrgent + 1
	colIPOff    = colChecksum + 1
	colVLAN     = colIPOff + 1
	colVLANIn   = colVLAN + 1
	colTOS      = colVLANIn + 1
	colTTL      = colTOS + 1
	colIPLen    = colTTL + 1
	colTCPLen   = colIPLen + 1
	// Lists that records refer to.
	colShapeKind  = colTCPLen + 1
	colShapeHook  = colShapeKind + 1
	colShapeDir   = colShapeHook + 1
	colShapeFlags = colShapeDir + 1
	colShapeMask  = colShapeFlags + 1
	colOptLen     = colShapeMask + 1 // bytes of a template
	colOptByte    = colOptLen + 1    // all templates' bytes
	// Structs that are stored word by word.
	colStructs = colOptByte + 1
)

// Bits of a shape's mask: what the record has in columns. The lowest are common to all kinds.
const (
	hasConn = 1 << iota
	hasCPU
	hasBack // time is before that of the CPU's last record
	hasCookie
	hasSockSeq
	hasSeq
	hasPayload
	hasWindow
	hasGSOSize
	hasGSOSegs
	hasIPID
	hasTemplate
	hasTSVal
	hasWireLen
	hasIfindex
	hasRare
	ackShift  = 16 // two bits
	ecrShift  = 18 // two bits
	maskBits  = 20
	flagShift = maskBits // 16 bits of TCP flags follow
	dirShift  = 36
	hookShift = 44
	kindShift = 52
)

// How ack and TSecr are predicted: the values of their two bits.
const (
	ackSame   = 0 // as in the last segment
	ackEnd    = 1 // all that the other side has sent
	ackStep   = 2 // as far beyond the last as that was beyond the one before
	ackColumn = 3

	ecrOther  = 0 // the other side's last TSval
	ecrSame   = 1
	ecrClock  = 2
	ecrColumn = 3
)

// Bits of colRare.
const (
	rareUrgent = 1 << iota
	rareChecksum
	rareIPOff
	rareVLAN
	rareVLANIn
	rareTOS
	rareTTL
	rareIPLen
	rareTCPLen
)

// structKind describes a kind of record that is stored word by word: first wide words of 8
// bytes, then narrow ones of 4.
type structKind struct {
	wide, narrow int
	planes       int // columns of the mask of changed words, 8 words each
	base         int // first column
}

func (s structKind) words() int   { return s.wide + s.narrow/2 }
func (s structKind) slots() int   { return s.wide + s.narrow }
func (s structKind) columns() int { return s.planes + s.slots() }

const kindSlots = 32

// structs by kind; those of kind segment and tick are empty. columnCount is the number of all columns.
var structs, columnCount = layoutStructs()

func layoutStructs() (s [kindSlots]structKind, n int) {
	n = colStructs
	for _, k := range []struct {
		kind event.Kind
		size int
		wide int
	}{
		{event.KindSample, event.SampleSize, 10},
		{event.KindIncident, event.IncidentSize, 2},
		{event.KindLost, event.LostSize, 2},
		{event.KindAnchor, event.AnchorSize, 3},
		{event.KindAccounting, event.AccountingSize, (event.AccountingSize - event.HeaderSize) / 8},
		{event.KindLink, event.LinkSize, 0},
	} {
		x := structKind{wide: k.wide, narrow: (k.size-event.HeaderSize)/4 - 2*k.wide, base: n}
		x.planes = (x.slots() + 7) / 8
		s[k.kind] = x
		n += x.columns()
	}
	return s, n
}

// sampleOrder lists slots of a sample: bit i of its mask stands for slot sampleOrder[i]. Those that
// change often come first, so that the mask is dense in its first bytes and zero in most others; the
// order is that of traffic recorded with CUBIC and BBR.
var sampleOrder, sampleBit = func() (order, bit [8 * maskLen]uint8) {
	often := []uint8{
		67, 19, 23, 24, 20, 83, 79, 78, // wmem_queued, last_data_recv, rtt, rttvar, last_ack_recv, ca_priv
		26, 18, 4, 62, 43, 63, 81, 61, // snd_cwnd, last_data_sent, delivery_rate, copied_seq, snd_wnd, write_seq, ca_priv, rcv_nxt
		33, 42, 29, 5, 38, 32, 44, 36, // segs_in, rcv_ooopack, rcv_rtt, busy_time, delivered, segs_out, rcv_wnd, data_segs_in
		59, 77, 22, 0, 11, 60, 15, 75, // snd_una, ca_priv, rcv_ssthresh, pacing_rate, ato, snd_nxt, sacked, ca_priv
		8, 37, 76, 74, 3, 58, 64, 73, // bytes_sent, data_segs_out, ca_priv, bytes_received, app_limited, rcv_wup, ca_priv
		2, 72, 14, 17, 9, 31, 30, 56, // bytes_acked, ca_priv, unacked, retrans, bytes_retrans, total_retrans, rcv_space, state
		16, 35, 69, 10, 70, 65, 13, 66, // lost, min_rtt, ca_priv, rto, ca_priv, sk_rcvbuf, rcv_mss, sk_sndbuf
		89, 34, 57, 12, 27, 90, 91, 41, // trigger_seq, notsent_bytes, backoff, snd_mss, advmss, trigger_ack, trigger_len, reord_seen
	}
	n := copy(order[:], often)
	for slot := range uint8(structs[event.KindSample].slots()) {
		if !slices.Contains(often, slot) {
			order[n] = slot
			n++
		}
	}
	for i, slot := range order[:n] {
		bit[slot] = uint8(i)
	}
	return order, bit
}()

// sameOrder is the order of all other kinds.
var sameOrder = func() (order [8 * maskLen]uint8) {
	for i := range order {
		order[i] = uint8(i)
	}
	return order
}()

// sampleFirst marks the bits of a sample's mask whose slots are predicted in the first step.
var sampleFirst = func() (m [maskLen]byte) {
	var e event.Sample
	for _, off := range []uintptr{unsafe.Offsetof(e.RTT), unsafe.Offsetof(e.SndCwnd), unsafe.Offsetof(e.SndUna), unsafe.Offsetof(e.SndNxt),
		unsafe.Offsetof(e.RcvNxt), unsafe.Offsetof(e.WriteSeq), unsafe.Offsetof(e.TriggerSeq), unsafe.Offsetof(e.TriggerAck), unsafe.Offsetof(e.TriggerLen)} {
		st := structs[event.KindSample]
		slot := st.wide + (int(off)-event.HeaderSize-8*st.wide)/4
		bit := sampleBit[slot]
		m[bit/8] |= 1 << (bit % 8)
	}
	return m
}()

var noSlots [maskLen]byte

const (
	sampleWords = (event.SampleSize - event.HeaderSize) / 8
	maxWords    = (event.MaxSize - event.HeaderSize) / 8
	maskLen     = (2*maxWords + 7) / 8
	lastWords   = (event.LostSize - event.HeaderSize) / 8 // the longest but samples and accountings
)

// bodyOf returns what follows the header of a record, as words.
func bodyOf(h *event.Header, n int) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Add(unsafe.Pointer(h), event.HeaderSize)), n)
}

var columnNames = [colStructs]string{
	colShape: "shape", colConn: "connection", colCPU: "cpu", colTime: "time.segment_in", colTime + 1: "time.segment_out",
	colTime + 2: "time.sample_in", colTime + 3: "time.sample_out", colTime + 4: "time.other", colCookie: "cookie", colSockSeq: "sock_seq",
	colSeq: "tcp.seq", colAck: "tcp.ack", colPayload: "tcp.payload_len", colWindow: "tcp.window", colGSOSize: "gso_size", colGSOSegs: "gso_segs",
	colIPID: "ip.id", colTemplate: "tcp.template", colTSVal: "tcp.tsval", colTSEcr: "tcp.tsecr", colSackCode: "tcp.sack_code",
	colSackEdge: "tcp.sack_edge", colSackLeft: "tcp.sack_left", colSackLen: "tcp.sack_len", colWireLen: "wire_len", colIfindex: "ifindex",
	colRare: "rare", colUrgent: "tcp.urgent", colChecksum: "tcp.checksum", colIPOff: "ip.off", colVLAN: "vlan", colVLANIn: "vlan_inner",
	colTOS: "ip.tos", colTTL: "ip.ttl", colIPLen: "ip.len", colTCPLen: "tcp.len", colShapeKind: "shapes.kind", colShapeHook: "shapes.hook",
	colShapeDir: "shapes.dir", colShapeFlags: "shapes.tcp_flags", colShapeMask: "shapes.mask", colOptLen: "templates.len", colOptByte: "templates.bytes",
}

// columnName names a column of the record section for people.
func columnName(id int) string {
	if id < colStructs {
		return columnNames[id]
	}
	for k, s := range structs {
		if s.slots() == 0 || id < s.base || id >= s.base+s.columns() {
			continue
		}
		if id < s.base+s.planes {
			return fmt.Sprintf("%s.mask%d", event.Kind(k), id-s.base)
		}
		slot := id - s.base - s.planes
		off := event.HeaderSize + 8*min(slot, s.wide) + 4*max(0, slot-s.wide)
		return fmt.Sprintf("%s.at%d", event.Kind(k), off)
	}
	return fmt.Sprintf("%d", id)
}

func recordHints() []hint {
	h := make([]hint, columnCount)
	for _, i := range []int{colShape, colConn, colTemplate, colShapeMask, colShapeFlags} {
		h[i] = hintIndex
	}
	for i := range classes {
		h[colTime+i] = hintNoise
	}
	h[colChecksum] = hintNoise
	return h
}

// Columns of the directory section.
const (
	dirNetns = iota
	dirFamily
	dirLocalHi
	dirLocalLo
	dirPeerHi
	dirPeerLo
	dirLocalPort
	dirPeerPort
	dirCookie
	dirFirst
	dirLast
	dirSegments
	dirSamples
	dirIncidents
	dirBytesIn
	dirBytesOut
	dirSegsIn
	dirSegsOut
	dirRetransmits
	dirSRTT
	dirCwnd
	dirState
	dirSeen
	dirRetransmitBytes
	dirMinRTT
	dirOpened
	dirEstablished
	dirClosed
	dirEnded
	dirHow
	dirPID
	dirCommLo
	dirCommHi
	dirTotalRetrans
	dirBytesRetrans
	dirColumns
)

var dirNames = [dirColumns]string{"netns", "family", "local_hi", "local_lo", "peer_hi", "peer_lo", "local_port", "peer_port",
	"cookie", "first", "last", "segments", "samples", "incidents", "bytes_in", "bytes_out", "segs_in", "segs_out", "retransmits",
	"srtt", "cwnd", "state", "seen", "retransmit_bytes", "min_rtt", "opened", "established", "closed", "ended", "how", "pid", "comm_lo", "comm_hi",
	"total_retrans", "bytes_retrans"}

func dirName(id int) string { return dirNames[id] }
