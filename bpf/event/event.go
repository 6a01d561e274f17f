// SPDX-License-Identifier: Apache-2.0

// Package event is the schema: the records that kernel programs, spool blocks and
// processors exchange. event.h is the kernel's twin of this file; a test compares the
// layouts through the BTF of the committed objects.
//
// A batch is a []byte of records back to back. Each record begins with a [Header], which
// tells its kind and its size, a multiple of 8. Records are read in place: the methods of
// Header return views into the batch, valid as long as the batch is. Call [Check] once on
// bytes that come from outside; [All] and the views then need no further checks.
//
// The layout is that of a little-endian 64-bit machine (amd64, arm64). The package is pure
// Go and builds on any OS.
package event

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"unsafe"
)

// Kind tells which struct a record is.
type Kind uint8

// Kinds below 16 come from the kernel, the others are made in user space by the capture.
const (
	KindSegment  Kind = 1 // Segment: one skb with a TCP header on an interface
	KindSample   Kind = 2 // Sample: the state of a socket
	KindIncident Kind = 3 // Incident: something that happened to a connection

	KindTick       Kind = 16 // Tick: time goes on, and a promise about order
	KindLost       Kind = 17 // Lost: a hole
	KindAnchor     Kind = 18 // Anchor: monotonic against wall clock; start and end of a session
	KindAccounting Kind = 19 // Accounting: the hooks' counters
	KindLink       Kind = 20 // Link: an interface that is captured
)

// String returns the kind's name in lower case.
func (k Kind) String() string {
	switch k {
	case KindSegment:
		return "segment"
	case KindSample:
		return "sample"
	case KindIncident:
		return "incident"
	case KindTick:
		return "tick"
	case KindLost:
		return "lost"
	case KindAnchor:
		return "anchor"
	case KindAccounting:
		return "accounting"
	case KindLink:
		return "link"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Hook is the place in the kernel that made a record.
type Hook uint8

// The hooks; the comment names the kernel's attach point.
const (
	HookNone             Hook = 0
	HookTCIngress        Hook = 1  // tcx or clsact ingress
	HookTCEgress         Hook = 2  // tcx or clsact egress
	HookXDP              Hook = 3  // XDP, instead of tc ingress
	HookTCPProbe         Hook = 4  // tp_btf/tcp_probe: Sample before a received segment is processed
	HookTransmit         Hook = 5  // fentry/__tcp_transmit_skb, else tcx egress: Sample at a sent segment
	HookSetState         Hook = 6  // tp_btf/inet_sock_set_state: OldState, NewState, process
	HookRetransmitSKB    Hook = 7  // tp_btf/tcp_retransmit_skb: Seq, Len, Segs, TCPFlags, Err, CAState
	HookRetransmitSynAck Hook = 8  // tp_btf/tcp_retransmit_synack: Segs = 1
	HookSendReset        Hook = 9  // tp_btf/tcp_send_reset: Reason
	HookReceiveReset     Hook = 10 // tp_btf/tcp_receive_reset
	HookCongStateSet     Hook = 11 // tp_btf/tcp_cong_state_set: CAState is the new one, OldState the old ca_state
	HookBadChecksum      Hook = 12 // tp_btf/tcp_bad_csum: Seq, Ack, Len
	HookDestroySock      Hook = 13 // tp_btf/tcp_destroy_sock: the final Sample
	HookKfreeSKB         Hook = 14 // tp_btf/kfree_skb of TCP: Reason, Location, Seq, Len
	HookRcvSpaceAdjust   Hook = 15 // tp_btf/tcp_rcv_space_adjust: Value = rcvq_space.space
	HookInventory        Hook = 16 // iter/tcp at start: Sample, and an Incident with the process

	Hooks = 24 // length of per-hook counter arrays, with room to grow
)

var hookNames = [Hooks]string{
	HookNone: "none", HookTCIngress: "tc_ingress", HookTCEgress: "tc_egress", HookXDP: "xdp",
	HookTCPProbe: "tcp_probe", HookTransmit: "transmit", HookSetState: "inet_sock_set_state",
	HookRetransmitSKB: "tcp_retransmit_skb", HookRetransmitSynAck: "tcp_retransmit_synack",
	HookSendReset: "tcp_send_reset", HookReceiveReset: "tcp_receive_reset",
	HookCongStateSet: "tcp_cong_state_set", HookBadChecksum: "tcp_bad_csum",
	HookDestroySock: "tcp_destroy_sock", HookKfreeSKB: "kfree_skb",
	HookRcvSpaceAdjust: "tcp_rcv_space_adjust", HookInventory: "inventory",
}

// String returns the hook's name: the tracepoint's where it is one.
func (h Hook) String() string {
	if int(h) < len(hookNames) && hookNames[h] != "" {
		return hookNames[h]
	}
	return fmt.Sprintf("hook(%d)", uint8(h))
}

// Dir is the direction of a segment as the host sees it.
type Dir uint8

// Directions.
const (
	DirNone Dir = 0
	DirIn   Dir = 1
	DirOut  Dir = 2
)

// Header begins every record. Local is this host's side as the hook sees it: the
// destination of a received packet, the source of a sent one.
type Header struct {
	Time      uint64 // CLOCK_MONOTONIC, ns (bpf_ktime_get_ns)
	Cookie    uint64 // socket cookie; 0 where the hook has no full socket (tc ingress, XDP)
	Netns     uint64 // network namespace cookie; 0 unknown
	SockSeq   uint32 // per-socket event counter from 1; 0 where there is none
	Size      uint16 // of the whole record, bytes, a multiple of 8
	Kind      Kind
	Hook      Hook
	Local     [16]byte // IPv6, or IPv4 as ::ffff:a.b.c.d
	Peer      [16]byte
	LocalPort uint16
	PeerPort  uint16
	CPU       uint16
	Family    uint8 // 4 or 6; 0 in records without addresses
	Dir       Dir
}

// LocalAddr returns the local address and port, IPv4 unmapped.
func (h *Header) LocalAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(h.Local).Unmap(), h.LocalPort)
}

