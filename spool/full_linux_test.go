// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tmpfs mounts a small file system for the test.
func tmpfs(t *testing.T, bytes int64) string {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	if kind := os.Getenv("SPOOL_TEST_FS"); kind != "" { // ext4, xfs, btrfs on a loop device
		image := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, max(bytes, 64<<20)))
		for _, cmd := range [][]string{{"mkfs." + kind, "-q", image}, {"mount", "-o", "loop", image, dir}} {
			out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
		return dir
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Skip("no tmpfs:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// ballast takes n bytes of the file system, or all that is free.
func ballast(t *testing.T, dir string, n int64) {
	f, err := os.OpenFile(filepath.Join(dir, "ballast"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer f.Close()
	chunk := make([]byte, 64<<10)
	for n > 0 {
		m, err := f.Write(chunk[:min(n, int64(len(chunk)))])
		n -= int64(m)
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		require.NoError(t, err)
	}
}

func dropBallast(t *testing.T, dir string) {
	require.NoError(t, os.Remove(filepath.Join(dir, "ballast")))
}

const brim = 1 << 40

func TestFullFileSystem(t *testing.T) {
	tests := map[string]func(*Config){
		"stop":               func(*Config) {},
		"stop, leave some":   func(c *Config) { c.MinFreeBytes = 2 << 20 },
		"stop, tiny blocks":  func(*Config) {},
		"stop, synchronised": func(c *Config) { c.Sync = SyncBlock },
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			mnt := tmpfs(t, 24<<20)
			cfg := testConfig(filepath.Join(mnt, "spool"))
			set(&cfg)
			w := create(t, cfg)
			size := 100_000
			if name == "stop, tiny blocks" {
				size = 40
				ballast(t, mnt, 20<<20)
			}
			var seq uint64
			fillUp := func() error {
				for {
					id, err := w.Append(testBlock(seq+1, size))
					if err != nil {
						return err
					}
					seq++
					require.Equal(t, ID(seq), id)
				}
			}
			for round := range 3 {
				err := fillUp()
				require.ErrorIs(t, err, ErrFull)
				require.Contains(t, hintOf(err), "free some space")
				require.True(t, w.Stats().Full)
				if cfg.MinFreeBytes > 0 {
					disk, err := diskOf(mnt)
					require.NoError(t, err)
					require.GreaterOrEqual(t, disk.free, cfg.MinFreeBytes)
				}
				for range 50 { // a segment that was just closed may have given some space back
					require.ErrorIs(t, fillUp(), ErrFull)
				}
				// What is there can be read meanwhile.
				r := open(t, cfg.Dir)
				got, damage := drain(t, r)
				require.Empty(t, damage)
				require.Equal(t, ids(1, ID(len(got))), got)
				require.NoError(t, r.Close())

				// Somebody frees some space.
				require.Positive(t, seq)
				require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", (28+4*round)<<20)))
				seq++
				_, err = w.Append(testBlock(seq, size))
				require.NoError(t, err, "there is space again")
				require.False(t, w.Stats().Full)
			}
			require.NoError(t, w.Close())
			got, damage := drain(t, open(t, cfg.Dir))
			require.Empty(t, damage)
			require.Equal(t, ids(1, ID(seq)), got)
		})
	}
}

// TestFullFileSystemDropsOldest goes on recording for many times the size of the file system.
func TestFullFileSystemDropsOldest(t *testing.T) {
	mnt := tmpfs(t, 24<<20)
	cfg := testConfig(filepath.Join(mnt, "spool"))
	cfg.OnFull = FullDropOldest
	cfg.MinFreeBytes = 1 << 20
	w := create(t, cfg)
	fill(t, w, 1000, 100_000)
	ballast(t, mnt, 6<<20) // others want space as well
	fill(t, w, 300, 100_000)
	st := w.Stats()
	require.NoError(t, w.Close())
	require.Positive(t, st.Dropped.Blocks)
	require.Equal(t, st.Dropped.Blocks+st.Blocks, uint64(1300))
	got, damage := drain(t, open(t, cfg.Dir))
	require.Empty(t, damage)
	require.Equal(t, ID(1300), got[len(got)-1])
	require.Greater(t, len(got), 50)
}

// TestOthersFillTheFileSystem lets somebody else take all space and give it back at random moments, while blocks are appended
// and segments end. Badger writes through memory maps: a page without space behind it would end the process here.
func TestOthersFillTheFileSystem(t *testing.T) {
	for _, mode := range []FullMode{FullStop, FullDropOldest} {
		t.Run(string(mode), func(t *testing.T) {
			mnt := tmpfs(t, 256<<20)
			cfg := testConfig(filepath.Join(mnt, "spool"))
			cfg.OnFull = mode
			cfg.MaxBytes = 64 << 20
			w := create(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					ballast(t, mnt, brim)
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
					ballast(t, mnt, brim)
					dropBallast(t, mnt)
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
			}()
			go func() {
				for ctx.Err() == nil {
					_ = w.Rotate(ctx)
					time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
				}
			}()
			var seq, full uint64
			// On a busy machine it may take its time until both meet.
			for start := time.Now(); time.Since(start) < 3*time.Second || mode == FullStop && full == 0 && time.Since(start) < time.Minute; {
				_, err := w.Append(testBlock(seq+1, 1000+rand.IntN(100_000)))
				if err != nil {
					require.ErrorIs(t, err, ErrFull)
					full++
					time.Sleep(time.Millisecond)
					continue
				}
				seq++
			}
			cancel()
			<-done
			require.NoError(t, w.Close())
			if mode == FullStop {
				require.Positive(t, full)
			}
			t.Logf("%d blocks appended, %d refused, %d removed", seq, full, w.Stats().Dropped.Blocks)
			got, damage := drain(t, open(t, cfg.Dir))
			require.Empty(t, damage)
			require.Equal(t, ID(seq), got[len(got)-1])
			require.Equal(t, ids(got[0], ID(seq)), got)
		})
	}
}

// TestClosedOnAFullFileSystem ends the recording with not a byte left.
func TestClosedOnAFullFileSystem(t *testing.T) {
	mnt := tmpfs(t, 24<<20)
	cfg := testConfig(filepath.Join(mnt, "spool"))
	w := create(t, cfg)
	fill(t, w, 30, 100_000)
	ballast(t, mnt, brim)
	require.NoError(t, w.Close())
	r := open(t, cfg.Dir)
	got, damage := drain(t, r)
	require.Empty(t, damage)
	require.Equal(t, ids(1, 30), got)
	require.NoError(t, r.Close())

	ballast(t, mnt, brim)
	_, err := Create(t.Context(), cfg, Meta{}, nil)
	require.ErrorIs(t, err, ErrFull)
	require.NotEmpty(t, hintOf(err))
	dropBallast(t, mnt)
	w = create(t, cfg)
	fill(t, w, 1, 100)
}

func TestReadOnlyFileSystem(t *testing.T) {
	mnt := tmpfs(t, 48<<20)
	cfg := testConfig(filepath.Join(mnt, "spool"))
	w := create(t, cfg)
	fill(t, w, 30, 100_000)
	require.NoError(t, w.Close())
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := Create(t.Context(), cfg, Meta{}, nil)
	require.ErrorIs(t, err, ErrReadOnly)
	require.Equal(t, "choose another --spool", hintOf(err))
	got, damage := drain(t, open(t, cfg.Dir))
	require.Empty(t, damage)
	require.Equal(t, ids(1, 30), got)

	// One that its recorder left open cannot be recovered there: that is told, and the rest is read.
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	killed(t, cfg)
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	got, damage = drain(t, open(t, cfg.Dir))
	require.Equal(t, ids(1, 30), got)
	require.Len(t, damage, 1)
	require.ErrorIs(t, damage[0], ErrUnclosed)
	require.NotEmpty(t, hintOf(damage[0]))
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	got, damage = drain(t, open(t, cfg.Dir))
	require.Empty(t, damage)
	require.Equal(t, ids(1, 31), got)
}

// killed lets a recorder in another process append one block and kills it.
func killed(t *testing.T, cfg Config) {
	pid, wait := startHolder(t, cfg)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	wait(false)
}

func TestMountVanishes(t *testing.T) {
	mnt := tmpfs(t, 48<<20)
	cfg := testConfig(mnt) // the root of the file system itself
	w := create(t, cfg)
	fill(t, w, 3, 1000)
	other := t.TempDir()
	require.NoError(t, unix.Mount(mnt, other, "", unix.MS_BIND, ""))
	defer func() { _ = unix.Unmount(other, unix.MNT_DETACH) }()
	require.NoError(t, unix.Unmount(mnt, unix.MNT_DETACH))
	_, err := w.Append(testBlock(4, 1000))
	require.ErrorIs(t, err, ErrGone)
	require.NotEmpty(t, hintOf(err))
	require.NoError(t, unix.Mount(other, mnt, "", unix.MS_BIND, ""))
	fill(t, w, 3, 1000)
	require.NoError(t, w.Close())
	got, damage := drain(t, open(t, cfg.Dir))
	require.Empty(t, damage)
	require.Equal(t, ids(1, 6), got)
}

// TestRecorderThatDoesNotAnswer stops the recorder: readers go on with what is closed, and say so.
func TestRecorderThatDoesNotAnswer(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for", controlTimeout)
	}
	cfg := testConfig(t.TempDir())
	pid, end := startHolder(t, cfg)
	r := open(t, cfg.Dir) // block 1 is closed by this
	require.NoError(t, r.Close())
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(stat), ") T ")
	}, patience, time.Millisecond)
	r = open(t, cfg.Dir)
	require.NoError(t, unix.Kill(pid, unix.SIGCONT))
	got, damage := drain(t, r)
	require.Empty(t, damage)
	require.Equal(t, ids(1, 1), got)
	require.Len(t, r.Notices(), 1)
	require.ErrorContains(t, r.Notices()[0], "did not end its segment")
	end(true)
}

