// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Order is what shows that segments were lost, delayed or doubled on the way.
type Order struct{}

var (
	metricDuplicateAcks = &Metric{
		Name: "network.flow.tcp.duplicate_acks", Unit: "{segment}", Kind: Counter,
		Description: "Duplicate acknowledgments: a segment from the other side was lost or came early.",
		Attributes:  []string{attrDirection},
		Source: "RFC 5681, section 2, in Segments: no payload, no SYN or FIN, data outstanding, the highest acknowledgment number and the window as in the segment before. " +
			"With another window it is a window update. receive: sent by the peer, about what this side sent.",
	}
	metricOutOfOrder = &Metric{
		Name: "network.flow.tcp.out_of_order", Unit: "{segment}", Kind: Counter,
		Description: "Segments that arrived above a hole.",
		Source:      "tcp_info rcv_ooopack of the last Sample. A retransmission that arrives above another hole is among them.",
	}
	metricReordering = &Metric{
		Name: "network.flow.tcp.reordering", Unit: "{segment}", Kind: Gauge,
		Description: "By how many segments the sender expects packets to be overtaken.",
		Source:      "tcp_info reordering of the last Sample.",
	}
	metricDSACK = &Metric{
		Name: "network.flow.tcp.dsack", Unit: "{event}", Kind: Counter,
		Description: "Duplicate SACK blocks that the peer sent: segments that arrived twice.",
		Source:      "tcp_info dsack_dups of the last Sample.",
	}
)

type order struct {
	duplicates            [2]*Series
	outOfOrder            *Series
	reordering, duplicate *Series
}

// Name implements Processor.
func (Order) Name() string { return "order" }

// Bind implements Processor.
func (Order) Bind(r *Registry) Family {
	r.Want(event.KindSegment)
	r.Want(event.KindSample)
	f := &order{}
	for i, name := range directions {
		f.duplicates[i] = r.Series(metricDuplicateAcks, Attr{attrDirection, name})
	}
	f.outOfOrder = r.Series(metricOutOfOrder)
	f.reordering = r.Series(metricReordering)
	f.duplicate = r.Series(metricDSACK)
	return f
}

func (f *order) New(*Connection) State { return &orderState{f: f} }

type orderState struct {
	f                      *order
	duplicates             [2]uint64 // by who sent them: 0 Local
	window                 [2]uint16 // of the last segment
	outOfOrder, dsack      uint32
	baseOutOfOrder, baseDS uint32
	reordering             uint32
	packets, sampled       bool
}

func (s *orderState) Observe(ev *Event) {
	if ev.Kind == event.KindSample {
		m := ev.Sample()
		if !s.sampled {
			s.sampled = true
			if !ev.Conn.Opened {
				s.baseOutOfOrder, s.baseDS = m.RcvOOOPack, m.DSACKDups
			}
		}
		s.outOfOrder = max(s.outOfOrder, m.RcvOOOPack)
		s.dsack = max(s.dsack, m.DSACKDups)
		s.reordering = m.Reordering
		return
	}
	if !ev.Counted {
		return
	}
	g := ev.Segment()
	d, _ := direction(ev.Dir == event.DirOut)
	s.packets = true
	if ev.SameAck && ev.Outstanding > 0 && g.PayloadLen == 0 && g.TCPFlags&(event.SYN|event.FIN|event.RST) == 0 && g.Window == s.window[d] {
		s.duplicates[d]++
	}
	s.window[d] = g.Window
}

func (s *orderState) Collect(_ *Connection, e Emitter) {
	if s.packets {
		e.Int(s.f.duplicates[0], int64(s.duplicates[0]))
		e.Int(s.f.duplicates[1], int64(s.duplicates[1]))
	}
	if s.sampled {
		e.Int(s.f.outOfOrder, int64(s.outOfOrder-s.baseOutOfOrder))
		e.Int(s.f.reordering, int64(s.reordering))
		e.Int(s.f.duplicate, int64(s.dsack-s.baseDS))
	}
}

// Flip implements Flipper.
func (s *orderState) Flip() {
	s.duplicates[0], s.duplicates[1] = s.duplicates[1], s.duplicates[0]
	s.window[0], s.window[1] = s.window[1], s.window[0]
}
