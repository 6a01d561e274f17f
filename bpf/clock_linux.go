// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Anchors are written this often, and when the wall clock has moved this far from
// where the last one would have it.
const (
	anchorEvery = 10_000_000_000 // ns
	anchorDrift = 250_000        // ns
)

// began is a moment on both clocks, the system's read first: what monotonic returns is never ahead of it.
var began = sameMoment()

type moment struct {
	clock int64
	time  time.Time
}

// sameMoment takes the closest of a few readings: between the two of one the process may have lost the CPU.
func sameMoment() (best moment) {
	least := int64(math.MaxInt64)
	for range 5 {
		m := moment{clock(unix.CLOCK_MONOTONIC), time.Now()}
		if d := clock(unix.CLOCK_MONOTONIC) - m.clock; d < least {
			least, best = d, m
		}
	}
	return best
}

// monotonic is the clock of bpf_ktime_get_ns, or a microsecond or so behind it. The Go runtime reads it without a
// system call, for which the reader would wait at every batch.
func monotonic() uint64 { return uint64(began.clock + int64(time.Since(began.time))) }

func clock(id int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic("BUG: clock_gettime: " + err.Error())
	}
	return ts.Nano()
}

// anchors ties the monotonic clock to the others.
type anchors struct {
	session uint64
	last    event.Anchor
}

func newAnchors() (*anchors, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("make a session's id: %w", err)
	}
	return &anchors{session: binary.LittleEndian.Uint64(b[:])}, nil
}

// append reads the clocks and appends an anchor. Of a few readings the closest is taken.
func (a *anchors) append(dst []byte, phase uint32) []byte {
	a.last.Uncertainty = 1<<32 - 1
	for range 5 {
		t0 := clock(unix.CLOCK_MONOTONIC)
		wall := clock(unix.CLOCK_REALTIME)
		tai := clock(unix.CLOCK_TAI)
		t1 := clock(unix.CLOCK_MONOTONIC)
		if d := uint32(min(t1-t0, 1<<32-1)); d < a.last.Uncertainty {
			a.last.Uncertainty = d
			a.last.Time = uint64(t0 + (t1-t0)/2)
			a.last.Realtime = wall
			a.last.TAI = tai
		}
	}
	a.last.Session, a.last.Phase = a.session, phase
	return event.Append(dst, &a.last)
}

// due tells whether a periodic anchor is to be written now: the last one is old, or the wall
// clock was set or slewed.
func (a *anchors) due(now uint64) bool {
	since := int64(now - a.last.Time)
	if since >= anchorEvery {
		return true
	}
	off := clock(unix.CLOCK_REALTIME) - a.last.Realtime - since
	return off > anchorDrift || off < -anchorDrift
}

// clockWatch tells when the wall clock is set.
type clockWatch struct {
	timer *os.File
	wait  sync.WaitGroup
}

// start calls told after each time that the wall clock is set: by a person, by a time service that
// does not slew, by a leap second, by the end of a suspension. The timer, which is for the year 2242, is cancelled then (timerfd_create(2)).
func (w *clockWatch) start(told func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch the wall clock: %w", err)
	}
	w.timer = os.NewFile(uintptr(fd), "timerfd")
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: 1 << 33}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil {
		return fmt.Errorf("watch the wall clock: %w", err)
	}
	w.wait.Go(func() {
		var expired [8]byte
		for {
			_, err := w.timer.Read(expired[:])
			switch {
			case errors.Is(err, unix.ECANCELED):
				told()
			case err != nil:
				return // closed
			}
		}
	})
	return nil
}

// close ends the watch.
func (w *clockWatch) close() error {
	if w.timer == nil {
		return nil
	}
	err := w.timer.Close()
	w.wait.Wait()
	return err
}
