// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

//go:embed bundle
var bundle embed.FS

// bundleMax bounds what is unpacked, bytes.
const bundleMax = 64 << 20

func unpackBundle(dir string) error {
	b, err := bundle.ReadFile("bundle/spool.tar.gz")
	if err != nil {
		return fmt.Errorf("this program was built without one: %w", err)
	}
	return unpack(dir, bytes.NewReader(b))
}

// pack writes the regular files below dir as tar and gzip. What it writes depends on names and
// contents only.
func pack(w io.Writer, dir string) error {
	zw, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(zw)
	// WalkDir goes in lexical order.
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		h := tar.Header{Name: filepath.ToSlash(rel), Mode: 0o644, Size: int64(len(b)), Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		_, err = tw.Write(b)
		return err
	})
	return errors.Join(err, tw.Close(), zw.Close())
}

// packFile packs dir into a file that is there whole or not at all, and returns its size.
func packFile(name, dir string) (int64, error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".bundle-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name()) // fails after the rename
	err = pack(f, dir)
	size, seekErr := f.Seek(0, io.SeekEnd)
	if err := errors.Join(err, seekErr, f.Chmod(0o644), f.Close()); err != nil {
		return 0, err
	}
	return size, os.Rename(f.Name(), name)
}

// unpack writes the files of a tar.gz below dir, which it makes.
func unpack(dir string, r io.Reader) error {
	zr, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	tr := tar.NewReader(io.LimitReader(zr, bundleMax))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(filepath.FromSlash(h.Name)) {
			return fmt.Errorf("%q is not a file below the spool", h.Name)
		}
		name := filepath.Join(dir, filepath.FromSlash(path.Clean(h.Name)))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return err
		}
	}
}
