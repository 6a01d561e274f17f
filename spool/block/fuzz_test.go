// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"net/netip"
	"runtime/metrics"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// seeds are blocks of all kinds of records and of several sizes.
func seeds(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(magic))
	for _, n := range []int{1, 3, 30, 300, 5000} {
		f.Add(sampleBlock(f, n))
	}
	f.Add(rareBlock())
}

// rareBlock has one record of each kind.
func rareBlock() []byte {
	b := NewBuilder(Options{})
	b.Add(rareRecords())
	return b.Seal(nil)
}

func rareRecords() []byte {
	var in []byte
	in = event.Append(in, &event.Anchor{Header: event.Header{Time: 5e9}, Session: 77, Realtime: 1.7e18, TAI: 1.7e18 + 37e9, Phase: event.AnchorStart})
	l := event.Link{Header: event.Header{Time: 5e9}, Ifindex: 3, MTU: 1500, Type: 1}
	copy(l.Name[:], "eth0")
	in = event.Append(in, &l)
	in = event.Append(in, &event.Tick{Header: event.Header{Time: 6e9}})
	x := event.Lost{Header: event.Header{Time: 7e9, CPU: 3}, First: 6e9, Last: 7e9}
	x.Count[event.HookTCPProbe] = 12
	in = event.Append(in, &x)
	in = event.Append(in, &event.Anchor{Header: event.Header{Time: 8e9}, Session: 77, Realtime: 1.7e18 + 3e9, TAI: 1.7e18 + 40e9, Phase: event.AnchorEnd})
	return in
}

// slack is what decoding may allocate whatever the block: the zstd decoder's tables and blocks, errors, and what the runtime counts late.
const slack = 1 << 20

// requireAllocates asks that f allocates at most that many bytes. The runtime may count what others have allocated before: what
// f itself allocates, it allocates each time.
func requireAllocates(t *testing.T, most uint64, f func()) {
	t.Helper()
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var n uint64
	for range 3 {
		metrics.Read(s)
		before := s[0].Value.Uint64()
		f()
		metrics.Read(s)
		if n = s[0].Value.Uint64() - before; n <= most {
			return
		}
	}
	require.LessOrEqual(t, n, most, "bytes allocated")
}

// requireBounded asks that a Decoder of its own, whose buffers no block before has grown, reads p with no more memory than
// the Decoder's documentation grants to such a block, and returns what it reads.
func requireBounded(t *testing.T, p []byte) (entries []Entry, out []byte, dirErr, err error) {
	bound := uint64(slack)
	if info, err := ReadInfo(p); err == nil {
		bound += maxHead + 16*uint64(info.Raw)
	}
	requireAllocates(t, bound, func() { entries, dirErr = NewDecoder().Directory(nil, p) })
	requireAllocates(t, bound, func() { out, err = NewDecoder().Decode(nil, p) })
	return entries, out, dirErr, err
}

// FuzzDecode gives blocks, as they are and with lengths and CRCs corrected, to all decoders: what a new Decoder reads, one that has read
// all inputs before reads as well, and never with more memory than a block of that size may take.
func FuzzDecode(f *testing.F) {
	seeds(f)
	b, d := NewBuilder(Options{}), NewDecoder()
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, p := range [][]byte{p, mend(p)} {
			entries, out, dirErr, err := requireBounded(t, p)
			again, againErr := d.Directory(nil, p)
			require.Equal(t, dirErr, againErr)
			require.Equal(t, entries, again)
			used, usedErr := d.Decode(nil, p)
			require.Equal(t, err, usedErr)
			requireSame(t, out, used)
		}
		inspect(t, b, d, mend(p))
	})
}

// FuzzDirectory gives damaged heads to the readers of heads.
func FuzzDirectory(f *testing.F) {
	seeds(f)
	d := NewDecoder()
	f.Fuzz(func(t *testing.T, p []byte) {
		p = mend(p)
		var other Tuple
		if len(p) >= 40 {
			q := p[len(p)-40:]
			other.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(q)), binary.LittleEndian.Uint16(q[32:]))
			other.Peer = netip.AddrPortFrom(netip.AddrFrom16([16]byte(q[16:])), binary.LittleEndian.Uint16(q[34:]))
		}
		_, _ = MayHold(p, other)
		info, infoErr := ReadInfo(p)
		entries, err := d.Directory(nil, p)
		if err != nil {
			require.Empty(t, entries)
			return
		}
		require.NoError(t, infoErr)
		require.Len(t, entries, info.Connections-1)
		size, err := HeadSize(p[:fixedSize])
		require.NoError(t, err)
		require.Equal(t, info.Head, size)
		alone, err := d.Directory(nil, p[:size])
		require.NoError(t, err)
		require.Equal(t, entries, alone)
		_, err = d.Decode(nil, p[:size])
		require.ErrorIs(t, err, ErrCorrupt, "a head is not a block")
		for _, e := range entries {
			ok, err := MayHold(p, Tuple{e.Local, e.Peer})
			require.NoError(t, err)
			_ = ok // a damaged filter may deny
		}
	})
}

// FuzzReadInfo gives damaged heads to ReadInfo.
func FuzzReadInfo(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		_, _ = ReadInfo(p)
		p = mend(p)
		var info Info
		var err error
		requireAllocates(t, slack, func() { info, err = ReadInfo(p) })
		if err != nil {
			return
		}
		require.LessOrEqual(t, info.Raw, MaxRaw)
		require.LessOrEqual(t, info.Raw, len(p)*maxRatio)
		require.LessOrEqual(t, info.Events*event.HeaderSize, info.Raw)
	})
}

