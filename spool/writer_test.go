// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestConfigFaults(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	tests := map[string]struct {
		set  func(*Config)
		want []string
	}{
		"segment too small": {func(c *Config) { c.SegmentBytes = 1 }, []string{"spool.segment_bytes: 1 is outside"}},
		"segment too large": {func(c *Config) { c.SegmentBytes = 2 << 30; c.MaxBytes = 0 }, []string{"spool.segment_bytes: 2147483648 is outside"}},
		"segment age":       {func(c *Config) { c.SegmentAge = 0 }, []string{"spool.segment_age: 0s is below"}},
		"limit":             {func(c *Config) { c.MaxBytes = 100 << 20 }, []string{"spool.max_bytes: 104857600 is below the minimum 537919488"}},
		"age":               {func(c *Config) { c.MaxAge = time.Second }, []string{"spool.max_age: 1s is below"}},
		"sync":              {func(c *Config) { c.Sync = "often" }, []string{`spool.sync: "often" is none of block, interval, off`}},
		"interval":          {func(c *Config) { c.SyncInterval = 0 }, []string{"spool.sync_interval: 0s is below"}},
		"full":              {func(c *Config) { c.OnFull = "" }, []string{`spool.on_full: "" is none of`}},
		"free":              {func(c *Config) { c.MinFreeBytes = -1 }, []string{"spool.min_free_bytes: -1 is negative"}},
		"keys":              {func(c *Config) { c.Encryption = Encryption{"a", "b"} }, []string{"spool.encryption: key_file and key_env"}},
		"all at once": {func(c *Config) {
			*c = Config{Encryption: Encryption{"a", "b"}, MaxBytes: 1, MaxAge: 1, MinFreeBytes: -1}
		},
			[]string{"spool.segment_bytes", "spool.segment_age", "spool.max_bytes", "spool.max_age", "spool.sync", "spool.on_full", "spool.min_free_bytes", "spool.encryption"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := DefaultConfig()
			tt.set(&c)
			before := c
			err := c.Validate()
			require.Empty(t, cmp.Diff(before, c))
			require.Error(t, err)
			lines := strings.Split(err.Error(), "\n")
			require.Len(t, lines, len(tt.want))
			for i, w := range tt.want {
				require.True(t, strings.HasPrefix(lines[i], w), lines[i])
			}
		})
	}
	_, err := Create(t.Context(), DefaultConfig(), Meta{}, nil)
	require.ErrorContains(t, err, "spool.dir")
}

func TestKeys(t *testing.T) {
	raw := []byte("0123456789abcdef0123456789ABCXYZ")
	tests := map[string]struct {
		text string
		want []byte
	}{
		"raw":            {string(raw), raw},
		"raw, a newline": {string(raw) + "\n", raw},
		"hexadecimal":    {"30313233343536373839616263646566\n", raw[:16]},
		"base64":         {"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlBQkNYWVo=\n", raw},
		"short":          {"secret\n", nil},
		"empty":          {"", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key")
			require.NoError(t, os.WriteFile(file, []byte(tt.text), 0o600))
			t.Setenv("TEST_SPOOL_KEY", tt.text)
			for _, e := range []Encryption{{KeyFile: file}, {KeyEnv: "TEST_SPOOL_KEY"}} {
				key, err := e.Key()
				if tt.want == nil {
					require.ErrorIs(t, err, ErrKey)
					require.NotEmpty(t, hintOf(err))
					if strings.TrimSpace(tt.text) != "" {
						require.NotContains(t, err.Error(), strings.TrimSpace(tt.text), "the key is not told")
					}
					continue
				}
				require.NoError(t, err)
				require.Equal(t, tt.want, key)
			}
		})
	}
	_, err := Encryption{KeyEnv: "TEST_SPOOL_NO_SUCH"}.Key()
	require.ErrorIs(t, err, ErrKey)
	_, err = Encryption{KeyFile: "/no/such/file"}.Key()
	require.ErrorIs(t, err, ErrKey)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestEncryption(t *testing.T) {
	t.Setenv("TEST_SPOOL_KEY", strings.Repeat("k", 32))
	t.Setenv("TEST_SPOOL_OTHER", strings.Repeat("x", 32))
	cfg := testConfig(t.TempDir())
	cfg.Encryption.KeyEnv = "TEST_SPOOL_KEY"
	secret := bytes.Repeat([]byte("secret words "), 100)
	w, err := Create(t.Context(), cfg, Meta{Host: "secret-host"}, nil)
	require.NoError(t, err)
	_, err = w.Append(secret)
	require.NoError(t, err)
	_, err = w.Append([]byte("secret words")) // short: in the write-ahead log
	require.NoError(t, err)
	require.NoError(t, w.Rotate(t.Context()))
	_, err = w.Append(secret)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	require.NoError(t, filepath.WalkDir(cfg.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		require.NotContains(t, string(b), "secret", path)
		return err
	}))

	// Recovery takes the key as well.
	require.NoError(t, os.Remove(filepath.Join(segmentDir(cfg.Dir, 1), sidecarName)))
	r, err := Open(t.Context(), cfg.Dir, ReadOptions{Encryption: cfg.Encryption})
	require.NoError(t, err)
	for _, want := range [][]byte{secret, []byte("secret words"), secret} {
		_, b, err := r.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, b)
	}
	require.Equal(t, "secret-host", r.Segments()[0].Meta.Host)
	require.NoError(t, r.Close())

	for name, e := range map[string]Encryption{"no key": {}, "another key": {KeyEnv: "TEST_SPOOL_OTHER"}} {
		t.Run(name, func(t *testing.T) {
			r, err := Open(t.Context(), cfg.Dir, ReadOptions{Encryption: e})
			require.NoError(t, err)
			require.Len(t, r.Segments(), 2) // what is not secret can be told
			_, _, err = r.Next(t.Context())
			require.ErrorIs(t, err, ErrKey)
			require.NotEmpty(t, hintOf(err))
		})
	}
	t.Run("key for a spool without", func(t *testing.T) {
		cfg := testConfig(t.TempDir())
		threeSegments(t, cfg)
		r, err := Open(t.Context(), cfg.Dir, ReadOptions{Encryption: Encryption{KeyEnv: "TEST_SPOOL_KEY"}})
		require.NoError(t, err)
		got, damage := drain(t, r)
		require.Empty(t, damage)
		require.Equal(t, ids(1, 30), got)
	})
}

