// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

const (
	client = "10.0.0.1:40000"
	server = "10.0.0.2:80"
)

func TestPacketsAndSocketOfOneConnectionAreJoined(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.accept(1000, 5000) // SYN and ACK have no cookie, the socket has
	e.cookie = 21
	e.state(event.SynRecv, event.Established)
	e.sample(event.HookTCPProbe)
	e.in("P.", 1001, 5001, 100)
	f := s.flow()
	require.Equal(t, uint64(21), f.Cookie)
	require.Equal(t, RoleServer, f.Role)
	require.Equal(t, VantageHost, f.Vantage)
	require.Equal(t, uint64(100), f.BytesIn)
	require.InDelta(t, 0.020, f.Handshake, 0.001)
}

func TestCookieOfSynAckGoesOverToTheSocket(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.cookie = 21
	e.accept(1000, 5000)
	e.sample(event.HookTransmit)
	require.Equal(t, uint64(21), s.flow().Cookie)
}

func TestConnectWithoutPortIsJoinedByCookie(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 5
	e.local = netip.MustParseAddrPort("10.0.0.1:0")
	e.state(event.Closed, event.SynSent, func(i *event.Incident) {
		i.Present, i.PID, i.Comm = event.HasProcess, 77, [16]byte{'c', 'u', 'r', 'l'}
	})
	require.Zero(t, s.tab.Len())
	start := s.now
	s.wait(ms)
	e.local = netip.MustParseAddrPort(client)
	e.out("S", 1, 0, 0)
	e.in("S.", 9, 2, 0)
	e.state(event.SynSent, event.Established)
	f := s.flow()
	require.Equal(t, uint32(77), f.PID)
	require.Equal(t, "curl", f.Comm)
	require.Equal(t, RoleClient, f.Role)
	require.True(t, f.Opened)
	require.Equal(t, epoch+int64(start), f.Start.UnixNano())
	require.InDelta(t, 0.001, f.Handshake, 0.0001)
}

func TestConnectsThatNeverGetAPortAreBounded(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end("10.0.0.1:0", server)
	for range 3 * maxPending {
		e.cookie++
		e.state(event.Closed, event.SynSent)
	}
	require.LessOrEqual(t, len(s.tab.procs.pending), maxPending)
	require.LessOrEqual(t, len(s.tab.procs.queue), maxPending)
	require.Contains(t, s.tab.procs.pending, e.cookie)
}

func TestListenersAreNoConnections(t *testing.T) {
	s := newStream(t, DefaultConfig())
	l := s.end("0.0.0.0:80", "0.0.0.0:0")
	l.cookie = 3
	l.state(event.Closed, event.Listen)
	l.sample(event.HookInventory, func(m *event.Sample) { m.State = event.Listen })
	l.sample(event.HookDestroySock, func(m *event.Sample) { m.State = event.Closed })
	l.state(event.Listen, event.SynRecv) // the child before it has its peer
	l.state(event.Listen, event.Closed)
	require.Zero(t, s.tab.Len())
	require.Zero(t, s.tab.ids)
}

func TestAcceptedConnectionHasItsListenersProcess(t *testing.T) {
	for name, at := range map[string]string{"address": server, "any IPv4": "0.0.0.0:80", "any IPv6": "[::]:80"} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			l := s.end(at, "0.0.0.0:0")
			l.state(event.Closed, event.Listen, func(i *event.Incident) {
				i.Present, i.PID, i.Comm = event.HasProcess, 80, [16]byte{'n', 'g', 'i', 'n', 'x'}
			})
			s.end(server, client).accept(1, 2)
			require.Equal(t, uint32(80), s.flow().PID)
			require.Equal(t, "nginx", s.flow().Comm)
			l.state(event.Listen, event.Closed)
			s.end(server, "10.0.0.9:1").accept(1, 2)
			require.Zero(t, s.tab.Flows()[1].PID)
		})
	}
}

