// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// FlowControl is when a receiver stopped its sender.
type FlowControl struct{}

const attrFlowControl = "network.tcp.flow_control.event"

var (
	metricFlowControl = &Metric{
		Name: "network.flow.tcp.flow_control.events", Unit: "{event}", Kind: Counter,
		Description: "How often a receiver's window closed, or a sender used all of it.",
		Attributes:  []string{attrDirection, attrFlowControl},
		Source: "Segments: transitions, not segments that repeat it. transmit: what this side sends was held up. zero_window: the receiver announced a window of 0. " +
			"window_full: a segment ended at the right edge of the window; known if the window scale is (SYNs or a Sample). A direction is told once one of the two has happened.",
	}
	metricFlowControlTime = &Metric{
		Name: "network.flow.tcp.flow_control.duration", Unit: "s", Kind: Counter, Float: true,
		Description: "Time for which a receiver's window was zero.",
		Attributes:  []string{attrDirection},
		Source:      "Segments: from the first that announced a window of 0 to the next with another. transmit: the peer's window. Told as the events are.",
	}
	metricHostFlowControl = &Metric{
		Name: "system.network.tcp.flow_control.events", Unit: "{event}", Kind: Counter, Host: true,
		Description: "How often a receiver's window closed, or a sender used all of it, over all connections.",
		Attributes:  []string{attrDirection, attrFlowControl},
		Source:      "The sum of network.flow.tcp.flow_control.events." + hostScope,
	}
)

const (
	zeroWindow = iota
	windowFull
	flowControlEvents
)

var flowControlNames = [flowControlEvents]string{"zero_window", "window_full"}

type flowControl struct {
	events, hostEvents [2][flowControlEvents]*Series
	duration           [2]*Series
	host               [2][flowControlEvents]int64
	now                func() uint64
}

// Name implements Processor.
func (FlowControl) Name() string { return "flow_control" }

// Bind implements Processor.
func (FlowControl) Bind(r *Registry) Family {
	r.Want(event.KindSegment)
	r.Want(event.KindSample)
	f := &flowControl{now: r.Now}
	declare := func(m *Metric, to *[2][flowControlEvents]*Series) {
		for i, dir := range directions {
			for j, name := range flowControlNames {
				to[i][j] = r.Series(m, Attr{attrDirection, dir}, Attr{attrFlowControl, name})
			}
		}
	}
	declare(metricFlowControl, &f.events)
	for i, name := range directions {
		f.duration[i] = r.Series(metricFlowControlTime, Attr{attrDirection, name})
	}
	declare(metricHostFlowControl, &f.hostEvents)
	return f
}

func (f *flowControl) New(*Connection) State { return &flowControlState{f: f} }

// CollectHost implements HostFamily.
func (f *flowControl) CollectHost(e Emitter) {
	for i := range f.host {
		for j, n := range f.host[i] {
			e.Int(f.hostEvents[i][j], n)
		}
	}
}

// held is one direction: data that a receiver's window holds up.
type held struct {
	events [flowControlEvents]int64
	time   uint64 // ns that the window was zero, without the present spell
	since  uint64 // when it became zero
	nxt    uint32 // highest sequence number sent, plus one
	ack    uint32 // highest acknowledged
	edge   uint32 // right edge of the window; valid if edged
	scale  uint8  // of the receiver's window
	zero   bool
	full   bool
	sent   bool // nxt is valid
	acked  bool // ack is valid
	edged  bool
	scaled bool // scale is known
	synned bool // the receiver's SYN was seen, and offered scale if offers
	offers bool
}

func (h *held) happened() bool { return h.events != [flowControlEvents]int64{} }

// flowControlState holds both directions: 0 is what Local sends.
type flowControlState struct {
	f    *flowControl
	held [2]held
}

// optionWindowScale is the kind of the window scale option (RFC 7323).
const optionWindowScale = 3

