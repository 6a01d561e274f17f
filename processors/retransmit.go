// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Retransmit counts what this host's sockets sent again.
type Retransmit struct{}

// Attributes of retransmissions.
const (
	attrRetransmitType = "network.tcp.retransmit.type"
	attrSegmentKind    = "tcbee.segment.kind"
)

const retransmitSource = "tcp_retransmit_skb and tcp_retransmit_synack, weighed by the wire segments of the packet: equal to nstat TcpRetransSegs. " +
	"Attempts which the kernel gave up before it counted them (packet still in a queue of the host, no memory, no route, window closed) are left out. " +
	"The type follows the state of congestion avoidance: loss is timeout, recovery is fast, any other is tail_loss_probe. " +
	"What the socket counted (tcp_info total_retrans) and the hooks did not tell is of the type unknown: a tracepoint that was not there or did not fire, " +
	"a lost event. The kind is syn, syn_ack, fin (without payload) or data. Series other than those of data, and the type unknown, appear when they are first counted. " +
	"Nothing is told of connections of which only packets were seen."

var (
	metricRetransmits = &Metric{
		Name: "network.flow.tcp.retransmits", Unit: "{segment}", Kind: Counter,
		Description: "Segments that this host's socket sent again.",
		Attributes:  []string{attrSegmentKind, attrRetransmitType},
		Source:      retransmitSource,
	}
	metricRetransmitIO = &Metric{
		Name: "network.flow.tcp.retransmit.io", Unit: "By", Kind: Counter,
		Description: "Payload bytes that this host's socket sent again.",
		Source:      "Payload of the packets of tcp_retransmit_skb; equal to tcp_info bytes_retrans.",
	}
	metricHostRetransmits = &Metric{
		Name: "system.network.tcp.retransmits", Unit: "{segment}", Kind: Counter, Host: true,
		Description: "Segments that sockets of this host sent again.",
		Attributes:  []string{attrSegmentKind, attrRetransmitType},
		Source:      "The sum of network.flow.tcp.retransmits over all connections.",
	}
)

// Kinds and types of retransmission.
const (
	kindData = iota
	kindSyn
	kindSynAck
	kindFin
	segmentKinds
)

const (
	typeFast = iota
	typeTimeout
	typeTLP
	typeUnknown // no hook told of it
	retransmitTypes
)

var (
	segmentKindNames    = [segmentKinds]string{"data", "syn", "syn_ack", "fin"}
	retransmitTypeNames = [retransmitTypes]string{"fast", "timeout", "tail_loss_probe", "unknown"}
)

type retransmits [segmentKinds][retransmitTypes]uint64

func (r *retransmits) collect(series *[segmentKinds][retransmitTypes]*Series, e Emitter) {
	for k := range r {
		for i, n := range r[k] {
			if n != 0 || k == kindData && i != typeUnknown {
				e.Int(series[k][i], int64(n))
			}
		}
	}
}

type retransmit struct {
	count, hostCount [segmentKinds][retransmitTypes]*Series
	io               *Series
	host             retransmits
	heard            bool
}

// Name implements Processor.
func (Retransmit) Name() string { return "retransmit" }

// Bind implements Processor.
func (Retransmit) Bind(r *Registry) Family {
	r.Want(event.KindIncident)
	r.Want(event.KindSample)
	f := &retransmit{}
	declare := func(m *Metric, to *[segmentKinds][retransmitTypes]*Series) {
		for k, kind := range segmentKindNames {
			for i, typ := range retransmitTypeNames {
				to[k][i] = r.Series(m, Attr{attrSegmentKind, kind}, Attr{attrRetransmitType, typ})
			}
		}
	}
	declare(metricRetransmits, &f.count)
	f.io = r.Series(metricRetransmitIO)
	declare(metricHostRetransmits, &f.hostCount)
	return f
}

func (f *retransmit) New(*Connection) State { return &retransmitState{f: f} }

// CollectHost implements HostFamily.
func (f *retransmit) CollectHost(e Emitter) {
	if f.heard {
		f.host.collect(&f.hostCount, e)
	}
}

type retransmitState struct {
	f     *retransmit
	count retransmits
	total uint64 // sum of count
	bytes uint64
	heard bool // a socket told of itself: none is none, not unknown

	// What the socket had counted before the connection was followed, and how far the hooks
	// were behind it at the last sample.
	based                bool
	baseSegs, baseBytes  uint64
	behindSegs, behindBy uint64
}

// add counts n segments.
func (s *retransmitState) add(kind, typ int, n uint64) {
	s.count[kind][typ] += n
	s.total += n
	s.f.host[kind][typ] += n
}

// reconcile takes over what the socket counted and no hook told. At these two hooks all
// retransmissions before them have been traced, for all of it happens under the socket's lock (where
// a segment is sent, total_retrans is ahead of the tracepoint). It believes in a gap
// that two samples show, lest one late event counts twice; the final sample decides alone.
func (s *retransmitState) reconcile(c *Connection, hook event.Hook, m *event.Sample) {
	if hook != event.HookTCPProbe && hook != event.HookDestroySock || m.Present&event.HasTCP == 0 {
		return
	}
	if !s.based {
		s.based = true
		if !c.Opened {
			s.baseSegs = uint64(m.TotalRetrans) - min(s.total, uint64(m.TotalRetrans))
			s.baseBytes = m.BytesRetrans - min(s.bytes, m.BytesRetrans)
		}
	}
	gap := func(socket, base, counted uint64) uint64 {
		return max(socket, base+counted) - base - counted
	}
	segs := gap(uint64(m.TotalRetrans), s.baseSegs, s.total)
	by := gap(m.BytesRetrans, s.baseBytes, s.bytes)
	n, bytes := min(segs, s.behindSegs), min(by, s.behindBy)
	if hook == event.HookDestroySock {
		n, bytes = segs, by
	}
	s.add(kindData, typeUnknown, n)
	s.bytes += bytes
	s.behindSegs, s.behindBy = segs-n, by-bytes
}

func (s *retransmitState) Observe(ev *Event) {
	if !s.heard {
		s.heard, s.f.heard = true, true
	}
	if ev.Kind == event.KindSample {
		s.reconcile(ev.Conn, ev.Hook, ev.Sample())
		return
	}
	kind, typ := kindData, typeTLP
	i := ev.Incident()
	switch ev.Hook {
	case event.HookRetransmitSynAck:
		kind, typ = kindSynAck, typeTimeout
	case event.HookRetransmitSKB:
		if !i.Retransmitted() {
			return
		}
		switch {
		case i.TCPFlags&(event.SYN|event.ACK) == event.SYN|event.ACK:
			kind = kindSynAck
		case i.TCPFlags&event.SYN != 0:
			kind = kindSyn
		case i.TCPFlags&event.FIN != 0 && i.Len == 0:
			kind = kindFin
		}
		switch i.CAState {
		case event.CALoss:
			typ = typeTimeout
		case event.CARecovery:
			typ = typeFast
		}
		s.bytes += uint64(i.Len)
	default:
		return
	}
	s.add(kind, typ, uint64(max(i.Segs, 1)))
}

func (s *retransmitState) Collect(c *Connection, e Emitter) {
	if c.Vantage != VantageHost || !s.heard {
		return
	}
	s.count.collect(&s.f.count, e)
	e.Int(s.f.io, int64(s.bytes))
}

// Summarize implements Summarizer.
func (s *retransmitState) Summarize(f *Flow) {
	f.Retransmits += s.total
	f.RetransmitBytes = s.bytes
}
