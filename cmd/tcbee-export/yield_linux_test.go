// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"runtime"
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
	s := newSchedule(0, slog.New(slog.DiscardHandler))
	defer func() {
		require.NoError(t, eachThread(func(thread int) error { return policy(thread, unix.SCHED_NORMAL) }))
		require.NoError(t, eachThread(func(thread int) error { return os.WriteFile(slackFile(thread), []byte("0"), 0) }))
	}()
	var used usage
	s.usage = func(*os.File) (usage, error) { return used, nil }
	// after lets a period pass in which the reader had so much of a CPU, and waited for it.
	after := func(on, waited time.Duration) {
		s.used, s.looked = used, time.Now().Add(-s.period)
		used.on += on
		used.waited += waited
		s.quiet()
	}
	crowd := func() { after(50*time.Millisecond, 40*time.Millisecond) }
	crowd() // there is no reader yet
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
	after(50*time.Millisecond, 10*time.Millisecond)
	is(unix.SCHED_BATCH) // there is a CPU for everybody
	after(50*time.Millisecond, 200*time.Millisecond)
	is(unix.SCHED_BATCH) // it would starve
	after(time.Millisecond, time.Millisecond)
	is(unix.SCHED_BATCH) // it does not matter
	s.starts.Store(true)
	crowd()
	is(unix.SCHED_BATCH) // rights are given up, which waits for the reader
	s.starts.Store(false)
	crowd()
	is(unix.SCHED_IDLE)
	require.Equal(t, -1, collects(), "garbage is collected although that waits for the reader")
	after(50*time.Millisecond, 400*time.Millisecond)
	is(unix.SCHED_IDLE)
	after(50*time.Millisecond, 10*time.Millisecond)
	is(unix.SCHED_IDLE)
	s.since = time.Now().Add(-yieldFor)
	crowd()
	is(unix.SCHED_BATCH) // it is looked at again
	after(50*time.Millisecond, 10*time.Millisecond)
	is(unix.SCHED_BATCH) // nobody else wants the CPU any more
	require.Equal(t, 100, collects())
	crowd()
	is(unix.SCHED_IDLE)

	s.late(false)
	is(unix.SCHED_BATCH)
	require.Equal(t, 100, collects())
	crowd()
	is(unix.SCHED_BATCH) // not at once
	first := time.Until(s.again)
	s.again = time.Time{}
	crowd()
	is(unix.SCHED_IDLE)

	// It goes wrong again: the next attempt is later.
	s.hurry(true)
	is(unix.SCHED_BATCH)
	s.quiet()
	require.Greater(t, time.Until(s.again), first)
	require.Equal(t, 100, collects())
	s.again = time.Time{}
	crowd()
	is(unix.SCHED_BATCH) // the process takes precedence
	s.hurry(false)
	s.again = time.Now().Add(time.Minute)
	crowd()
	is(unix.SCHED_BATCH) // and keeps it
	s.again = time.Time{}
	crowd()
	is(unix.SCHED_IDLE)

	// Much garbage is collected meanwhile.
	s.room = 0
	since := s.since
	s.quiet()
	require.NotZero(t, s.room)
	require.Equal(t, since, s.since)
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

// A reader is judged by several of its turns, however long they are.
func TestReaderIsLookedAtForSeveralTurns(t *testing.T) {
	s := &schedule{period: periodOf(500 * time.Millisecond)}
	require.Equal(t, minPeriod, periodOf(100*time.Millisecond))
	s.reader.Store(1)
	var used usage
	s.usage = func(*os.File) (usage, error) { return used, nil }
	now := time.Now()
	_, known := s.waiting(now)
	require.False(t, known, "nothing is known of the time before")
	// Four turns: in one it hardly waited, over all of them far too long.
	for turn, waited := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 130 * time.Millisecond, 110 * time.Millisecond} {
		used.on += 20 * time.Millisecond
		used.waited += waited
		at := now.Add(time.Duration(turn+1) * 500 * time.Millisecond)
		ratio, known := s.waiting(at)
		require.Equal(t, turn == 3, known)
		if known {
			require.InDelta(t, 4.5, ratio, 1e-9)
			require.Greater(t, ratio, float64(hopeless))
		}
	}
}

func TestUseOfTheCPUIsTold(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stat, err := openUsage(unix.Gettid())
	require.NoError(t, err)
	defer func() { require.NoError(t, stat.Close()) }()
	before, err := readUsage(stat)
	require.NoError(t, err)
	after := before
	for deadline := time.Now().Add(time.Minute); after.on-before.on < 10*time.Millisecond; {
		require.True(t, time.Now().Before(deadline))
		after, err = readUsage(stat)
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, after.waited, before.waited)
	_, err = openUsage(1 << 30)
	require.ErrorIs(t, err, os.ErrNotExist)

	other, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close()) }()
	_, err = readUsage(other)
	require.ErrorContains(t, err, os.DevNull)
}
