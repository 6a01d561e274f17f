// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	badger "github.com/dgraph-io/badger/v4"
	"github.com/stretchr/testify/require"
)

// threeSegments makes a spool of three segments with ten blocks each.
func threeSegments(t *testing.T, cfg Config) {
	w := create(t, cfg)
	for range 3 {
		fill(t, w, 10, 1000)
		require.NoError(t, w.Rotate(t.Context()))
	}
	require.NoError(t, w.Close())
}

// change rewrites a file.
func change(t *testing.T, path string, f func([]byte) []byte) {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, f(b), 0o640))
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 0x10
		return b
	}
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

// TestDamage damages the second of three segments: each kind has its own message, and the rest is read.
func TestDamage(t *testing.T) {
	all, rest := ids(1, 30), append(ids(1, 10), ids(21, 30)...)
	without := func(first, last ID) []ID { return append(ids(1, first-1), ids(last+1, 30)...) }
	tests := map[string]struct {
		do   func(t *testing.T, seg string)
		want []ID
		text string // of the damage, or of the notice if all is read; empty: none is told
		is   error
	}{
		"value log, a block's byte": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, vlogName), flip(5000)) },
			without(15, 15), "block 15: damaged: ", nil,
		},
		"value log, first bytes": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, vlogName), flip(25)) },
			without(11, 11), "block 11: damaged: ", nil,
		},
		"value log, two neighbours": {
			func(t *testing.T, seg string) {
				change(t, filepath.Join(seg, vlogName), flip(5000))
				change(t, filepath.Join(seg, vlogName), flip(6000))
			},
			without(15, 16), "blocks 15 to 16: damaged: ", nil,
		},
		"value log truncated": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, vlogName), cut(4500)) },
			without(15, 20), "blocks 15 to 20: " + "%s/000001.vlog is truncated: 4500 of 10", nil,
		},
		"value log emptied": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, vlogName), cut(0)) },
			rest, "%s/000001.vlog is truncated: 0 of 10", nil,
		},
		"value log missing": {
			func(t *testing.T, seg string) { require.NoError(t, os.Remove(filepath.Join(seg, vlogName))) },
			rest, "%s/000001.vlog is missing", nil,
		},
		"write-ahead log, a byte": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, walName), flip(400)) },
			all, "%s/00001.mem is damaged: CRC-32C", nil,
		},
		"write-ahead log truncated": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, walName), cut(400)) },
			all, "%s/00001.mem is truncated: 400 of", nil,
		},
		"write-ahead log missing": {
			func(t *testing.T, seg string) { require.NoError(t, os.Remove(filepath.Join(seg, walName))) },
			all, "%s/00001.mem is missing", nil,
		},
		"manifest, a byte": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, "MANIFEST"), flip(3)) },
			all, "%s/MANIFEST is damaged: CRC-32C", nil,
		},
		"manifest missing": {
			func(t *testing.T, seg string) { require.NoError(t, os.Remove(filepath.Join(seg, "MANIFEST"))) },
			all, "%s/MANIFEST is missing", nil,
		},
		"key registry, a byte": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, "KEYREGISTRY"), flip(10)) },
			all, "%s/KEYREGISTRY is damaged: CRC-32C", nil,
		},
		"manifest missing and a block's byte": {
			func(t *testing.T, seg string) {
				require.NoError(t, os.Remove(filepath.Join(seg, "MANIFEST")))
				change(t, filepath.Join(seg, vlogName), flip(5000))
			},
			without(15, 15), "block 15: %s/MANIFEST is missing", nil,
		},
		"manifest missing and a block's header": {
			func(t *testing.T, seg string) {
				require.NoError(t, os.Remove(filepath.Join(seg, "MANIFEST")))
				change(t, filepath.Join(seg, vlogName), func(b []byte) []byte { clear(b[4000:5000]); return b })
			},
			without(14, 15), "blocks 14 to 15: %s/MANIFEST is missing", nil,
		},
		"manifest missing and the value log": {
			func(t *testing.T, seg string) {
				require.NoError(t, os.Remove(filepath.Join(seg, "MANIFEST")))
				require.NoError(t, os.Remove(filepath.Join(seg, vlogName)))
			},
			rest, "blocks 11 to 20: %s/MANIFEST is missing", nil,
		},
		"sidecar, a byte: recovered from the database": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, sidecarName), flip(30)) },
			all, "", nil,
		},
		"sidecar missing: recovered from the database": {
			func(t *testing.T, seg string) { require.NoError(t, os.Remove(filepath.Join(seg, sidecarName))) },
			all, "", nil,
		},
		"sidecar emptied: recovered from the database": {
			func(t *testing.T, seg string) { change(t, filepath.Join(seg, sidecarName), cut(0)) },
			all, "", nil,
		},
		"sidecar from before the blocks, after a loss of power": {
			func(t *testing.T, seg string) {
				si, err := readSidecar(seg)
				require.NoError(t, err)
				si = SegmentInfo{Version: Version, Number: si.Number, State: StatePrepared, Dir: seg}
				require.NoError(t, writeSidecar(si, false))
			},
			all, "", nil,
		},
		"sidecar of a newer version": {
			func(t *testing.T, seg string) {
				si, err := readSidecar(seg)
				require.NoError(t, err)
				si.Version = Version + 1
				require.NoError(t, writeSidecar(si, false))
			},
			rest, "blocks 11 to 20: spool of a newer version", ErrVersion,
		},
		"segment missing": {
			func(t *testing.T, seg string) { require.NoError(t, os.RemoveAll(seg)) },
			rest, "blocks 11 to 20: missing between segments 00000001 and 00000003", fs.ErrNotExist,
		},
		"foreign files beside": {
			func(t *testing.T, seg string) {
				require.NoError(t, os.WriteFile(filepath.Join(seg, "notes.txt"), []byte("mine"), 0o600))
				require.NoError(t, os.Mkdir(filepath.Join(seg, "..", "mine"), 0o700))
			},
			all, "", nil,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t.TempDir())
			threeSegments(t, cfg)
			seg := segmentDir(cfg.Dir, 2)
			tt.do(t, seg)
			for range 2 { // the second time as the first
				r := open(t, cfg.Dir)
				got, damage := drain(t, r)
				require.Equal(t, tt.want, got)
				require.NoError(t, r.Close())
				text := strings.ReplaceAll(tt.text, "%s", seg)
				switch {
				case tt.text == "":
					require.Empty(t, damage)
					require.Empty(t, r.Notices())
					continue
				case len(got) == 30:
					require.Empty(t, damage)
					require.Len(t, r.Notices(), 1)
					require.ErrorContains(t, r.Notices()[0], text)
					continue
				}
				require.Len(t, damage, 1)
				require.ErrorContains(t, damage[0], text)
				if tt.is != nil {
					require.ErrorIs(t, damage[0], tt.is)
				}
			}
			if tt.is == nil {
				w := create(t, cfg) // recording goes on
				fill(t, w, 1, 100)
				require.Equal(t, ID(31), w.Stats().Last)
			}
		})
	}
}