// PeerAddr returns the peer's address and port, IPv4 unmapped.
func (h *Header) PeerAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(h.Peer).Unmap(), h.PeerPort)
}

// TCP flags of Segment and Incident (RFC 9293 section 3.1; AE: RFC 9768).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
	AE
)

// OptionsMax is the most option bytes a TCP header can hold.
const OptionsMax = 40

// NoVLAN stands in VLAN and VLANInner when there is no tag.
const NoVLAN = 0xffff

// Segment is one skb with a TCP header. A stored record is cut after its option bytes
// (rounded up to 8), so only the first OptionsLen bytes of Options may be read.
type Segment struct {
	Header
	Seq        uint32
	Ack        uint32
	PayloadLen uint32 // TCP payload bytes of the whole skb, all its GSO segments
	Ifindex    uint32
	TCPFlags   uint16
	Window     uint16 // unscaled
	Urgent     uint16
	Checksum   uint16 // 0 unless packets.checksum
	GSOSize    uint16 // bytes of payload per wire segment; 0: not GSO
	GSOSegs    uint16 // segments on the wire, at least 1
	IPID       uint32 // IPv4 identification; IPv6 flow label
	IPOff      uint16 // IPv4 flags and fragment offset
	VLAN       uint16 // outermost TCI; NoVLAN
	VLANInner  uint16 // second TCI; NoVLAN
	TOS        uint8  // DSCP and ECN
	TTL        uint8  // or hop limit
	WireLen    uint32 // skb->len at the hook
	IPLen      uint16 // IP header with options or extension headers, bytes
	TCPLen     uint8  // TCP header with options, bytes
	OptionsLen uint8
	Options    [OptionsMax]byte
}

// Bits of Sample.Present: groups of fields that some kernels lack.
const (
	HasRcvWnd   = 1 << iota // RcvWnd
	HasRehash               // Rehash
	HasTotalRTO             // TotalRTO, TotalRTORecoveries, TotalRTOTime
	HasAccECN               // ReceivedCE … AccECNOptSeen
	HasCAPriv               // CAPriv, in the layout that Sample.CUBIC and Sample.BBR read
	HasTCP                  // everything but State: a full socket was there
	HasCAMore               // CAMore
)

// UnsetSsthresh is SndSsthresh before the first reduction (TCP_INFINITE_SSTHRESH).
const UnsetSsthresh = 0x7fffffff

