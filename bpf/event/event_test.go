// SPDX-License-Identifier: Apache-2.0

package event

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestSizesAreThoseOfTheHeaderFile(t *testing.T) {
	require.Equal(t, 72, HeaderSize)
	require.Equal(t, 160, SegmentMaxSize)
	require.Equal(t, 488, SampleSize)
	require.Equal(t, 152, IncidentSize)
	for _, n := range []int{TickSize, LostSize, AnchorSize, AccountingSize, LinkSize} {
		require.Zero(t, n%8)
	}
}

func TestAppendedRecordsAreReadBack(t *testing.T) {
	var b []byte
	seg := Segment{Seq: 7, OptionsLen: 12}
	for i := range seg.Options {
		seg.Options[i] = byte(i)
	}
	b = Append(b, &seg)
	b = Append(b, &Sample{SndCwnd: 10})
	b = Append(b, &Incident{Segs: 3})
	b = Append(b, &Tick{Header{Time: 9}})
	b = Append(b, &Lost{First: 1, Last: 2})
	b = Append(b, &Anchor{Realtime: 5})
	b = Append(b, &Accounting{})
	b = Append(b, &Link{Ifindex: 4})
	require.NoError(t, Check(b))

	var kinds []Kind
	for h := range All(b) {
		kinds = append(kinds, h.Kind)
		switch h.Kind {
		case KindSegment:
			require.EqualValues(t, 7, h.Segment().Seq)
			require.EqualValues(t, 136, h.Size)
			require.Equal(t, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, h.Segment().Options[:h.Segment().OptionsLen])
		case KindSample:
			require.EqualValues(t, 10, h.Sample().SndCwnd)
		case KindIncident:
			require.EqualValues(t, 3, h.Incident().Segs)
		}
	}
	require.Equal(t, []Kind{KindSegment, KindSample, KindIncident, KindTick, KindLost, KindAnchor, KindAccounting, KindLink}, kinds)
}

func TestCheckTellsBadRecords(t *testing.T) {
	whole := Append(nil, &Incident{})
	with := func(change func(*Header)) []byte {
		b := append([]byte(nil), whole...)
		change(At(b))
		return b
	}
	tests := map[string]struct {
		raw  []byte
		want error
	}{
		"torn header": {whole[:40], ErrShort},
		"torn record": {whole[:len(whole)-8], ErrShort},
		"kind":        {with(func(h *Header) { h.Kind = 99 }), ErrKind},
		"size zero":   {with(func(h *Header) { h.Size = 0 }), ErrSize},
		"size small":  {with(func(h *Header) { h.Size -= 8 }), ErrSize},
		"segment":     {with(func(h *Header) { h.Kind = KindSegment; h.Segment().OptionsLen = 200 }), ErrSize},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, Check(tt.raw), tt.want)
		})
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(Append(nil, &Incident{}))
	f.Add(Append(Append(nil, &Segment{OptionsLen: 12}), &Sample{}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		aligned := make([]byte, len(raw))
		copy(aligned, raw)
		if len(aligned) > 0 && uintptr(unsafe.Pointer(&aligned[0]))%8 != 0 {
			t.Skip("tiny allocation is not aligned")
		}
		if Check(aligned) != nil {
			return
		}
		n := 0
		for h := range All(aligned) {
			n += len(h.Bytes())
		}
		require.Equal(t, len(aligned), n)
	})
}
