// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asked is a source that says when it is asked, and gives what it is told to.
type asked struct{ asks, answers chan error }

func (a asked) Next(context.Context) ([]byte, error) {
	a.asks <- nil
	return nil, <-a.answers
}

func (asked) Close() error { return nil }

func TestReaderYieldsAsLongAsItCan(t *testing.T) {
	if err := canReturn(); err != nil {
		t.Skip("a thread that yields the CPU cannot return: ", err)
	}
	percent := debug.SetGCPercent(100)
	defer debug.SetGCPercent(percent)
	collects := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	s := newSchedule(slog.New(slog.DiscardHandler))
	defer func() {
		require.NoError(t, eachThread(func(thread int) error { return policy(thread, unix.SCHED_NORMAL) }))
		require.NoError(t, eachThread(func(thread int) error { return os.WriteFile(slackFile(thread), []byte("0"), 0) }))
	}()
	s.quiet() // there is no reader yet
	require.Zero(t, s.yields)

	src := asked{make(chan error), make(chan error)}
	reads := s.source(src)
	done := make(chan int)
	go func() {
		for {
			if _, err := reads.Next(t.Context()); err != nil {
				require.ErrorIs(t, err, io.EOF)
				done <- unix.Gettid()
				return
			}
		}
	}()
	<-src.asks
	reader := int(s.reader.Load())
	is := func(want uint32) {
		t.Helper()
		attr, err := unix.SchedGetAttr(reader, 0)
		require.NoError(t, err)
		require.Equal(t, want, attr.Policy)
	}
	is(unix.SCHED_BATCH)
	s.quiet()
	is(unix.SCHED_IDLE)
	require.Equal(t, -1, collects(), "garbage is collected although that waits for the reader")
	s.quiet()
	is(unix.SCHED_IDLE)

	s.late()
	is(unix.SCHED_BATCH)
	require.Equal(t, 100, collects())
	s.quiet()
	is(unix.SCHED_BATCH) // not at once
	first := time.Until(s.again)
	s.again = time.Time{}
	s.quiet()
	is(unix.SCHED_IDLE)

	// It goes wrong again: the next attempt is later.
	s.hurry(true)
	is(unix.SCHED_BATCH)
	s.quiet()
	require.Greater(t, time.Until(s.again), first)
	require.Equal(t, 100, collects())
	s.again = time.Time{}
	s.quiet()
	is(unix.SCHED_BATCH) // the process takes precedence
	s.hurry(false)
	s.quiet()
	is(unix.SCHED_IDLE)

	// Much garbage is collected between.
	s.room = 0
	s.quiet()
	is(unix.SCHED_BATCH)
	require.Equal(t, 100, collects())
	s.quiet()
	is(unix.SCHED_IDLE)

	src.answers <- nil
	<-src.asks
	src.answers <- io.EOF
	<-done
	if attr, err := unix.SchedGetAttr(reader, 0); err == nil {
		require.Equal(t, uint32(unix.SCHED_BATCH), attr.Policy)
	}
	require.Zero(t, s.reader.Load())
	s.quiet()
	require.Equal(t, 100, collects())
}
