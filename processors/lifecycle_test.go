// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

func TestHowConnectionsEnd(t *testing.T) {
	open := func(e *end) { e.connect(1000, 5000) }
	tests := map[string]struct {
		run  func(e *end)
		want End
	}{
		"closed from here": {func(e *end) {
			open(e)
			e.state(event.Established, event.FinWait1)
			e.state(event.FinWait1, event.FinWait2)
			e.state(event.FinWait2, event.Closed)
		}, EndClosed},
		"closed by the peer": {func(e *end) {
			open(e)
			e.state(event.Established, event.CloseWait)
			e.state(event.CloseWait, event.LastAck)
			e.state(event.LastAck, event.Closed)
		}, EndClosed},
		"reset by the peer": {func(e *end) {
			open(e)
			e.in("R", 5001, 0, 0)
			e.incident(event.HookReceiveReset)
			e.state(event.Established, event.Closed)
		}, EndResetReceived},
		"RST that the kernel did not take": {func(e *end) {
			open(e)
			e.in("R", 77, 0, 0)
			e.in("P.", 5001, 1001, 10)
			e.s.tick(30 * second)
		}, EndNone},
		"reset by the peer, and the socket's end was lost": {func(e *end) {
			open(e)
			e.in("R", 5001, 0, 0)
			e.s.tick(30 * second)
			e.s.tick(30 * second)
		}, EndResetReceived},
		"FINs, and the socket's end was lost": {func(e *end) {
			open(e)
			e.out("F.", 1001, 5001, 0)
			e.in("F.", 5001, 1002, 0)
			e.out(".", 1002, 5002, 0)
			e.s.tab.Finish()
		}, EndClosed},
		"reset from here before it closes": {func(e *end) {
			open(e)
			e.incident(event.HookSendReset)
			e.state(event.Established, event.Closed)
		}, EndResetSent},
		"reset from here after it closes": {func(e *end) {
			open(e)
			e.state(event.Established, event.Closed)
			e.out("R.", 1001, 5001, 0)
		}, EndResetSent},
		"gave up": {func(e *end) {
			open(e)
			e.state(event.Established, event.Closed)
		}, EndTimeout},
		"refused": {func(e *end) {
			e.state(event.Closed, event.SynSent)
			e.out("S", 1, 0, 0)
			e.in("R.", 0, 2, 0)
			e.incident(event.HookReceiveReset)
			e.state(event.SynSent, event.Closed)
		}, EndResetReceived},
		"no answer": {func(e *end) {
			e.state(event.Closed, event.SynSent)
			e.out("S", 1, 0, 0)
			e.out("S", 1, 0, 0)
			e.state(event.SynSent, event.Closed)
		}, EndTimeout},
		"no answer, seen by the socket alone": {func(e *end) {
			e.state(event.Closed, event.SynSent)
			e.incident(event.HookRetransmitSKB, func(i *event.Incident) { i.TCPFlags, i.Segs = event.SYN, 1 })
			e.state(event.SynSent, event.Closed)
		}, EndTimeout},
		"abandoned": {func(e *end) {
			e.state(event.Closed, event.SynSent)
			e.out("S", 1, 0, 0)
			e.state(event.SynSent, event.Closed)
		}, EndClosed},
		"the event was lost, the socket is gone": {func(e *end) {
			open(e)
			e.sample(event.HookDestroySock, func(m *event.Sample) { m.State = event.Closed })
		}, EndUnknown},
		"the event was lost, the packets told": {func(e *end) {
			open(e)
			e.in("R", 5001, 0, 0)
			e.sample(event.HookDestroySock, func(m *event.Sample) { m.State = event.Closed })
		}, EndResetReceived},
		"the event was lost, the FIN was acknowledged": {func(e *end) {
			open(e)
			e.state(event.Established, event.FinWait1)
			e.sample(event.HookDestroySock, func(m *event.Sample) { m.State, m.SndUna, m.WriteSeq = event.Closed, 9, 9 })
		}, EndClosed},
		"packets alone: FINs": {func(e *end) {
			e.cookie = 0
			e.in("S", 1, 0, 0)
			e.out("S.", 5, 2, 0)
			e.in(".", 2, 6, 0)
			e.in("F.", 2, 6, 0)
			e.out("F.", 6, 3, 0)
			e.in(".", 3, 7, 0)
		}, EndClosed},
		"packets alone: reset": {func(e *end) {
			e.cookie = 0
			e.in("S", 1, 0, 0)
			e.out("R.", 0, 2, 0)
		}, EndResetSent},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			e := s.end(client, server)
			e.cookie = 11
			tt.run(e)
			require.Equal(t, tt.want.String(), s.flow().End.String())
		})
	}
}

