// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// holdChild records one block, says so, and waits until its standard input ends.
func holdChild(args []string) {
	w, err := Create(context.Background(), childConfig(args[0]), Meta{}, nil)
	if err == nil {
		_, err = w.Append(testBlock(uint64(w.Stats().Last)+1, 1000))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	if err := w.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// startHolder starts a recorder in another process. The function asks for its end, and says whether it should end well.
func startHolder(t *testing.T, cfg Config) (pid int, end func(well bool)) {
	cmd := child(t, "hold", cfg)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return cmd.Process.Pid, func(well bool) {
		_ = in.Close()
		require.Equal(t, well, cmd.Wait() == nil)
	}
}

func TestSecondRecorderIsRefused(t *testing.T) {
	cfg := testConfig(t.TempDir())
	today := time.Now()
	pid, end := startHolder(t, cfg)
	_, err := Create(t.Context(), cfg, Meta{}, nil)
	require.ErrorIs(t, err, ErrLocked)
	require.Regexp(t, fmt.Sprintf("is being recorded by pid %d since (%s|%s)", pid, today.Format(time.DateOnly), time.Now().Format(time.DateOnly)), err.Error())
	require.Equal(t, "stop it or choose another --spool", hintOf(err))
	end(true)
	w := create(t, cfg)
	require.Equal(t, ID(1), w.Stats().Last)
	_, err = Create(t.Context(), cfg, Meta{}, nil) // in the same process as well
	require.ErrorIs(t, err, ErrLocked)
}

func TestReadersInOtherProcessesThanTheRecorder(t *testing.T) {
	cfg := testConfig(t.TempDir())
	_, end := startHolder(t, cfg)
	start := time.Now()
	var readers []*Reader
	for range 4 {
		readers = append(readers, open(t, cfg.Dir))
	}
	took := time.Since(start)
	for _, r := range readers {
		got, damage := drain(t, r)
		require.Empty(t, damage)
		require.Equal(t, ids(1, 1), got)
		require.Empty(t, r.Notices())
	}
	end(true)
	t.Logf("four readers were answered in %v", took)
}

func hintOf(err error) string {
	for ; err != nil; err = unwrap(err) {
		if h, ok := err.(interface{ Hint() string }); ok {
			return h.Hint()
		}
	}
	return ""
}

func unwrap(err error) error {
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return u.Unwrap()
	case interface{ Unwrap() []error }:
		for _, e := range u.Unwrap() {
			if hintOf(e) != "" {
				return e
			}
		}
	}
	return nil
}
