// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// eventsPerBlock is what one block of the recorder holds; it turns blocks/s into events/s.
const eventsPerBlock = 16_384

const benchBlock = 128 << 10

// BenchmarkAppend appends blocks as large as the recorder's at full rate, with retention.
func BenchmarkAppend(b *testing.B) {
	tests := map[string]func(*Config){
		"interval":  func(*Config) {},
		"off":       func(c *Config) { c.Sync = SyncOff },
		"block":     func(c *Config) { c.Sync = SyncBlock },
		"encrypted": func(c *Config) { c.Encryption.KeyEnv = "SPOOL_BENCH_KEY" },
	}
	b.Setenv("SPOOL_BENCH_KEY", strings.Repeat("k", 32))
	for name, set := range tests {
		b.Run(name, func(b *testing.B) {
			cfg := DefaultConfig()
			cfg.Dir = b.TempDir()
			cfg.SegmentBytes = 64 << 20
			cfg.MaxBytes = 1 << 30
			set(&cfg)
			w := create(b, cfg)
			block := testBlock(1, benchBlock)
			b.SetBytes(benchBlock)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Append(block); err != nil {
					b.Fatal(err)
				}
			}
			rates(b)
			b.ReportMetric(float64(w.Stats().Stalls), "stalls")
			require.NoError(b, w.Close())
		})
	}
}

// rates reports the rates that a recorder of events sees.
func rates(b *testing.B) {
	blocks := float64(b.N)
	b.ReportMetric(float64(b.Elapsed().Microseconds())/blocks, "µs/block")
	b.ReportMetric(blocks*eventsPerBlock/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/blocks/eventsPerBlock, "ns/event")
}

// BenchmarkAppendLatency appends at the rate of a recorder of 4 million packets a second and tells how long the slowest Appends take: as long
// the capture's ring must last.
func BenchmarkAppendLatency(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Dir = b.TempDir()
	cfg.SegmentBytes = 64 << 20
	cfg.MaxBytes = 1 << 30
	w := create(b, cfg)
	block := testBlock(1, 88<<10)
	const period = 8 * time.Millisecond
	var took []time.Duration
	next := time.Now()
	for b.Loop() {
		time.Sleep(time.Until(next))
		next = next.Add(period)
		start := time.Now()
		if _, err := w.Append(block); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	at := func(permille int) float64 { return float64(took[len(took)*permille/1000].Microseconds()) }
	b.ReportMetric(at(500)*1000, "ns/op") // not the pace of the benchmark
	b.ReportMetric(at(500), "p50-µs")
	b.ReportMetric(at(999), "p99.9-µs")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-µs")
	require.NoError(b, w.Close())
}

// BenchmarkAppendSmall appends the blocks of an idle host.
func BenchmarkAppendSmall(b *testing.B) {
	for _, size := range []int{32, 300, 4096} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			cfg := DefaultConfig()
			cfg.Dir = b.TempDir()
			w := create(b, cfg)
			block := testBlock(1, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Append(block); err != nil {
					b.Fatal(err)
				}
			}
			st := w.Stats()
			require.NoError(b, w.Close())
			use, err := diskUse(cfg.Dir)
			require.NoError(b, err)
			b.ReportMetric(float64(use)/float64(st.Blocks), "device-B/block")
		})
	}
}

// BenchmarkRead reads a spool from its start to its end: each block with its checksum.
func BenchmarkRead(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Dir = b.TempDir()
	cfg.SegmentBytes = 64 << 20
	w := create(b, cfg)
	block := testBlock(1, benchBlock)
	for range 1500 {
		_, err := w.Append(block)
		require.NoError(b, err)
	}
	require.NoError(b, w.Close())
	r := open(b, cfg.Dir)
	b.SetBytes(benchBlock)
	b.ReportAllocs()
	for b.Loop() {
		_, _, err := r.Next(b.Context())
		if errors.Is(err, io.EOF) {
			err = r.Seek(0)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	rates(b)
}

// BenchmarkOpen opens and closes a spool of 16 segments.
func BenchmarkOpen(b *testing.B) {
	cfg := testConfig(b.TempDir())
	w := create(b, cfg)
	for range 16 {
		fill(b, w, 1, 1000)
		require.NoError(b, w.Rotate(b.Context()))
	}
	require.NoError(b, w.Close())
	b.ReportAllocs()
	for b.Loop() {
		r, err := Open(b.Context(), cfg.Dir, ReadOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := r.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}
