// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPackAndUnpackRoundTrip(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new")
	files := map[string]string{"a": "1", "sub/b": "22", "sub/deep/c": ""}
	for name, content := range files {
		p := filepath.Join(src, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(content), 0o600))
	}
	var one, two bytes.Buffer
	require.NoError(t, pack(&one, src))
	require.NoError(t, pack(&two, src))
	require.Equal(t, one.Bytes(), two.Bytes(), "depends on nothing but the files")
	require.NoError(t, unpack(dst, &one))
	for name, content := range files {
		got, err := os.ReadFile(filepath.Join(dst, name))
		require.NoError(t, err)
		require.Equal(t, content, string(got))
	}
}

func TestUnpackRefusesWhatLeavesTheDirectory(t *testing.T) {
	tests := map[string]tar.Header{
		"parent":   {Name: "../evil", Typeflag: tar.TypeReg},
		"absolute": {Name: "/evil", Typeflag: tar.TypeReg},
		"link":     {Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
	}
	for name, h := range tests {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			zw := gzip.NewWriter(&b)
			tw := tar.NewWriter(zw)
			require.NoError(t, tw.WriteHeader(&h))
			require.NoError(t, tw.Close())
			require.NoError(t, zw.Close())
			dir := t.TempDir()
			require.ErrorContains(t, unpack(filepath.Join(dir, "in"), &b), "not a file below the spool")
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestPackFileLeavesNothingHalfDone(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "x.tar.gz")
	_, err := packFile(name, filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