// TestWhatSurvivesTheLossOfPower records on an ext4 that ends all writing by an error of its own, as the loss of power does. What each mode of synchronisation
// promises must be on the device. Meanwhile the recorder, which statfs does not tell of it, lives, and acknowledges blocks no longer than the next
// synchronisation.
func TestWhatSurvivesTheLossOfPower(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	mount := func(t *testing.T, image string) (dir string) {
		dir = t.TempDir()
		if out, err := exec.Command("mount", "-o", "loop,errors=remount-ro", image, dir).CombinedOutput(); err != nil {
			t.Skipf("mount: %v: %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
		return dir
	}
	tests := map[SyncMode]struct {
		set    func(*Config)
		settle func(w *Writer) bool // what was appended so far is safe
	}{
		SyncBlock:    {func(*Config) {}, func(*Writer) bool { return true }},
		SyncInterval: {func(c *Config) { c.SyncInterval = 20 * time.Millisecond }, func(w *Writer) bool { return w.Stats().Syncs > 0 && !w.cur.dirty.Load() && w.Sync() == nil }},
		SyncOff:      {func(*Config) {}, func(w *Writer) bool { return w.Rotate(context.Background()) == nil }},
	}
	for mode, tt := range tests {
		t.Run(string(mode), func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			require.NoError(t, os.WriteFile(image, nil, 0o600))
			require.NoError(t, os.Truncate(image, 96<<20))
			if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
				t.Skipf("mkfs.ext4: %v: %s", err, out)
			}
			mnt := mount(t, image)
			dev, err := exec.Command("findmnt", "-no", "SOURCE", mnt).Output()
			require.NoError(t, err)
			cfg := testConfig(filepath.Join(mnt, "spool"))
			cfg.Sync, cfg.SegmentBytes = mode, 4<<20
			tt.set(&cfg)
			w := create(t, cfg)
			fill(t, w, 50, 100_000)
			require.Eventually(t, func() bool { return tt.settle(w) }, time.Minute, time.Millisecond)

			require.NoError(t, os.WriteFile(fmt.Sprintf("/sys/fs/ext4/%s/trigger_fs_error", filepath.Base(strings.TrimSpace(string(dev)))), []byte("1"), 0))
			refused := 0 // one after the other; a segment that was being prepared may take some more between
			require.Eventually(t, func() bool {
				id, err := w.Append(testBlock(uint64(w.Stats().Last)+1, 100_000))
				switch {
				case err == nil || id != 0:
					refused = 0
				case !errors.Is(err, ErrReadOnly) || hintOf(err) == "":
					t.Errorf("refused by %q", err)
				default:
					refused++
				}
				return refused > 50
			}, time.Minute, time.Millisecond)
			require.Error(t, w.Close())

			after := filepath.Join(t.TempDir(), "image") // the other one is in use as long as this process has files on it open
			b, err := os.ReadFile(image)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(after, b, 0o600))
			_ = exec.Command("fsck.ext4", "-fy", after).Run() // its exit status says that it has mended something
			got, damage := drain(t, open(t, filepath.Join(mount(t, after), "spool")))
			require.Empty(t, damage)
			require.Equal(t, ids(1, ID(len(got))), got)
			require.GreaterOrEqual(t, len(got), 50)
			t.Logf("%d blocks survived", len(got))
		})
	}
}