// TestBytesAllOverASegment flips bytes all over the files of a small segment, one at a time: what is read is what was appended, what is not read is
// told, and nothing ends the process.
func TestBytesAllOverASegment(t *testing.T) {
	cfg := testConfig(t.TempDir())
	w := create(t, cfg)
	fill(t, w, 3, 80)
	fill(t, w, 2, 20)
	require.NoError(t, w.Close())
	seg := segmentDir(cfg.Dir, 1)
	entries, err := os.ReadDir(seg)
	require.NoError(t, err)
	for _, e := range entries {
		path := filepath.Join(seg, e.Name())
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		step := 3
		if testing.Short() || raced {
			step = 29
		}
		for at := 0; at < len(whole); at += step {
			require.NoError(t, os.WriteFile(path, flip(at)(bytes.Clone(whole)), 0o640))
			r, err := Open(t.Context(), cfg.Dir, ReadOptions{})
			require.NoError(t, err, "%s, byte %d", e.Name(), at)
			got, damage := drain(t, r)
			told := len(got)
			for _, d := range damage {
				told += int(d.Last-d.First) + 1
			}
			require.Equal(t, 5, told, "%s, byte %d: %v", e.Name(), at, damage)
			require.NoError(t, r.Close())
		}
		require.NoError(t, os.WriteFile(path, whole, 0o640))
		if e.Name() == sidecarName { // reading has recovered the segment meanwhile
			_, err := readSidecar(seg)
			require.NoError(t, err)
		}
	}
}

