// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Congestion is what the sender's congestion control allows: window, threshold, state.
type Congestion struct{}

var (
	metricCwnd = &Metric{
		Name: "network.flow.tcp.congestion_window", Unit: "{segment}", Kind: Gauge,
		Description: "Segments that may be in flight.",
		Source:      "tcp_info snd_cwnd of the last Sample.",
	}
	metricSsthresh = &Metric{
		Name: "network.flow.tcp.slow_start_threshold", Unit: "{segment}", Kind: Gauge,
		Description: "Congestion window above which slow start ends.",
		Source:      "tcp_info snd_ssthresh of the last Sample; absent while it is unset (0x7fffffff).",
	}
	metricCAState = &Metric{
		Name: "network.flow.tcp.congestion_state", Unit: "1", Kind: Gauge,
		Description: "State of congestion avoidance: 1 for the present state, 0 for the others.",
		Attributes:  []string{"tcbee.congestion.state"},
		Source:      "tcp_info ca_state of the last Sample, or tcp_cong_state_set if that came later: open, disorder, cwr, recovery, loss.",
	}
)

type congestion struct {
	cwnd, ssthresh *Series
	state          [event.CAStates]*Series
}

// Name implements Processor.
func (Congestion) Name() string { return "congestion" }

// Bind implements Processor.
func (Congestion) Bind(r *Registry) Family {
	r.Want(event.KindSample)
	r.Want(event.KindIncident)
	f := &congestion{cwnd: r.Series(metricCwnd), ssthresh: r.Series(metricSsthresh)}
	for i := range f.state {
		f.state[i] = r.Series(metricCAState, Attr{"tcbee.congestion.state", event.CAState(i).String()})
	}
	return f
}

func (f *congestion) New(*Connection) State { return &congestionState{f: f} }

type congestionState struct {
	f                  *congestion
	cwnd, max          uint32 // segments
	ssthresh           uint32
	state              event.CAState
	sampled, stateSeen bool
}

func (s *congestionState) Observe(ev *Event) {
	if ev.Kind == event.KindSample {
		m := ev.Sample()
		s.sampled, s.stateSeen = true, true
		s.cwnd, s.ssthresh, s.state = m.SndCwnd, m.SndSsthresh, m.CAState
		s.max = max(s.max, s.cwnd)
		return
	}
	if ev.Hook == event.HookCongStateSet {
		s.stateSeen, s.state = true, ev.Incident().CAState
	}
}

func (s *congestionState) Collect(_ *Connection, e Emitter) {
	if s.sampled {
		e.Int(s.f.cwnd, int64(s.cwnd))
		if s.ssthresh != event.UnsetSsthresh {
			e.Int(s.f.ssthresh, int64(s.ssthresh))
		}
	}
	if s.stateSeen {
		for i, series := range s.f.state {
			e.Int(series, bit(int(s.state) == i))
		}
	}
}

// Summarize implements Summarizer.
func (s *congestionState) Summarize(f *Flow) {
	f.MaxCwnd = s.max
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
