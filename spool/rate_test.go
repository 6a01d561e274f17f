// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rateResult is what a recorder at full rate tells of itself.
type rateResult struct {
	Blocks    int64         // appended
	Bytes     int64         // of the blocks
	Elapsed   time.Duration // of all Appends
	Written   int64         // to the device, by /proc/self/io
	RSSAnon   int64         // the most, in bytes
	Device    int64         // the most that du told of the directory
	Told      int64         // the most that Stats told of the same
	Slowest   time.Duration // Append
	P999      time.Duration // of Append
	Stats     Stats
	RatesMBps []float64 // of each twentieth of the run
}

// rateChild appends args[1] bytes in blocks of 128 KiB at full rate and prints a rateResult.
func rateChild(args []string) {
	cfg := childConfig(args[0])
	total, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		panic(err)
	}
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
	}
	debug.SetGCPercent(100)
	w, err := Create(context.Background(), cfg, Meta{}, nil)
	fail(err)
	var res rateResult
	before := counter("/proc/self/io", "write_bytes")
	var stop atomic.Bool
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for !stop.Load() {
			res.RSSAnon = max(res.RSSAnon, counter("/proc/self/status", "RssAnon")<<10)
			res.Device = max(res.Device, deviceUse(cfg.Dir))
			res.Told = max(res.Told, w.Stats().DeviceBytes)
			time.Sleep(5 * time.Millisecond)
		}
	}()
	block := make([]byte, 128<<10)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	n := total / int64(len(block))
	lat := make([]time.Duration, 0, n)
	start, part := time.Now(), time.Now()
	for i := range n {
		t := time.Now()
		_, err := w.Append(block)
		fail(err)
		lat = append(lat, time.Since(t))
		if n >= 20 && (i+1)%(n/20) == 0 {
			res.RatesMBps = append(res.RatesMBps, float64(n/20*int64(len(block)))/time.Since(part).Seconds()/1e6)
			part = time.Now()
		}
	}
	res.Elapsed = time.Since(start)
	stop.Store(true)
	<-watched
	fail(w.Close())
	res.Stats = w.Stats()
	res.Written = counter("/proc/self/io", "write_bytes") - before
	slices.Sort(lat)
	res.Blocks, res.Bytes = n, n*int64(len(block))
	res.Slowest, res.P999 = lat[len(lat)-1], lat[len(lat)*999/1000]
	fail(json.NewEncoder(os.Stdout).Encode(res))
}

// deviceUse is diskUse that counts no file twice, though it may be moved meanwhile.
func deviceUse(dir string) (sum int64) {
	seen := make(map[string]bool) // segment/file
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		fi, err := e.Info()
		key := filepath.Join(filepath.Base(filepath.Dir(path)), e.Name())
		if err == nil && !seen[key] {
			seen[key] = true
			sum += deviceBytes(fi)
		}
		return nil
	})
	return sum
}

// counter reads a number from a file of lines "name: number"; 0 if there is none.
func counter(path, name string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			if f := strings.Fields(v); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// TestRetentionAtFullRate records much more than the limit: the directory must keep to it, the device must not be written much more
// often than once, and the memory must stay small. SPOOL_RATE_BYTES makes it longer.
func TestRetentionAtFullRate(t *testing.T) {
	if counter("/proc/self/status", "RssAnon") == 0 {
		t.Skip("no /proc/self/status")
	}
	total, long := int64(192<<20), os.Getenv("SPOOL_RATE_BYTES")
	if raced {
		total = 80 << 20
	}
	if long != "" {
		var err error
		total, err = strconv.ParseInt(long, 10, 64)
		require.NoError(t, err)
	}
	tests := map[string]func(*Config){
		"small segments": func(c *Config) { c.SegmentBytes, c.MaxBytes = 8<<20, 64<<20 },
		"tight limit":    func(c *Config) { c.SegmentBytes = 32 << 20; c.MaxBytes = segmentsPerLimit*c.SegmentBytes + fixedBytes },
		"usual off":      func(c *Config) { c.SegmentBytes, c.MaxBytes, c.Sync = 128<<20, 1<<30, SyncOff },
		"usual segments": func(c *Config) { c.SegmentBytes, c.MaxBytes = 128<<20, 1<<30 },
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t.TempDir())
			set(&cfg)
			if long == "" && cfg.MaxBytes > total {
				t.Skip("the limit is not reached without SPOOL_RATE_BYTES")
			}
			require.NoError(t, cfg.Validate())
			out, err := child(t, "rate", cfg, strconv.FormatInt(total, 10)).Output()
			require.NoError(t, err)
			var res rateResult
			require.NoError(t, json.Unmarshal(out, &res))
			t.Logf("%d MB in %v: %.0f MB/s, slowest Append %v, p99.9 %v, %d stalls, RssAnon %.1f MiB, device at most %.1f MiB (told: %.1f) of %d, written %.3f of the blocks' bytes, rates %.0f",
				res.Bytes/1e6, res.Elapsed.Round(time.Millisecond), float64(res.Bytes)/res.Elapsed.Seconds()/1e6, res.Slowest, res.P999, res.Stats.Stalls,
				float64(res.RSSAnon)/(1<<20), float64(res.Device)/(1<<20), float64(res.Told)/(1<<20), cfg.MaxBytes>>20, float64(res.Written)/float64(res.Bytes), res.RatesMBps)
			require.LessOrEqual(t, res.Device, cfg.MaxBytes+cfg.MaxBytes/10)
			if !raced {
				require.LessOrEqual(t, res.RSSAnon, int64(64<<20))
			}
			require.LessOrEqual(t, float64(res.Written), 1.3*float64(res.Bytes))

			r := open(t, cfg.Dir)
			var n, last ID
			for {
				id, _, err := r.Next(t.Context())
				if err != nil {
					break
				}
				n, last = n+1, id
			}
			require.Equal(t, ID(res.Blocks), last)
			require.Equal(t, res.Stats.Blocks, uint64(n))
			if res.Bytes > cfg.MaxBytes {
				require.Greater(t, int64(n)*(128<<10), cfg.MaxBytes/3, "retention takes too much")
				require.Positive(t, res.Stats.Dropped.Blocks)
			}
		})
	}
}
