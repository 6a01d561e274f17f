// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// urgentNice is the niceness of a recorder that falls behind: among a hundred busy threads it has a fifth of
// a CPU, where its fair share would be a hundredth.
const urgentNice = -15

// A reader that had to be given its share of the CPUs after all yields again after minPause, and each time later, up to maxPause, if
// that goes wrong within goodWhile.
const (
	minPause  = 10 * time.Second
	maxPause  = 10 * time.Minute
	goodWhile = time.Minute
)

// extraHeap is by how much more than twice the heap may grow before garbage is collected while the reader yields.
const extraHeap = 16 << 20

// schedule is how the process asks for the CPUs. It works in batches (SCHED_BATCH, sched(7)): the ring holds seconds of
// events, so they can wait until a CPU is free, and the recorder never interrupts the programs that it watches by waking up. The
// thread that reads and encodes events goes further: it yields (SCHED_IDLE), and runs when nobody else wants the CPU, or hardly. A
// thread that yields cannot see that it starves: the capture watches it (bpf.Capture.Watch), and it gets its fair share as soon as
// events begin to wait. Where so many want the CPUs that the ring fills up all the same, the process
// takes precedence until it has caught up. Threads of the Go runtime that start later inherit that.
//
// The watch must never wait for the reader, which may not run for seconds: they share atomic values and no lock,
// and no garbage is collected while the reader yields, because that stops all goroutines and waits until they do.
type schedule struct {
	log     *slog.Logger
	nice    int          // as the process began
	allowed bool         // by RLIMIT_NICE, to take precedence
	reader  atomic.Int64 // thread that may yield, 0: none
	behind  atomic.Bool  // the process takes precedence
	rushed  atomic.Bool  // it did, and the reader yields no more

	// Of the watch alone.
	yields    int       // thread that does
	since     time.Time // when it began
	again     time.Time // when the reader may do so again
	pause     time.Duration
	gcPercent int // as the process began
	session   session
	heap      []metrics.Sample
	room      uint64 // bytes on the heap from which garbage is collected all the same
}

// newSchedule has the process work in batches, and sees to it that it may take precedence later, without
// the right to.
func newSchedule(log *slog.Logger) *schedule {
	s := &schedule{log: log, pause: minPause, session: findSession(), heap: []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}}
	if attr, err := unix.SchedGetAttr(0, 0); err == nil {
		s.nice = int(attr.Nice)
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

// source returns src with a Next whose thread yields. That goroutine keeps its thread until src ends.
func (s *schedule) source(src pipeline.Source) pipeline.Source { return &yielding{Source: src, s: s} }

// yielding is a source whose reader lets others go first.
type yielding struct {
	pipeline.Source
	s     *schedule
	begun bool
}

func (y *yielding) Next(ctx context.Context) ([]byte, error) {
	if !y.begun {
		y.begun = true
		y.s.begin()
	}
	batch, err := y.Source.Next(ctx)
	if err != nil {
		y.s.end()
	}
	return batch, err
}

// begin makes the calling goroutine's thread the reader.
func (s *schedule) begin() {
	if err := canReturn(); err != nil {
		s.log.Debug("the reader may not yield the CPU: it could not return from that (CAP_SYS_NICE, or LimitNICE= of a systemd unit)", "error", err)
		return
	}
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2) // or nothing else of the process runs while the reader waits for the CPU
	}
	runtime.LockOSThread()
	s.reader.Store(int64(unix.Gettid()))
}

// end gives the thread back.
func (s *schedule) end() {
	if s.reader.Swap(0) == 0 {
		return
	}
	if err := policy(unix.Gettid(), unix.SCHED_BATCH); err != nil {
		s.log.Debug("the reader's thread goes on yielding the CPU", "error", err)
	}
	runtime.UnlockOSThread()
}

// quiet is for Capture.Watch: all is read in time.
func (s *schedule) quiet() {
	if !s.behind.Load() && time.Since(s.session.late) > calm {
		_ = s.session.set(s.session.was) // or the next time
	}
	switch {
	case s.yields == 0:
		if now := time.Now(); !now.Before(s.again) {
			s.yield(now)
		}
	case s.rushed.Load():
		s.share()
	default:
		if objects, _ := s.heapBytes(); objects > s.room {
			again, pause := s.again, s.pause
			s.share()
			runtime.GC()
			s.again, s.pause = again, pause
		}
	}
}

