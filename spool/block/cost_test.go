// SPDX-License-Identifier: Apache-2.0

package block

import (
	"flag"
	"os"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// costFile names a file of raw records, for measurements on real traffic.
var costFile = flag.String("records", "", "file of raw records for TestColumnCosts and benchmarks; internal/pipeline makes one of a spool")

// TestColumnCosts tells with -v what each column takes of a record.
func TestColumnCosts(t *testing.T) {
	if !testing.Verbose() {
		t.Skip("prints a table: run with -v")
	}
	for _, kind := range []event.Kind{event.KindSegment, event.KindSample} {
		costs(t, kind.String(), steady(kind, 4))
	}
	if *costFile != "" {
		in, err := os.ReadFile(*costFile)
		require.NoError(t, err)
		require.NoError(t, event.Check(in))
		costs(t, *costFile, batches(in, 32768))
		for _, kind := range []event.Kind{event.KindSegment, event.KindSample} {
			costs(t, *costFile+" "+kind.String(), batches(only(in, kind), 32768))
		}
		size, packets := 0, 0
		b := NewBuilder(Options{})
		for _, x := range batches(only(in, event.KindSegment), 32768) {
			b.Add(x)
			packets += b.Events()
			size += len(b.Seal(nil))
		}
		if packets > 0 {
			file := zstd3(pcap(in))
			t.Logf("%s: %d packets in whole blocks, %.2f bytes each; zstd -3 of their nanosecond pcap with a snaplen of 96 has %.2f: a ratio of %.3f", *costFile, packets,
				float64(size)/float64(packets), float64(file)/float64(packets), float64(size)/float64(file))
		}
	}
}

// only returns the records of one kind.
func only(in []byte, kind event.Kind) []byte {
	var out []byte
	for h := range event.All(in) {
		if h.Kind == kind {
			out = append(out, h.Bytes()...)
		}
	}
	return out
}

func costs(t *testing.T, name string, in [][]byte) {
	b := NewBuilder(Options{})
	cost := map[string]float64{}
	values := map[string]int{}
	events, total, dir := 0, 0, 0
	for _, x := range in {
		b.Add(x)
		events += b.Events()
		b.fillLists()
		for i, v := range b.cols {
			if len(v) == 0 {
				continue
			}
			w := &b.w
			w.head, w.small, w.big, w.bits = w.head[:0], w.small[:0], w.big[:0], w.bits[:0]
			w.column(v, b.hints[i])
			n := len(w.head) + len(w.big) + len(w.bits)
			if len(w.small) > 0 {
				n += min(len(w.small), len(w.zw.EncodeAll(w.small, nil)))
			}
			cost[columnName(i)] += float64(n)
			values[columnName(i)] += len(v)
		}
		for _, id := range []int{colShapeKind, colShapeHook, colShapeDir, colShapeFlags, colShapeMask, colOptLen, colOptByte} {
			b.cols[id] = b.cols[id][:0]
		}
		enc := b.Seal(nil)
		info, err := ReadInfo(enc)
		require.NoError(t, err)
		total += len(enc)
		dir += info.Head
	}
	t.Logf("%s: %d records, %.2f bytes each, of these head %.3f", name, events, float64(total)/float64(events), float64(dir)/float64(events))
	names := make([]string, 0, len(cost))
	for n := range cost {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return cost[names[i]] > cost[names[j]] })
	for _, n := range names[:min(len(names), 28)] {
		t.Logf("  %-24s %7.3f bytes a record, %6.3f values, %5.2f bits each", n, cost[n]/float64(events), float64(values[n])/float64(events), cost[n]*8/float64(values[n]))
	}
}
