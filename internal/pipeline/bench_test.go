// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
)

// nothing is a Sink that takes all and keeps none.
type nothing struct{}

func (nothing) ConsumeMetrics(context.Context, pmetric.Metrics) error { return nil }

// recorded makes blocks of a session of traffic.
func recorded(b *testing.B, seconds int) (blocks [][]byte, events int) {
	b.Helper()
	src := traffic(1, 5*ms, seconds, true)
	for _, batch := range src.batches {
		for range event.All(batch) {
			events++
		}
	}
	require.NoError(b, Encode(context.Background(), src, func(sealed []byte) error {
		blocks = append(blocks, append([]byte(nil), sealed...))
		return nil
	}))
	return blocks, events
}

// BenchmarkReplay is the read half without the spool: decode, merge, connection table, all metric
// families, a collection a second.
func BenchmarkReplay(b *testing.B) {
	blocks, events := recorded(b, 60)
	b.ReportAllocs()
	for b.Loop() {
		r, err := newReader(always(spool.Meta{}), options(), nothing{})
		require.NoError(b, err)
		for _, src := range blocks {
			require.NoError(b, r.feed(context.Background(), 1, src))
		}
		require.NoError(b, r.close(context.Background()))
	}
	report(b, events)
}

// BenchmarkReplaySpool is Replay as the command does it, from a spool on disk.
func BenchmarkReplaySpool(b *testing.B) {
	ctx := context.Background()
	blocks, events := recorded(b, 60)
	cfg := spool.DefaultConfig()
	cfg.Dir = b.TempDir()
	w, err := spool.Create(ctx, cfg, spool.Meta{}, nil)
	require.NoError(b, err)
	for _, src := range blocks {
		_, err := w.Append(src)
		require.NoError(b, err)
	}
	require.NoError(b, w.Close())
	b.ReportAllocs()
	for b.Loop() {
		r, err := spool.Open(ctx, cfg.Dir, spool.ReadOptions{})
		require.NoError(b, err)
		_, err = Replay(ctx, r, options(), nothing{}, nil)
		require.NoError(b, err)
		require.NoError(b, r.Close())
	}
	report(b, events)
}

// BenchmarkRecord is the write half without a kernel: columns, compression, durable append.
func BenchmarkRecord(b *testing.B) {
	ctx := context.Background()
	src := traffic(1, 5*ms, 60, true)
	events := 0
	for _, batch := range src.batches {
		for range event.All(batch) {
			events++
		}
	}
	cfg := spool.DefaultConfig()
	cfg.Dir = b.TempDir()
	w, err := spool.Create(ctx, cfg, spool.Meta{}, nil)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		again := *src
		if _, err := Record(ctx, &again, w, discard); err != nil && !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
	report(b, events)
	stats := w.Stats()
	b.ReportMetric(float64(stats.Bytes)/float64(b.N*events), "B/event")
	require.NoError(b, w.Close())
}

func report(b *testing.B, events int) {
	b.Helper()
	n := float64(b.N) * float64(events)
	b.ReportMetric(n/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/event")
}
