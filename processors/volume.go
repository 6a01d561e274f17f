// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Volume is how much went over the wire and how much of it arrived.
type Volume struct{}

var (
	metricIO = &Metric{
		Name: "network.flow.tcp.io", Unit: "By", Kind: Counter,
		Description: "Payload bytes on the wire, retransmissions included.",
		Attributes:  []string{attrDirection},
		Source:      "payload_len of Segments, each packet once (see Table). tcpdump's TCP length adds up to the same.",
	}
	metricGoodput = &Metric{
		Name: "network.flow.tcp.goodput", Unit: "By", Kind: Counter,
		Description: "Payload bytes that were acknowledged (transmit) or received in order (receive).",
		Attributes:  []string{attrDirection},
		Source: "The higher of two that lag each other by a round trip: tcp_info bytes_acked and bytes_received of the last Sample, " +
			"less the SYN of an active opener and the FIN, which the kernel counts as a byte each; and the progress of the acknowledgment " +
			"numbers in Segments. Since the connection was first seen. Where there are no Segments of it, the peer's FIN counts as a byte received if this " +
			"side closed first: nothing tells of that FIN.",
	}
	metricSegments = &Metric{
		Name: "network.flow.tcp.segments", Unit: "{segment}", Kind: Counter,
		Description: "Segments on the wire, with and without payload.",
		Attributes:  []string{attrDirection},
		Source:      "gso_segs of Segments, each packet once: a super-packet of n segments counts n, also where the receiver merged them (GRO).",
	}
)

// attrDirection is OpenTelemetry's attribute for the direction, as the local end sees it.
const attrDirection = "network.io.direction"

var directions = [2]string{"transmit", "receive"}

type volume struct{ io, goodput, segments [2]*Series }

// Name implements Processor.
func (Volume) Name() string { return "volume" }

// Bind implements Processor.
func (Volume) Bind(r *Registry) Family {
	r.Want(event.KindSegment)
	r.Want(event.KindSample)
	f := &volume{}
	for i, name := range directions {
		f.io[i] = r.Series(metricIO, Attr{attrDirection, name})
	}
	for i, name := range directions {
		f.goodput[i] = r.Series(metricGoodput, Attr{attrDirection, name})
	}
	for i, name := range directions {
		f.segments[i] = r.Series(metricSegments, Attr{attrDirection, name})
	}
	return f
}

func (f *volume) New(*Connection) State { return &volumeState{f: f} }

// volumeState counts by direction: 0 transmit, 1 receive.
type volumeState struct {
	f              *volume
	bytes, segs    [2]uint64
	acked          [2]uint64 // by the acknowledgment numbers
	sampled        [2]uint64 // by the socket
	base           [2]uint64 // of the socket's counters when it was first seen
	finIn          uint32    // sequence number of the peer's FIN, if hasFin
	packets, based bool
	finOut, hasFin bool // a FIN was sent; the peer's was seen on the wire
	finned         bool // the socket took the peer's FIN
}

// Changed implements Watcher: states tell of FINs where packets do not.
func (s *volumeState) Changed(c *Connection) { s.fins(c.State) }

func (s *volumeState) fins(state event.TCPState) {
	switch state {
	case event.FinWait1, event.FinWait2, event.Closing, event.LastAck, event.TimeWait:
		s.finOut = true
	}
	switch state {
	case event.CloseWait, event.LastAck, event.Closing, event.TimeWait:
		s.finned = true
	}
}

func (s *volumeState) Observe(ev *Event) {
	if ev.Kind == event.KindSample {
		s.sample(ev.Conn, ev.Sample())
		return
	}
	g := ev.Segment()
	d := 0
	if ev.Dir == event.DirIn {
		d = 1
	}
	s.packets = true
	if ev.Counted {
		s.bytes[d] += uint64(g.PayloadLen)
		s.segs[d] += uint64(max(g.GSOSegs, 1))
	}
	s.acked[1-d] += uint64(ev.Acked)
	if g.TCPFlags&event.FIN != 0 {
		if d == 0 {
			s.finOut = true
		} else {
			s.finIn, s.hasFin = g.Seq+g.PayloadLen, true
		}
	}
}

// sample takes the socket's counters of bytes, without what is no payload.
func (s *volumeState) sample(c *Connection, m *event.Sample) {
	acked, received := m.BytesAcked, m.BytesReceived
	s.fins(m.State)
	if c.Opened && c.Role == RoleClient && acked > 0 {
		acked-- // the SYN
	}
	if s.finOut && m.SndUna == m.WriteSeq && acked > 0 {
		acked-- // the FIN
	}
	if (s.finned || s.hasFin && m.RcvNxt == s.finIn+1) && received > 0 {
		received--
	}
	if !s.based {
		s.based = true
		if !c.Opened {
			s.base = [2]uint64{acked, received}
		}
	}
	for d, v := range [2]uint64{acked, received} {
		if v > s.base[d] {
			s.sampled[d] = max(s.sampled[d], v-s.base[d])
		}
	}
}

func (s *volumeState) goodput(d int) uint64 { return max(s.acked[d], s.sampled[d]) }

func (s *volumeState) Collect(_ *Connection, e Emitter) {
	if s.packets {
		e.Int(s.f.io[0], int64(s.bytes[0]))
		e.Int(s.f.io[1], int64(s.bytes[1]))
	}
	if s.packets || s.based {
		e.Int(s.f.goodput[0], int64(s.goodput(0)))
		e.Int(s.f.goodput[1], int64(s.goodput(1)))
	}
	if s.packets {
		e.Int(s.f.segments[0], int64(s.segs[0]))
		e.Int(s.f.segments[1], int64(s.segs[1]))
	}
}

// Flip implements Flipper.
func (s *volumeState) Flip() {
	for _, v := range []*[2]uint64{&s.bytes, &s.segs, &s.acked} {
		v[0], v[1] = v[1], v[0]
	}
}

// Summarize implements Summarizer.
func (s *volumeState) Summarize(f *Flow) {
	f.BytesOut, f.BytesIn = s.bytes[0], s.bytes[1]
	f.SegmentsOut, f.SegmentsIn = s.segs[0], s.segs[1]
	f.GoodputOut, f.GoodputIn = s.goodput(0), s.goodput(1)
}
