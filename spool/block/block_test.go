// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"
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

func TestNothingIsAllocatedInSteadyState(t *testing.T) {
	g := newTraffic(4, 100, true)
	in := g.records(16384)
	b, d := NewBuilder(Options{}), NewDecoder()
	var block, out []byte
	var entries []Entry
	var err error
	round := func() {
		b.Add(in)
		block = b.Seal(block[:0])
		out, err = d.Decode(out[:0], block)
		require.NoError(t, err)
		entries, err = d.Directory(entries[:0], block)
		require.NoError(t, err)
	}
	round()
	round()
	// The garbage collector empties the pools in which zstd keeps its tables: the best of some runs
	// counts.
	least := 1e9
	for range 10 {
		least = min(least, testing.AllocsPerRun(1, round))
	}
	require.Less(t, least, 4.0)
}

func TestInfoAndDirectoryTellWhatIsInABlock(t *testing.T) {
	g := newTraffic(11, 40, true)
	b, d := NewBuilder(Options{}), NewDecoder()
	var start event.Anchor
	for round := range 3 {
		in := g.records(20000)
		b.Add(in)
		require.Equal(t, len(in), b.Raw())
		block := b.Seal(nil)
		require.Zero(t, b.Events())
		require.Zero(t, b.Raw())

		want := Info{Version: Version, Schema: SchemaVersion, Raw: len(in), Encoded: len(block), First: ^uint64(0), Anchored: true}
		type id struct {
			netns uint64
			tuple Tuple
		}
		entries := map[id]*Entry{}
		sampled, stated, counted := map[id]uint64{}, map[id]uint64{}, map[id]uint64{}
		for h := range event.All(in) {
			want.Events++
			want.Kinds[h.Kind]++
			want.Hooks[h.Hook]++
			want.First, want.Last = min(want.First, h.Time), max(want.Last, h.Time)
			if h.Kind == event.KindAnchor {
				start = *h.Anchor()
			}
			if h.Family == 0 {
				continue
			}
			k := id{h.Netns, Tuple{h.LocalAddr(), h.PeerAddr()}}
			e := entries[k]
			if e == nil {
				e = &Entry{Netns: h.Netns, Local: k.tuple.Local, Peer: k.tuple.Peer, Family: h.Family, First: h.Time}
				entries[k] = e
			}
			e.First, e.Last = min(e.First, h.Time), max(e.Last, h.Time)
			if h.Cookie != 0 {
				e.Cookie = h.Cookie
			}
			switch h.Kind {
			case event.KindSegment:
				s := h.Segment()
				e.Segments++
				if h.Dir == event.DirIn {
					e.BytesIn += uint64(s.PayloadLen)
					e.SegsIn += uint64(s.GSOSegs)
					e.Seen |= uint32(s.TCPFlags & 7)
				} else {
					e.BytesOut += uint64(s.PayloadLen)
					e.SegsOut += uint64(s.GSOSegs)
					e.Seen |= uint32(s.TCPFlags&7) << 3
				}
			case event.KindSample:
				s := h.Sample()
				e.Samples++
				e.MaxCwnd = max(e.MaxCwnd, s.SndCwnd)
				if h.Time >= sampled[k] {
					sampled[k], e.SRTT, e.MinRTT = h.Time, s.RTT, s.MinRTT
				}
				if h.Hook == event.HookTCPProbe && s.TotalRetrans != 0 && h.Time >= counted[k] {
					counted[k], e.TotalRetrans, e.BytesRetrans = h.Time, uint64(s.TotalRetrans), s.BytesRetrans
				}
				if h.Time >= stated[k] {
					stated[k], e.State = h.Time, s.State
				}
			case event.KindIncident:
				s := h.Incident()
				e.Incidents++
				if h.Hook == event.HookSetState {
					if e.PID == 0 {
						e.PID, e.Comm = s.PID, s.Comm
					}
					if h.Time >= stated[k] {
						stated[k], e.State = h.Time, s.NewState
					}
				} else {
					e.RetransmitBytes += uint64(s.Len)
					e.Retransmits += uint64(s.Segs)
				}
			}
		}
		want.Anchor = Anchor{Time: start.Time, Session: start.Session, Realtime: start.Realtime, TAI: start.TAI, Uncertainty: start.Uncertainty}
		want.Connections = len(entries) + 1

		info, err := ReadInfo(block)
		require.NoError(t, err)
		require.Positive(t, info.Head)
		want.Head = info.Head
		require.Empty(t, cmp.Diff(want, info), "round %d", round)
		wall, ok := info.Wall(start.Time + 5)
		require.True(t, ok)
		require.Equal(t, start.Realtime+5, wall.UnixNano())

		got, err := d.Directory(nil, block)
		require.NoError(t, err)
		require.Len(t, got, len(entries))
		for _, e := range got {
			w := entries[id{e.Netns, Tuple{e.Local, e.Peer}}]
			require.NotNil(t, w)
			// What the opening and the end tell is TestDigest's.
			base := e
			base.Seen &= SeenRSTOut<<1 - 1
			base.Opened, base.Established, base.Closed, base.Ended, base.From, base.AtClose, base.Over = 0, 0, 0, 0, 0, 0, 0
			require.Empty(t, cmp.Diff(*w, base, cmpopts.EquateComparable(netip.AddrPort{})))
			ok, err := MayHold(block, Tuple{e.Local, e.Peer})
			require.NoError(t, err)
			require.True(t, ok)
		}

		odd := func(_, peer netip.AddrPort) bool { return peer.Port()%2 == 1 }
		some, err := d.DirectoryOf(nil, block, odd)
		require.NoError(t, err)
		rest := slices.DeleteFunc(slices.Clone(got), func(e Entry) bool { return !odd(e.Local, e.Peer) })
		require.Empty(t, cmp.Diff(rest, some, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{})))
	}
}

