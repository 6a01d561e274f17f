// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIndexFindsWhatWasAddedAndNothingElse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	x := newIndex()
	type stored struct {
		hash uint64
		rev  bool
	}
	model := map[int32]stored{}
	has := func(hash uint64, slot int32, rev bool) bool {
		ref := slot + 1
		if rev {
			ref = -ref
		}
		mask := uint32(len(x.entries) - 1)
		for i := uint32(hash) & mask; x.entries[i].ref != 0; i = (i + 1) & mask {
			if x.entries[i].ref == ref && x.entries[i].hash == uint32(hash) {
				return true
			}
		}
		return false
	}
	for range 20000 {
		slot := int32(rng.IntN(300))
		if s, ok := model[slot]; ok {
			x.remove(s.hash, slot, s.rev)
			delete(model, slot)
			require.False(t, has(s.hash, slot, s.rev))
		} else {
			s := stored{uint64(rng.IntN(40)) * 0x1_0000_0007, rng.IntN(2) == 0} // many collide
			x.add(s.hash, slot, s.rev)
			model[slot] = s
		}
		require.Equal(t, len(model), x.used)
	}
	for slot, s := range model {
		require.True(t, has(s.hash, slot, s.rev))
	}
	require.Panics(t, func() { x.remove(5, 9999, false) })
}

func TestHistogramBucketsHoldTheirLimits(t *testing.T) {
	for i := -20 << HistogramScale; i < 25<<HistogramScale; i++ {
		upper := math.Exp2(float64(i+1) / 8)
		for _, v := range []float64{upper * 0.9999, upper * 1.0001} {
			want := int(math.Ceil(math.Log2(v)*8)) - 1
			require.Equal(t, want, bucket(v), "%g", v)
		}
	}
	for exp := -20; exp <= 25; exp++ {
		require.Equal(t, exp*8-1, bucket(math.Ldexp(1, exp)), "a power of two is the upper limit of its bucket")
	}

	var h Histogram
	for _, v := range []float64{0.5, 0, 0.25, 1e12} {
		h.Add(v)
	}
	require.Equal(t, uint64(4), h.Count)
	require.Equal(t, uint64(1), h.Zero)
	require.Zero(t, h.Min)
	require.Equal(t, 1e12, h.Max)
	require.InDelta(t, 1e12, h.Sum, 1)
	require.Equal(t, uint64(1), h.Buckets[HistogramBuckets-1], "above the range")
	require.Equal(t, uint64(1), h.Buckets[-1*8-1-HistogramOffset], "0.5")
	require.Equal(t, uint64(1), h.Buckets[-2*8-1-HistogramOffset], "0.25")
}
