// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Traffic is one end of a load, to be run in a process of its own. On out it writes a line "ready"
// when it listens; the end that measures (of Bulk the server, of Requests the client) writes "begin" when
// the measured time begins, and at its end a line of JSON: a Measured. Of Many see the method many.
type Traffic struct {
	Load
	Serve      bool   // listen at Addr, or else connect to it
	Addr       string // host:port
	WarmUp     time.Duration
	Duration   time.Duration
	Rounds     int // of Many, instead of the times
	Congestion string
}

// Measured is what an end of a load found.
type Measured struct {
	Seconds float64 `json:"seconds"`
	Bytes   uint64  `json:"bytes,omitempty"`    // received
	Answers uint64  `json:"requests,omitempty"` // answered
	P50     float64 `json:"p50_seconds,omitempty"`
	P99     float64 `json:"p99_seconds,omitempty"`
}

// bulkBuffer is what one call sends or receives at most.
const bulkBuffer = 128 << 10

// Run is the load's end until the time is over or ctx ends. Every connection has a thread and blocks in
// the kernel, as in a program without an event loop: what Go's poller costs is not part of the measurement.
func (t Traffic) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	if t.Kind == Many {
		return t.many(ctx, in, out)
	}
	runtime.GOMAXPROCS(t.Connections + 2)
	debug.SetGCPercent(-1) // a few MiB in all
	fds, err := t.open(ctx, out)
	if err != nil {
		return err
	}
	// A blocked thread ends when its connection does.
	defer shutdownAfter(ctx, fds)()
	switch {
	case t.Kind == Bulk && t.Serve:
		err = t.receive(ctx, out, fds)
	case t.Kind == Bulk:
		err = each(fds, sendAll)
	case t.Serve:
		err = each(fds, answer)
	default:
		err = t.ask(ctx, out, fds)
	}
	for _, fd := range fds {
		err = errors.Join(err, unix.Close(fd))
	}
	return errors.Join(err, ctx.Err())
}

// shutdownAfter ends the connections when ctx ends.
func shutdownAfter(ctx context.Context, fds []int) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		for _, fd := range fds {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR) // fails only if it has ended
		}
	})
}

// open makes the connections and returns their blocking descriptors.
func (t Traffic) open(ctx context.Context, out io.Writer) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}()
	var ln net.Listener
	if t.Serve {
		lc := net.ListenConfig{KeepAlive: -1}
		lc.SetMultipathTCP(false)
		if ln, err = lc.Listen(ctx, "tcp", t.Addr); err != nil {
			return nil, err
		}
		defer func() { _ = ln.Close() }()
		stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
		defer stop()
		if _, err := fmt.Fprintln(out, "ready"); err != nil {
			return nil, err
		}
	}
	dialer := net.Dialer{Control: t.control, KeepAlive: -1} // of very many connections it would be most of the traffic
	dialer.SetMultipathTCP(false)
	for range t.Connections {
		var c net.Conn
		if t.Serve {
			c, err = ln.Accept()
		} else {
			c, err = dialer.DialContext(ctx, "tcp", t.Addr)
		}
		if err != nil {
			return fds, err
		}
		fd, err := blocking(c.(*net.TCPConn))
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// control chooses the congestion control of a socket.
func (t Traffic) control(_, _ string, rc syscall.RawConn) error {
	if t.Congestion == "" {
		return nil
	}
	var err error
	if e := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, t.Congestion)
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("congestion control %q: %w", t.Congestion, err)
	}
	return nil
}

// blocking takes a connection out of Go's poller.
func blocking(c *net.TCPConn) (int, error) {
	defer func() { _ = c.Close() }()
	f, err := c.File()
	if err != nil {
		return -1, err
	}
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return -1, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	return fd, nil
}

