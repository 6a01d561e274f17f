// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// requireBounded asks that f allocates no more than times bytes for each of the n that it reads, and a little. The runtime may count
// what others have allocated before: what f itself allocates, it allocates each time.
func requireBounded(t *testing.T, n, times int, f func()) {
	t.Helper()
	most := uint64(1<<20 + times*n) // with files, errors, and what the runtime counts late
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var got uint64
	for range 3 {
		metrics.Read(s)
		before := s[0].Value.Uint64()
		f()
		metrics.Read(s)
		if got = s[0].Value.Uint64() - before; got <= most {
			return
		}
	}
	require.LessOrEqual(t, got, most, "bytes allocated")
}

// seedFile gives a file of a closed segment with n blocks.
func seedFile(f *testing.F, n int, name string) []byte {
	cfg := testConfig(f.TempDir())
	w := create(f, cfg)
	fill(f, w, n, 100)
	require.NoError(f, w.Close())
	b, err := os.ReadFile(filepath.Join(segmentDir(cfg.Dir, 1), name))
	require.NoError(f, err)
	return b
}

// mendEntries corrects the checksums of all entries of a log whose lengths lead to one another, so that readers look further.
func mendEntries(log []byte) []byte {
	log = slices.Clone(log)
	for off := logHeader; off+2 < len(log); {
		b, n, size := log[off:], 2, uint64(0)
		for i := range 3 {
			v, m := binary.Uvarint(b[n:])
			if m <= 0 || v > uint64(len(b)) {
				return log
			}
			n += m
			if i < 2 { // the third is the expiry
				size += v
			}
		}
		size += uint64(n)
		if size+crc32.Size > uint64(len(b)) {
			return log
		}
		binary.BigEndian.PutUint32(b[size:], crc32.Checksum(b[:size], castagnoli))
		off += int(size) + crc32.Size
	}
	return log
}

// FuzzScanWAL gives damaged write-ahead logs, as they are and with checksums that fit, to recovery.
func FuzzScanWAL(f *testing.F) {
	seed := seedFile(f, 3, walName)
	f.Add(seed)
	f.Add(seed[:len(seed)-1])
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "wal")
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, mendEntries(b)} {
			require.NoError(t, os.WriteFile(path, b, 0o600))
			var s walScan
			var err error
			requireBounded(t, len(b), 16, func() { s, err = scanWAL(path) })
			require.NoError(t, err)
			require.Equal(t, int64(len(b)), s.size)
			require.True(t, slices.IsSorted(s.ends))
			if len(s.ends) > 0 {
				require.LessOrEqual(t, s.end(), s.size)
			}
		}
	})
}

// FuzzBareLog gives damaged value logs to the reader that does without Badger.
func FuzzBareLog(f *testing.F) {
	seed := seedFile(f, 3, vlogName)
	f.Add(seed)
	f.Add(seed[:len(seed)-1])
	f.Add(append(append([]byte(nil), seed[:logHeader+70]...), seed...)) // an entry that is torn, and others behind
	si := SegmentInfo{First: 1, Last: 3, Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b)%2 == 0 {
			b = mendEntries(b)
		}
		require.NoError(t, os.WriteFile(filepath.Join(si.Dir, vlogName), b, 0o600))
		requireBounded(t, len(b), 32, func() {
			l, err := openBareLog(&si, errDamaged)
			if err != nil {
				return
			}
			defer l.close()
			require.NotEmpty(t, l.spans)
			var buf []byte
			for id := si.First; id <= si.Last; id++ {
				if buf, err = l.get(id, buf); err == nil {
					require.NotEmpty(t, buf)
					require.Less(t, len(buf), len(b))
				}
			}
		})
	})
}

// FuzzPlainLog gives damaged pairs of logs, with checksums that fit, to the reader of segments that are not encrypted. The sidecar
// lies about their size.
func FuzzPlainLog(f *testing.F) {
	wal, vlog := seedFile(f, 3, walName), seedFile(f, 3, vlogName)
	f.Add(wal, vlog)
	f.Add(wal[:len(wal)-1], vlog[:len(vlog)/2])
	si := SegmentInfo{First: 1, Last: 3, Blocks: 1 << 40, Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, wal, vlog []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(si.Dir, walName), mendEntries(wal), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(si.Dir, vlogName), mendEntries(vlog), 0o600))
		for _, trust := range []bool{false, true} {
			var l *plainLog
			var err error
			requireBounded(t, len(wal)+len(vlog), 64, func() { l, err = openPlain(&si, nil, trust) })
			if err != nil {
				continue
			}
			for id := si.First; id <= si.Last; id++ {
				b, err := l.get(id, nil)
				if err != nil {
					continue
				}
				require.NotEmpty(t, b)
				require.Less(t, len(b), len(wal)+len(vlog))
				for _, n := range []int{1, 16, len(b), len(b) + 9} {
					head, err := l.head(id, nil, n)
					require.NoError(t, err)
					require.Equal(t, b[:min(n, len(b))], head)
				}
			}
			l.close()
		}
	})
}

// FuzzSidecar gives what a segment says of itself, with a checksum that fits.
func FuzzSidecar(f *testing.F) {
	seed := seedFile(f, 3, sidecarName)
	f.Add(seed[:len(seed)-len(crcLine(nil))-1])
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"version":1,"number":3,"state":"active","first_id":7,"meta":{"config":{"a":[1,2]},"extra":{"k":"v"}},"files":[{},{}]}` + "\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, body []byte) {
		path := filepath.Join(dir, sidecarName)
		require.NoError(t, os.WriteFile(path, body, 0o600))
		_, err := readSidecar(dir)
		require.Error(t, err, "there is no checksum")
		require.NoError(t, os.WriteFile(path, append(append([]byte(nil), body...), crcLine(body)+"\n"...), 0o600))
		var si SegmentInfo
		requireBounded(t, len(body), 256, func() { si, err = readSidecar(dir) })
		if err != nil {
			return
		}
		_ = si.newest()
		if time.Until(si.LastAt).Abs() > 200*365*24*time.Hour {
			return // years that JSON does not take back
		}
		require.NoError(t, writeSidecar(si, false))
		again, err := readSidecar(dir)
		require.NoError(t, err)
		require.Equal(t, si.Files, again.Files)
		require.Equal(t, si.First, again.First)
		require.Equal(t, si.Meta, again.Meta)
	})
}