// TestWhatIsNoSpool opens what is not a spool, to read and to write: each has its own line, with advice.
func TestWhatIsNoSpool(t *testing.T) {
	tests := map[string]struct {
		make     func(t *testing.T, dir string)
		is       error
		text     string
		writable bool // Create makes a spool of it
	}{
		"missing": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir)) }, fs.ErrNotExist, "no spool at %s", true},
		"empty":   {func(t *testing.T, dir string) {}, ErrNotSpool, "%s is an empty directory", true},
		"a file": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(dir))
			require.NoError(t, os.WriteFile(dir, []byte("x"), 0o600))
		}, ErrNotSpool, "%s is a file", false},
		"other files": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), []byte("x"), 0o600))
		}, ErrNotSpool, "%s holds other files", false},
		"Badger of another program": {func(t *testing.T, dir string) {
			db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil))
			require.NoError(t, err)
			require.NoError(t, db.Close())
		}, ErrNotSpool, "%s is a Badger database of another program", false},
		"damaged": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, spoolName), []byte("{"), 0o600))
		}, ErrNotSpool, "%s/spool.json does not describe one", false},
		"newer": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, spoolName), []byte(`{"format":"tcbee-spool","version":2}`), 0o600))
		}, ErrVersion, "%s has version 2, this program reads up to 1", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tt.make(t, dir)
			text := strings.ReplaceAll(tt.text, "%s", dir)
			_, err := Open(t.Context(), dir, ReadOptions{})
			require.ErrorIs(t, err, tt.is)
			require.ErrorContains(t, err, text)
			require.NotContains(t, err.Error(), "\n")
			require.NotEmpty(t, hintOf(err))

			w, err := Create(t.Context(), testConfig(dir), Meta{}, nil)
			if tt.writable {
				require.NoError(t, err)
				require.NoError(t, w.Close())
				return
			}
			require.ErrorIs(t, err, tt.is)
			require.ErrorContains(t, err, text)
			require.NotEmpty(t, hintOf(err))
		})
	}
}

func TestUnreadable(t *testing.T) {
	cfg := testConfig(t.TempDir())
	require.NoError(t, os.Chmod(filepath.Dir(cfg.Dir), 0o755))
	threeSegments(t, cfg)
	require.NoError(t, os.Chmod(cfg.Dir, 0))
	defer func() { _ = os.Chmod(cfg.Dir, 0o700) }()
	var read, write error
	asNobody(t, func() {
		_, read = Open(t.Context(), cfg.Dir, ReadOptions{})
		_, write = Create(t.Context(), cfg, Meta{}, nil)
	})
	for _, err := range []error{read, write} {
		require.ErrorIs(t, err, fs.ErrPermission)
		require.NotEmpty(t, hintOf(err))
	}
}

