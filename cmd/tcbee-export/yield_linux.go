// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// Whether it helps that the reader yields is told by how long it is ready and waits for a CPU, for each second that it has one. Where
// it hardly waits there is a CPU for everybody; a reader that yields is then only in the way of those that wake up, because
// they take a CPU that it has for a free one. Where it waits very long, it would starve. Seen on two CPUs with one connection of
// requests: 0.1 to 0.35; with one of bulk 0.3 to 1 and with 64 of them 0.2 to 0.9; with 16 of requests: 5.7 to 9.5. While it yields the same is
// 1.2 to 2.9, 1.2 to 4.7 and 2.3 to 9, which tells the first two not apart: so it yields for a while and is then looked at anew, with its fair share.
const (
	crowded  = 0.5 // from here on it yields,
	hopeless = 3   // and from here on not

	yieldFor = 10 * time.Second     // until it is looked at again
	little   = 2 * time.Millisecond // of a CPU while it is looked at: too little to matter
)

// How long it is looked at each time: for some turns of the reader, because a single one says little (of 16 connections of requests one
// in fifty has less than hopeless).
const (
	someTurns = 4
	minPeriod = 500 * time.Millisecond
)

// periodOf is how long that is, given the time between two turns.
func periodOf(turn time.Duration) time.Duration { return max(minPeriod, someTurns*turn) }

// A reader that had to be given its share of the CPUs after all yields again after minPause, and each time later, up to maxPause, if
// that goes wrong within goodWhile. So does a process that had to take precedence give it up.
const (
	minPause  = 10 * time.Second
	maxPause  = 10 * time.Minute
	goodWhile = time.Minute
)

// extraHeap is by how much more than twice the heap may grow before garbage is collected while the reader yields.
const extraHeap = 16 << 20

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
	var err error
	if s.stat, err = openUsage(unix.Gettid()); err != nil {
		runtime.UnlockOSThread()
		s.log.Debug("the reader does not yield the CPU: the kernel does not tell for how long it waits (CONFIG_SCHED_INFO)", "error", err)
		return
	}
	s.reader.Store(int64(unix.Gettid()))
}

// end gives the thread back.
func (s *schedule) end() {
	if s.reader.Swap(0) == 0 {
		return
	}
	_ = s.stat.Close() // what was only read
	if err := policy(unix.Gettid(), unix.SCHED_BATCH); err != nil {
		s.log.Debug("the reader's thread goes on yielding the CPU", "error", err)
	}
	runtime.UnlockOSThread()
}

// quiet is for Capture.Watch: all is read in time.
func (s *schedule) quiet() {
	s.watches()
	if !s.ahead.Load() && time.Since(s.session.late) > calm {
		_ = s.session.set(s.session.was) // or the next time
	}
	now := time.Now()
	s.settle(now, false)
	switch {
	case s.yields == 0:
		if waits, known := s.waiting(now); known && waits >= crowded && waits < hopeless && !now.Before(s.again) && !s.starts.Load() {
			s.log.Debug("the reader yields the CPU", "waits", waits)
			s.yield(now)
		}
	case s.rushed.Load(), s.reader.Load() == 0:
		s.share()
		s.back(now)
	case now.Sub(s.since) >= yieldFor:
		s.log.Debug("whether the reader needs to yield the CPU is looked at again")
		s.share()
	default:
		if objects, _ := s.heapBytes(); objects > s.room {
			since := s.since
			s.share()
			runtime.GC()
			s.yield(now)
			s.since = since
		}
	}
}

// waiting is for how long the reader waited for a CPU, for each second that it had one, in the last period; false if that has not
// passed yet, or the kernel does not tell.
func (s *schedule) waiting(now time.Time) (ratio float64, known bool) {
	if s.reader.Load() == 0 || now.Sub(s.looked) < s.period {
		return 0, false
	}
	u, err := s.usage(s.stat)
	d := usage{u.on - s.used.on, u.waited - s.used.waited}
	first := s.looked.IsZero()
	s.used, s.looked = u, now
	if err != nil || first {
		return 0, false
	}
	if d.on < little {
		return 0, true
	}
	return float64(d.waited) / float64(d.on), true
}

// usage is what a thread has had of the CPUs.
type usage struct{ on, waited time.Duration }

