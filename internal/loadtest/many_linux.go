// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// many is an end of very many connections at once. Both ends walk along them in the order in which they were opened, so
// that neither needs a thread or a poller for them. The client writes "open" when all of its are, waits for a
// line on in, and writes "done" when all have asked; then it closes them.
func (t Traffic) many(ctx context.Context, in io.Reader, out io.Writer) (err error) {
	fds, err := t.open(ctx, out)
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	defer shutdownAfter(ctx, fds)()
	if !t.Serve {
		if _, err := fmt.Fprintln(out, "open"); err != nil {
			return err
		}
		if _, err := in.Read(make([]byte, 1)); err != nil {
			return fmt.Errorf("wait for the others: %w", err)
		}
	}
	buf := make([]byte, RequestBytes)
	walk := func(call func(int, []byte) (int, error), what string) error {
		for i, fd := range fds {
			n, err := transfer(call, fd, buf)
			if err == nil && n < len(buf) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return errors.Join(ctx.Err(), fmt.Errorf("connection %d: %s: %w", i, what, err))
			}
		}
		return nil
	}
	for range t.Rounds {
		if t.Serve {
			for i, fd := range fds {
				if err := exchange(fd, buf); err != nil {
					return errors.Join(ctx.Err(), fmt.Errorf("connection %d: %w", i, err))
				}
			}
			continue
		}
		// All requests are under way before the first answer is read.
		if err := errors.Join(walk(unix.Write, "ask"), walk(unix.Read, "answer")); err != nil {
			return err
		}
	}
	if !t.Serve {
		if _, err := fmt.Fprintln(out, "done"); err != nil {
			return err
		}
		for _, fd := range fds {
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				return os.NewSyscallError("shutdown", err)
			}
		}
	}
	// The client waits for the server's FINs, the server for the client's before it sends its own.
	for i, fd := range fds {
		n, err := transfer(unix.Read, fd, buf[:1])
		if err == nil && n > 0 {
			err = errors.New("more data than was to come")
		}
		if err == nil && t.Serve {
			err = unix.Shutdown(fd, unix.SHUT_WR)
		}
		if err != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("end of connection %d: %w", i, err))
		}
	}
	return nil
}

// exchange reads a request and answers it.
func exchange(fd int, buf []byte) error {
	n, err := transfer(unix.Read, fd, buf)
	if err == nil && n < len(buf) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		_, err = transfer(unix.Write, fd, buf)
	}
	return err
}