func TestInventoryIsAConnectionThatWasThereBefore(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.cookie = 4
	s.end("0.0.0.0:80", "0.0.0.0:0").incident(event.HookInventory, func(i *event.Incident) {
		i.Present, i.PID = event.HasProcess, 8
	})
	e.sample(event.HookInventory, func(m *event.Sample) { m.BytesAcked, m.BytesReceived = 1000, 50 })
	f := s.flow()
	require.Equal(t, RoleServer, f.Role, "somebody listens there")
	require.Equal(t, uint32(8), f.PID)
	require.False(t, f.Opened)
	require.Equal(t, "established", f.State)
	require.Zero(t, f.GoodputOut, "counters begin when it is first seen")
	e.incident(event.HookInventory, func(i *event.Incident) { i.Present, i.PID = event.HasProcess, 9 })
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.BytesAcked, m.BytesReceived = 1500, 70 })
	f = s.flow()
	require.Equal(t, uint32(9), f.PID)
	require.Equal(t, uint64(500), f.GoodputOut)
	require.Equal(t, uint64(20), f.GoodputIn)
}

func TestMinisocksTellNothingOfTheSocket(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.sample(event.HookTransmit, func(m *event.Sample) { m.State, m.Present = event.NewSynRecv, 0 })
	require.Zero(t, s.tab.Len())
	e.accept(1000, 5000)
	e.sample(event.HookTransmit, func(m *event.Sample) { m.State, m.Present, m.SndCwnd = event.TimeWait, 0, 99 })
	f := s.flow()
	require.Equal(t, "established", f.State)
	require.Zero(t, f.MaxCwnd)
}

func TestLoopbackIsTwoConnections(t *testing.T) {
	s := newStream(t, DefaultConfig())
	s.link = loopback
	a := s.end("127.0.0.1:40000", "127.0.0.1:80")
	b := a.back()
	a.cookie, b.cookie = 1, 2
	a.state(event.Closed, event.SynSent)
	a.out("S", 100, 0, 0)
	b.in("S", 100, 0, 0)
	b.out("S.", 200, 101, 0)
	a.in("S.", 200, 101, 0)
	a.state(event.SynSent, event.Established)
	a.out(".", 101, 201, 0)
	b.in(".", 101, 201, 0)
	b.state(event.SynRecv, event.Established)
	a.out("P.", 101, 201, 500)
	b.in("P.", 101, 201, 500)
	flows := s.tab.Flows()
	require.Len(t, flows, 2)
	require.Equal(t, []Role{RoleClient, RoleServer}, []Role{flows[0].Role, flows[1].Role})
	require.Equal(t, uint64(500), flows[0].BytesOut)
	require.Equal(t, uint64(500), flows[1].BytesIn)
	require.Zero(t, flows[0].BytesIn+flows[1].BytesOut)
}

func TestLoopbackIsTwoConnectionsAlsoWithoutSockets(t *testing.T) {
	s := newStream(t, DefaultConfig())
	s.link = loopback
	a := s.end("127.0.0.1:40000", "127.0.0.1:80")
	a.out("P.", 1, 1, 10)
	a.back().in("P.", 1, 1, 10)
	require.Len(t, s.tab.Flows(), 2)
}

func TestNamespacesOfAVethPairAreTwoConnections(t *testing.T) {
	s := newStream(t, DefaultConfig())
	a := s.end(client, server)
	b := a.back()
	b.netns = 2
	a.out("P.", 1, 1, 10)
	b.in("P.", 1, 1, 10)
	flows := s.tab.Flows()
	require.Len(t, flows, 2)
	require.Equal(t, uint64(10), flows[0].BytesOut)
	require.Equal(t, uint64(10), flows[1].BytesIn)
}

func TestSameAddressesInTwoNamespacesAreTwoConnections(t *testing.T) {
	s := newStream(t, DefaultConfig())
	a, b := s.end(client, server), s.end(client, server)
	b.netns = 2
	a.out("P.", 1, 1, 10)
	b.out("P.", 1, 1, 20)
	a.out("P.", 11, 1, 10)
	flows := s.tab.Flows()
	require.Len(t, flows, 2)
	require.Equal(t, []uint64{20, 20}, []uint64{flows[0].BytesOut, flows[1].BytesOut})
}

