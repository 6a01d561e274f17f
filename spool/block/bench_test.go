// SPDX-License-Identifier: Apache-2.0

package block

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// benchEvents is the number of records in a block of the benchmarks.
const benchEvents = 16384

// batches cuts records into blocks of n, each of one batch.
func batches(in []byte, n int) [][]byte {
	var out [][]byte
	start, at, k := 0, 0, 0
	for at < len(in) {
		at += int(event.At(in[at:]).Size)
		if k++; k == n {
			out = append(out, in[start:at:at])
			start, k = at, 0
		}
	}
	return out
}

// steady returns blocks of traffic that runs already, of the given kind alone; with -records those
// of the file.
func steady(kind event.Kind, blocks int) [][]byte {
	if *costFile != "" {
		in, err := os.ReadFile(*costFile)
		if err != nil {
			panic(err)
		}
		all := batches(only(in, kind), benchEvents)
		return all[:min(len(all), blocks)]
	}
	g := newTraffic(3, 400, kind == event.KindSample)
	g.records(100_000)
	in := g.records(2 * blocks * benchEvents)
	var out []byte
	for h := range event.All(in) {
		if h.Kind == kind {
			out = append(out, h.Bytes()...)
		}
	}
	all := batches(out, benchEvents)
	return all[:min(len(all), blocks)]
}

// usage is what a benchmark has used so far.
type usage struct {
	cpu    time.Duration
	allocs uint64
}

func used() usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{cpuTime(), m.Mallocs}
}

func report(b *testing.B, events, bytes int, since usage) {
	now := used()
	n := float64(events)
	sec := b.Elapsed().Seconds()
	b.ReportMetric(n/sec, "events/s")
	b.ReportMetric(sec*1e9/n, "ns/event")
	if bytes > 0 {
		b.ReportMetric(float64(bytes)/n, "B/event")
	}
	b.ReportMetric(float64(now.allocs-since.allocs)/n, "allocs/event")
	b.ReportMetric(0, "ns/op")
	if now.cpu > 0 {
		b.ReportMetric(float64(now.cpu-since.cpu)/n, "cpu-ns/event")
	}
}

func benchEncode(b *testing.B, kind event.Kind) {
	in := steady(kind, 16)
	w := NewBuilder(Options{})
	var dst []byte
	for _, x := range in {
		w.Add(x)
		dst = w.Seal(dst[:0])
	}
	b.ReportAllocs()
	events, bytes, i := 0, 0, 0
	since := used()
	for b.Loop() {
		w.Add(in[i%len(in)])
		events += w.Events()
		dst = w.Seal(dst[:0])
		bytes += len(dst)
		i++
	}
	report(b, events, bytes, since)
}

func benchDecode(b *testing.B, kind event.Kind) {
	w, r := NewBuilder(Options{}), NewDecoder()
	var blocks [][]byte
	var dst []byte
	var err error
	for _, x := range steady(kind, 16) {
		w.Add(x)
		blocks = append(blocks, w.Seal(nil))
		if dst, err = r.Decode(dst[:0], blocks[len(blocks)-1]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	bytes, i := 0, 0
	since := used()
	for b.Loop() {
		src := blocks[i%len(blocks)]
		if dst, err = r.Decode(dst[:0], src); err != nil {
			b.Fatal(err)
		}
		bytes += len(src)
		i++
	}
	report(b, i*benchEvents, bytes, since)
}

func BenchmarkEncodeSegments(b *testing.B) { benchEncode(b, event.KindSegment) }
func BenchmarkEncodeSamples(b *testing.B)  { benchEncode(b, event.KindSample) }
func BenchmarkDecodeSegments(b *testing.B) { benchDecode(b, event.KindSegment) }
func BenchmarkDecodeSamples(b *testing.B)  { benchDecode(b, event.KindSample) }

// BenchmarkDirectory reads directories; an event is a record of the blocks that they are of.
func BenchmarkDirectory(b *testing.B) {
	w, r := NewBuilder(Options{}), NewDecoder()
	var blocks [][]byte
	for _, x := range steady(event.KindSegment, 16) {
		w.Add(x)
		blocks = append(blocks, w.Seal(nil))
	}
	var dst []Entry
	var err error
	b.ReportAllocs()
	i, entries := 0, 0
	since := used()
	for b.Loop() {
		if dst, err = r.Directory(dst[:0], blocks[i%len(blocks)]); err != nil {
			b.Fatal(err)
		}
		entries += len(dst)
		i++
	}
	info, err := ReadInfo(blocks[0])
	if err != nil {
		b.Fatal(err)
	}
	report(b, i*benchEvents, i*info.Head, since)
	b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkMayHold asks blocks for a connection; an event is a record of the blocks.
func BenchmarkMayHold(b *testing.B) {
	w := NewBuilder(Options{})
	var blocks [][]byte
	for _, x := range steady(event.KindSegment, 16) {
		w.Add(x)
		blocks = append(blocks, w.Seal(nil))
	}
	who := Tuple{netip.MustParseAddrPort("192.0.2.1:99"), netip.MustParseAddrPort("192.0.2.2:100")}
	b.ReportAllocs()
	i := 0
	since := used()
	for b.Loop() {
		if _, err := MayHold(blocks[i%len(blocks)], who); err != nil {
			b.Fatal(err)
		}
		i++
	}
	report(b, i*benchEvents, 0, since)
	b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(i), "ns/block")
}

// pcap returns the packets as a pcap file of nanoseconds, cut to 96 bytes.
func pcap(in []byte) []byte {
	out := make([]byte, 24)
	for h := range event.All(in) {
		if h.Kind == event.KindSegment {
			out = appendPacket(out, h.Segment())
		}
	}
	return out
}

func zstd3(p []byte) int {
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(3)), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return len(zw.EncodeAll(p, nil))
}
