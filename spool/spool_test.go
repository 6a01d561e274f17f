// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// children are what the test binary does when a test starts it again as another process.
var children = map[string]func(args []string){
	"record": recordChild,
	"hold":   holdChild,
	"rate":   rateChild,
}

const childVar = "SPOOL_TEST_CHILD"

func TestMain(m *testing.M) {
	if run := children[os.Getenv(childVar)]; run != nil {
		run(os.Args[1:])
		return
	}
	os.Exit(m.Run())
}

// patience bounds what must end; it asserts nothing about speed.
const patience = 2 * time.Minute

// testConfig is that of a small spool that leaves nothing to others.
func testConfig(dir string) Config {
	c := DefaultConfig()
	c.Dir = dir
	c.SegmentBytes = minSegmentBytes
	c.MaxBytes = 0
	c.MinFreeBytes = 0
	return c
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// testBlock makes a block of n bytes (at least 16) that tells whether it is whole and which it is.
func testBlock(seq uint64, n int) []byte {
	b := make([]byte, n)
	binary.LittleEndian.PutUint64(b, seq)
	r := rand.New(rand.NewPCG(seq, 7))
	i := 12
	for ; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:], castagnoli))
	return b
}

func checkBlock(b []byte) (seq uint64, err error) {
	if len(b) < 16 || crc32.Checksum(b[12:], castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return 0, fmt.Errorf("block of %d bytes is not what was appended", len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

func create(t testing.TB, cfg Config) *Writer {
	w, err := Create(t.Context(), cfg, Meta{Host: "test", HZ: 1000}, testLog(t))
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func open(t testing.TB, dir string) *Reader {
	r, err := Open(t.Context(), dir, ReadOptions{Log: testLog(t)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// fill appends n blocks of the size; a block's sequence number is its ID.
func fill(t testing.TB, w *Writer, n, size int) {
	first := uint64(w.Stats().Last) + 1
	for i := range uint64(n) {
		id, err := w.Append(testBlock(first+i, size))
		require.NoError(t, err)
		require.Equal(t, ID(first+i), id)
	}
}

// drain reads to the end: the IDs of the good blocks, and the damage.
func drain(t testing.TB, r *Reader) (ids []ID, damage []*DamageError) {
	for {
		id, b, err := r.Next(t.Context())
		var d *DamageError
		switch {
		case err == nil:
			seq, err := checkBlock(b)
			require.NoError(t, err, "block %d", id)
			require.Equal(t, uint64(id), seq)
			ids = append(ids, id)
		case errors.As(err, &d):
			damage = append(damage, d)
		case errors.Is(err, io.EOF):
			return ids, damage
		default:
			require.NoError(t, err)
		}
	}
}

func ids(first, last ID) (s []ID) {
	for id := first; id <= last; id++ {
		s = append(s, id)
	}
	return s
}

func TestBlocksComeBackInOrder(t *testing.T) {
	tests := map[string]struct {
		blocks, size int
		segments     int
	}{
		"one":                  {1, 100, 1},
		"tiny, in the tables":  {500, 16, 1},
		"small, across blocks": {1000, 300, 1},
		"many segments":        {40, 128 << 10, 6},
		"larger than segments": {3, 3 << 20, 3},
		"just a segment":       {2, minSegmentBytes, 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(filepath.Join(t.TempDir(), "a", "spool"))
			w := create(t, cfg)
			fill(t, w, tt.blocks, tt.size)
			st := w.Stats()
			require.Equal(t, uint64(tt.blocks), st.Blocks)
			require.Equal(t, int64(tt.blocks*tt.size), st.Bytes)
			require.Equal(t, tt.segments, st.Segments)
			require.NoError(t, w.Close())

			r := open(t, cfg.Dir)
			got, damage := drain(t, r)
			require.Empty(t, damage)
			require.Equal(t, ids(1, ID(tt.blocks)), got)
			blocks, size := r.Size()
			require.Equal(t, st.Blocks, blocks)
			require.Equal(t, st.Bytes, size)
			require.Len(t, r.Segments(), tt.segments)
			require.Equal(t, "test", r.Segments()[0].Meta.Host)
		})
	}
}

func TestRecordingGoesOnWhereItEnded(t *testing.T) {
	cfg := testConfig(t.TempDir())
	for round := range 4 {
		w := create(t, cfg)
		fill(t, w, round, 5000) // the first one ends without a block
		require.NoError(t, w.Close())
	}
	got, damage := drain(t, open(t, cfg.Dir))
	require.Empty(t, damage)
	require.Equal(t, ids(1, 6), got)
}

func TestSeek(t *testing.T) {
	cfg := testConfig(t.TempDir())
	w := create(t, cfg)
	fill(t, w, 40, 128<<10)
	require.NoError(t, w.Close())
	r := open(t, cfg.Dir)
	tests := map[string]struct {
		to   ID
		want []ID
	}{
		"start":      {0, ids(1, 40)},
		"first":      {1, ids(1, 40)},
		"middle":     {17, ids(17, 40)},
		"last":       {40, ids(40, 40)},
		"end":        {41, nil},
		"behind":     {1000, nil},
		"back again": {3, ids(3, 40)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, r.Seek(tt.to))
			got, damage := drain(t, r)
			require.Empty(t, damage)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestReadersSeeWhatIsBeingRecorded(t *testing.T) {
	cfg := testConfig(t.TempDir())
	w := create(t, cfg)
	fill(t, w, 3, 1000)
	r := open(t, cfg.Dir)
	got, damage := drain(t, r)
	require.Empty(t, damage)
	require.Equal(t, ids(1, 3), got)
	require.Empty(t, r.Notices())

	fill(t, w, 2, 1000)
	require.NoError(t, w.Rotate(t.Context()))
	require.NoError(t, r.Refresh(t.Context()))
	got, _ = drain(t, r)
	require.Equal(t, ids(4, 5), got)

	st, err := LiveStats(t.Context(), cfg.Dir)
	require.NoError(t, err)
	require.Equal(t, ID(5), st.Last)
}

func TestRotateWithoutBlocksMakesNoSegment(t *testing.T) {
	cfg := testConfig(t.TempDir())
	w := create(t, cfg)
	for range 5 {
		require.NoError(t, w.Rotate(t.Context()))
	}
	fill(t, w, 1, 100)
	for range 5 {
		require.NoError(t, w.Rotate(t.Context()))
	}
	require.Equal(t, uint64(1), w.Stats().Rotations)
}

func TestAppendRefusesImpossibleBlocks(t *testing.T) {
	w := create(t, testConfig(t.TempDir()))
	for _, b := range [][]byte{nil, {}, make([]byte, MaxBlock+1)} {
		_, err := w.Append(b)
		require.Error(t, err)
	}
	id, err := w.Append(make([]byte, MaxBlock))
	require.NoError(t, err)
	require.Equal(t, ID(1), id)
	require.NoError(t, w.Close())
	_, err = w.Append([]byte{1})
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, w.Close())
	_, b, err := open(t, w.Dir()).Next(context.Background())
	require.NoError(t, err)
	require.True(t, bytes.Equal(make([]byte, MaxBlock), b))
}