// windowScale returns the window scale that a SYN offers.
func windowScale(g *event.Segment) (scale uint8, ok bool) {
	o := g.Options[:min(int(g.OptionsLen), event.OptionsMax)]
	for len(o) > 0 {
		switch o[0] {
		case 0:
			return 0, false
		case 1:
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
			return 0, false
		}
		if o[0] == optionWindowScale && o[1] == 3 {
			return min(o[2], 14), true
		}
		o = o[o[1]:]
	}
	return 0, false
}

// wscaleOK is TCPI_OPT_WSCALE.
const wscaleOK = 4

func (s *flowControlState) Observe(ev *Event) {
	if ev.Kind == event.KindSample {
		s.sample(ev.Sample())
		return
	}
	if !ev.Counted {
		return
	}
	g := ev.Segment()
	if g.TCPFlags&event.RST != 0 {
		return
	}
	d, _ := direction(ev.Dir == event.DirOut)
	out, in := &s.held[d], &s.held[1-d] // what the sender of g sends, and what it receives
	if g.TCPFlags&event.SYN != 0 {
		in.scale, in.offers = windowScale(g)
		in.synned = true
		if in.synned && out.synned {
			// Windows are scaled only if both sides offer it.
			both := in.offers && out.offers
			for _, h := range [2]*held{in, out} {
				if h.scaled = true; !both {
					h.scale = 0
				}
			}
		}
	}
	if g.PayloadLen > 0 {
		end := g.Seq + g.PayloadLen
		if !out.sent || int32(end-out.nxt) > 0 {
			out.nxt, out.sent = end, true
		}
		if out.edged && !out.full && int32(end-out.edge) >= 0 {
			out.full = true
			s.count(ev.Conn, d, windowFull)
		}
	}
	if g.TCPFlags&event.ACK == 0 || in.acked && int32(g.Ack-in.ack) < 0 {
		return // an old segment tells nothing of the window now
	}
	in.ack, in.acked = g.Ack, true
	zero := g.Window == 0 && g.TCPFlags&event.SYN == 0
	if zero != in.zero {
		in.zero = zero
		if zero {
			in.since = g.Time
			s.count(ev.Conn, 1-d, zeroWindow)
		} else {
			in.time += g.Time - min(in.since, g.Time)
		}
	}
	switch {
	case g.TCPFlags&event.SYN != 0:
		in.edge, in.edged = g.Ack+uint32(g.Window), true
	case in.scaled:
		in.edge, in.edged = g.Ack+uint32(g.Window)<<in.scale, true
	default:
		in.edged = false
	}
	if in.full && (!in.edged || !in.sent || int32(in.edge-in.nxt) > 0) {
		in.full = false
	}
}

// sample takes the window scales where the SYNs were not seen.
func (s *flowControlState) sample(m *event.Sample) {
	if s.held[0].scaled || m.State != event.Established {
		return
	}
	s.held[0].scaled, s.held[1].scaled = true, true
	s.held[0].scale, s.held[1].scale = 0, 0
	if m.TCPOptions&wscaleOK != 0 {
		s.held[0].scale, s.held[1].scale = min(m.SndWscale, 14), min(m.RcvWscale, 14)
	}
}

func (s *flowControlState) count(c *Connection, d, what int) {
	s.held[d].events[what]++
	if c.Vantage == VantageHost {
		s.f.host[d][what]++
	}
}

func (s *flowControlState) Collect(c *Connection, e Emitter) {
	for d := range s.held {
		if !s.held[d].happened() {
			continue
		}
		for i, n := range s.held[d].events {
			e.Int(s.f.events[d][i], n)
		}
	}
	now := s.f.now()
	if c.Ended {
		now = c.Last
	}
	for d := range s.held {
		h := &s.held[d]
		if !h.happened() {
			continue
		}
		spell := uint64(0)
		if h.zero && now > h.since {
			spell = now - h.since
			if c.Closed != 0 {
				spell = max(c.Closed, h.since) - h.since
			}
		}
		e.Float(s.f.duration[d], float64(h.time+spell)/1e9)
	}
}

// Flip implements Flipper.
func (s *flowControlState) Flip() { s.held[0], s.held[1] = s.held[1], s.held[0] }