func TestUnknownNamespaceIsThatOfTheLastOneSeen(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e, x := s.end(client, server), s.end(client, server)
	x.netns = 0
	e.out("S", 1, 0, 0)
	x.segment(event.HookXDP, event.DirIn, "S.", 9, 2, 0, 1)
	require.Equal(t, uint64(1), s.flow().Netns)

	// And a connection that was first seen without one gets it.
	y := s.end("10.0.0.7:1", server)
	y.netns = 0
	y.in("S", 1, 0, 0)
	y.netns = 5
	y.out("S.", 1, 2, 0)
	flows := s.tab.Flows()
	require.Len(t, flows, 2)
	require.Equal(t, uint64(5), flows[1].Netns)
}

func TestReuse(t *testing.T) {
	closed := func(e *end) {
		e.connect(1000, 5000)
		e.state(event.Established, event.Closed)
	}
	tests := map[string]struct {
		before, then func(e *end)
		want         int
	}{
		"SYN with a new ISN after the end": {closed, func(e *end) { e.cookie++; e.out("S", 7000, 0, 0) }, 2},
		"the same SYN after the end":       {closed, func(e *end) { e.out("S", 1000, 0, 0) }, 1},
		"SYN of the peer after the end":    {closed, func(e *end) { e.in("S", 7000, 0, 0) }, 2},
		"SYN-ACK with a new ISN after the end": {closed, func(e *end) {
			e.in("S.", 9000, 1, 0)
		}, 2},
		"SYN again": {func(e *end) { e.out("S", 1000, 0, 0) }, func(e *end) {
			e.s.wait(second)
			e.out("S", 1000, 0, 0)
		}, 1},
		"SYN-ACK again": {func(e *end) { e.in("S", 1, 0, 0); e.out("S.", 5, 2, 0) }, func(e *end) { e.out("S.", 5, 2, 0) }, 1},
		"stray SYN while the socket says it is open": {func(e *end) { e.connect(1000, 5000) }, func(e *end) {
			e.in("S", 7000, 0, 0)
		}, 1},
		"SYN with a new ISN where no socket tells": {func(e *end) {
			e.in("S", 1, 0, 0)
			e.out("S.", 5, 2, 0)
			e.in(".", 2, 6, 0)
		}, func(e *end) { e.in("S", 7000, 0, 0) }, 2},
		"SYN of a new socket while the old one is open": {func(e *end) { e.connect(1000, 5000) }, func(e *end) {
			e.cookie = 99
			e.out("S", 7000, 0, 0)
		}, 2},
		"simultaneous open": {func(e *end) { e.out("S", 1, 0, 0) }, func(e *end) { e.in("S", 5, 0, 0) }, 1},
		"SYN after packets in the middle": {func(e *end) { e.in("P.", 500, 1, 10) }, func(e *end) {
			e.in("S", 9000, 0, 0)
		}, 2},
		"sample of a new cookie": {func(e *end) { e.connect(1, 2) }, func(e *end) {
			e.cookie = 99
			e.sample(event.HookTCPProbe)
		}, 2},
		"connect of the same socket again": {closed, func(e *end) { e.state(event.Closed, event.SynSent) }, 2},
		"connect of a new socket": {func(e *end) { e.connect(1, 2) }, func(e *end) {
			e.cookie = 99
			e.state(event.Closed, event.SynSent)
		}, 2},
		"late news of the old socket": {func(e *end) {
			e.connect(1, 2)
			e.cookie = 99
			e.state(event.Closed, event.SynSent)
		}, func(e *end) {
			e.cookie = 11
			e.sample(event.HookTCPProbe)
			e.state(event.Established, event.FinWait1)
			e.sample(event.HookDestroySock, func(m *event.Sample) { m.State = event.Closed })
		}, 2},
		"the end of a socket that is not known": {func(e *end) { e.connect(1, 2) }, func(e *end) {
			e.cookie = 99
			e.state(event.FinWait2, event.Closed)
			e.sample(event.HookDestroySock, func(m *event.Sample) { m.State = event.Closed })
		}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			e := s.end(client, server)
			e.cookie = 11
			tt.before(e)
			tt.then(e)
			flows := s.tab.Flows()
			require.Len(t, flows, tt.want)
			if tt.want == 2 {
				require.NotEqual(t, EndNone, flows[0].End)
				require.Equal(t, EndNone, flows[1].End)
				require.Equal(t, 1, s.tab.Len())
			}
		})
	}
}

