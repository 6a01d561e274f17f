// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// crowd makes the packets of a busy host: a number of connections is open at any time, each of them for as many blocks as lives says,
// and each has its turn at random. Every thirty-second record is a sample.
type crowd struct {
	rnd   *rand.Rand
	at    uint64
	open  []member
	made  int
	lives int
}

type member struct {
	head     event.Header
	seq, ack uint32
	until    int // block
}

func (c *crowd) join(m *member, block int) []byte {
	c.made++
	n := c.made
	*m = member{until: block + 1 + c.rnd.IntN(2*c.lives)}
	local, peer := netip.AddrFrom4([4]byte{10, 0, 0, 1}), netip.AddrFrom4([4]byte{10, 1 + byte(n>>20), byte(n >> 12), byte(n >> 4)})
	m.head = event.Header{
		Netns: 1, Cookie: uint64(n), Local: local.As16(), Peer: peer.As16(), Family: 4,
		LocalPort: 443, PeerPort: 1024 + uint16(n*4099%60000),
	}
	i := &event.Incident{Header: m.head, OldState: event.SynRecv, NewState: event.Established}
	i.Time, i.Hook = c.at, event.HookSetState
	return event.Append(nil, i)
}

// connection names it by its two ends.
func (m *member) connection() string {
	return fmt.Sprintf("%s:%d-%s:%d", netip.AddrFrom16(m.head.Local).Unmap(), m.head.LocalPort, netip.AddrFrom16(m.head.Peer).Unmap(), m.head.PeerPort)
}

// block makes the records of the n-th block: at 2 million events a second.
func (c *crowd) block(n int, dst []byte) []byte {
	for k := range maxBlockEvents {
		c.at += 500
		m := &c.open[c.rnd.IntN(len(c.open))]
		if n >= m.until {
			dst = append(dst, c.join(m, n)...)
			continue
		}
		h := m.head
		h.Time, h.CPU, h.Hook, h.Dir = c.at, uint16(k>>6&1), event.HookTCEgress, event.DirOut
		if k%32 == 31 {
			h.Hook = event.HookTransmit
			dst = event.Append(dst, &event.Sample{Header: h, SndCwnd: 10 + uint32(k>>8&7), RTT: 20000, State: event.Established, Present: event.HasTCP})
		} else {
			s := event.Segment{Header: h, TCPFlags: event.ACK, GSOSegs: 1, VLAN: event.NoVLAN, VLANInner: event.NoVLAN, WireLen: 66, IPLen: 20, TCPLen: 20, TTL: 64, Window: 500}
			if k&1 == 0 {
				s.Hook, s.Dir, s.Cookie = event.HookTCIngress, event.DirIn, 0
				m.ack += 100
				s.PayloadLen, s.WireLen = 100, 166
			} else {
				m.seq += 1448
				s.PayloadLen, s.WireLen = 1448, 1514
			}
			s.Seq, s.Ack = m.seq, m.ack
			dst = event.Append(dst, &s)
		}
	}
	return dst
}

// record makes the spool, and returns what it holds and one of its connections.
func (c *crowd) record(b *testing.B, events, open, lives int) (dir string, blocks int, one string) {
	b.Helper()
	*c = crowd{rnd: rand.New(rand.NewPCG(1, uint64(open))), at: 1e9, open: make([]member, open), lives: lives}
	cfg := spool.DefaultConfig()
	cfg.Dir = b.TempDir()
	w, err := spool.Create(b.Context(), cfg, spool.Meta{}, nil)
	require.NoError(b, err)
	build := block.NewBuilder(block.Options{})
	build.Add(event.Append(nil, &event.Anchor{Header: event.Header{Time: c.at}, Session: 1, Realtime: 1_700_000_000_000_000_000, Phase: event.AnchorStart}))
	var raw, enc []byte
	for blocks*maxBlockEvents < events {
		raw = c.block(blocks, raw[:0])
		build.Add(raw)
		enc = build.Seal(enc[:0])
		_, err := w.Append(enc)
		require.NoError(b, err)
		if blocks++; blocks*maxBlockEvents*2 > events && one == "" {
			one = c.open[0].connection()
		}
	}
	require.NoError(b, w.Close())
	return cfg.Dir, blocks, one
}

// BenchmarkFlowsBusy lists what busy hosts recorded: with some hundred connections in each block, which come and go, and with ten thousand. In the
// usual run they have some million events; PIPELINE_BENCH_EVENTS=100000000 is what issues of speed are about, and ns/op is then the answer.
func BenchmarkFlowsBusy(b *testing.B) {
	events := 4 << 20
	if text := os.Getenv("PIPELINE_BENCH_EVENTS"); text != "" {
		var err error
		events, err = strconv.Atoi(text)
		require.NoError(b, err)
	}
	for _, tt := range []struct {
		name        string
		open, lives int
	}{{"connections=500", 500, 160}, {"connections=10000", 10_000, 1000}} {
		b.Run(tt.name, func(b *testing.B) {
			var c crowd
			dir, blocks, text := c.record(b, events, tt.open, tt.lives)
			one, err := ParsePattern(text)
			require.NoError(b, err)
			for name, sel := range map[string]Selection{"all": {}, "one": {Connections: []Pattern{one}}} {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						r, err := spool.Open(b.Context(), dir, spool.ReadOptions{Trust: true})
						require.NoError(b, err)
						flows, damaged, err := Flows(context.Background(), r, FlowOptions{Process: processors.DefaultConfig(), Select: sel}, nil)
						require.NoError(b, err)
						require.Empty(b, damaged)
						require.NotEmpty(b, flows)
						if name == "one" {
							require.Len(b, flows, 1)
						}
						require.NoError(b, r.Close())
					}
					report(b, blocks*maxBlockEvents)
				})
			}
		})
	}
}
