// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

func TestDuplicateAcksAreThoseOfRFC5681(t *testing.T) {
	data := func(e *end) {
		e.connect(1000, 5000)
		e.out("P.", 1001, 5001, 3000)
	}
	tests := map[string]struct {
		run  func(e *end)
		want int
	}{
		"two":                    {func(e *end) { data(e); e.in(".", 5001, 1001, 0); e.in(".", 5001, 1001, 0); e.in(".", 5001, 1001, 0) }, 2},
		"progress":               {func(e *end) { data(e); e.in(".", 5001, 2001, 0); e.in(".", 5001, 3001, 0) }, 0},
		"with payload":           {func(e *end) { data(e); e.in(".", 5001, 2001, 0); e.in("P.", 5001, 2001, 9) }, 0},
		"with FIN":               {func(e *end) { data(e); e.in(".", 5001, 2001, 0); e.in("F.", 5001, 2001, 0) }, 0},
		"nothing is outstanding": {func(e *end) { data(e); e.in(".", 5001, 4001, 0); e.in(".", 5001, 4001, 0) }, 0},
		"old":                    {func(e *end) { data(e); e.in(".", 5001, 3001, 0); e.in(".", 5001, 2001, 0) }, 0},
		"window update": {func(e *end) {
			data(e)
			e.in(".", 5001, 2001, 0)
			e.s.edit = func(g *event.Segment) { g.Window = 600 }
			e.in(".", 5001, 2001, 0)
		}, 0},
		"second sighting": {func(e *end) {
			data(e)
			e.in(".", 5001, 2001, 0)
			e.s.link = 9
			e.in(".", 5001, 2001, 0)
		}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			e := s.end(client, server)
			e.cookie = 1
			tt.run(e)
			require.Contains(t, s.collect(), "duplicate_acks network.io.direction=receive "+string(rune('0'+tt.want))+" ")
		})
	}
}

func TestZeroWindowCountsTransitionsAndTime(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	e.connect(1000, 5000)
	e.out("P.", 1001, 5001, 3000)
	s.edit = func(g *event.Segment) { g.Window = 0 }
	e.in(".", 5001, 4001, 0)
	s.wait(100 * ms)
	e.in(".", 5001, 4001, 0) // answers a probe
	s.tick(100*ms - 1000)
	got := s.collect()
	require.Contains(t, got, "network.flow.tcp.flow_control.events network.io.direction=transmit network.tcp.flow_control.event=zero_window 1 ")
	require.Contains(t, got, "network.flow.tcp.flow_control.duration network.io.direction=transmit 0.2 s", "the present spell counts")
	s.edit = nil
	e.in(".", 5001, 4001, 0)
	s.wait(100 * ms)
	s.edit = func(g *event.Segment) { g.Window = 0 }
	e.in(".", 5001, 4001, 0)
	s.wait(50 * ms)
	e.in("R.", 5001, 4001, 0) // its window means nothing
	e.incident(event.HookReceiveReset)
	e.state(event.Established, event.Closed)
	s.wait(second)
	got = s.collect()
	require.Contains(t, got, "network.flow.tcp.flow_control.events network.io.direction=transmit network.tcp.flow_control.event=zero_window 2 ")
	require.Contains(t, got, "network.flow.tcp.flow_control.duration network.io.direction=transmit 0.250004 s", "it ends with the connection")
	require.NotContains(t, got, "network.flow.tcp.flow_control.duration network.io.direction=receive")
	require.Contains(t, got, "system.network.tcp.flow_control.events network.io.direction=transmit network.tcp.flow_control.event=zero_window 2 ")
}

func TestWindowFullNeedsTheScale(t *testing.T) {
	const edge = 502 << 7
	tests := map[string]struct {
		run  func(s *stream, e *end)
		want string
	}{
		"scale of the SYNs": {func(s *stream, e *end) {
			e.connect(1000, 5000)
			e.out("P.", 1001, 5001, 100)
			e.in(".", 5001, 1101, 0)
			e.out("P.", 1101, 5001, edge-1)
			require.NotContains(t, s.collect(), "window_full 1")
			e.out("P.", 1101+edge-1, 5001, 1)
			e.out("P.", 1101+edge-1, 5001, 1) // still full
		}, "window_full 1 "},
		"opened and filled again": {func(s *stream, e *end) {
			e.connect(1000, 5000)
			e.in(".", 5001, 1001, 0)
			e.out("P.", 1001, 5001, edge)
			e.in(".", 5001, 1001+edge, 0)
			e.out("P.", 1001+edge, 5001, edge)
		}, "window_full 2 "},
		"only one side offers": {func(s *stream, e *end) {
			s.edit = func(g *event.Segment) {
				if g.Dir == event.DirIn {
					g.OptionsLen = 0
				}
			}
			e.connect(1000, 5000)
			e.in(".", 5001, 1001, 0)
			e.out("P.", 1001, 5001, 502)
		}, "window_full 1 "},
		"scale of a sample": {func(s *stream, e *end) {
			e.sample(event.HookInventory, func(m *event.Sample) { m.TCPOptions, m.SndWscale = wscaleOK, 7 })
			e.in(".", 5001, 1001, 0)
			e.out("P.", 1001, 5001, edge)
		}, "window_full 1 "},
		"scale unknown": {func(s *stream, e *end) {
			e.in(".", 5001, 1001, 0)
			e.out("P.", 1001, 5001, edge)
		}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			e := s.end(client, server)
			e.cookie = 1
			tt.run(s, e)
			got := s.collect()
			if tt.want == "" {
				require.NotContains(t, got, "network.flow.tcp.flow_control")
				return
			}
			require.Contains(t, got, "network.flow.tcp.flow_control.events network.io.direction=transmit network.tcp.flow_control.event="+tt.want)
		})
	}
}

