// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// noise makes n checked records of all kinds over few connections from the bytes of rng.
func noise(rng *rand.Rand, n int) []byte {
	raw := make([]byte, 0, n*event.SegmentMaxSize)
	now := uint64(1e9)
	random := func(b []byte) {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	addr := func() (a [16]byte) {
		a[10], a[11], a[15] = 0xff, 0xff, byte(rng.IntN(3))
		return a
	}
	for range n {
		now += uint64(rng.IntN(1 << rng.IntN(34)))
		h := event.Header{
			Time: now, Cookie: uint64(rng.IntN(4)), Netns: uint64(rng.IntN(3)), Hook: event.Hook(rng.IntN(18)), Dir: event.Dir(rng.IntN(4)),
			Local: addr(), Peer: addr(), LocalPort: uint16(rng.IntN(3)), PeerPort: uint16(rng.IntN(3)), CPU: uint16(rng.IntN(70)), Family: 4,
		}
		switch rng.IntN(20) {
		default:
			g := event.Segment{Header: h, Seq: rng.Uint32N(64), Ack: rng.Uint32N(64), PayloadLen: rng.Uint32N(16), Ifindex: rng.Uint32N(4),
				TCPFlags: uint16(rng.IntN(32)), GSOSegs: uint16(rng.IntN(3)), OptionsLen: uint8(rng.IntN(41)), Window: uint16(rng.IntN(3))}
			if rng.IntN(8) == 0 {
				g.Seq, g.Ack, g.PayloadLen = rng.Uint32(), rng.Uint32(), rng.Uint32()
			}
			random(g.Options[:g.OptionsLen])
			raw = event.Append(raw, &g)
		case 10, 11, 12:
			m := event.Sample{}
			b := unsafe.Slice((*byte)(unsafe.Pointer(&m)), event.SampleSize)
			random(b)
			m.Header, m.State = h, event.TCPState(rng.IntN(14))
			raw = event.Append(raw, &m)
		case 13, 14, 15:
			i := event.Incident{}
			random(unsafe.Slice((*byte)(unsafe.Pointer(&i)), event.IncidentSize))
			i.Header = h
			if rng.IntN(8) != 0 {
				i.OldState, i.NewState = event.TCPState(rng.IntN(13)), event.TCPState(rng.IntN(13))
			}
			raw = event.Append(raw, &i)
		case 16, 17:
			raw = event.Append(raw, &event.Tick{Header: h})
		case 18:
			l := event.Lost{Header: h, First: now - rng.Uint64N(now), Last: now}
			l.Count[rng.IntN(event.Hooks)] = rng.Uint32()
			raw = event.Append(raw, &l)
		case 19:
			a := event.Anchor{Header: h, Realtime: int64(rng.Uint64()), Phase: uint32(rng.IntN(4))}
			if rng.IntN(4) != 0 {
				a.Phase = event.AnchorPeriodic
			}
			raw = event.Append(raw, &a)
		}
	}
	return raw
}

// tell lets a new Table observe raw, and returns what it told every so often.
func tell(tb testing.TB, raw []byte) string {
	cfg := DefaultConfig()
	cfg.MaxConnections = minConnections
	tab, err := NewTable(cfg)
	require.NoError(tb, err)
	tab.cfg.MaxConnections = 12
	var w text
	n := 0
	for h := range event.All(raw) {
		tab.Observe(h)
		if n++; n%97 == 0 {
			tab.Collect(&w)
			check(tb, tab)
		}
	}
	tab.Finish()
	tab.Collect(&w)
	tab.Flows()
	check(tb, tab)
	return w.String()
}

// check tests what always holds of a Table.
func check(tb testing.TB, tab *Table) {
	live, both := 0, 0
	for _, c := range tab.order {
		if c.Ended {
			require.NotEqual(tb, EndNone, c.End)
			continue
		}
		live++
		if c.both {
			both++
		}
		require.Same(tb, c, tab.conns[c.slot])
		found, reversed := tab.find(&c.key, c.Netns)
		require.False(tb, reversed)
		require.Equal(tb, c.key, found.key)
	}
	require.Equal(tb, live, tab.Len())
	require.Equal(tb, live+both, tab.idx.used)
}

func TestSameStreamAlwaysTellsTheSame(t *testing.T) {
	for seed := range uint64(20) {
		raw := noise(rand.New(rand.NewPCG(seed, 1)), 1000)
		require.NoError(t, event.Check(raw))
		require.Equal(t, tell(t, raw), tell(t, raw), "seed %d", seed)
	}
}

// FuzzObserve is best run with -fuzzminimizetime 1x: hash seeds differ from run to run, and with
// them the coverage, so that the fuzzer would shorten inputs in vain.
func FuzzObserve(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(noise(rand.New(rand.NewPCG(seed, 2)), 40))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		// Bytes that are no records stand for a seed of records.
		raw := make([]byte, len(in), len(in)+8)
		copy(raw, in)
		if event.Check(raw) != nil {
			var seed [16]byte
			copy(seed[:], in)
			raw = noise(rand.New(rand.NewPCG(binary.LittleEndian.Uint64(seed[:]), binary.LittleEndian.Uint64(seed[8:]))), 300)
		}
		tell(t, raw)
	})
}
