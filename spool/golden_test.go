// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden spool of the present version")

// goldenSizes are the sizes of the blocks of a golden spool; the fourth begins the second segment.
var goldenSizes = []int{16, 63, 64, 1000, 3000, 20}

var goldenMeta = Meta{
	Host: "golden", Kernel: "6.18.0", BootID: "00000000-0000-0000-0000-000000000001", MachineID: "0123456789abcdef0123456789abcdef",
	HZ: 250, Program: "tcbee-export golden", Config: json.RawMessage(`{"capture":{"groups":["packets"]}}`), Extra: map[string]string{"k": "v"},
}

const goldenKey = "000102030405060708090a0b0c0d0e0f"

// TestGoldenSpools reads the spools of all versions. One that was written once is never changed: -update makes only missing ones.
func TestGoldenSpools(t *testing.T) {
	t.Setenv("TEST_SPOOL_KEY", goldenKey)
	for name, enc := range map[string]Encryption{"v1": {}, "v1-encrypted": {KeyEnv: "TEST_SPOOL_KEY"}} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".tar.gz")
			if _, err := os.Stat(file); *update && err != nil {
				writeGolden(t, file, enc)
			}
			dir := t.TempDir()
			untar(t, file, dir)
			r, err := Open(t.Context(), dir, ReadOptions{Encryption: enc, Log: testLog(t)})
			require.NoError(t, err)
			defer func() { require.NoError(t, r.Close()) }()
			require.Empty(t, r.Notices())
			segs := r.Segments()
			require.Len(t, segs, 2)
			require.Empty(t, cmp.Diff(&goldenMeta, segs[1].Meta))
			require.Equal(t, []ID{1, 3, 4, 6}, []ID{segs[0].First, segs[0].Last, segs[1].First, segs[1].Last})
			for i, size := range goldenSizes {
				id, b, err := r.Next(t.Context())
				require.NoError(t, err)
				require.Equal(t, ID(i+1), id)
				require.Equal(t, testBlock(uint64(id), size), b)
			}
			_, _, err = r.Next(t.Context())
			require.ErrorIs(t, err, io.EOF)
			id, err := r.LoadCursor("golden")
			require.NoError(t, err)
			require.Equal(t, ID(2), id)

			// Recording goes on in it.
			cfg := testConfig(dir)
			cfg.Encryption = enc
			w, err := Create(t.Context(), cfg, Meta{}, nil)
			require.NoError(t, err)
			fill(t, w, 1, 100)
			require.Equal(t, ID(7), w.Stats().Last)
			require.NoError(t, w.Close())
		})
	}
}

func writeGolden(t *testing.T, file string, enc Encryption) {
	cfg := testConfig(t.TempDir())
	cfg.Encryption = enc
	w, err := Create(t.Context(), cfg, goldenMeta, nil)
	require.NoError(t, err)
	for i, size := range goldenSizes {
		_, err := w.Append(testBlock(uint64(i+1), size))
		require.NoError(t, err)
		if i == 2 {
			require.NoError(t, w.Rotate(t.Context()))
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, SaveCursor(cfg.Dir, "golden", 2))

	require.NoError(t, os.MkdirAll("testdata", 0o755))
	f, err := os.Create(file)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	tw := tar.NewWriter(z)
	require.NoError(t, tw.AddFS(os.DirFS(cfg.Dir)))
	require.NoError(t, errors.Join(tw.Close(), z.Close(), f.Close()))
}

func untar(t *testing.T, file, dir string) {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if strings.HasSuffix(h.Name, "/") {
			require.NoError(t, os.MkdirAll(path, 0o750))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		b, err := io.ReadAll(tr)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, b, 0o640))
	}
}