// openUsage opens what the kernel tells of a thread of this process (Documentation/scheduler/sched-stats.rst).
func openUsage(thread int) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/task/%d/schedstat", thread))
}

// readUsage reads it anew.
func readUsage(f *os.File) (u usage, err error) {
	var b [64]byte // three numbers
	n, err := f.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return u, err
	}
	text := b[:n]
	for _, d := range []*time.Duration{&u.on, &u.waited} {
		number, rest, found := bytes.Cut(text, []byte{' '})
		ns, err := strconv.ParseInt(string(number), 10, 64)
		if !found || err != nil {
			return usage{}, fmt.Errorf("%s: %q", f.Name(), b[:n])
		}
		*d, text = time.Duration(ns), rest
	}
	return u, nil
}

// late is for Capture.Watch: events wait because the reader yields, or for another reason; or the ring fills up.
func (s *schedule) late(fills bool) {
	s.watches()
	s.session.late = time.Now()
	if err := s.session.set(min(s.session.was, urgentNice)); err != nil {
		s.log.Debug("the recorder's session may not take precedence over others", "error", err)
	}
	if s.yields != 0 {
		s.share()
		s.back(time.Now())
		s.log.Debug("the reader is given its share of the CPUs", "yielded", time.Since(s.since), "again_in", time.Until(s.again))
	}
	if fills {
		s.settle(time.Now(), true)
	}
}

// watches makes the calling goroutine's thread the watch's, once: it has precedence, so that it sees what happens in time.
func (s *schedule) watches() {
	if s.watch.Load() != 0 || !s.renicing.TryLock() {
		return
	}
	defer s.renicing.Unlock()
	runtime.LockOSThread() // until it ends
	thread := unix.Gettid()
	s.watch.Store(int64(thread))
	if err := unix.Setpriority(unix.PRIO_PROCESS, thread, min(s.nice, urgentNice)); err != nil {
		s.log.Debug("what watches the reader may have to wait for a CPU (CAP_SYS_NICE, or LimitNICE= of a systemd unit)", "error", err)
	}
}

// settle has the process take precedence where the ring fills up, and give it up where it was kept long enough.
func (s *schedule) settle(now time.Time, fills bool) {
	if !s.renicing.TryLock() {
		return // the next time
	}
	defer s.renicing.Unlock()
	if fills && !s.ahead.Swap(true) {
		s.precede()
	}
	switch {
	case !s.ahead.Load():
	case !s.keeps:
		s.keeps = true
		s.back(now)
	case !fills && !s.behind.Load() && !now.Before(s.again):
		s.ahead.Store(false)
		s.keeps, s.since = false, now
		_, err := s.renice()
		s.log.Debug("the recorder has kept up and gives up precedence", "nice", s.current, "error", err)
	}
}

// yield has the reader yield, if there is one.
func (s *schedule) yield(now time.Time) {
	reader := int(s.reader.Load())
	if reader == 0 || s.ahead.Load() {
		return
	}
	s.gcPercent = debug.SetGCPercent(-1) // waits for a collection that is under way
	objects, live := s.heapBytes()
	s.room = max(objects, 2*live) + extraHeap
	s.yields, s.since, s.looked = reader, now, time.Time{}
	s.rushed.Store(false)
	err := policy(reader, unix.SCHED_IDLE)
	if err != nil {
		s.log.Debug("the reader does not yield the CPU", "error", err)
	}
	if err != nil || s.ahead.Load() || s.reader.Load() == 0 { // meanwhile
		s.share()
		s.back(now)
	}
}

// share gives the reader its fair share.
func (s *schedule) share() {
	if err := policy(s.yields, unix.SCHED_BATCH); err != nil && !errors.Is(err, unix.ESRCH) {
		s.log.Warn("the reader cannot return from yielding the CPU: events may be lost", "error", err)
	}
	s.yields, s.looked = 0, time.Time{}
	debug.SetGCPercent(s.gcPercent)
}

// back says that it went wrong to do with less, and when it may be tried again, if that is not known yet.
func (s *schedule) back(now time.Time) {
	if now.Before(s.again) {
		return
	}
	if now.Sub(s.since) > goodWhile {
		s.pause = minPause
	}
	s.again, s.pause = now.Add(s.pause), min(2*s.pause, maxPause)
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