func TestCursors(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	r := open(t, cfg.Dir)
	id, err := r.LoadCursor("otlp")
	require.NoError(t, err)
	require.Zero(t, id, "never saved")
	require.NoError(t, r.SaveCursor("otlp", 12))
	require.NoError(t, r.SaveCursor("otlp", 17))
	require.NoError(t, SaveCursor(cfg.Dir, "file.a-b_c", 3))
	id, err = LoadCursor(cfg.Dir, "otlp")
	require.NoError(t, err)
	require.Equal(t, ID(17), id)
	require.NoError(t, r.Seek(id+1))
	got, _ := drain(t, r)
	require.Equal(t, ids(18, 30), got)

	cs, err := Cursors(cfg.Dir)
	require.NoError(t, err)
	require.Len(t, cs, 2)
	require.Equal(t, "file.a-b_c", cs[0].Name)
	require.Equal(t, ID(17), cs[1].ID)
	require.WithinDuration(t, time.Now(), cs[1].Saved, time.Minute)

	for _, name := range []string{"", ".hidden", "a/b", "..", strings.Repeat("x", 65), "ä"} {
		require.Error(t, SaveCursor(cfg.Dir, name, 1), name)
	}
	require.NoError(t, os.WriteFile(filepath.Join(cfg.Dir, cursorsName, "otlp.json"), []byte("{"), 0o600))
	_, err = LoadCursor(cfg.Dir, "otlp")
	require.Error(t, err)
	require.NotEmpty(t, hintOf(err))
}

func TestSegmentsEndAtTheirAge(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentAge = minSegmentAge
	w := create(t, cfg)
	fill(t, w, 1, 100)
	require.Eventually(t, func() bool { return w.Stats().Rotations > 0 }, patience, 20*time.Millisecond)
	require.NoError(t, w.Rotate(t.Context())) // waits until it is closed
	r, err := Open(t.Context(), cfg.Dir, ReadOptions{NoRotate: true})
	require.NoError(t, err)
	got, _ := drain(t, r)
	require.Equal(t, ids(1, 1), got)
}

func TestRetentionByAge(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	// An empty segment, as a recorder that never appended leaves, is no obstacle.
	empty := SegmentInfo{Version: Version, Number: 1, State: StateClosed, First: 1, Closed: time.Now().Add(-3 * time.Hour), Dir: segmentDir(cfg.Dir, 1)}
	for n := uint64(3); n > 0; n-- {
		require.NoError(t, os.Rename(segmentDir(cfg.Dir, n), segmentDir(cfg.Dir, n+1)))
		si, err := readSidecar(segmentDir(cfg.Dir, n+1))
		require.NoError(t, err)
		si.Number++
		require.NoError(t, writeSidecar(si, false))
	}
	require.NoError(t, os.Mkdir(empty.Dir, 0o750))
	require.NoError(t, writeSidecar(empty, false))
	si, err := readSidecar(segmentDir(cfg.Dir, 2))
	require.NoError(t, err)
	si.LastAt = si.LastAt.Add(-2 * time.Hour)
	require.NoError(t, writeSidecar(si, false))
	cfg.MaxAge = time.Hour
	w := create(t, cfg)
	require.Eventually(t, func() bool { return w.Stats().Dropped.Segments == 1 }, patience, 20*time.Millisecond)
	require.Equal(t, ID(11), w.Stats().First)
	got, damage := drain(t, open(t, cfg.Dir))
	require.Empty(t, damage)
	require.Equal(t, ids(11, 30), got)
}