// each runs f for every connection, on a thread of its own.
func each(fds []int, f func(fd int) error) error {
	errs := make([]error, len(fds))
	var wg sync.WaitGroup
	for i, fd := range fds {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			errs[i] = f(fd)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// sendAll sends until the receiver has had enough.
func sendAll(fd int) error {
	buf := make([]byte, bulkBuffer)
	for {
		_, err := unix.Write(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
			return nil
		case err != nil:
			return fmt.Errorf("send: %w", err)
		}
	}
}

// receive counts what comes within the measured time.
func (t Traffic) receive(ctx context.Context, out io.Writer, fds []int) error {
	type counter struct {
		n atomic.Uint64
		_ [56]byte // a cache line each
	}
	counts := make([]counter, len(fds))
	var ended atomic.Int32
	var over atomic.Bool
	var threads sync.WaitGroup
	for i, fd := range fds {
		threads.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			buf := make([]byte, bulkBuffer)
			for !over.Load() {
				n, err := unix.Read(fd, buf)
				if n > 0 {
					counts[i].n.Add(uint64(n))
				} else if !errors.Is(err, unix.EINTR) {
					ended.Add(1)
					return
				}
			}
		})
	}
	sum := func() (n uint64) {
		for i := range counts {
			n += counts[i].n.Load()
		}
		return n
	}
	m := Measured{}
	err := t.measure(ctx, out, func(elapsed func() float64) error {
		before := sum()
		if err := sleep(ctx, t.Duration); err != nil {
			return err
		}
		m.Bytes, m.Seconds = sum()-before, elapsed()
		if n := ended.Load(); n > 0 {
			return fmt.Errorf("%d of %d connections ended before their time", n, len(fds))
		}
		return nil
	}, &m)
	// The senders go on until the connections are closed.
	over.Store(true)
	for _, fd := range fds {
		_ = unix.Shutdown(fd, unix.SHUT_RD) // fails only if the connection has ended
	}
	threads.Wait()
	return err
}

// measure lets the load warm up, tells that it begins, runs f and prints m.
func (t Traffic) measure(ctx context.Context, out io.Writer, f func(elapsed func() float64) error, m *Measured) error {
	if err := sleep(ctx, t.WarmUp); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "begin"); err != nil {
		return err
	}
	start := time.Now()
	if err := f(func() float64 { return time.Since(start).Seconds() }); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(m)
}

// answer sends back what it gets until the client closes.
func answer(fd int) error {
	buf := make([]byte, RequestBytes)
	for {
		n, err := transfer(unix.Read, fd, buf)
		switch {
		case n == 0 && (err == nil || errors.Is(err, unix.ECONNRESET)):
			return nil
		case err == nil && n == len(buf):
			_, err = transfer(unix.Write, fd, buf)
		case err == nil:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// transfer reads or writes the whole buffer; less only at the end of the stream.
func transfer(call func(int, []byte) (int, error), fd int, buf []byte) (done int, err error) {
	for done < len(buf) {
		n, err := call(fd, buf[done:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return done, err
		case n == 0:
			return done, nil
		default:
			done += n
		}
	}
	return done, nil
}

// ask sends requests and times their answers.
func (t Traffic) ask(ctx context.Context, out io.Writer, fds []int) error {
	const warm, measured, over = 0, 1, 2
	var phase atomic.Int32
	taken := make([][]time.Duration, len(fds))
	next := atomic.Int32{}
	asked := make(chan error, 1)
	go func() {
		asked <- each(fds, func(fd int) error {
			samples := make([]time.Duration, 0, 1<<16)
			defer func(i int32) { taken[i] = samples }(next.Add(1) - 1)
			buf := make([]byte, RequestBytes)
			for {
				now := phase.Load()
				if now == over {
					return nil
				}
				start := time.Now()
				if _, err := transfer(unix.Write, fd, buf); err != nil {
					return fmt.Errorf("ask: %w", err)
				}
				n, err := transfer(unix.Read, fd, buf)
				if err == nil && n < len(buf) {
					err = io.ErrUnexpectedEOF
				}
				if err != nil {
					return fmt.Errorf("ask: %w", err)
				}
				if now == measured {
					samples = append(samples, time.Since(start))
				}
			}
		})
	}()
	m := Measured{}
	err := t.measure(ctx, out, func(elapsed func() float64) error {
		phase.Store(measured)
		err := sleep(ctx, t.Duration)
		phase.Store(over)
		m.Seconds = elapsed()
		if err = errors.Join(err, <-asked); err != nil {
			return err
		}
		all := slices.Concat(taken...)
		if len(all) == 0 {
			return errors.New("not one request was answered")
		}
		slices.Sort(all)
		m.Answers = uint64(len(all))
		m.P50, m.P99 = all[len(all)/2].Seconds(), all[len(all)*99/100].Seconds()
		return nil
	}, &m)
	return err
}

// sleep returns when the time is over, or with the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