// Sample is the state of a socket. Names, meanings and units are those of struct tcp_info
// (include/uapi/linux/tcp.h) for all fields up to Present.
type Sample struct {
	Header
	PacingRate         uint64 // bytes/s; ^0 unlimited
	MaxPacingRate      uint64 // bytes/s; ^0 unlimited
	BytesAcked         uint64
	BytesReceived      uint64
	DeliveryRate       uint64 // bytes/s
	BusyTime           uint64 // µs
	RwndLimited        uint64 // µs
	SndbufLimited      uint64 // µs
	BytesSent          uint64
	BytesRetrans       uint64
	RTO                uint32 // µs
	ATO                uint32 // µs
	SndMSS             uint32
	RcvMSS             uint32
	Unacked            uint32 // segments
	Sacked             uint32 // segments
	Lost               uint32 // segments marked lost now
	Retrans            uint32 // segments retransmitted and not acknowledged yet
	LastDataSent       uint32 // ms before the sample
	LastDataRecv       uint32 // ms before the sample
	LastAckRecv        uint32 // ms before the sample
	PMTU               uint32
	RcvSsthresh        uint32
	RTT                uint32 // µs, smoothed
	RTTVar             uint32 // µs
	SndSsthresh        uint32 // segments; UnsetSsthresh
	SndCwnd            uint32 // segments
	AdvMSS             uint32
	Reordering         uint32
	RcvRTT             uint32 // µs
	RcvSpace           uint32
	TotalRetrans       uint32 // segments
	SegsOut            uint32
	SegsIn             uint32
	NotsentBytes       uint32
	MinRTT             uint32 // µs; ^0 none yet
	DataSegsIn         uint32
	DataSegsOut        uint32
	Delivered          uint32
	DeliveredCE        uint32
	DSACKDups          uint32
	ReordSeen          uint32
	RcvOOOPack         uint32
	SndWnd             uint32 // bytes, scaled
	RcvWnd             uint32 // bytes, scaled
	Rehash             uint32
	TotalRTOTime       uint32 // ms
	TotalRTO           uint16
	TotalRTORecoveries uint16
	ReceivedCE         uint32
	DeliveredE1Bytes   uint32
	DeliveredE0Bytes   uint32
	DeliveredCEBytes   uint32
	ReceivedE1Bytes    uint32
	ReceivedE0Bytes    uint32
	ReceivedCEBytes    uint32
	AccECNFailMode     uint16
	AccECNOptSeen      uint16
	State              TCPState
	CAState            CAState
	Retransmits        uint8 // consecutive timeouts
	Probes             uint8
	Backoff            uint8
	TCPOptions         uint8 // TCPI_OPT_*
	SndWscale          uint8
	RcvWscale          uint8
	AppLimited         uint8 // 1: DeliveryRate is limited by the application
	FastopenClientFail uint8
	Present            uint16

	SndUna     uint32 // not in tcp_info from here on
	SndNxt     uint32
	RcvNxt     uint32
	CopiedSeq  uint32
	WriteSeq   uint32
	RcvWup     uint32
	RcvBuf     uint32     // sk_rcvbuf, bytes
	SndBuf     uint32     // sk_sndbuf, bytes
	WmemQueued uint32     // sk_wmem_queued, bytes
	Mark       uint32     // sk_mark
	CAPriv     [16]uint32 // first 64 bytes of icsk_ca_priv, raw: see CUBIC and BBR
	CAName     [16]byte   // congestion control, zero-padded
	TriggerSeq uint32     // of the segment that the hook saw
	TriggerAck uint32
	TriggerLen uint32    // its payload, bytes
	CAMore     [2]uint32 // words 19 and 20 of icsk_ca_priv, for BBR
}

// HasProcess in Incident.Present says that PID to Comm and Cgroup are the connection's.
const HasProcess = 1

