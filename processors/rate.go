// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Rate is how fast the sender sends and delivers, and what keeps it from being faster.
type Rate struct{}

const attrLimit = "tcbee.limit"

var (
	metricPacing = &Metric{
		Name: "network.flow.tcp.pacing_rate", Unit: "By/s", Kind: Gauge,
		Description: "Rate at which the sender spaces its segments.",
		Source:      "tcp_info pacing_rate of the last Sample; absent where it is unlimited.",
	}
	metricDelivery = &Metric{
		Name: "network.flow.tcp.delivery_rate", Unit: "By/s", Kind: Gauge,
		Description: "Rate at which data was delivered to the peer.",
		Source:      "tcp_info delivery_rate of the last Sample in which the application did not limit it (delivery_rate_app_limited).",
	}
	metricLimited = &Metric{
		Name: "network.flow.tcp.limited.duration", Unit: "s", Kind: Counter, Float: true,
		Description: "Time by what limited the sender.",
		Attributes:  []string{attrLimit},
		Source: "tcp_info of the last Sample: rwnd is rwnd_limited (the peer's window), sndbuf is sndbuf_limited (the send buffer), cwnd is the rest of busy_time " +
			"(congestion window, pacing, network), and app is the time from the connection's establishment, or the first Sample, to the last Sample in which there was nothing to send. " +
			"The first three add up to busy_time, all four to the time covered. The kernel counts in jiffies.",
	}
)

// What limits a sender.
const (
	limitCwnd = iota
	limitRwnd
	limitSndbuf
	limitApp
	limitKinds
)

var limitNames = [limitKinds]string{"cwnd", "rwnd", "sndbuf", "app"}

type rate struct {
	pacing, delivery *Series
	limited          [limitKinds]*Series
}

// Name implements Processor.
func (Rate) Name() string { return "rate" }

// Bind implements Processor.
func (Rate) Bind(r *Registry) Family {
	r.Want(event.KindSample)
	f := &rate{pacing: r.Series(metricPacing), delivery: r.Series(metricDelivery)}
	for i, name := range limitNames {
		f.limited[i] = r.Series(metricLimited, Attr{attrLimit, name})
	}
	return f
}

func (f *rate) New(*Connection) State { return &rateState{f: f} }

type rateState struct {
	f                *rate
	pacing, delivery uint64 // bytes/s; 0 not known
	base             [3]uint64
	limited          [limitKinds]uint64 // µs
	since            uint64             // ns: the first sample
}

const unlimited = ^uint64(0)

func (s *rateState) Observe(ev *Event) {
	m := ev.Sample()
	s.pacing = m.PacingRate
	if m.AppLimited == 0 && m.DeliveryRate != 0 {
		s.delivery = m.DeliveryRate
	}
	now := [3]uint64{m.BusyTime, m.RwndLimited, m.SndbufLimited}
	if s.since == 0 {
		s.since = m.Time
		if !ev.Conn.Opened {
			s.base = now
		}
	}
	since := s.since
	if ev.Conn.Opened && ev.Conn.Established != 0 {
		since = ev.Conn.Established
	}
	for i, b := range s.base {
		if now[i] < b {
			return // the socket was disconnected and starts anew
		}
		now[i] -= b
	}
	busy, rwnd, sndbuf := now[0], now[1], now[2]
	s.limited[limitRwnd] = max(s.limited[limitRwnd], rwnd)
	s.limited[limitSndbuf] = max(s.limited[limitSndbuf], sndbuf)
	if busy > rwnd+sndbuf {
		s.limited[limitCwnd] = max(s.limited[limitCwnd], busy-rwnd-sndbuf)
	}
	if m.Time > since {
		if covered := (m.Time - since) / 1000; covered > busy {
			s.limited[limitApp] = max(s.limited[limitApp], covered-busy)
		}
	}
}

func (s *rateState) Collect(_ *Connection, e Emitter) {
	if s.since == 0 {
		return
	}
	if s.pacing != 0 && s.pacing != unlimited {
		e.Int(s.f.pacing, int64(s.pacing))
	}
	if s.delivery != 0 {
		e.Int(s.f.delivery, int64(s.delivery))
	}
	for i, us := range s.limited {
		e.Float(s.f.limited[i], float64(us)/1e6)
	}
}
