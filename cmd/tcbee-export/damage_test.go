// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// blocksOf finds the blocks in a value log: where each begins.
func blocksOf(t *testing.T, log []byte) (at []int) {
	t.Helper()
	for i := 0; i+16 < len(log); i++ {
		if bytes.HasPrefix(log[i:], []byte("\xf5tcb")) {
			if n, err := block.HeadSize(log[i:]); err == nil && n > 16 {
				at = append(at, i)
			}
		}
	}
	require.Len(t, at, 3)
	return at
}

// inBlock flips a byte of the second block, at the offset that where finds.
func inBlock(where func(b []byte, head int) int) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		edit(t, filepath.Join(dir, "segments/*/000001.vlog"), func(log []byte) []byte {
			at := blocksOf(t, log)[1]
			size := int(binary.LittleEndian.Uint32(log[at+8:]))
			head, err := block.HeadSize(log[at:])
			require.NoError(t, err)
			log[at+where(log[at:at+size], head)] ^= 0x20
			return log
		})
	}
}

func removed(pattern string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, names)
		for _, name := range names {
			require.NoError(t, os.RemoveAll(name))
		}
	}
}

// TestDamagedSpools is what a person sees of each kind of damage: its own message, the exit status that the help promises, and all the rest. verify
// checks everything; replay tells what is wrong with a block; flows needs the heads alone.
func TestDamagedSpools(t *testing.T) {
	sidecar := func(from, to string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "segments/*/segment.json"), func(b []byte) []byte {
				body := b[:bytes.LastIndex(b, []byte("crc32c "))]
				require.Contains(t, string(body), from)
				body = bytes.Replace(body, []byte(from), []byte(to), 1)
				return fmt.Appendf(body, "crc32c %08x\n", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
			})
		}
	}
	tests := map[string]struct {
		do     func(t *testing.T, dir string)
		verify string // in its standard error; empty: it finds nothing wrong
		replay string // the same
		blocks int    // that replay reads of three
		flows  int    // its exit status
	}{
		"block, header":      {inBlock(func([]byte, int) int { return 1 }), "block 2: damaged", "block 2: block is corrupt: header, offset 0: bad magic", 3, codeSpool},
		"block, version":     {inBlock(func([]byte, int) int { return 4 }), "block 2: damaged", "block 2: block is of a newer version: format 33 ", 3, codeSpool},
		"block, counts":      {inBlock(func([]byte, int) int { return 17 }), "block 2: damaged", "block 2: block is corrupt: header and directory, offset 0 to", 3, codeSpool},
		"block, directory":   {inBlock(func(_ []byte, head int) int { return head - 10 }), "block 2: damaged", "block 2: block is corrupt: header and directory", 3, codeSpool},
		"block, head's CRC":  {inBlock(func(_ []byte, head int) int { return head - 1 }), "block 2: damaged", "block 2: block is corrupt: header and directory", 3, codeSpool},
		"block, columns":     {inBlock(func(b []byte, head int) int { return (head + len(b)) / 2 }), "block 2: damaged", "block 2: block is corrupt: columns, offset", 3, codeOK},
		"block, last CRC":    {inBlock(func(b []byte, _ int) int { return len(b) - 1 }), "block 2: damaged", "block 2: block is corrupt: columns, offset", 3, codeOK},
		"value log, missing": {removed("segments/*/000001.vlog"), "blocks 1 to 3: ", "000001.vlog is missing", 0, codeSpool},
		"value log, truncated": {func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "segments/*/000001.vlog"), func(b []byte) []byte { return b[:blocksOf(t, b)[1]+40] })
		}, "blocks 2 to 3: ", "000001.vlog is truncated", 1, codeSpool},
		"write-ahead log, missing":   {removed("segments/*/00001.mem"), "", "", 3, codeOK},
		"write-ahead log, a byte":    {func(t *testing.T, dir string) { edit(t, filepath.Join(dir, "segments/*/00001.mem"), flipped(100)) }, "", "", 3, codeOK},
		"manifest, missing":          {removed("segments/*/MANIFEST"), "", "", 3, codeOK},
		"key registry, missing":      {removed("segments/*/KEYREGISTRY"), "", "", 3, codeOK},
		"sidecar, missing":           {removed("segments/*/segment.json"), "", "", 3, codeOK},
		"sidecar, a byte":            {func(t *testing.T, dir string) { edit(t, filepath.Join(dir, "segments/*/segment.json"), flipped(20)) }, "", "", 3, codeOK},
		"segment of a newer version": {sidecar(`"version": 1`, `"version": 7`), "blocks 1 to 3: spool of a newer version", "has version 7, this program reads up to 1", 0, codeSpool},
		"torn tail": {func(t *testing.T, dir string) {
			removed("segments/*/segment.json")(t, dir)
			edit(t, filepath.Join(dir, "segments/*/000001.vlog"), func(b []byte) []byte {
				clear(b[blocksOf(t, b)[2]+40:])
				return b
			})
		}, "", "", 2, codeOK},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := makeSpool(t)
			tt.do(t, dir)
			look := func(want string, code int, args ...string) string {
				out, errs, got := tcbee(t, args...)
				require.NotContains(t, errs, "goroutine ")
				if want == "" {
					require.Equal(t, codeOK, got, errs)
					require.NotContains(t, errs, "tcbee-export: ")
				} else {
					require.Equal(t, code, got, errs)
					require.Contains(t, errs, want)
				}
				return out
			}
			look(tt.verify, codeSpool, "spool", "verify", dir)
			out := look(tt.replay, codeSpool, "replay", dir, "--json", "--output", "file:"+filepath.Join(t.TempDir(), "out"))
			var result struct{ Blocks int }
			require.NoError(t, json.Unmarshal([]byte(out), &result))
			require.Equal(t, tt.blocks, result.Blocks)
			_, errs, code := tcbee(t, "flows", dir)
			require.Equal(t, tt.flows, code, errs)
			_, errs, code = tcbee(t, "spool", "info", dir)
			require.Contains(t, []int{codeOK, codeSpool}, code, errs)
			_, errs, code = tcbee(t, "flows", "--exact", dir, "--json")
			require.Contains(t, []int{codeOK, codeSpool}, code, errs)
			if name == "torn tail" {
				out, _, _ := tcbee(t, "spool", "info", dir)
				require.Contains(t, out, "1 torn block at its end was taken out")
			}
		})
	}
}

