// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

func TestTransferIsOneConnectionWithExactVolume(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end("10.0.0.1:40000", "10.0.0.2:80")
	e.cookie = 11
	e.connect(1000, 5000)
	e.segment(event.HookTCEgress, event.DirOut, "P.", 1001, 5001, 14480, 10)
	e.in(".", 5001, 1001+14480, 0)
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.BytesAcked = 14481 })
	e.out("P.", 1001, 5001, 1448) // again
	e.in("P.", 5001, 15481, 700)
	e.out("F.", 15481, 5701, 0)
	e.state(event.Established, event.FinWait1)
	e.in("F.", 5701, 15482, 0)
	e.state(event.FinWait1, event.FinWait2)
	e.state(event.FinWait2, event.Closed)
	e.sample(event.HookDestroySock, func(m *event.Sample) {
		m.State, m.BytesAcked, m.BytesReceived = event.Closed, 14482, 701
		m.SndUna, m.WriteSeq, m.RcvNxt = 15482, 15482, 5702
	})
	e.out(".", 15482, 5702, 0) // from TIME_WAIT

	f := s.flow()
	require.Equal(t, EndClosed, f.End)
	require.Equal(t, uint64(14480+1448), f.BytesOut)
	require.Equal(t, uint64(700), f.BytesIn)
	require.Equal(t, uint64(14480), f.GoodputOut)
	require.Equal(t, uint64(700), f.GoodputIn)
	require.Equal(t, uint64(1+1+10+1+1+1), f.SegmentsOut)
	require.Equal(t, uint64(1+1+1+1), f.SegmentsIn)
	require.Equal(t, uint64(11), f.Cookie)
	require.Equal(t, RoleClient, f.Role)
	require.InDelta(t, 0.020, f.Handshake, 0.001)
	require.True(t, f.Opened)
	s.tick(5 * second)
	require.Zero(t, s.tab.Len())
	t.Log(s.collect())
	require.Empty(t, s.tab.Flows())
}

// TestGoodputBySocketAlone: the kernel counts the SYN and the FINs as a byte each.
func TestGoodputBySocketAlone(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.cookie = 1
	e.state(event.SynRecv, event.Established)
	e.state(event.Established, event.CloseWait)
	e.state(event.CloseWait, event.LastAck)
	e.state(event.LastAck, event.Closed)
	e.sample(event.HookDestroySock, func(m *event.Sample) {
		m.State, m.BytesAcked, m.BytesReceived, m.SndUna, m.WriteSeq = event.Closed, 101, 2001, 7, 7
	})
	require.Equal(t, uint64(100), s.flow().GoodputOut)
	require.Equal(t, uint64(2000), s.flow().GoodputIn)

	s = newStream(t, DefaultConfig())
	e = s.end(client, server)
	e.cookie = 1
	e.state(event.Closed, event.SynSent)
	e.state(event.SynSent, event.Established)
	e.sample(event.HookTCPProbe, func(m *event.Sample) { m.BytesAcked, m.SndUna, m.WriteSeq = 101, 7, 7 })
	require.Equal(t, uint64(100), s.flow().GoodputOut)
	e.state(event.Established, event.Closed) // aborted: no FIN
	e.sample(event.HookDestroySock, func(m *event.Sample) {
		m.State, m.BytesAcked, m.SndUna, m.WriteSeq = event.Closed, 151, 7, 7
	})
	require.Equal(t, uint64(150), s.flow().GoodputOut)
}

func TestSynCookieThatChangesIsTheSameConnection(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.in("S", 1000, 0, 0)
	e.out("S.", 4_000_000_000, 1001, 0) // lost
	s.wait(second)
	e.in("S", 1000, 0, 0)
	e.out("S.", 5000, 1001, 0) // another cookie
	e.in(".", 1001, 5001, 0)
	e.out("P.", 5001, 1001, 300)
	e.in(".", 1001, 5301, 0)
	f := s.flow()
	require.Equal(t, uint64(300), f.GoodputOut)
	require.Equal(t, uint64(300), f.BytesOut)
	require.Equal(t, "established", f.State)
	require.InDelta(t, 1, f.Handshake, 0.001)
}
