// SPDX-License-Identifier: Apache-2.0

package block

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// TestDigest gives blocks a few records of one connection, and looks at what its entry says.
func TestDigest(t *testing.T) {
	local, peer := netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80")
	at := uint64(1000)
	head := func(hook event.Hook, dir event.Dir, cookie uint64) event.Header {
		at += 10
		return event.Header{Time: at, Cookie: cookie, Netns: 1, Local: local.Addr().As16(), Peer: peer.Addr().As16(), LocalPort: local.Port(), PeerPort: peer.Port(), Family: 4, Hook: hook, Dir: dir}
	}
	seg := func(dir event.Dir, ifindex uint32, flags uint16, seq, ack, n uint32) []byte {
		hook, cookie := event.HookTCIngress, uint64(0)
		if dir == event.DirOut {
			hook, cookie = event.HookTCEgress, 7
		}
		return event.Append(nil, &event.Segment{Header: head(hook, dir, cookie), Ifindex: ifindex, TCPFlags: flags, Seq: seq, Ack: ack, PayloadLen: n, GSOSegs: 1})
	}
	state := func(from, to event.TCPState, cookie uint64) []byte {
		return event.Append(nil, &event.Incident{Header: head(event.HookSetState, event.DirNone, cookie), OldState: from, NewState: to, Present: event.HasProcess, PID: 42, Comm: [16]byte{'x'}})
	}
	incident := func(hook event.Hook, i event.Incident) []byte {
		i.Header = head(hook, event.DirOut, 7)
		return event.Append(nil, &i)
	}
	sample := func(s event.Sample) []byte {
		hook := event.HookTCPProbe
		if s.Hook != 0 {
			hook = s.Hook
		}
		back := s.Time
		s.Header = head(hook, event.DirIn, 7)
		s.Time -= back
		s.Present = event.HasTCP
		return event.Append(nil, &s)
	}
	const in, out = event.DirIn, event.DirOut
	tests := map[string]struct {
		records func() [][]byte
		want    Entry // without times but those of events, which count from the first record
	}{
		"client with a socket": {
			func() [][]byte {
				return [][]byte{
					seg(out, 2, event.SYN, 100, 0, 0), seg(in, 2, event.SYN|event.ACK, 500, 101, 0), state(event.SynSent, event.Established, 7),
					seg(out, 2, event.ACK, 101, 501, 30), seg(out, 2, event.FIN|event.ACK, 131, 501, 0), seg(in, 2, event.FIN|event.ACK, 501, 132, 0),
					state(event.FinWait2, event.Closed, 7), seg(out, 2, event.ACK, 132, 502, 0),
				}
			},
			Entry{
				Cookie: 7, Segments: 6, Incidents: 2, Last: 70, BytesOut: 30, SegsIn: 2, SegsOut: 4, State: event.Closed,
				Seen:   SeenFINIn | SeenFINOut | SeenSYNIn | SeenSYNOut | SeenLife | SeenSocket | SeenStated | SeenClient | SeenOpening,
				Opened: 1, Established: 11, Closed: 61, From: event.FinWait2, Ended: 71, Over: OverClosed, PID: 42, Comm: [16]byte{'x'},
			},
		},
		"server by packets, that repeats nothing and is reset": {
			func() [][]byte {
				return [][]byte{
					seg(in, 2, event.SYN, 100, 0, 0), seg(in, 2, event.SYN, 100, 0, 0), seg(out, 2, event.SYN|event.ACK, 500, 101, 0), seg(in, 2, event.ACK, 101, 501, 0),
					seg(in, 2, event.ACK, 101, 501, 10), seg(out, 2, event.RST, 501, 0, 0), seg(in, 2, event.RST, 111, 0, 0),
				}
			},
			Entry{
				Cookie: 7, Segments: 7, Last: 60, BytesIn: 10, SegsIn: 5, SegsOut: 2,
				Seen:   SeenSYNIn | SeenSYNOut | SeenRSTOut | SeenRSTIn | SeenLife | SeenServer | SeenOpening | SeenSynRetry,
				Opened: 1, Established: 31, Ended: 51, Over: OverResetSent,
			},
		},
		"each direction counts where it was seen first": {
			func() [][]byte {
				return [][]byte{
					seg(out, 3, event.ACK, 1, 1, 10), seg(out, 2, event.ACK, 1, 1, 10), seg(in, 2, event.ACK, 1, 11, 5), seg(in, 3, event.ACK, 1, 11, 5),
				}
			},
			Entry{Cookie: 7, Segments: 4, Last: 30, BytesIn: 5, BytesOut: 10, SegsIn: 1, SegsOut: 1, Seen: SeenLife | SeenElsewhere},
		},
		"another SYN": {
			func() [][]byte {
				return [][]byte{seg(in, 2, event.SYN, 100, 0, 0), seg(in, 2, event.SYN, 200, 0, 0)}
			},
			Entry{Segments: 2, Last: 10, SegsIn: 2, Seen: SeenSYNIn | SeenLife | SeenServer | SeenOpening | SeenSeveral, Opened: 1},
		},
		"another socket": {
			func() [][]byte {
				return [][]byte{state(event.CloseWait, event.LastAck, 7), state(event.LastAck, event.Closed, 7), state(event.SynRecv, event.Established, 8)}
			},
			Entry{
				Cookie: 8, Incidents: 3, Last: 20, State: event.Established, Seen: SeenLife | SeenSocket | SeenStated | SeenServer | SeenOpening | SeenSeveral,
				Established: 21, Closed: 11, From: event.LastAck, PID: 42, Comm: [16]byte{'x'},
			},
		},
		"what was sent again, and given up": {
			func() [][]byte {
				return [][]byte{
					incident(event.HookRetransmitSKB, event.Incident{Len: 100, Segs: 2}),
					incident(event.HookRetransmitSKB, event.Incident{Len: 100, Segs: 2, Err: -16, Sacked: 0x80}),
					incident(event.HookRetransmitSKB, event.Incident{Len: 100, Segs: 2, Err: -1}),
					incident(event.HookRetransmitSKB, event.Incident{Len: 10, Err: -1, Sacked: 0x80}),
					incident(event.HookReceiveReset, event.Incident{}),
					state(event.Established, event.Closed, 7),
					incident(event.HookSendReset, event.Incident{}),
				}
			},
			Entry{
				Cookie: 7, Incidents: 7, Last: 60, Retransmits: 3, RetransmitBytes: 110, State: event.Closed,
				Seen:   SeenLife | SeenSocket | SeenStated | SeenRSTIn | SeenRSTOut | SeenResetTaken,
				Closed: 51, From: event.Established, AtClose: SeenResetTaken, PID: 42, Comm: [16]byte{'x'},
			},
		},
		"samples by time": {
			func() [][]byte {
				return [][]byte{
					sample(event.Sample{State: event.Established, RTT: 300, MinRTT: 200, SndCwnd: 10}),
					sample(event.Sample{State: event.CloseWait, RTT: 400, MinRTT: ^uint32(0), SndCwnd: 20}),
					sample(event.Sample{Header: event.Header{Time: 15}, State: event.Established, RTT: 900, MinRTT: 100, SndCwnd: 15}), // older
					sample(event.Sample{Header: event.Header{Hook: event.HookDestroySock}, State: event.Closed, SndCwnd: 5}),
				}
			},
			Entry{
				Cookie: 7, Samples: 4, Last: 30, SRTT: 400, MinRTT: 200, MaxCwnd: 20, State: event.CloseWait, Seen: SeenLife | SeenSocket, Closed: 31,
			},
		},
		"a drop makes no connection": {
			func() [][]byte { return [][]byte{incident(event.HookKfreeSKB, event.Incident{})} },
			Entry{Incidents: 1},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			at = 1000
			b := NewBuilder(Options{})
			for _, r := range tt.records() {
				b.Add(r)
			}
			list, err := NewDecoder().Directory(nil, b.Seal(nil))
			require.NoError(t, err)
			require.Len(t, list, 1)
			want := tt.want
			want.Netns, want.Local, want.Peer, want.Family = 1, local, peer, 4
			want.First = 1010
			want.Last += want.First
			for _, x := range []*uint64{&want.Opened, &want.Established, &want.Closed, &want.Ended} {
				if *x != 0 {
					*x += want.First - 1
				}
			}
			require.Empty(t, cmp.Diff(want, list[0], cmpopts.EquateComparable(netip.AddrPort{})))
		})
	}
}