func flipped(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 0x10
		return b
	}
}

// TestWhatIsNoSpoolIsTold is what a person sees who names the wrong place.
func TestWhatIsNoSpoolIsTold(t *testing.T) {
	base := t.TempDir()
	in := func(name string) string {
		dir := filepath.Join(base, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		return dir
	}
	put := func(dir, name, text string) string {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		return dir
	}
	for name, tt := range map[string]struct{ dir, want string }{
		"missing":        {filepath.Join(base, "nowhere"), "no spool at "},
		"empty":          {in("empty"), " is an empty directory"},
		"a file":         {filepath.Join(put(in("with"), "letter", "dear"), "letter"), " is a file, a spool is a directory"},
		"other files":    {put(in("thesis"), "thesis.tex", "x"), " holds other files and no spool.json"},
		"other database": {put(in("badger"), "MANIFEST", "Bdgr"), " is a Badger database of another program"},
		"other text":     {put(in("text"), "spool.json", "{}"), "spool.json does not describe one"},
		"newer":          {put(in("newer"), "spool.json", `{"format":"tcbee-spool","version":2}`), " has version 2, this program reads up to 1"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, args := range [][]string{{"spool", "info"}, {"spool", "verify"}, {"flows"}, {"replay"}, {"spool", "merge", filepath.Join(base, "new")}} {
				out, errs, code := tcbee(t, append(args, tt.dir)...)
				require.Equal(t, codeSpool, code, errs)
				require.Empty(t, out)
				require.Contains(t, errs, tt.want)
				require.Contains(t, errs, "hint: ")
				require.Equal(t, 2, strings.Count(errs, "\n"), errs)
			}
		})
	}
}

// TestNewerBlock reads around a block of a later version.
func TestNewerBlock(t *testing.T) {
	dir := makeSpool(t)
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	r, err := spool.Open(t.Context(), dir, spool.ReadOptions{})
	require.NoError(t, err)
	_, b, err := r.Next(t.Context())
	require.NoError(t, err)
	later := bytes.Clone(b)
	later[4] = 9
	require.NoError(t, r.Close())
	w, err := spool.Create(t.Context(), cfg, spool.Meta{}, nil)
	require.NoError(t, err)
	_, err = w.Append(later)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	for _, args := range [][]string{{"spool", "verify"}, {"flows"}, {"replay"}, {"spool", "info"}} {
		_, errs, code := tcbee(t, append(args, dir)...)
		require.Equal(t, codeSpool, code, errs)
		require.Contains(t, errs, "block 4: block is of a newer version: format 9 of records 1, this program reads up to 1 of 1: use a newer one")
	}
}