func TestFilterExcludesOtherConnections(t *testing.T) {
	b := NewBuilder(Options{})
	b.Add(newTraffic(12, 400, false).records(20000))
	block := b.Seal(nil)
	wrong, n := 0, 2000
	for i := range n {
		a := netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})
		ok, err := MayHold(block, Tuple{netip.AddrPortFrom(a, 1000), netip.AddrPortFrom(a, 2000)})
		require.NoError(t, err)
		if ok {
			wrong++
		}
	}
	require.Less(t, wrong, n/25)
}

func TestOptionsAreValidated(t *testing.T) {
	require.NoError(t, DefaultOptions().Validate())
	require.NoError(t, Options{}.Validate())
	require.ErrorContains(t, Options{Compression: "lots"}.Validate(), "block.compression: unknown level \"lots\"")
	for _, level := range []string{"fastest", "default", "better", "best"} {
		b := NewBuilder(Options{Compression: level})
		in := newTraffic(12, 40, true).records(3000)
		b.Add(in)
		out, err := NewDecoder().Decode(nil, b.Seal(nil))
		require.NoError(t, err)
		requireSame(t, in, out)
	}
}

// TestRepeatedRecordsStayWithinTheRatio: a builder makes no block that a decoder takes for a bomb.
func TestRepeatedRecordsStayWithinTheRatio(t *testing.T) {
	b := NewBuilder(Options{})
	var in []byte
	for range 50_000 {
		in = event.Append(in, &event.Sample{})
	}
	b.Add(in)
	block := b.Seal(nil)
	require.Less(t, len(block), 4000)
	out, err := NewDecoder().Decode(nil, block)
	require.NoError(t, err)
	requireSame(t, in, out)
}

func TestManyInterfacesCPUsAndConnections(t *testing.T) {
	b, d := NewBuilder(Options{}), NewDecoder()
	r := rand.New(rand.NewPCG(1, 2))
	var in []byte
	for i := range 60_000 {
		e := event.Segment{Header: event.Header{Time: r.Uint64N(1e12), CPU: uint16(r.Uint32()), Family: 4, Dir: event.Dir(i % 3), LocalPort: uint16(r.Uint32N(70)), PeerPort: uint16(r.Uint32())},
			Ifindex: r.Uint32N(20), Seq: r.Uint32(), Ack: r.Uint32(), TCPFlags: uint16(r.Uint32N(0x1000)), OptionsLen: uint8(r.Uint32N(41))}
		for j := range e.OptionsLen {
			e.Options[j] = byte(r.Uint32N(9))
		}
		in = event.Append(in, &e)
	}
	for i := range 300 {
		in = event.Append(in, &event.Accounting{Header: event.Header{Time: uint64(i), CPU: uint16(i % 100)}})
	}
	b.Add(in)
	out, err := d.Decode(nil, b.Seal(nil))
	require.NoError(t, err)
	requireSame(t, in, out)
}

