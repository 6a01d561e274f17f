// SPDX-License-Identifier: Apache-2.0

package processors

import "math"

// The fixed shape of a Histogram: buckets grow by 2^(1/8), about 9 %, from 2^-20 s (0.95 µs)
// to 2^25 s (388 days). One shape for all makes the difference of two histograms, which
// delta temporality needs, the difference of their buckets.
const (
	// HistogramScale is OpenTelemetry's scale: bucket i holds (2^(i/8), 2^((i+1)/8)].
	HistogramScale = 3
	// HistogramOffset is the index i of Histogram.Buckets[0].
	HistogramOffset = -20 << HistogramScale
	// HistogramBuckets is the number of buckets.
	HistogramBuckets = 45 << HistogramScale
	// HistogramZero is the zero threshold: values up to it are counted in Zero.
	HistogramZero = 1.0 / (1 << 20)
)

// Histogram is an exponential histogram as OpenTelemetry defines it, of fixed scale and
// range. The zero Histogram is empty and ready for use.
type Histogram struct {
	Count   uint64
	Sum     float64
	Min     float64 // of all values; meaningless while Count is 0
	Max     float64
	Zero    uint64 // values ≤ HistogramZero
	Buckets [HistogramBuckets]uint64
}

// Add counts the value v, which must not be negative. Values above the last bucket's limit
// are counted in the last bucket.
func (h *Histogram) Add(v float64) {
	if h.Count == 0 || v < h.Min {
		h.Min = v
	}
	if h.Count == 0 || v > h.Max {
		h.Max = v
	}
	h.Count++
	h.Sum += v
	if !(v > HistogramZero) {
		h.Zero++
		return
	}
	h.Buckets[min(bucket(v)-HistogramOffset, HistogramBuckets-1)]++
}

// bucket returns the index i with 2^(i/8) < v ≤ 2^((i+1)/8). The fraction is compared with
// the eight limits, so that no rounding of a logarithm moves a value that lies on a limit.
func bucket(v float64) int {
	frac, exp := math.Frexp(v) // v = frac · 2^exp, frac in [0.5, 1)
	i := 0
	for i < len(limits) && frac > limits[i] {
		i++
	}
	return (exp-1)<<HistogramScale + i - 1
}

// limits are 2^(k/8-1) for k = 0 … 7: the lower limits of the buckets in [0.5, 1).
var limits = [1 << HistogramScale]float64{
	0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048,
	0.7071067811865476, 0.7711054127039704, 0.8408964152537145, 0.9170040432046712,
}
