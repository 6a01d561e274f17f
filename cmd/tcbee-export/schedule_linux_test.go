// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"
	"testing"
	"time"

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
	s.start()
	all(unix.SCHED_BATCH, urgentNice)
	s.started()
	all(unix.SCHED_BATCH, int(own.Nice))
	s.start()
	s.hurry(true)
	s.started()
	all(unix.SCHED_BATCH, urgentNice) // it is behind

	// The watch calls from a thread of its own, which always has precedence.
	calls, done := make(chan func()), make(chan struct{})
	defer func() { close(calls); <-done }()
	go func() {
		defer close(done)
		for call := range calls {
			call()
			calls <- nil
		}
	}()
	watch := func(call func()) { calls <- call; <-calls }
	is := func(nice int) {
		t.Helper()
		require.NoError(t, eachThread(func(thread int) error {
			attr, err := unix.SchedGetAttr(thread, 0)
			if err == nil && thread == int(s.watch.Load()) {
				require.EqualValues(t, urgentNice, attr.Nice)
			} else if err == nil {
				require.EqualValues(t, nice, attr.Nice)
			}
			return err
		}))
	}
	watch(s.quiet)
	require.NotZero(t, s.watch.Load())
	s.hurry(false)
	watch(s.quiet)
	is(urgentNice) // it has caught up, but not for long
	first := time.Until(s.again)
	require.InDelta(t, minPause, first, float64(goodWhile))
	s.again = time.Time{}
	s.hurry(true)
	watch(s.quiet)
	is(urgentNice) // it is behind again
	s.hurry(false)
	watch(func() { s.late(false) })
	is(urgentNice)
	watch(s.quiet)
	is(int(own.Nice))

	// It goes wrong, which the watch sees first: precedence is kept for longer.
	watch(func() { s.late(false) })
	is(int(own.Nice)) // events wait, but there is room for more
	watch(func() { s.late(true) })
	is(urgentNice)
	require.Greater(t, time.Until(s.again), first)
	s.again = time.Time{}
	watch(func() { s.late(true) })
	is(urgentNice) // the ring fills up again
	watch(s.quiet)
	is(int(own.Nice))

	// The watch does not wait for the reader, which may have stopped anywhere.
	s.renicing.Lock()
	watch(func() { s.late(true) })
	is(int(own.Nice))
	s.renicing.Unlock()
	watch(func() { s.late(true) })
	is(urgentNice)
	s.again = time.Time{}
	watch(s.quiet)
	is(int(own.Nice))
}
