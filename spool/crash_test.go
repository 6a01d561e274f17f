// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// child starts the test binary again.
func child(t testing.TB, name string, cfg Config, args ...string) *exec.Cmd {
	text, err := json.Marshal(cfg)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], append([]string{string(text)}, args...)...)
	cmd.Env = append(os.Environ(), childVar+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

func childConfig(arg string) (cfg Config) {
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		panic(err)
	}
	return cfg
}

// recordChild appends blocks of all sizes for ever and prints each ID when it is acknowledged. It rotates now and then.
func recordChild(args []string) {
	cfg := childConfig(args[0])
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		panic(err)
	}
	w, err := Create(context.Background(), cfg, Meta{Host: "child"}, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	go func() {
		for {
			time.Sleep(time.Duration(rnd.IntN(50)) * time.Millisecond)
			if err := w.Rotate(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, "child: rotate:", err)
				os.Exit(1)
			}
		}
	}()
	sizes := []int{16, 40, 100, 1000, 5000, 40_000, 131_072, 300_000}
	for seq := uint64(w.Stats().Last) + 1; ; seq++ {
		id, err := w.Append(testBlock(seq, sizes[(seq*seed)%uint64(len(sizes))]))
		if err != nil || uint64(id) != seq {
			fmt.Fprintln(os.Stderr, "child: append:", id, seq, err)
			os.Exit(1)
		}
		// One write for each line: what the parent has read was acknowledged.
		if _, err := os.Stdout.WriteString(strconv.FormatUint(seq, 10) + "\n"); err != nil {
			os.Exit(0)
		}
	}
}

// killRounds is how often the recorder is killed: few in a short run, SPOOL_KILL_ROUNDS of them on request.
func killRounds(t *testing.T) int {
	if v := os.Getenv("SPOOL_KILL_ROUNDS"); v != "" {
		n, err := strconv.Atoi(v)
		require.NoError(t, err)
		return n
	}
	if testing.Short() {
		return 3
	}
	return 12
}

// TestNothingAcknowledgedIsLostBySIGKILL kills a recorder at random moments under full load, again and again on the same spool. Each
// time every acknowledged block must be there and intact, without a gap, and at most the one block more that was under way.
func TestNothingAcknowledgedIsLostBySIGKILL(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 4 << 20
	var last, unacked uint64
	rounds := killRounds(t)
	for round := range rounds {
		if round%20 == 0 { // a fresh spool now and then: the tests stays quadratic otherwise
			cfg.Dir, last = t.TempDir(), 0
		}
		cfg.Sync = []SyncMode{SyncInterval, SyncOff, SyncBlock}[round%3] // acknowledged means the same in all of them
		cmd := child(t, "record", cfg, strconv.Itoa(round*2+1))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		started := make(chan struct{})
		lines := make(chan uint64, 1)
		go func() {
			var seq uint64
			sc := bufio.NewScanner(out)
			for sc.Scan() {
				n, err := strconv.ParseUint(sc.Text(), 10, 64)
				if err != nil {
					break // a torn line: was not acknowledged
				}
				if seq == 0 {
					close(started)
				}
				seq = n
			}
			_, _ = io.Copy(io.Discard, out)
			lines <- seq
		}()
		if round%5 != 4 { // every fifth time while it opens
			select {
			case <-started:
			case <-time.After(patience):
				t.Error("the recorder does not start")
			}
		}
		time.Sleep(time.Duration(rand.IntN(300_000)) * time.Microsecond)
		require.NoError(t, cmd.Process.Kill())
		acked := <-lines
		_ = cmd.Wait()
		last = max(last, acked)

		if round%4 == 2 {
			continue // the next recorder recovers, not a reader
		}
		r, err := Open(t.Context(), cfg.Dir, ReadOptions{Log: testLog(t)})
		if last == 0 && err != nil {
			continue // killed before there was a spool
		}
		require.NoError(t, err)
		got, damage := drain(t, r)
		require.Empty(t, damage)
		require.NoError(t, r.Close())
		n := uint64(len(got))
		require.Equal(t, ids(1, ID(n)), got, "a gap")
		require.GreaterOrEqual(t, n, last, "acknowledged blocks are lost")
		require.LessOrEqual(t, n, last+1, "more than the block under way is claimed")
		unacked += n - last
		last = n
	}
	t.Logf("%d rounds; %d times the block under way was stored as well", rounds, unacked)
}

// A reader that comes while the kernel is still ending a killed recorder (its socket is closed, its lock is not) sees what was acknowledged.
func TestReaderOfADyingRecorderSeesItsBlocks(t *testing.T) {
	for round := range 5 {
		cfg := testConfig(t.TempDir())
		cmd := child(t, "record", cfg, strconv.Itoa(round*2+1))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		sc := bufio.NewScanner(out)
		var acknowledged uint64
		for acknowledged < 20 && sc.Scan() {
			acknowledged, err = strconv.ParseUint(sc.Text(), 10, 64)
			require.NoError(t, err)
		}
		require.EqualValues(t, 20, acknowledged)
		require.NoError(t, cmd.Process.Kill())
		r, err := Open(context.Background(), cfg.Dir, ReadOptions{})
		require.NoError(t, err)
		require.Empty(t, r.Notices())
		blocks, _ := r.Size()
		require.GreaterOrEqual(t, blocks, acknowledged)
		require.NoError(t, r.Close())
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
}