// TestReadableOnly reads the spool of somebody else: what is closed. What is not cannot be recovered, and that is told.
func TestReadableOnly(t *testing.T) {
	cfg := testConfig(t.TempDir())
	require.NoError(t, os.Chmod(filepath.Dir(cfg.Dir), 0o755))
	threeSegments(t, cfg)
	require.NoError(t, os.Remove(filepath.Join(segmentDir(cfg.Dir, 3), sidecarName)))
	require.NoError(t, filepath.WalkDir(cfg.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Chmod(path, 0o555)
		}
		return os.Chmod(path, 0o444)
	}))
	defer func() { // else the test's directory could not be removed
		_ = filepath.WalkDir(cfg.Dir, func(path string, _ fs.DirEntry, _ error) error { return os.Chmod(path, 0o700) })
	}()
	var got []ID
	var damage []*DamageError
	asNobody(t, func() { got, damage = drain(t, open(t, cfg.Dir)) })
	require.Equal(t, ids(1, 20), got)
	require.Len(t, damage, 1)
	require.ErrorIs(t, damage[0], ErrUnclosed)
	require.Contains(t, hintOf(damage[0]), "as its owner")
}

// TestTornTailIsTakenOut damages the last blocks of a segment that was not closed, as the loss of power does: they are taken out and
// counted, and their IDs are used again.
func TestTornTailIsTakenOut(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	seg := segmentDir(cfg.Dir, 3)
	require.NoError(t, os.Remove(filepath.Join(seg, sidecarName)))
	change(t, filepath.Join(seg, vlogName), func(b []byte) []byte {
		clear(b[8000:])
		return b
	})
	w := create(t, cfg)
	require.Equal(t, ID(27), w.Stats().Last)
	fill(t, w, 5, 1000)
	require.NoError(t, w.Close())
	r := open(t, cfg.Dir)
	got, damage := drain(t, r)
	require.Empty(t, damage)
	require.Equal(t, ids(1, 32), got)
	require.Equal(t, uint64(3), r.Segments()[2].LostTail)
	require.True(t, r.Segments()[2].Recovered)
}

// TestOneFlippedBitInAnUnclosedSegmentCostsOneBlock is why Badger's own recovery is not used.
func TestOneFlippedBitInAnUnclosedSegmentCostsOneBlock(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	seg := segmentDir(cfg.Dir, 3)
	require.NoError(t, os.Remove(filepath.Join(seg, sidecarName)))
	change(t, filepath.Join(seg, vlogName), flip(3000))
	got, damage := drain(t, open(t, cfg.Dir))
	require.Len(t, damage, 1)
	require.Equal(t, append(ids(1, 22), ids(24, 30)...), got)
}

// TestBrokenUnclosedSegmentDoesNotStopRecording leaves it as it is, tells of it, and goes on.
func TestBrokenUnclosedSegmentDoesNotStopRecording(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	seg := segmentDir(cfg.Dir, 3)
	require.NoError(t, os.Remove(filepath.Join(seg, sidecarName)))
	require.NoError(t, os.Remove(filepath.Join(seg, "MANIFEST")))
	w := create(t, cfg)
	first := w.Stats().Last + 1
	require.Greater(t, first, ID(30))
	fill(t, w, 5, 1000)
	require.NoError(t, w.Close())
	r := open(t, cfg.Dir)
	got, damage := drain(t, r)
	require.Equal(t, append(ids(1, 20), ids(first, first+4)...), got)
	require.NotEmpty(t, damage)
	require.NoError(t, r.Close())
}

func TestLoneSegment(t *testing.T) {
	cfg := testConfig(t.TempDir())
	threeSegments(t, cfg)
	copied := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(copied, os.DirFS(segmentDir(cfg.Dir, 2))))
	r := open(t, copied)
	got, damage := drain(t, r)
	require.Empty(t, damage)
	require.Equal(t, ids(11, 20), got)
	require.NoError(t, r.Seek(15))
	got, _ = drain(t, r)
	require.Equal(t, ids(15, 20), got)

	si, err := readSidecar(copied)
	require.NoError(t, err)
	si.State, si.Dir = StateActive, copied
	require.NoError(t, writeSidecar(si, false))
	_, err = Open(t.Context(), copied, ReadOptions{})
	require.ErrorIs(t, err, ErrUnclosed)
	require.NotEmpty(t, hintOf(err))
}