// Incident is something that happened to a connection; which fields mean something is said
// with each Hook.
type Incident struct {
	Header
	Cgroup   uint64 // cgroup v2 id; 0 unknown
	Location uint64 // kernel address of a drop
	Seq      uint32
	Ack      uint32
	Len      uint32 // payload bytes
	Reason   uint32 // drop or reset reason in the kernel's numbers
	Err      int32  // result of a retransmission
	PID      uint32 // thread group id
	TID      uint32
	UID      uint32
	Segs     uint32 // wire segments
	TCPFlags uint16
	OldState TCPState
	NewState TCPState
	CAState  CAState
	Sacked   uint8 // TCP_SKB_CB(skb)->sacked
	Present  uint16
	Value    uint32
	Comm     [16]byte
}

// Tick says that time has reached Header.Time and that every stored record with an earlier
// Time came before it in the spool: the watermark of the merge. One comes at least every
// second while a session lasts.
type Tick struct{ Header }

// Lost is a hole: records that hooks on one CPU made between First and Last (both ns,
// CLOCK_MONOTONIC) and could not hand over. Header.Time is Last.
type Lost struct {
	Header
	First uint64
	Last  uint64
	Count [Hooks]uint32
}

// Phases of an Anchor.
const (
	AnchorPeriodic = 0
	AnchorStart    = 1 // the first record of a session
	AnchorEnd      = 2 // the last record of a session that ended in order
)

// Anchor ties clocks together: at Header.Time the wall clock showed Realtime. The wall time
// of an event is that of the last anchor before it plus the monotonic time since.
type Anchor struct {
	Header
	Session     uint64 // random, same in all anchors of one session
	Realtime    int64  // CLOCK_REALTIME, ns since 1970
	TAI         int64  // CLOCK_TAI, ns
	Uncertainty uint32 // ns: the clocks were read within this time
	Phase       uint32
}

// Counters of one hook on one CPU, since the start of the session. Seen = stored + Dropped
// + Missed + Filtered, where stored is what the spool holds.
type Counters struct {
	Seen     uint64 // the hook met a TCP event (Missed included)
	Dropped  uint64 // no room in the ring
	Missed   uint64 // recursion_misses: the kernel did not run the program
	Filtered uint64 // not wanted by the configuration
}

// Accounting holds the counters of all hooks on Header.CPU at Header.Time.
type Accounting struct {
	Header
	Hook [Hooks]Counters
}

// Link names an interface that is captured.
type Link struct {
	Header
	Ifindex uint32
	Flags   uint32 // IFF_*
	MTU     uint32
	Type    uint32 // ARPHRD_*
	Name    [16]byte
}

// Sizes of the records as written; a segment may be shorter (see SegmentSize).
const (
	HeaderSize     = int(unsafe.Sizeof(Header{}))
	SegmentMinSize = int(unsafe.Sizeof(Segment{})) - OptionsMax
	SegmentMaxSize = int(unsafe.Sizeof(Segment{}))
	SampleSize     = int(unsafe.Sizeof(Sample{}))
	IncidentSize   = int(unsafe.Sizeof(Incident{}))
	TickSize       = int(unsafe.Sizeof(Tick{}))
	LostSize       = int(unsafe.Sizeof(Lost{}))
	AnchorSize     = int(unsafe.Sizeof(Anchor{}))
	AccountingSize = int(unsafe.Sizeof(Accounting{}))
	LinkSize       = int(unsafe.Sizeof(Link{}))
	MaxSize        = AccountingSize
)

// SegmentSize returns the size of a Segment record with n option bytes.
func SegmentSize(n int) int { return (SegmentMinSize + n + 7) &^ 7 }

// Errors of Check.
var (
	ErrShort = errors.New("record is cut short")
	ErrKind  = errors.New("record of unknown kind")
	ErrSize  = errors.New("record of wrong size")
)