// FuzzColumns gives anything to the decoder of a section.
func FuzzColumns(f *testing.F) {
	block := sampleBlock(f, 300)
	var h head
	require.NoError(f, h.read(block))
	f.Add(block[h.Head : len(block)-4])
	f.Add(block[h.directory : h.directory+h.dirLen])
	r := NewDecoder().r
	cols := make([][]uint64, columnCount)
	f.Fuzz(func(t *testing.T, p []byte) {
		const limit = 1 << 16
		var used int
		var err error
		requireAllocates(t, slack+maxHead+16*limit, func() {
			fresh := NewDecoder().r
			used, err = fresh.read(cols, p, 0, limit, place{"columns", columnName})
		})
		want := make([][]uint64, len(cols))
		wantUsed, wantErr := r.read(want, p, 0, limit, place{"columns", columnName})
		require.Equal(t, wantErr, err)
		if err != nil {
			return
		}
		require.Equal(t, wantUsed, used)
		require.Equal(t, want, cols)
		require.LessOrEqual(t, used, len(p))
		n := 0
		for _, v := range cols {
			n += len(v)
		}
		require.LessOrEqual(t, n, limit)
	})
}

// FuzzRoundTrip makes records of the input and asks for the same records back.
func FuzzRoundTrip(f *testing.F) {
	f.Add(newTraffic(1, 3, true).records(40), uint8(0))
	f.Add(newTraffic(2, 2, false).records(100), uint8(1))
	f.Add(rareRecords(), uint8(2))
	b, d := NewBuilder(Options{}), NewDecoder()
	f.Fuzz(func(t *testing.T, p []byte, shift uint8) {
		in := recordsOf(p, shift)
		if len(in) == 0 {
			return
		}
		require.NoError(t, event.Check(in))
		b.Add(in)
		first, last, events := b.First(), b.Last(), b.Events()
		block := b.Seal(nil)
		out, err := d.Decode(nil, block)
		require.NoError(t, err)
		requireSame(t, in, out)
		info, err := ReadInfo(block)
		require.NoError(t, err)
		require.Equal(t, events, info.Events)
		require.Equal(t, []uint64{first, last}, []uint64{info.First, info.Last})
		entries, err := d.Directory(nil, block)
		require.NoError(t, err)
		for _, e := range entries {
			ok, err := MayHold(block, Tuple{e.Local, e.Peer})
			require.NoError(t, err)
			require.True(t, ok)
		}
	})
}

// recordsOf turns bytes into well-formed records that have them as their fields.
func recordsOf(p []byte, shift uint8) []byte {
	kinds := []event.Kind{event.KindSegment, event.KindSample, event.KindIncident, event.KindTick, event.KindLost, event.KindAnchor, event.KindAccounting, event.KindLink}
	var out []byte
	for i := 0; len(p) > 0 && i < 1000; i++ {
		var buf [event.MaxSize / 8]uint64
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf)), event.MaxSize)
		n := copy(raw, p)
		h := event.At(raw)
		k := h.Kind
		if int(k) >= Kinds || (k > event.KindIncident && k < event.KindTick) || k == 0 {
			k = kinds[(int(k)+i*int(shift))%len(kinds)]
		}
		size := event.HeaderSize + 8*structs[k].words()
		if k == event.KindSegment {
			s := h.Segment()
			s.OptionsLen %= event.OptionsMax + 1
			clear(s.Options[s.OptionsLen:])
			size = event.SegmentSize(int(s.OptionsLen))
		}
		h.Kind, h.Size = k, uint16(size)
		out = append(out, raw[:size]...)
		p = p[min(n, size):]
	}
	return out
}

// TestMemoryOfTheWorstBlocks measures what FuzzDecode asks for with the records that need most for each of their bytes.
func TestMemoryOfTheWorstBlocks(t *testing.T) {
	tests := map[string]func(i int) []byte{
		"a connection for each tick": func(i int) []byte {
			return event.Append(nil, &event.Tick{Header: event.Header{Time: uint64(i), Family: 4, LocalPort: uint16(i), Netns: uint64(i >> 16)}})
		},
		"a connection, a lane and options for each segment": func(i int) []byte {
			e := event.Segment{Header: event.Header{Time: uint64(i), Family: 4, LocalPort: uint16(i), Netns: uint64(i >> 16)}, Ifindex: uint32(i), OptionsLen: 4}
			binary.LittleEndian.PutUint32(e.Options[:], uint32(i)<<8|1)
			return event.Append(nil, &e)
		},
		"a connection for each sample": func(i int) []byte {
			return event.Append(nil, &event.Sample{Header: event.Header{Time: uint64(i), Family: 4, LocalPort: uint16(i), Netns: uint64(i >> 16)}})
		},
		"a CPU for each accounting": func(i int) []byte {
			return event.Append(nil, &event.Accounting{Header: event.Header{Time: uint64(i), CPU: uint16(i)}})
		},
	}
	for name, record := range tests {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{1, 100, 10_000, 60_000} {
				b := NewBuilder(Options{})
				for i := range n {
					b.Add(record(i))
				}
				p := b.Seal(nil)
				_, out, dirErr, err := requireBounded(t, p)
				require.NoError(t, dirErr)
				require.NoError(t, err)
				require.NotEmpty(t, out)
			}
		})
	}
}
