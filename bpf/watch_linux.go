// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lateAfter is how much longer than it would sleep on its own account Next may look at nothing.
const lateAfter = 250 * time.Millisecond

// watcher sees what a reader cannot see that does not get the CPU: that it does not.
type watcher struct {
	epoll int
	quit  int // eventfd
	ended chan struct{}
}

// Watch has late called, on a goroutine of its own, when the ring becomes a quarter full (fills is true then), and as long as Next does
// not look into it for a quarter of a second longer than it would wait; else quiet, a few times a second. It is for a reader that lets
// all others have the CPU first, and must be called before the first Next, once.
func (c *Capture) Watch(late func(fills bool), quiet func()) error {
	w := &watcher{epoll: -1, quit: -1, ended: make(chan struct{})}
	close(w.ended) // until the goroutine runs
	c.watcher = w
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("watch the ring: %w", err)
	}
	if w.quit, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("watch the ring: %w", err)
	}
	// Edge-triggered: the ring has data most of the time, and only a call of the kernel matters.
	for fd, events := range map[int]uint32{c.ring.fd: unix.EPOLLIN | unix.EPOLLET, w.quit: unix.EPOLLIN} {
		if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
			return fmt.Errorf("watch the ring: %w", err)
		}
	}
	w.ended = make(chan struct{})
	go c.watch(w, late, quiet)
	return nil
}

func (c *Capture) watch(w *watcher, late func(fills bool), quiet func()) {
	defer close(w.ended)
	var events [2]unix.EpollEvent
	var looks uint64
	timeout := int((c.cfg.FlushAge + lateAfter).Milliseconds())
	for {
		n, err := unix.EpollWait(w.epoll, events[:], timeout)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			c.log.Warn("nobody watches whether the reader gets the CPU", "error", err)
			late(false)
			return
		case n == 0:
			now := c.looks.Load()
			if now == looks {
				late(false)
			} else {
				quiet()
			}
			looks = now
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == w.quit {
				return
			}
		}
		if c.ring.used() > c.ring.mask/4 {
			late(true)
		}
	}
}

// close ends the watch. A nil watcher has none.
func (w *watcher) close() error {
	if w == nil {
		return nil
	}
	var errs []error
	if w.quit >= 0 {
		one := [8]byte{1}
		_, err := unix.Write(w.quit, one[:])
		<-w.ended
		errs = append(errs, err, unix.Close(w.quit))
	}
	if w.epoll >= 0 {
		errs = append(errs, unix.Close(w.epoll))
	}
	return errors.Join(errs...)
}

// callMe has the kernel tell, once, when the ring is a quarter full: it ends a wait and goes to the watcher.
func (c *Capture) callMe() {
	if call := (*uint32)(unsafe.Pointer(&c.control[0])); atomic.LoadUint32(call) == 0 {
		atomic.StoreUint32(call, 1)
	}
}
