// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
)

// storm is a Source of batches that fill a block each, of two CPUs in turn. Between them it breaks the file system, waits until the spool refuses
// blocks, mends it, and waits until the spool takes them.
type storm struct {
	t       *testing.T
	w       *spool.Writer
	lose    func()
	mend    func()
	at      uint64
	n       int // batches
	stage   int
	until   int
	refused func() uint64
	counts  [2][event.Hooks]event.Counters
}

func (s *storm) Next(context.Context) ([]byte, error) {
	s.n++
	if s.n == 1 {
		return event.Append(nil, &event.Anchor{Header: event.Header{Time: s.at}, Session: 9, Realtime: 1_700_000_000_000_000_000, Phase: event.AnchorStart}), nil
	}
	require.Less(s.t, s.n, 5000, "stage %d", s.stage)
	last := s.w.Stats().Last
	switch s.stage {
	case 0:
		if last >= 5 {
			s.lose()
			s.stage++
		}
	case 1:
		if s.refused() > 3*maxBlockEvents {
			s.mend()
			s.stage, s.until = 2, int(last)+5
		}
	case 2:
		if int(last) >= s.until {
			s.stage++
		}
	case 3, 4: // the account, then the end
		s.stage++
		if s.stage == 5 {
			return event.Append(nil, &event.Anchor{Header: event.Header{Time: s.at}, Session: 9, Realtime: 1_700_000_000_000_000_000 + int64(s.at), Phase: event.AnchorEnd}), nil
		}
		var batch []byte
		for cpu := range s.counts {
			batch = event.Append(batch, &event.Accounting{Header: event.Header{Time: s.at, CPU: uint16(cpu)}, Hook: s.counts[cpu]})
		}
		return batch, nil
	case 5:
		return nil, io.EOF
	}
	if s.n%3 == 0 {
		return event.Append(nil, &event.Tick{Header: event.Header{Time: s.at}}), nil
	}
	var batch []byte
	cpu := uint16(s.n % 3 & 1)
	for range maxBlockEvents {
		s.at += 1000
		i := &event.Incident{Header: event.Header{Time: s.at, Hook: event.HookSetState, CPU: cpu, Family: 4, LocalPort: 80, PeerPort: 1000}, Value: uint32(s.at * 2654435761)}
		batch = event.Append(batch, i)
	}
	s.counts[cpu][event.HookSetState].Seen += maxBlockEvents
	return batch, nil
}

func (s *storm) Close() error { return nil }

// TestWhatTheSpoolRefusesIsTold records while the file system fills up or vanishes, and comes back: the recording goes on, and what is
// missing in it is told in it: as holes, and in an account that balances.
func TestWhatTheSpoolRefusesIsTold(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	tests := map[string]struct {
		lose, mend func(t *testing.T, mnt string)
	}{
		"full": {
			func(t *testing.T, mnt string) {
				f, err := os.Create(filepath.Join(mnt, "ballast"))
				require.NoError(t, err)
				for err == nil {
					_, err = f.Write(make([]byte, 1<<16))
				}
				require.ErrorIs(t, err, unix.ENOSPC)
				require.NoError(t, f.Close())
			},
			func(t *testing.T, mnt string) { require.NoError(t, os.Remove(filepath.Join(mnt, "ballast"))) },
		},
		"vanished": {
			func(t *testing.T, mnt string) {
				require.NoError(t, unix.Mount(mnt, mnt+".aside", "", unix.MS_BIND, ""))
				require.NoError(t, unix.Unmount(mnt, unix.MNT_DETACH))
			},
			func(t *testing.T, mnt string) {
				require.NoError(t, unix.Mount(mnt+".aside", mnt, "", unix.MS_BIND, ""))
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			mnt := filepath.Join(t.TempDir(), "mnt")
			for _, dir := range []string{mnt, mnt + ".aside"} {
				require.NoError(t, os.Mkdir(dir, 0o755))
			}
			if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=96m"); err != nil {
				t.Skip("no tmpfs:", err)
			}
			t.Cleanup(func() {
				for _, dir := range []string{mnt, mnt, mnt + ".aside"} {
					_ = unix.Unmount(dir, unix.MNT_DETACH)
				}
			})
			cfg := spool.DefaultConfig()
			cfg.Dir, cfg.SegmentBytes, cfg.MaxBytes, cfg.MinFreeBytes = mnt, 4<<20, 0, 0
			w, err := spool.Create(t.Context(), cfg, spool.Meta{}, nil)
			require.NoError(t, err)
			half := &writer{spool: w, log: discard, result: &Result{}}
			src := &storm{
				t: t, w: w, at: 1e9, refused: func() uint64 { return half.result.Unstored },
				lose: func() { tt.lose(t, mnt) }, mend: func() { tt.mend(t, mnt) },
			}
			require.NoError(t, half.run(t.Context(), src))
			require.NoError(t, w.Close())
			require.Positive(t, half.result.Unstored)

			r, err := spool.Open(t.Context(), mnt, spool.ReadOptions{})
			require.NoError(t, err)
			defer func() { require.NoError(t, r.Close()) }()
			sum, err := Verify(t.Context(), r, nil)
			require.NoError(t, err)
			require.Empty(t, sum.Damaged)
			var lost uint64
			cpus := map[int]bool{}
			for _, h := range sum.Holes {
				lost += h.Count
				cpus[h.CPU] = true
				require.True(t, h.First.Before(h.Last))
			}
			require.Equal(t, half.result.Unstored, lost)
			require.Len(t, cpus, 2, "each CPU has its own hole")
			require.Equal(t, half.result.Hooks, sum.Hooks)
			require.Len(t, sum.Hooks, 1)
			require.True(t, sum.Hooks[0].Balanced(), "%+v", sum.Hooks[0])
			require.Equal(t, lost, sum.Hooks[0].Dropped)
			require.True(t, sum.Sessions[0].Complete)
		})
	}
}