func TestWindowScaleOfAnyOptions(t *testing.T) {
	tests := map[string]struct {
		in    []byte
		scale uint8
		ok    bool
	}{
		"none":          {nil, 0, false},
		"alone":         {[]byte{3, 3, 9}, 9, true},
		"after others":  {[]byte{2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}, 7, true},
		"too large":     {[]byte{3, 3, 200}, 14, true},
		"after the end": {[]byte{0, 3, 3, 7}, 0, false},
		"cut":           {[]byte{3, 3}, 0, false},
		"no length":     {[]byte{1, 5}, 0, false},
		"length 0":      {[]byte{5, 0, 3, 3, 7}, 0, false},
		"wrong length":  {[]byte{3, 4, 7, 0}, 0, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := &event.Segment{OptionsLen: uint8(len(tt.in))}
			copy(g.Options[:], tt.in)
			scale, ok := windowScale(g)
			require.Equal(t, tt.scale, scale)
			require.Equal(t, tt.ok, ok)
		})
	}
}

func TestDeliveryRateIsNotThatOfTheApplication(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.AppLimited = 1 })
	require.NotContains(t, s.collect(), "delivery_rate")
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.DeliveryRate, m.PacingRate = 5000, unlimited })
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.DeliveryRate, m.AppLimited, m.PacingRate = 7, 1, unlimited })
	got := s.collect()
	require.Contains(t, got, "delivery_rate 5000 By/s")
	require.NotContains(t, got, "pacing_rate")
}

func TestWhatLimitsAddsUp(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.sample(event.HookInventory, func(m *event.Sample) { m.BusyTime, m.RwndLimited, m.SndbufLimited = 1_000_000, 100_000, 50_000 })
	s.wait(second)
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.BusyTime, m.RwndLimited, m.SndbufLimited = 1_600_000, 300_000, 150_000 })
	got := s.collect()
	for _, want := range []string{"cwnd 0.3 s", "rwnd 0.2 s", "sndbuf 0.1 s", "app 0.400001 s"} {
		require.Contains(t, got, "tcbee.limit="+want)
	}
	e.sample(event.HookDestroySock, func(m *event.Sample) { m.State = event.Closed }) // disconnected: all 0
	require.Contains(t, s.collect(), "tcbee.limit=cwnd 0.3 s", "a counter never falls")
}

func TestMarksAreCountedInSegments(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	s.edit = func(g *event.Segment) {
		if g.TCPFlags&event.SYN != 0 {
			g.TCPFlags |= event.ECE | event.CWR
		}
	}
	e.accept(1, 2)
	require.NotContains(t, s.collect(), "ecn.marks", "asked for, not used")
	s.edit = func(g *event.Segment) { g.TOS = ecnCE }
	e.segment(event.HookTCIngress, event.DirIn, "P.", 2, 3, 4344, 3)
	s.edit = func(g *event.Segment) { g.TCPFlags |= event.ECE }
	e.out(".", 3, 4346, 0)
	got := s.collect()
	require.Contains(t, got, "network.io.direction=receive tcbee.ecn.mark=ce 3 ")
	require.Contains(t, got, "network.io.direction=transmit tcbee.ecn.mark=ece 1 ")
}

func TestCountersOfASocketBeginWhenItIsFirstSeen(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.sample(event.HookInventory, func(m *event.Sample) { m.DSACKDups, m.RcvOOOPack = 5, 7 })
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.DSACKDups, m.RcvOOOPack = 6, 10 })
	got := s.collect()
	require.Contains(t, got, "dsack 1 ")
	require.Contains(t, got, "out_of_order 3 ")
}

func TestRTTBySequenceFollowsKarn(t *testing.T) {
	rtts := func(s *stream) Histogram {
		for _, f := range s.tab.families {
			if f, ok := f.(*rtt); ok {
				return f.host
			}
		}
		t.Fatal("no rtt family")
		return Histogram{}
	}
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	e.connect(1000, 5000)
	e.out("P.", 1001, 5001, 1000)
	e.out("P.", 2001, 5001, 1000) // one at a time: this is not timed
	s.wait(20*ms - 3000)
	e.in(".", 5001, 1501, 0) // not all of it
	e.in(".", 5001, 2001, 0)
	require.Equal(t, uint64(1), rtts(s).Count)
	require.InDelta(t, 0.020, rtts(s).Sum, 1e-5)

	e.out("P.", 3001, 5001, 1000)
	e.out("P.", 2001, 5001, 1000) // again: nothing outstanding can be timed
	e.out("P.", 4001, 5001, 1000)
	s.wait(50 * ms)
	e.in(".", 5001, 3001, 0)
	e.in(".", 5001, 5001, 0)
	require.Equal(t, uint64(1), rtts(s).Count)
	e.out("P.", 5001, 5001, 1000)
	s.wait(30*ms - 1000)
	e.in(".", 5001, 6001, 0)
	require.Equal(t, uint64(2), rtts(s).Count)
	require.InDelta(t, 0.050, rtts(s).Sum, 1e-5)
}

func TestRTTOfReceivedDataIsNotMeasured(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.cookie = 1
	e.accept(1000, 5000)
	e.in("P.", 1001, 5001, 1000)
	e.out(".", 5001, 2001, 0)
	require.NotContains(t, s.collect(), "system.network.tcp.rtt")
}