// Check reports whether raw is a whole number of well-formed records, with the offset of the
// first that is not. raw must be 8-byte aligned.
func Check(raw []byte) error {
	for off := 0; off < len(raw); {
		if len(raw)-off < HeaderSize {
			return fmt.Errorf("offset %d: %w: %d bytes left", off, ErrShort, len(raw)-off)
		}
		h := At(raw[off:])
		size := int(h.Size)
		if size > len(raw)-off {
			return fmt.Errorf("offset %d: %w: %s of %d bytes, %d left", off, ErrShort, h.Kind, size, len(raw)-off)
		}
		want := 0
		switch h.Kind {
		case KindSegment:
			if size < SegmentMinSize || size > SegmentMaxSize || size%8 != 0 {
				return fmt.Errorf("offset %d: %w: segment of %d bytes", off, ErrSize, size)
			}
			n := int(h.Segment().OptionsLen)
			if n > OptionsMax {
				return fmt.Errorf("offset %d: %w: segment with %d option bytes", off, ErrSize, n)
			}
			want = SegmentSize(n)
		case KindSample:
			want = SampleSize
		case KindIncident:
			want = IncidentSize
		case KindTick:
			want = TickSize
		case KindLost:
			want = LostSize
		case KindAnchor:
			want = AnchorSize
		case KindAccounting:
			want = AccountingSize
		case KindLink:
			want = LinkSize
		default:
			return fmt.Errorf("offset %d: %w: %d", off, ErrKind, h.Kind)
		}
		if size != want {
			return fmt.Errorf("offset %d: %w: %s of %d bytes, want %d", off, ErrSize, h.Kind, size, want)
		}
		off += size
	}
	return nil
}

// At returns the header of the record at the start of raw, which must hold one.
func At(raw []byte) *Header {
	_ = raw[HeaderSize-1]
	return (*Header)(unsafe.Pointer(unsafe.SliceData(raw)))
}

// All yields the records of a checked batch in order.
func All(raw []byte) iter.Seq[*Header] {
	return func(yield func(*Header) bool) {
		for len(raw) > 0 {
			h := At(raw)
			if !yield(h) {
				return
			}
			raw = raw[h.Size:]
		}
	}
}

// Bytes returns the whole record as bytes.
func (h *Header) Bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(h)), int(h.Size))
}

// Segment returns the record as what it is; Kind must be KindSegment. Only the first
// OptionsLen bytes of Options belong to it; the rest may lie outside of the batch, which is
// why the pointer check of race builds is off here.
//
//go:nocheckptr
func (h *Header) Segment() *Segment { return (*Segment)(unsafe.Pointer(h)) }

// Sample returns the record as what it is; Kind must be KindSample.
func (h *Header) Sample() *Sample { return (*Sample)(unsafe.Pointer(h)) }

// Incident returns the record as what it is; Kind must be KindIncident.
func (h *Header) Incident() *Incident { return (*Incident)(unsafe.Pointer(h)) }

// Lost returns the record as what it is; Kind must be KindLost.
func (h *Header) Lost() *Lost { return (*Lost)(unsafe.Pointer(h)) }

// Anchor returns the record as what it is; Kind must be KindAnchor.
func (h *Header) Anchor() *Anchor { return (*Anchor)(unsafe.Pointer(h)) }

// Accounting returns the record as what it is; Kind must be KindAccounting.
func (h *Header) Accounting() *Accounting { return (*Accounting)(unsafe.Pointer(h)) }

// Link returns the record as what it is; Kind must be KindLink.
func (h *Header) Link() *Link { return (*Link)(unsafe.Pointer(h)) }

// record is any of the structs above.
type record interface {
	Segment | Sample | Incident | Tick | Lost | Anchor | Accounting | Link
}

// Append appends the record to dst, with Kind and Size set, and returns the result. For a
// Segment the size follows OptionsLen, and bytes past the options are zeroed. dst must stay
// 8-byte aligned, which it is if it was allocated by make and grown by Append only.
func Append[R record](dst []byte, r *R) []byte {
	h := (*Header)(unsafe.Pointer(r))
	size := int(unsafe.Sizeof(*r))
	switch s := any(r).(type) {
	case *Segment:
		h.Kind = KindSegment
		clear(s.Options[min(int(s.OptionsLen), OptionsMax):])
		size = SegmentSize(int(s.OptionsLen))
	case *Sample:
		h.Kind = KindSample
	case *Incident:
		h.Kind = KindIncident
	case *Tick:
		h.Kind = KindTick
	case *Lost:
		h.Kind = KindLost
	case *Anchor:
		h.Kind = KindAnchor
	case *Accounting:
		h.Kind = KindAccounting
	case *Link:
		h.Kind = KindLink
	}
	h.Size = uint16(size)
	return append(dst, unsafe.Slice((*byte)(unsafe.Pointer(r)), size)...)
}
