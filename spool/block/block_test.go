// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// requireSame reports the first record that differs.
func requireSame(t testing.TB, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	n := 0
	for len(want) > 0 && len(got) > 0 {
		w, g := event.At(want), event.At(got)
		if int(g.Size) > len(got) || !bytes.Equal(w.Bytes(), g.Bytes()) {
			if w.Kind == event.KindSegment {
				require.Equal(t, *w.Segment(), *g.Segment(), "record %d", n)
			}
			require.Empty(t, cmp.Diff(*w, *g), "record %d", n)
			require.Equal(t, w.Bytes(), g.Bytes(), "record %d, %s", n, w.Kind)
		}
		want, got = want[w.Size:], got[g.Size:]
		n++
	}
	require.Equal(t, len(want), len(got), "bytes left after %d records", n)
}

func TestRoundTrip(t *testing.T) {
	for _, samples := range []bool{false, true} {
		g := newTraffic(7, 300, samples)
		b, d := NewBuilder(Options{}), NewDecoder()
		var dst []byte
		for _, n := range []int{1, 2, 50, 1000, 16384, 65536, 16384} {
			in := g.records(n)
			require.NoError(t, event.Check(in))
			if b.Full(len(in)) {
				continue
			}
			b.Add(in)
			events := b.Events()
			enc := b.Seal(nil)
			var err error
			dst, err = d.Decode(dst[:0], enc)
			require.NoError(t, err)
			requireSame(t, in, dst)
			t.Logf("samples %v: %d records, %d bytes, %.2f bytes each", samples, events, len(enc), float64(len(enc))/float64(events))
		}
	}
}

func TestSmallBlocksHaveLittleOverhead(t *testing.T) {
	b := NewBuilder(Options{})
	b.Add(event.Append(nil, &event.Anchor{Header: event.Header{Time: 5e12}, Session: 0xfeedfacecafef00d, Realtime: 1.7e18, TAI: 1.7e18 + 37e9, Phase: event.AnchorStart}))
	b.Seal(nil)
	b.Add(event.Append(nil, &event.Tick{Header: event.Header{Time: 6e12}}))
	tick := len(b.Seal(nil))
	g := newTraffic(9, 3, false)
	g.records(1000)
	in := only(g.records(40), event.KindSegment)
	b.Add(in)
	n := b.Events()
	few := len(b.Seal(nil))
	t.Logf("a tick: %d bytes; %d segments: %d bytes", tick, n, few)
	require.LessOrEqual(t, tick, 200)
	require.LessOrEqual(t, few, 250+20*n)
}
