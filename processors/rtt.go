// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// RTT is the round-trip time as the kernel estimates it, and the timeout it makes of it.
type RTT struct{}

var (
	metricSRTT = &Metric{
		Name: "network.flow.tcp.rtt.smoothed", Unit: "s", Kind: Gauge, Float: true,
		Description: "Smoothed round-trip time.",
		Source:      "tcp_info rtt of the last Sample (RFC 6298 SRTT); absent before the first measurement.",
	}
	metricRTTVar = &Metric{
		Name: "network.flow.tcp.rtt.variation", Unit: "s", Kind: Gauge, Float: true,
		Description: "Smoothed mean deviation of the round-trip time.",
		Source:      "tcp_info rttvar of the last Sample; absent before the first measurement.",
	}
	metricMinRTT = &Metric{
		Name: "network.flow.tcp.rtt.min", Unit: "s", Kind: Gauge, Float: true,
		Description: "Least round-trip time within the kernel's window (tcp_min_rtt_wlen, 300 s).",
		Source:      "tcp_info min_rtt of the last Sample; absent before the first measurement. Steps of 1 ms show where it comes from timestamps.",
	}
	metricRTO = &Metric{
		Name: "network.flow.tcp.rto", Unit: "s", Kind: Gauge, Float: true,
		Description: "Retransmission timeout, with the present backoff.",
		Source:      "tcp_info rto of the last Sample.",
	}
	metricHostRTT = &Metric{
		Name: "system.network.tcp.rtt", Unit: "s", Kind: Distribution, Float: true, Host: true,
		Description: "Round-trip times of data that this host sent.",
		Attributes:  []string{attrRTTMethod},
		Source: "sequence: from a Segment with new data to the first acknowledgment of all of it, one at a time for each connection, none while anything is sent again " +
			"(Karn's algorithm). The receiver's delay of its acknowledgments is part of it." + hostScope,
	}
)

const attrRTTMethod = "tcbee.rtt.method"

type rtt struct {
	smoothed, variation, min, rto *Series
	sequence                      *Series
	host                          Histogram
}

// Name implements Processor.
func (RTT) Name() string { return "rtt" }

// Bind implements Processor.
func (RTT) Bind(r *Registry) Family {
	r.Want(event.KindSample)
	r.Want(event.KindSegment)
	return &rtt{
		smoothed: r.Series(metricSRTT), variation: r.Series(metricRTTVar),
		min: r.Series(metricMinRTT), rto: r.Series(metricRTO),
		sequence: r.Series(metricHostRTT, Attr{attrRTTMethod, "sequence"}),
	}
}

// CollectHost implements HostFamily.
func (f *rtt) CollectHost(e Emitter) {
	if f.host.Count != 0 {
		e.Histogram(f.sequence, &f.host)
	}
}

func (f *rtt) New(*Connection) State { return &rttState{f: f} }

// rttState holds µs; 0 is not measured.
type rttState struct {
	f                             *rtt
	smoothed, variation, min, rto uint32
	sent                          uint64 // when the data that is timed was sent; 0: none is
	end                           uint32 // its end
	nxt                           uint32 // highest sequence number sent, plus one
	until                         uint32 // nothing is timed before this is acknowledged, if barred
	barred                        bool   // something was sent again
}

// noRTT is min_rtt before the first measurement.
const noRTT = ^uint32(0)

func (s *rttState) Observe(ev *Event) {
	if ev.Kind == event.KindSegment {
		s.time(ev)
		return
	}
	m := ev.Sample()
	// A socket that was disconnected starts anew with 0; what it measured stays true.
	if m.RTT != 0 {
		s.smoothed, s.variation = m.RTT, m.RTTVar
	}
	if m.MinRTT != noRTT && m.RTT != 0 {
		s.min = m.MinRTT
	}
	if m.RTO != 0 {
		s.rto = m.RTO
	}
}

// time measures by sequence numbers.
func (s *rttState) time(ev *Event) {
	if ev.Conn.Vantage != VantageHost || !ev.Counted {
		return
	}
	g := ev.Segment()
	if ev.Dir == event.DirOut {
		end := g.Seq + g.PayloadLen
		if ev.Fresh > 0 {
			s.nxt = end
		}
		switch {
		case g.PayloadLen == 0:
		case ev.Fresh != g.PayloadLen:
			s.sent, s.until, s.barred = 0, s.nxt, true
		case s.sent == 0 && !s.barred:
			s.sent, s.end = g.Time, end
		}
		return
	}
	if ev.Acked == 0 {
		return
	}
	if s.barred && int32(g.Ack-s.until) >= 0 {
		s.barred = false
	}
	if s.sent != 0 && int32(g.Ack-s.end) >= 0 {
		s.f.host.Add(float64(g.Time-min(s.sent, g.Time)) / 1e9)
		s.sent = 0
	}
}

func (s *rttState) Collect(_ *Connection, e Emitter) {
	if s.smoothed != 0 {
		e.Float(s.f.smoothed, seconds(s.smoothed))
		e.Float(s.f.variation, seconds(s.variation))
	}
	if s.min != 0 {
		e.Float(s.f.min, seconds(s.min))
	}
	if s.rto != 0 {
		e.Float(s.f.rto, seconds(s.rto))
	}
}

// Summarize implements Summarizer.
func (s *rttState) Summarize(f *Flow) {
	f.SRTT = seconds(s.smoothed)
	f.MinRTT = seconds(s.min)
}

// seconds converts µs.
func seconds(us uint32) float64 { return float64(us) / 1e6 }