// late is for Capture.Watch: events wait because the reader yields, or for another reason.
func (s *schedule) late() {
	s.session.late = time.Now()
	if err := s.session.set(min(s.session.was, urgentNice)); err != nil {
		s.log.Debug("the recorder's session may not take precedence over others", "error", err)
	}
	if s.yields != 0 {
		s.share()
		s.log.Debug("the reader is given its share of the CPUs", "yielded", time.Since(s.since), "again_in", time.Until(s.again))
	}
}

// yield has the reader yield, if there is one.
func (s *schedule) yield(now time.Time) {
	reader := int(s.reader.Load())
	if reader == 0 || s.behind.Load() {
		return
	}
	s.gcPercent = debug.SetGCPercent(-1) // waits for a collection that is under way
	objects, live := s.heapBytes()
	s.room = max(objects, 2*live) + extraHeap
	s.yields, s.since = reader, now
	s.rushed.Store(false)
	if err := policy(reader, unix.SCHED_IDLE); err != nil {
		s.log.Debug("the reader does not yield the CPU", "error", err)
		s.share()
		return
	}
	if s.behind.Load() || s.reader.Load() == 0 { // meanwhile
		s.share()
	}
}

// share gives the reader its fair share.
func (s *schedule) share() {
	if err := policy(s.yields, unix.SCHED_BATCH); err != nil && !errors.Is(err, unix.ESRCH) {
		s.log.Warn("the reader cannot return from yielding the CPU: events may be lost", "error", err)
	}
	s.yields = 0
	debug.SetGCPercent(s.gcPercent)
	now := time.Now()
	if now.Sub(s.since) > goodWhile {
		s.pause = minPause
	}
	s.again, s.pause = now.Add(s.pause), min(2*s.pause, maxPause)
}

// calm is for how long all must be read in time until the session gives its precedence up: it may not change often.
const calm = time.Second

// session is the group in which the kernel schedules all processes of a session, as one among others (autogroup, sched(7)). Where it does
// so, which is where processes have no cgroups for the CPU, niceness tells apart only those of the same session. A service has a session of
// its own, which ends with it; one that began before this process is left alone.
type session struct {
	was, nice int
	grouped   bool
	late      time.Time // when it was last in need of precedence
}

const autogroup = "/proc/self/autogroup"

// findSession looks for the process's group, if it is its own.
func findSession() (g session) {
	if id, err := unix.Getsid(0); err != nil || id != os.Getpid() {
		return g
	}
	b, err := os.ReadFile(autogroup)
	if err != nil {
		return g
	}
	_, nice, found := strings.Cut(string(b), " nice ")
	n, err := strconv.Atoi(strings.TrimSpace(nice))
	if !found || err != nil {
		return g
	}
	return session{was: n, nice: n, grouped: true}
}

// set changes the niceness of the group. The kernel allows that every 100 ms: what it refuses is to be tried again.
func (g *session) set(nice int) error {
	if !g.grouped || g.nice == nice {
		return nil
	}
	err := os.WriteFile(autogroup, strconv.AppendInt(nil, int64(nice), 10), 0)
	if err == nil {
		g.nice = nice
	}
	return err
}

// heapBytes is the size of all objects on the heap, and of those that the last collection found alive.
func (s *schedule) heapBytes() (objects, live uint64) {
	metrics.Read(s.heap)
	return s.heap[0].Value.Uint64(), s.heap[1].Value.Uint64()
}

// canReturn tries, on a thread that waits meanwhile, whether a thread that yields can go back to its fair share.
func canReturn() error {
	thread, done := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread() // without Unlock: the thread is not used again, whatever became of it
		thread <- unix.Gettid()
		<-done
	}()
	defer close(done)
	id := <-thread
	if err := policy(id, unix.SCHED_IDLE); err != nil {
		return err
	}
	return policy(id, unix.SCHED_BATCH)
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

// hurry is for Capture.OnBacklog, which the reader calls.
func (s *schedule) hurry(behind bool) {
	s.behind.Store(behind)
	nice := s.nice
	if behind {
		nice = min(nice, urgentNice)
		if thread := s.reader.Load(); thread != 0 {
			_ = policy(int(thread), unix.SCHED_BATCH) // the watch tries too, and tells
			s.rushed.Store(true)
		}
	}
	err := eachThread(func(thread int) error { return unix.Setpriority(unix.PRIO_PROCESS, thread, nice) })
	switch {
	case err != nil && behind:
		s.log.Warn("the recorder falls behind and may not take precedence (CAP_SYS_NICE, or LimitNICE= of a systemd unit)", "error", err)
	case behind:
		s.log.Debug("the recorder falls behind and takes precedence", "nice", nice)
	default:
		s.log.Debug("the recorder has caught up", "nice", nice)
	}
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
