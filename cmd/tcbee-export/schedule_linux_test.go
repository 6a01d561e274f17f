// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRecorderBehindTakesPrecedence(t *testing.T) {
	own, err := unix.SchedGetAttr(0, 0)
	require.NoError(t, err)
	if own.Policy != unix.SCHED_NORMAL || os.Geteuid() != 0 {
		t.Skip("needs root and the usual scheduling policy, to return to them")
	}
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NICE, &limit))
	defer func() {
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NICE, &limit))
		require.NoError(t, eachThread(func(thread int) error { return unix.SchedSetAttr(thread, own, 0) }))
		require.NoError(t, eachThread(func(thread int) error {
			return os.WriteFile(slackFile(thread), []byte("0"), 0) // as the thread began
		}))
	}()
	all := func(policy uint32, nice int) {
		t.Helper()
		require.NoError(t, eachThread(func(thread int) error {
			attr, err := unix.SchedGetAttr(thread, 0)
			if err == nil {
				require.Equal(t, policy, attr.Policy)
				require.EqualValues(t, nice, attr.Nice)
				slack, err := os.ReadFile(slackFile(thread))
				if os.IsNotExist(err) {
					return unix.ESRCH // the thread has ended
				}
				require.NoError(t, err)
				require.Equal(t, "5000000\n", string(slack))
			}
			return err
		}))
	}
	s := newSchedule(0, slog.New(slog.DiscardHandler))
	all(unix.SCHED_BATCH, int(own.Nice))
	s.hurry(true)
	all(unix.SCHED_BATCH, urgentNice)
	s.hurry(false)
	all(unix.SCHED_BATCH, int(own.Nice))
	s.start()
	all(unix.SCHED_BATCH, urgentNice)
	s.hurry(true)
	s.hurry(false)
	all(unix.SCHED_BATCH, urgentNice) // it still starts
	s.hurry(true)
	s.started()
	all(unix.SCHED_BATCH, urgentNice) // it is still behind
	s.hurry(false)
	all(unix.SCHED_BATCH, int(own.Nice))
}