func TestForwardedConnectionIsOneFromTheSenderOfTheSyn(t *testing.T) {
	s := newStream(t, DefaultConfig())
	c := s.end(client, server)
	through := func(from *end, in, out uint32, letters string, seq, ack, n uint32) {
		s.link = in
		from.back().in(letters, seq, ack, n)
		s.link = out
		from.out(letters, seq, ack, n)
	}
	through(c, 2, 3, "S", 100, 0, 0)
	through(c.back(), 3, 2, "S.", 200, 101, 0)
	through(c, 2, 3, ".", 101, 201, 0)
	through(c, 2, 3, "P.", 101, 201, 1000)
	through(c, 2, 3, "P.", 101, 201, 1000) // again
	through(c.back(), 3, 2, "P.", 201, 1101, 300)
	through(c, 2, 3, ".", 1101, 501, 0)
	f := s.flow()
	require.Equal(t, VantageForwarder, f.Vantage)
	require.Equal(t, RoleClient, f.Role)
	require.Equal(t, client, f.Local.String())
	require.Equal(t, uint64(2000), f.BytesOut)
	require.Equal(t, uint64(300), f.BytesIn)
	require.Equal(t, uint64(5), f.SegmentsOut)
	require.Equal(t, uint64(2), f.SegmentsIn)
	require.Equal(t, uint64(1000), f.GoodputOut)
	require.Equal(t, uint64(300), f.GoodputIn)
	require.Equal(t, "established", f.State)
	require.NotZero(t, f.Handshake)

	through(c, 2, 3, "F.", 1101, 501, 0)
	through(c.back(), 3, 2, "F.", 501, 1102, 0)
	through(c, 2, 3, ".", 1102, 502, 0)
	require.Equal(t, EndClosed, s.flow().End)
	s.tick(10 * second)
	require.Zero(t, s.tab.Len())
	require.Zero(t, s.tab.idx.used)
	require.NotContains(t, s.collect(), "connection.opened network.tcp.handshake.role=client 1", "not the host's own")
}

func TestForwardedConnectionWithoutSynIsFromTheLowerEnd(t *testing.T) {
	for name, first := range map[string]bool{"from the lower": true, "from the higher": false} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			lo := s.end(client, server)
			from := lo
			if !first {
				from = lo.back()
			}
			s.link = 2
			from.back().in("P.", 1, 1, 10)
			s.link = 3
			from.out("P.", 1, 1, 10)
			f := s.flow()
			require.Equal(t, client, f.Local.String())
			require.Equal(t, uint64(10), f.BytesOut+f.BytesIn)
			require.Equal(t, first, f.BytesOut == 10)
		})
	}
}

func TestOrientationThatWasToldStays(t *testing.T) {
	s := newStream(t, DefaultConfig())
	hi := s.end(server, client)
	hi.in("P.", 1, 1, 10)
	before := s.collect()
	s.link = 3
	hi.back().out("P.", 1, 1, 10)
	f := s.flow()
	require.Equal(t, VantageForwarder, f.Vantage)
	require.Equal(t, server, f.Local.String())
	require.Equal(t, uint64(10), f.BytesIn)
	require.Contains(t, before, "connection 1 10.0.0.2:80 > 10.0.0.1:40000")
	hi.back().out("P.", 11, 1, 10) // seen on the way out alone: it counts here from now on
	require.Equal(t, uint64(20), s.flow().BytesIn)
}

func TestPacketCountsOnceOnAStackOfInterfaces(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	twice := func(first, then uint32, one func()) {
		s.link = first
		one()
		s.link = then
		one()
	}
	const vlan, eth = 5, 2
	twice(vlan, eth, func() { e.out("S", 1, 0, 0) })
	twice(eth, vlan, func() { e.in("S.", 9, 2, 0) })
	for i := range uint32(10) {
		twice(vlan, eth, func() { e.out("P.", 2+100*i, 10, 100) })
		twice(eth, vlan, func() { e.in(".", 10, 102+100*i, 0) })
	}
	twice(vlan, eth, func() { e.out("P.", 2, 10, 100) }) // again
	f := s.flow()
	require.Equal(t, uint64(1100), f.BytesOut)
	require.Equal(t, uint64(12), f.SegmentsOut)
	require.Equal(t, uint64(11), f.SegmentsIn)
}