func TestStatesByPackets(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	step := func(want string) {
		t.Helper()
		require.Equal(t, want, s.flow().State)
	}
	e.out("S", 1, 0, 0)
	step("syn_sent")
	e.in("S.", 5, 2, 0)
	step("established")
	e.out(".", 2, 6, 0)
	e.out("F.", 2, 6, 0)
	step("fin_wait_1")
	e.in(".", 6, 3, 0)
	step("fin_wait_2")
	e.in("F.", 6, 3, 0)
	step("time_wait")
	e.out(".", 3, 7, 0)
	step("closed")

	s = newStream(t, DefaultConfig())
	e = s.end(server, client)
	e.in("S", 1, 0, 0)
	step("syn_received")
	e.out("S.", 5, 2, 0)
	step("syn_received")
	e.in(".", 2, 6, 0)
	step("established")
	e.in("F.", 2, 6, 0)
	step("close_wait")
	e.out("F.", 6, 3, 0)
	step("last_ack")
	e.in(".", 3, 7, 0)
	step("closed")

	s = newStream(t, DefaultConfig())
	e = s.end(server, client)
	e.in(".", 2, 6, 0)
	step("established")
}

func TestHostCountsItsConnections(t *testing.T) {
	s := newStream(t, DefaultConfig())
	to := func(peer string, cookie uint64) *end {
		e := s.end(client, peer)
		e.cookie = cookie
		return e
	}
	to("10.0.0.3:80", 1).connect(1, 2) // stays open
	e := to("10.0.0.4:80", 2)
	e.connect(1, 2)
	e.state(event.LastAck, event.Closed)
	e = to("10.0.0.5:80", 3) // refused
	e.state(event.Closed, event.SynSent)
	e.out("S", 1, 0, 0)
	e.incident(event.HookReceiveReset, func(i *event.Incident) { i.OldState = event.SynSent })
	e.state(event.SynSent, event.Closed)
	in := s.end(server, client)
	in.cookie = 4
	in.accept(1, 2)
	s.end("10.0.0.1:81", "10.0.0.9:5").incident(event.HookSendReset, func(i *event.Incident) { i.TCPFlags = event.SYN }) // a closed port
	s.end("10.0.0.1:81", "10.0.0.9:5").incident(event.HookSendReset, func(i *event.Incident) { i.TCPFlags = event.ACK })
	s.tick(5 * second)
	got := s.collect()
	for _, want := range []string{
		"connection.opened network.tcp.handshake.role=client 3 ",
		"connection.opened network.tcp.handshake.role=server 1 ",
		"connection.successes network.tcp.handshake.role=client 2 ",
		"connection.successes network.tcp.handshake.role=server 1 ",
		"connection.failures network.tcp.handshake.role=client error.type=connection_refused 1 ",
		"connection.closed tcbee.connection.end=closed 1 ",
		"connection.active 2 ",
		"handshake.duration count=3 ",
		"connection.duration count=1 ",
		"resets network.io.direction=transmit network.tcp.reset.cause=connection_refused 1 ",
		"resets network.io.direction=transmit network.tcp.reset.cause=aborted 0 ",
		"resets network.io.direction=transmit network.tcp.reset.cause=no_connection 1 ",
		"resets network.io.direction=receive network.tcp.reset.cause=connection_refused 1 ",
	} {
		require.Contains(t, got, want)
	}
}

func TestHandshakeWithRepeatedSynIsMeasuredFromTheFirst(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	e.state(event.Closed, event.SynSent)
	e.out("S", 1, 0, 0)
	s.wait(second)
	e.out("S", 1, 0, 0)
	s.wait(20 * ms)
	e.in("S.", 9, 2, 0)
	e.state(event.SynSent, event.Established)
	require.InDelta(t, 1.020, s.flow().Handshake, 0.0001)
}

func TestLifeBySamplesAlone(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	e.sample(event.HookTransmit, func(m *event.Sample) { m.State, m.RTT = event.SynSent, 0 })
	s.wait(20 * ms)
	e.sample(event.HookTransmit, func(m *event.Sample) { m.BytesAcked = 1 })
	f := s.flow()
	require.Equal(t, RoleClient, f.Role)
	require.True(t, f.Opened)
	require.InDelta(t, 0.020, f.Handshake, 0.0001)
	e.sample(event.HookTransmit, func(m *event.Sample) { m.State, m.BytesAcked = event.FinWait1, 101 })
	e.sample(event.HookDestroySock, func(m *event.Sample) {
		m.State, m.BytesAcked, m.SndUna, m.WriteSeq = event.Closed, 102, 9, 9
	})
	f = s.flow()
	require.Equal(t, EndClosed, f.End)
	require.Equal(t, uint64(100), f.GoodputOut)
}