func TestSyncModes(t *testing.T) {
	tests := map[string]struct {
		mode SyncMode
		want func(syncs, intervals uint64) bool
	}{
		"block":    {SyncBlock, func(n, _ uint64) bool { return n == 20 }},
		"interval": {SyncInterval, func(n, intervals uint64) bool { return n >= 1 && n <= intervals+1 }},
		"off":      {SyncOff, func(n, _ uint64) bool { return n == 0 }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t.TempDir())
			cfg.Sync, cfg.SyncInterval = tt.mode, 50*time.Millisecond
			start := time.Now()
			w := create(t, cfg)
			fill(t, w, 20, 10_000)
			require.Eventually(t, func() bool {
				syncs := w.Stats().Syncs
				return tt.want(syncs, uint64(time.Since(start)/cfg.SyncInterval))
			}, patience, 10*time.Millisecond)
			// An idle spool is left alone.
			n := w.Stats().Syncs
			time.Sleep(120 * time.Millisecond)
			require.LessOrEqual(t, w.Stats().Syncs, n+1)
			require.NoError(t, w.Sync())
		})
	}
}

// TestReservationCoversWrites compares the bounds of what Badger writes with what it has written: never may it write
// where no space was set aside.
func TestReservationCoversWrites(t *testing.T) {
	tests := map[string]struct {
		size, blocks int
		key          string
	}{
		"one byte":           {1, 9000, ""},
		"largest inline":     {inlineBytes - 1, 6000, ""},
		"smallest not":       {inlineBytes, 9000, ""},
		"a page":             {4096, 3000, ""},
		"128 KiB":            {128 << 10, 200, ""},
		"128 KiB, encrypted": {128 << 10, 200, strings.Repeat("k", 16)},
		"MaxBlock":           {MaxBlock, 2, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t.TempDir())
			cfg.SegmentBytes = 256 << 20
			cfg.Sync = SyncOff
			if tt.key != "" {
				t.Setenv("TEST_SPOOL_KEY", tt.key)
				cfg.Encryption.KeyEnv = "TEST_SPOOL_KEY"
			}
			w := create(t, cfg)
			if testing.Short() || raced {
				tt.blocks = min(tt.blocks, max(2, tt.blocks/10))
			}
			b := bytes.Repeat([]byte{0xff}, tt.size)
			var s *segment
			for range tt.blocks {
				_, err := w.Append(b)
				require.NoError(t, err)
				s = w.cur
				require.LessOrEqual(t, s.vlogEnd, s.vlogRes)
				require.LessOrEqual(t, s.walEnd, s.walRes)
			}
			require.Zero(t, w.Stats().Rotations)
			vlogUsed, _, err := dataEnd(s.vlog)
			require.NoError(t, err)
			wal, err := scanWAL(s.wal.Name())
			require.NoError(t, err)
			require.Len(t, wal.ends, tt.blocks+1)
			require.LessOrEqual(t, vlogUsed, s.vlogEnd)
			require.LessOrEqual(t, wal.end()+22, s.walEnd, "with the zeros behind it")
			require.Less(t, s.walEnd, int64(memTableBytes), "the memtable is full: Badger would begin another file")
			entries, err := filepath.Glob(filepath.Join(s.info.Dir, "*.mem"))
			require.NoError(t, err)
			require.Len(t, entries, 1)
			entries, err = filepath.Glob(filepath.Join(s.info.Dir, "*.vlog"))
			require.NoError(t, err)
			require.Len(t, entries, 1)
		})
	}
}

// TestCloseWritesNoTable would notice that a later Badger keeps its memtable elsewhere.
func TestCloseWritesNoTable(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	var names []string
	entries, err := os.ReadDir(segmentDir(cfg.Dir, 1))
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{vlogName, walName, "KEYREGISTRY", "MANIFEST", sidecarName}, names)
	s, err := scanWAL(filepath.Join(segmentDir(cfg.Dir, 1), walName))
	require.NoError(t, err)
	require.Equal(t, s.size, s.end())
	require.Len(t, s.ends, 11)
}

// TestLongPath is about the socket, whose path may have 107 bytes only.
func TestLongPath(t *testing.T) {
	cfg := testConfig(filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "spool"))
	w := create(t, cfg)
	fill(t, w, 3, 100)
	r := open(t, cfg.Dir)
	got, _ := drain(t, r)
	require.Equal(t, ids(1, 3), got)
	require.Empty(t, r.Notices())
	require.NoError(t, w.Close())
	_, err := os.Stat(filepath.Join(cfg.Dir, socketName))
	require.ErrorIs(t, err, fs.ErrNotExist, "the socket is removed")
}

// TestReadersAreServedOncePerSecond keeps many readers from cutting the spool into tiny segments.
func TestReadersAreServedOncePerSecond(t *testing.T) {
	cfg := testConfig(t.TempDir())
	w := create(t, cfg)
	start := time.Now()
	for range 20 {
		fill(t, w, 1, 100)
		_ = open(t, cfg.Dir)
	}
	require.LessOrEqual(t, w.Stats().Rotations, 1+uint64(time.Since(start)/rotateInterval))
	if time.Since(start) < rotateInterval {
		require.Equal(t, uint64(1), w.Stats().Rotations)
	}
}