func TestDirectionThatMovesToAnotherInterfaceCountsThere(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.out("P.", 1, 1, 100)
	s.link = 3
	e.out("P.", 101, 1, 100)
	e.out("P.", 101, 1, 100) // again, on the new one
	require.Equal(t, uint64(300), s.flow().BytesOut)
}

func TestLatePacketsMakeNoGhost(t *testing.T) {
	cfg := DefaultConfig()
	s := newStream(t, cfg)
	e := s.end(client, server)
	e.cookie = 11
	e.connect(1000, 5000)
	e.out("F.", 1001, 5001, 0)
	e.state(event.Established, event.FinWait1)
	e.in("F.", 5001, 1002, 0)
	e.state(event.FinWait2, event.Closed)
	s.tick(cfg.lingerNS() - ms)
	e.in("F.", 5001, 1002, 0)
	e.out(".", 1002, 5002, 0)
	require.Equal(t, uint64(3), s.flow().SegmentsIn)
	require.Equal(t, 1, s.tab.Len())
	s.tick(2 * ms)
	require.Zero(t, s.tab.Len())
	e.in("F.", 5001, 1002, 0) // still later
	e.in("R", 5001, 0, 0)
	require.Zero(t, s.tab.Len())
	require.Equal(t, uint64(1), s.tab.ids)
}

func (c Config) lingerNS() uint64 { return uint64(c.Linger) }

func TestEndIsToldOnceMoreAndThenForgotten(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 11
	e.connect(1000, 5000)
	e.state(event.Established, event.CloseWait)
	e.state(event.LastAck, event.Closed)
	first := s.collect()
	require.Contains(t, first, "end=closed\n")
	require.NotContains(t, first, "ended")
	s.tick(4 * second)
	require.Contains(t, s.collect(), "end=closed ended\n")
	require.NotContains(t, s.collect(), "connection 1 ")
}

func TestIdleConnectionsAreForgotten(t *testing.T) {
	cfg := DefaultConfig()
	cfg.IdleTimeout, cfg.HandshakeTimeout = time.Minute, 10*time.Second
	s := newStream(t, cfg)
	s.end(client, server).out("P.", 1, 1, 1)
	s.end(client, "10.0.0.3:80").out("S", 1, 0, 0)
	for range 20 {
		s.tick(second)
	}
	require.Equal(t, 1, s.tab.Len())
	for range 60 {
		s.tick(second)
	}
	require.Zero(t, s.tab.Len())
	for _, f := range s.tab.Flows() {
		require.Equal(t, EndIdle, f.End)
	}
}

func TestNewSessionEndsAllOfTheOldOne(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.connect(1, 2)
	s.now = 3 * second // another boot
	s.anchor(event.AnchorStart)
	require.Equal(t, s.now, s.tab.Now())
	require.Equal(t, epoch+int64(s.now), s.tab.Wall())
	require.Zero(t, s.tab.Len())
	e.connect(1, 2)
	flows := s.tab.Flows()
	require.Len(t, flows, 2)
	require.Equal(t, EndUnknown, flows[0].End)
	require.Equal(t, EndNone, flows[1].End)
}

func TestEndOfRecordingLeavesOpenConnectionsOpen(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	e.connect(1, 2)
	o := s.end(client, "10.0.0.3:80")
	o.cookie = 2
	o.connect(1, 2)
	o.state(event.LastAck, event.Closed)
	s.anchor(event.AnchorEnd)
	out := s.collect()
	require.Contains(t, out, "connection 1 10.0.0.1:40000 > 10.0.0.2:80 role=client vantage=host end=open\n")
	require.Contains(t, out, "connection 2 10.0.0.1:40000 > 10.0.0.3:80 role=client vantage=host end=closed ended\n", "what lingered is over")
}

