// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/metrics"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// urgentNice is the niceness of a recorder that falls behind: among a hundred busy threads it has almost half of
// a CPU, where its fair share would be a hundredth, and it does not wait for its turn behind all of them.
const urgentNice = -20

// schedule is how the process asks for the CPUs. It works in batches (SCHED_BATCH, sched(7)): the ring holds seconds of
// events, so they can wait until a CPU is free, and the recorder never interrupts the programs that it watches by waking up. The
// thread that reads and encodes events goes further where others compete with it: it yields (SCHED_IDLE), and runs when nobody else wants the CPU, or hardly. A
// thread that yields cannot see that it starves: the capture watches it (bpf.Capture.Watch), and it gets its fair share as soon as
// events begin to wait. Where so many want the CPUs that the ring fills up all the same, the process
// takes precedence, and keeps it for a while: where a fair share comes too late once it does so again. Threads of the Go runtime that start
// later inherit that.
//
// The watch must never wait for the reader, which may not run for seconds: they share atomic values and a lock that the watch only tries,
// and no garbage is collected while the reader yields, because that stops all goroutines and waits until they do.
// Its own thread always has precedence, for the few microseconds that it takes a few times a second.
type schedule struct {
	log     *slog.Logger
	nice    int          // as the process began
	allowed bool         // by RLIMIT_NICE, to take precedence
	reader  atomic.Int64 // thread that may yield, 0: none
	stat    *os.File     // its use of the CPUs, while there is one
	watch   atomic.Int64 // thread of the watch, 0: not yet
	behind  atomic.Bool  // the reader is
	ahead   atomic.Bool  // it was, and the process keeps precedence
	starts  atomic.Bool  // the process does
	rushed  atomic.Bool  // the reader was behind, and yields no more

	renicing sync.Mutex // held while the niceness, or what it depends on, changes
	current  int        // niceness

	// Of the watch alone.
	yields    int       // thread that does
	keeps     bool      // precedence, until again
	since     time.Time // when the process last began to do with less: the reader yields, or precedence has ended
	again     time.Time // when it may do so again
	pause     time.Duration
	gcPercent int // as the process began
	session   session
	period    time.Duration // for which the reader is looked at
	usage     func(*os.File) (usage, error)
	used      usage     // of the reader,
	looked    time.Time // when it was looked at
	heap      []metrics.Sample
	room      uint64 // bytes on the heap from which garbage is collected all the same
}

// newSchedule has the process work in batches, and sees to it that it may take precedence later, without
// the right to. turn is the time between two turns of the reader.
func newSchedule(turn time.Duration, log *slog.Logger) *schedule {
	s := &schedule{
		log: log, period: periodOf(turn), pause: minPause, session: findSession(), usage: readUsage,
		heap: []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}, // see heapBytes
	}
	if attr, err := unix.SchedGetAttr(0, 0); err == nil {
		s.nice, s.current = int(attr.Nice), int(attr.Nice)
	}
	if err := eachThread(batch); err != nil {
		log.Warn("the recorder may interrupt other programs", "error", err)
	}
	if err := eachThread(lazy); err != nil {
		log.Debug("the recorder wakes up more often than it has to (CAP_SYS_NICE, or TimerSlackNSec= of a systemd unit)", "error", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NICE, &limit); err == nil {
		const want = 20 - urgentNice
		raised := unix.Rlimit{Cur: max(limit.Cur, want), Max: max(limit.Max, want)}
		s.allowed = limit.Cur >= want || unix.Setrlimit(unix.RLIMIT_NICE, &raised) == nil
	}
	return s
}

// timerSlack is by how much a sleep of the process may last longer. With each turn of the recorder the Go runtime's monitor
// begins to look at it every 20 µs, some fifty times: wake-ups that other programs feel, for what can wait.
const timerSlack = 5 * time.Millisecond

// lazy gives a thread that slack. Another one than the caller takes CAP_SYS_NICE.
func lazy(thread int) error {
	err := os.WriteFile(slackFile(thread), strconv.AppendInt(nil, int64(timerSlack), 10), 0)
	if errors.Is(err, os.ErrNotExist) {
		return unix.ESRCH
	}
	return err
}

func slackFile(thread int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", thread) }

// rights are the capabilities that hurry takes: none where the limit could be raised, which takes CAP_SYS_RESOURCE.
func (s *schedule) rights() []uint {
	if s.allowed {
		return nil
	}
	return []uint{unix.CAP_SYS_NICE}
}

// policy changes the policy of a thread and leaves its niceness.
func policy(thread int, policy uint32) error {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil {
		return err
	}
	attr.Policy = policy
	return unix.SchedSetAttr(thread, attr, 0)
}

// hurry is for Capture.OnBacklog, which the reader calls. Precedence ends later: see settle.
func (s *schedule) hurry(behind bool) {
	s.behind.Store(behind)
	if !behind {
		return
	}
	if thread := s.reader.Load(); thread != 0 {
		_ = policy(int(thread), unix.SCHED_BATCH) // the watch tries too, and tells
		s.rushed.Store(true)
	}
	s.renicing.Lock()
	defer s.renicing.Unlock()
	if !s.ahead.Swap(true) {
		s.precede()
	}
}

// start has the process take precedence until started, and the reader not yield. What is attached records already, and until rights are
// given up, which each thread of the process has to do while no goroutine runs, nobody may read: on a host with many busy threads
// that has taken 2.9 s, and the ring was full.
//
// It must be called before Capture.Watch, whose quiet ends the session's precedence.
func (s *schedule) start() {
	s.session.late = time.Now()
	_ = s.session.set(min(s.session.was, urgentNice)) // late tells
	s.renicing.Lock()
	defer s.renicing.Unlock()
	s.starts.Store(true)
	if _, err := s.renice(); err != nil {
		s.log.Debug("the recorder may not take precedence while it starts", "error", err)
	}
}

// started ends it. Any goroutine may call it.
func (s *schedule) started() {
	s.renicing.Lock()
	defer s.renicing.Unlock()
	s.starts.Store(false)
	if _, err := s.renice(); err != nil {
		s.log.Debug("the recorder keeps precedence", "error", err)
	}
}

// precede has the process take precedence, because it is behind. s.renicing must be held.
func (s *schedule) precede() {
	switch changed, err := s.renice(); {
	case err != nil:
		s.log.Warn("the recorder falls behind and may not take precedence (CAP_SYS_NICE, or LimitNICE= of a systemd unit)", "error", err)
	case changed:
		s.log.Debug("the recorder falls behind and takes precedence", "nice", s.current)
	}
}

// renice gives all threads the niceness that the process needs now, and tells whether it changes. s.renicing must be held.
func (s *schedule) renice() (changed bool, err error) {
	nice := s.nice
	if s.ahead.Load() || s.starts.Load() {
		nice = min(nice, urgentNice)
	}
	if nice == s.current {
		return false, nil
	}
	err = eachThread(func(thread int) error {
		if thread == int(s.watch.Load()) {
			return nil
		}
		return unix.Setpriority(unix.PRIO_PROCESS, thread, nice)
	})
	if err == nil {
		s.current = nice
	}
	return true, err
}

// eachThread calls f for all threads of the process, those too that start meanwhile.
func eachThread(f func(thread int) error) error {
	done := map[int]bool{}
	for again := true; again; { // a thread that was not reached yet may have started another one
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil || done[id] {
				continue
			}
			done[id], again = true, true
			if err := f(id); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// batch changes the policy of a thread of the usual one.
func batch(thread int) error {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return err
	}
	return policy(thread, unix.SCHED_BATCH)
}
