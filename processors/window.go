// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Window is how much may be under way, and how much is.
type Window struct{}

var (
	metricWindow = &Metric{
		Name: "network.flow.tcp.window", Unit: "By", Kind: Gauge,
		Description: "Receive window, as the peer granted it (transmit) and as it was granted to the peer (receive).",
		Attributes:  []string{attrDirection},
		Source:      "tcp_info snd_wnd and rcv_wnd of the last Sample, scaled; rcv_wnd from Linux 6.2 on.",
	}
	metricInFlight = &Metric{
		Name: "network.flow.tcp.bytes_in_flight", Unit: "By", Kind: Gauge,
		Description: "Bytes that were sent and not acknowledged yet.",
		Source: "snd_nxt - snd_una of the last Sample, bytes that were selectively acknowledged (SACK) included: tcptrace's owin. tshark subtracts SACKed bytes; " +
			"the kernel's own count subtracts SACKed and lost segments and adds retransmitted ones.",
	}
)

type window struct {
	window   [2]*Series
	inFlight *Series
}

// Name implements Processor.
func (Window) Name() string { return "window" }

// Bind implements Processor.
func (Window) Bind(r *Registry) Family {
	r.Want(event.KindSample)
	f := &window{}
	for i, name := range directions {
		f.window[i] = r.Series(metricWindow, Attr{attrDirection, name})
	}
	f.inFlight = r.Series(metricInFlight)
	return f
}

func (f *window) New(*Connection) State { return &windowState{f: f} }

type windowState struct {
	f                *window
	window           [2]uint32 // bytes
	inFlight         uint32
	sampled, receive bool
}

func (s *windowState) Observe(ev *Event) {
	m := ev.Sample()
	s.sampled, s.receive = true, m.Present&event.HasRcvWnd != 0
	s.window = [2]uint32{m.SndWnd, m.RcvWnd}
	s.inFlight = m.SndNxt - m.SndUna
}

func (s *windowState) Collect(_ *Connection, e Emitter) {
	if !s.sampled {
		return
	}
	e.Int(s.f.window[0], int64(s.window[0]))
	if s.receive {
		e.Int(s.f.window[1], int64(s.window[1]))
	}
	e.Int(s.f.inFlight, int64(s.inFlight))
}