func TestWallClockFollowsTheLastAnchor(t *testing.T) {
	s := newStream(t, DefaultConfig())
	s.tick(second)
	require.Equal(t, epoch+int64(s.now), s.tab.Wall())
	put(s, &event.Anchor{Header: event.Header{Time: s.now}, Realtime: epoch + int64(s.now) + 500})
	s.tick(second)
	require.Equal(t, epoch+int64(s.now)+500, s.tab.Wall())
}

func TestLossesAreChargedToTheConnectionsOfTheirCPU(t *testing.T) {
	s := newStream(t, DefaultConfig())
	a, b, c := s.end(client, server), s.end(client, "10.0.0.3:80"), s.end(client, "10.0.0.4:80")
	s.cpu = 0
	a.out("P.", 1, 1, 1)
	s.cpu = 1
	b.out("P.", 1, 1, 1)
	lost := &event.Lost{Header: event.Header{Time: s.now + 10, CPU: 0}, First: s.now, Last: s.now + 10}
	lost.Count[event.HookTCEgress] = 5
	lost.Count[event.HookTCPProbe] = 2
	s.wait(1000)
	put(s, lost)
	s.cpu = 0
	c.out("P.", 1, 1, 1) // began later
	flows := s.tab.Flows()
	require.Equal(t, []uint64{7, 0, 0}, []uint64{flows[0].LostEvents, flows[1].LostEvents, flows[2].LostEvents})
	require.Equal(t, uint64(7), s.tab.Flows()[0].LostEvents, "charged once")
}

func TestConnectionsAreToldByID(t *testing.T) {
	s := newStream(t, DefaultConfig())
	for i := range 50 {
		e := s.end(client, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), 80).String())
		e.cookie = uint64(i + 1)
		e.connect(1, 2)
		if i%3 == 0 {
			e.state(event.LastAck, event.Closed)
		}
	}
	s.tick(5 * second)
	last := uint64(0)
	for _, f := range s.tab.Flows() {
		require.Equal(t, last+1, f.ID)
		last = f.ID
	}
	s.collect()
	last = 0
	for _, f := range s.tab.Flows() {
		require.Greater(t, f.ID, last)
		last = f.ID
		require.NotEqual(t, uint64(1), f.ID%3)
	}
}

func TestTakeEndedLeavesTheRest(t *testing.T) {
	s := newStream(t, DefaultConfig())
	a, b := s.end(client, server), s.end(client, "10.0.0.3:80")
	a.cookie, b.cookie = 1, 2
	a.connect(1, 2)
	b.connect(1, 2)
	a.state(event.LastAck, event.Closed)
	s.tick(5 * second)
	ended := s.tab.TakeEnded(nil)
	require.Len(t, ended, 1)
	require.Equal(t, uint64(1), ended[0].ID)
	require.Len(t, s.tab.Flows(), 1)
	require.Empty(t, s.tab.TakeEnded(nil))
}

func TestTooManyConnectionsEvictTheLeastMissed(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxConnections = minConnections
	s := newStream(t, cfg)
	peer := func(i int) string {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 80).String()
	}
	kept := s.end(client, server)
	kept.cookie = 1
	kept.connect(1, 2)
	for i := range 5 * minConnections { // a flood of SYNs
		s.end(client, peer(i)).in("S", 1, 0, 0)
	}
	require.Equal(t, minConnections, s.tab.Len())
	require.Equal(t, uint64(4*minConnections+1), s.tab.Evicted())
	kept.out("P.", 2, 3, 10)
	flows := s.tab.Flows()
	require.Equal(t, uint64(10), flows[0].BytesOut)
	require.Equal(t, EndNone, flows[0].End)
	require.Equal(t, EndEvicted, flows[1].End)
}

func TestFullAcceptQueueIsNotEstablished(t *testing.T) {
	s := newStream(t, DefaultConfig())
	first := s.end(server, "10.0.0.8:1")
	first.cookie = 1
	first.accept(1, 2) // sockets tell their states
	e := s.end(server, client)
	e.cookie = 2
	e.in("S", 1, 0, 0)
	e.out("S.", 5, 2, 0)
	e.in(".", 2, 6, 0) // dropped
	require.Equal(t, "syn_received", s.tab.Flows()[1].State)
	e.state(event.SynRecv, event.Established)
	require.Equal(t, "established", s.tab.Flows()[1].State)
}
