// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

func TestRetransmissionsAreThoseThatTheKernelCounts(t *testing.T) {
	tests := map[string]struct {
		in   event.Incident
		want uint64
	}{
		"sent":                           {event.Incident{Segs: 3, Len: 4000}, 3},
		"dropped by the queue":           {event.Incident{Segs: 2, Err: 1, Sacked: event.EverRetransmitted}, 2},
		"refused by a firewall":          {event.Incident{Segs: 2, Err: -1, Sacked: event.EverRetransmitted}, 2},
		"no buffer":                      {event.Incident{Segs: 2, Err: -105, Sacked: event.EverRetransmitted}, 2},
		"still queued":                   {event.Incident{Segs: 2, Err: -16}, 0},
		"still queued, sent again once":  {event.Incident{Segs: 2, Err: -16, Sacked: event.EverRetransmitted}, 0},
		"window closed":                  {event.Incident{Segs: 2, Err: -11, Sacked: event.EverRetransmitted}, 0},
		"no memory":                      {event.Incident{Segs: 2, Err: -12}, 0},
		"no route":                       {event.Incident{Segs: 2, Err: -113}, 0},
		"acknowledged meanwhile":         {event.Incident{Segs: 2, Err: -22}, 0},
		"segments unknown":               {event.Incident{}, 1},
		"an error that never was marked": {event.Incident{Segs: 2, Err: -1}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			e := s.end(client, server)
			e.cookie = 1
			e.incident(event.HookRetransmitSKB, func(i *event.Incident) {
				h := i.Header
				*i = tt.in
				i.Header = h
			})
			f := s.flow()
			require.Equal(t, tt.want, f.Retransmits)
			if tt.want > 0 {
				require.Equal(t, uint64(tt.in.Len), f.RetransmitBytes)
			}
		})
	}
}

func TestRetransmissionsByKindAndType(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	again := func(flags uint16, n uint32, segs uint32, ca event.CAState) {
		e.incident(event.HookRetransmitSKB, func(i *event.Incident) { i.TCPFlags, i.Len, i.Segs, i.CAState = flags, n, segs, ca })
	}
	again(event.SYN, 0, 1, event.CALoss)
	again(event.ACK, 14480, 10, event.CARecovery)
	again(event.ACK|event.PSH, 1448, 1, event.CALoss)
	again(event.ACK|event.FIN, 10, 1, event.CAOpen)
	again(event.ACK|event.FIN, 0, 1, event.CADisorder)
	e.incident(event.HookRetransmitSynAck)
	got := s.collect()
	for _, scope := range []string{"network.flow.tcp.retransmits", "system.network.tcp.retransmits"} {
		for _, want := range []string{
			" tcbee.segment.kind=data network.tcp.retransmit.type=fast 10 ",
			" tcbee.segment.kind=data network.tcp.retransmit.type=timeout 1 ",
			" tcbee.segment.kind=data network.tcp.retransmit.type=tail_loss_probe 1 ",
			" tcbee.segment.kind=syn network.tcp.retransmit.type=timeout 1 ",
			" tcbee.segment.kind=syn_ack network.tcp.retransmit.type=timeout 1 ",
			" tcbee.segment.kind=fin network.tcp.retransmit.type=tail_loss_probe 1 ",
		} {
			require.Contains(t, got, scope+want)
		}
	}
	require.Equal(t, uint64(15), s.flow().Retransmits)
	require.Contains(t, got, "retransmit.io 15938 By")
}

func TestSynAckSentAgainNeedsNoSocket(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(server, client)
	e.in("S", 1, 0, 0)
	e.out("S.", 5, 2, 0)
	e.cookie = 999 // the listener's
	e.incident(event.HookRetransmitSynAck)
	e.cookie = 21
	e.in(".", 2, 6, 0)
	e.state(event.SynRecv, event.Established)
	f := s.flow()
	require.Equal(t, uint64(1), f.Retransmits)
	require.Equal(t, uint64(21), f.Cookie)
}

func TestRetransmissionsThatNoHookToldAreTakenFromTheSocket(t *testing.T) {
	type step struct {
		hook        event.Hook
		segs, bytes uint32 // of the socket so far; of an incident: its own
	}
	probe := func(segs, bytes uint32) step { return step{event.HookTCPProbe, segs, bytes} }
	told := func(segs, bytes uint32) step { return step{event.HookRetransmitSKB, segs, bytes} }
	tests := map[string]struct {
		opened             bool
		steps              []step
		segs, bytes, blind uint64 // blind: of segs, those of the type unknown
	}{
		"all told":            {true, []step{told(2, 2896), probe(2, 2896), told(1, 1448), probe(3, 4344)}, 3, 4344, 0},
		"one not told":        {true, []step{told(2, 2896), probe(3, 4344), probe(3, 4344)}, 3, 4344, 1},
		"seen once is late":   {true, []step{probe(1, 1448), told(1, 1448), probe(1, 1448)}, 1, 1448, 0},
		"ahead when sent":     {true, []step{{event.HookTransmit, 1, 1448}, {event.HookTransmit, 1, 1448}, told(1, 1448)}, 1, 1448, 0},
		"final sample":        {true, []step{told(1, 1448), {event.HookDestroySock, 2, 2896}}, 2, 2896, 1},
		"smaller gap counts":  {true, []step{probe(3, 300), probe(1, 100), probe(3, 300)}, 1, 100, 1},
		"no hook at all":      {true, []step{probe(1, 100), probe(2, 200), probe(2, 200)}, 2, 200, 2},
		"more told than that": {true, []step{told(5, 500), probe(3, 300), probe(3, 300)}, 5, 500, 0},
		"before we came":      {false, []step{probe(7, 700), probe(8, 800), told(1, 100), probe(9, 900), probe(9, 900)}, 2, 200, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, DefaultConfig())
			e := s.end(client, server)
			e.cookie = 1
			if tt.opened {
				e.connect(1000, 2000)
			}
			for _, st := range tt.steps {
				if st.hook == event.HookRetransmitSKB {
					e.incident(st.hook, func(i *event.Incident) { i.Segs, i.Len, i.CAState = st.segs, st.bytes, event.CARecovery })
					continue
				}
				e.sample(st.hook, func(m *event.Sample) { m.TotalRetrans, m.BytesRetrans = st.segs, uint64(st.bytes) })
			}
			got := s.collect()
			f := s.flow()
			require.Equal(t, tt.segs, f.Retransmits)
			require.Equal(t, tt.bytes, f.RetransmitBytes)
			for _, scope := range []string{"network.flow.tcp", "system.network.tcp"} {
				line := fmt.Sprintf("%s.retransmits tcbee.segment.kind=data network.tcp.retransmit.type=unknown %d ", scope, tt.blind)
				if tt.blind > 0 {
					require.Contains(t, got, line)
				} else {
					require.NotContains(t, got, "type=unknown")
				}
			}
		})
	}
}

func TestRetransmissionsAreUnknownWherePacketsAloneAreSeen(t *testing.T) {
	s := newStream(t, DefaultConfig())
	e := s.end(client, server)
	e.cookie = 1
	e.out("S", 1, 0, 0)
	e.in("S.", 5, 2, 0)
	e.out(".", 2, 6, 0)
	require.Equal(t, VantageHost, s.flow().Vantage)
	require.NotContains(t, s.collect(), "retransmit")
	e.sample(event.HookTCPProbe)
	require.Contains(t, s.collect(), "network.flow.tcp.retransmits tcbee.segment.kind=data network.tcp.retransmit.type=fast 0 ")
}