// TestSegmentCopiedAway copies segments one by one while the recording goes on and retention removes them: each copy is read elsewhere, whole.
func TestSegmentCopiedAway(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.MaxBytes = 8 << 20
	w := create(t, cfg)
	var last ID
	for n := range uint64(12) {
		fill(t, w, 7, 100_000)
		require.NoError(t, w.Rotate(t.Context()))
		copied := filepath.Join(t.TempDir(), "copy")
		require.NoError(t, os.CopyFS(copied, os.DirFS(segmentDir(cfg.Dir, n+1))))
		fill(t, w, 2, 100_000) // while it is read
		got, damage := drain(t, open(t, copied))
		require.Empty(t, damage)
		require.Equal(t, last+1, got[0])
		last = got[len(got)-1]
		require.NoError(t, os.RemoveAll(copied))
	}
	require.Positive(t, w.Stats().Dropped.Segments)
}

// TestCopiedSpool copies a whole spool while it is recorded, as a person would: all closed segments are in the copy.
func TestCopiedSpool(t *testing.T) {
	cfg := testConfig(t.TempDir())
	w := create(t, cfg)
	fill(t, w, 20, 1000)
	require.NoError(t, w.Rotate(t.Context()))
	fill(t, w, 20, 1000)
	copied := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.Mkdir(copied, 0o755))
	for _, name := range []string{spoolName, segmentsName, lockName} {
		src := filepath.Join(cfg.Dir, name)
		fi, err := os.Stat(src)
		require.NoError(t, err)
		if fi.IsDir() {
			// The next segment is made under another name: where it vanishes the copy is begun anew.
			for {
				err := os.CopyFS(filepath.Join(copied, name), os.DirFS(src))
				if !errors.Is(err, fs.ErrNotExist) {
					require.NoError(t, err)
					break
				}
				require.NoError(t, os.RemoveAll(filepath.Join(copied, name)))
			}
			continue
		}
		b, err := os.ReadFile(src)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(copied, name), b, 0o600))
	}
	got, damage := drain(t, open(t, copied))
	require.Empty(t, damage)
	require.Equal(t, ids(1, 40), got)
}

func TestRemovedByRetentionWhileRead(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 1 << 20
	cfg.MaxBytes = segmentsPerLimit*cfg.SegmentBytes + fixedBytes + 1<<20
	w := create(t, cfg)
	fill(t, w, 20, 100_000)
	r := open(t, cfg.Dir)
	id, _, err := r.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, ID(1), id)
	fill(t, w, 100, 100_000) // removes all that r knows

	// The open segment is read to its end, the others are gone.
	got, damage := drain(t, r)
	require.Equal(t, ids(2, got[len(got)-1]), got)
	require.NotEmpty(t, damage)
	for _, d := range damage {
		require.ErrorIs(t, d, ErrRemoved)
	}
	require.NoError(t, w.Rotate(t.Context()))
	require.NoError(t, r.Refresh(t.Context()))
	got, damage = drain(t, r)
	require.Len(t, damage, 1, "the hole up to the oldest block: %v, %v", w.Stats(), got)
	require.ErrorIs(t, damage[0], ErrRemoved)
	require.Equal(t, damage[0].Last+1, got[0])
	require.Equal(t, ID(120), got[len(got)-1])

	// A cursor that was left behind.
	require.NoError(t, r.Seek(5))
	_, _, err = r.Next(t.Context())
	require.ErrorIs(t, err, ErrRemoved)
	var d *DamageError
	require.True(t, errors.As(err, &d))
	require.Equal(t, ID(5), d.First)
	require.Equal(t, got[0]-1, d.Last)
}
