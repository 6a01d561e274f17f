// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// seen is what a test looks at of a released record.
type seen struct {
	time uint64
	cpu  uint16
	seq  uint32
}

func put(o *order, time uint64, cpu uint16, cookie uint64, seq uint32) {
	r := event.Segment{Header: event.Header{Time: time, CPU: cpu, Cookie: cookie, SockSeq: seq}}
	o.add(event.At(event.Append(nil, &r)))
}

func released(t *testing.T, o *order, mark uint64) (got []seen) {
	t.Helper()
	require.NoError(t, o.release(mark, func(h *event.Header) error {
		got = append(got, seen{h.Time, h.CPU, h.SockSeq})
		return nil
	}))
	return got
}

func TestOrderMergesCPUsByTimeUpToTheMark(t *testing.T) {
	var o order
	for _, at := range []uint64{10, 30, 50, 70} {
		put(&o, at, 1, 0, 0)
	}
	for _, at := range []uint64{20, 30, 60} {
		put(&o, at, 0, 0, 0)
	}
	require.Equal(t, []seen{{10, 1, 0}, {20, 0, 0}, {30, 0, 0}, {30, 1, 0}, {50, 1, 0}}, released(t, &o, 60))
	put(&o, 65, 0, 0, 0)
	require.Equal(t, []seen{{60, 0, 0}, {65, 0, 0}, {70, 1, 0}}, released(t, &o, 1000))
	require.Empty(t, released(t, &o, 2000))
	require.Zero(t, o.late)
}

func TestOrderSortsARecordThatWasStampedBeforeItsPredecessor(t *testing.T) {
	var o order
	put(&o, 20, 0, 0, 0)
	put(&o, 10, 0, 0, 0)
	require.Equal(t, []seen{{10, 0, 0}, {20, 0, 0}}, released(t, &o, 100))
}

func TestOrderFollowsTheSocketsCounterWhereClocksDiffer(t *testing.T) {
	var o order
	put(&o, 1000, 0, 7, 1)
	put(&o, 1300, 0, 7, 3) // CPU 1 is a little behind
	put(&o, 1350, 0, 8, 1) // another socket stays where it is
	put(&o, 1400, 1, 7, 2)
	put(&o, 1500, 1, 7, 4)
	require.Equal(t, []seen{{1000, 0, 1}, {1400, 1, 2}, {1300, 0, 3}, {1350, 0, 1}, {1500, 1, 4}}, released(t, &o, 5000))
}

func TestOrderCountsWhatComesTooLate(t *testing.T) {
	var o order
	put(&o, 10, 0, 0, 0)
	released(t, &o, 100)
	put(&o, 50, 1, 0, 0)
	put(&o, 150, 0, 0, 0)
	require.Equal(t, []seen{{50, 1, 0}, {150, 0, 0}}, released(t, &o, 200))
	require.EqualValues(t, 1, o.late)
}

func TestOrderLosesAndRepeatsNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var o order
	clocks := make([]uint64, 8)
	var in, out int
	mark := uint64(0)
	last := uint64(0)
	for range 200 {
		for range 500 {
			cpu := rnd.IntN(len(clocks))
			clocks[cpu] = max(clocks[cpu], mark) + rnd.Uint64N(100)
			put(&o, clocks[cpu], uint16(cpu), 0, 0)
			in++
		}
		mark += rnd.Uint64N(3000)
		for _, s := range released(t, &o, mark) {
			require.GreaterOrEqual(t, s.time, last)
			last = s.time
			out++
		}
	}
	out += len(released(t, &o, ^uint64(0)))
	require.Equal(t, in, out)
	require.Zero(t, o.late)
}

func BenchmarkOrder(b *testing.B) {
	const n = 16384
	batch := make([][]byte, n)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range batch {
		r := event.Segment{Header: event.Header{Time: uint64(i) * 100, CPU: uint16(i / 64 % 2), Cookie: 1 + rnd.Uint64N(300), SockSeq: uint32(i)}, OptionsLen: 12}
		batch[i] = event.Append(nil, &r)
	}
	var o order
	b.ReportAllocs()
	var base uint64
	for b.Loop() {
		for _, r := range batch {
			o.add(event.At(r))
		}
		o.mark = 0
		n := 0
		_ = o.release(^uint64(0), func(*event.Header) error { n++; return nil })
		base += uint64(n)
	}
	b.ReportMetric(float64(base)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(base), "ns/event")
}