// update writes the golden block of the present version.
var update = flag.Bool("update", false, "write the golden files")

// TestGolden reads a block of every version that ever was, and gets the records of then.
func TestGolden(t *testing.T) {
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	require.NoError(t, err)
	defer zr.Close()
	name := func(version int, what string) string {
		return filepath.Join("testdata", fmt.Sprintf("v%d.%s", version, what))
	}
	if *update {
		in := append(rareRecords(), newTraffic(2026, 25, true).records(1500)...)
		b := NewBuilder(Options{})
		b.Add(in)
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(name(Version, "block"), b.Seal(nil), 0o644))
		zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name(Version, "records.zst"), zw.EncodeAll(in, nil), 0o644))
	}
	for v := 1; v <= Version; v++ {
		block, err := os.ReadFile(name(v, "block"))
		require.NoError(t, err)
		packed, err := os.ReadFile(name(v, "records.zst"))
		require.NoError(t, err)
		want, err := zr.DecodeAll(packed, nil)
		require.NoError(t, err)
		info, err := ReadInfo(block)
		require.NoError(t, err)
		require.Equal(t, v, info.Version)
		got, err := NewDecoder().Decode(nil, block)
		require.NoError(t, err)
		requireSame(t, want, got)
	}
}

// TestEncodingIsStable: the same records give the same bytes.
func TestEncodingIsStable(t *testing.T) {
	in := newTraffic(3, 200, true).records(20000)
	a, b := NewBuilder(Options{}), NewBuilder(Options{})
	a.Add(in)
	for _, x := range batches(in, 77) {
		b.Add(x)
		in = in[len(x):]
	}
	b.Add(in)
	require.True(t, bytes.Equal(a.Seal(nil), b.Seal(nil)))
}

// TestShortSegmentAtTheEndOfItsMemory has bite in race builds, where pointers are checked.
func TestShortSegmentAtTheEndOfItsMemory(t *testing.T) {
	b, d := NewBuilder(Options{}), NewDecoder()
	for n := range event.OptionsMax + 1 {
		e := event.Segment{Header: event.Header{Time: 1}, OptionsLen: uint8(n)}
		for i := range n {
			e.Options[i] = byte(n + i)
		}
		rec := event.Append(nil, &e)
		in := make([]byte, len(rec))
		copy(in, rec)
		b.Add(in)
		out, err := d.Decode(nil, b.Seal(nil))
		require.NoError(t, err)
		requireSame(t, in, out)
	}
}

// TestDocumentedBlock compares the bytes that docs/format.md explains with those of a Builder.
func TestDocumentedBlock(t *testing.T) {
	b := NewBuilder(Options{})
	b.Add(event.Append(nil, &event.Anchor{Header: event.Header{Time: 5e12}, Session: 0xfeedfacecafef00d, Realtime: 1.7e18, TAI: 1.7e18 + 37e9, Phase: event.AnchorStart}))
	b.Seal(nil)
	b.Add(event.Append(nil, &event.Tick{Header: event.Header{Time: 6e12}}))
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "format.md"))
	require.NoError(t, err)
	_, dump, found := strings.Cut(string(doc), "A block of one Tick")
	require.True(t, found)
	var want []byte
	for line := range strings.Lines(strings.SplitN(dump, "```", 3)[1]) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "   ")
		place, hexes, _ := strings.Cut(line, " ")
		if place == "" {
			continue
		}
		require.Equal(t, fmt.Sprintf("%04x", len(want)), place)
		p, err := hex.DecodeString(strings.ReplaceAll(hexes, " ", ""))
		require.NoError(t, err, "line %q", line)
		want = append(want, p...)
	}
	require.Equal(t, want, b.Seal(nil))
}
