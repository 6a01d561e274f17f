// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/tcbee/tcbee-export/config"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Exit statuses. They are part of the interface: scripts branch on them.
const (
	codeOK          = 0
	codeFailure     = 1
	codeUsage       = 2
	codeKernel      = 3
	codeSpool       = 4
	codeExport      = 5
	codeInterrupted = 130
)

// exitCodes explains the statuses, in the help and in the README.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{codeOK, "done; also after Ctrl-C or SIGTERM where a capture was to go on until then"},
	{codeFailure, "failed for a reason that none of the others names"},
	{codeUsage, "wrong command line or configuration, an interface that does not exist"},
	{codeKernel, "a right or a feature of the kernel is missing; \"tcbee-export doctor\" tells which"},
	{codeSpool, "the spool is missing, cannot be read or written, is damaged, in use, or of a newer version"},
	{codeExport, "metrics could not be delivered (the spool keeps the events)"},
	{codeInterrupted, "interrupted before the end, or aborted by a second Ctrl-C"},
}

var errInterrupted = errors.New("interrupted")

// coded is an error with the exit status that it means.
type coded struct {
	error
	code int
}

func (c *coded) Unwrap() error { return c.error }

// withCode gives the error an exit status, unless one within it has it already.
func withCode(code int, err error) error {
	var c *coded
	if err == nil || errors.As(err, &c) {
		return err
	}
	return &coded{err, code}
}

// advised is an error with a piece of advice.
type advised struct {
	error
	hint string
}

func (a *advised) Unwrap() error { return a.error }
func (a *advised) Hint() string  { return a.hint }

func withHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &advised{err, hint}
}

// exitCode is the status for the error that a command returned.
func exitCode(err error) int {
	var (
		c      *coded
		faults config.Faults
		sink   *pipeline.SinkError
		damage *spool.DamageError
		target *pipeline.TargetError
		merge  *pipeline.MergeError
		choice *pipeline.SelectionError
	)
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &c):
		return c.code
	case errors.As(err, &faults), errors.As(err, &target), errors.As(err, &merge), errors.As(err, &choice):
		return codeUsage
	case errors.As(err, &sink):
		return codeExport
	case errors.As(err, &damage), is(spool.ErrNotSpool, spool.ErrVersion, spool.ErrLocked, spool.ErrFull, spool.ErrGone,
		spool.ErrReadOnly, spool.ErrKey, block.ErrCorrupt, block.ErrVersion):
		return codeSpool
	case is(errInterrupted, context.Canceled):
		return codeInterrupted
	}
	return codeFailure
}

// report prints the error for a person: what, where and what to do; each of several faults on a line
// of its own.
func report(w io.Writer, command string, err error) {
	prefix := "tcbee-export: "
	if command != "" {
		prefix += command + ": "
	}
	var hints []string
	for _, e := range parts(err) {
		text := strings.TrimSpace(e.Error())
		fmt.Fprintf(w, "%s%s\n", prefix, strings.TrimPrefix(text, command+": "))
		var h interface{ Hint() string }
		if errors.As(e, &h) && h.Hint() != "" {
			hints = append(hints, h.Hint())
		}
	}
	var h interface{ Hint() string }
	if len(hints) == 0 && errors.As(err, &h) && h.Hint() != "" {
		hints = append(hints, h.Hint())
	}
	printed := map[string]bool{}
	for _, h := range hints {
		if !printed[h] {
			fmt.Fprintf(w, "hint: %s\n", h)
		}
		printed[h] = true
	}
}

// parts takes joined errors apart, as far as nothing is lost by it: one that was wrapped in words of
// its own stays whole.
func parts(err error) []error {
	var c *coded
	for e := err; e != nil; {
		if c2, ok := e.(*coded); ok { //nolint:errorlint // only the outermost one is meant
			c, e = c2, c2.error
			continue
		}
		if many, ok := e.(interface{ Unwrap() []error }); ok {
			joined := many.Unwrap()
			var texts []string
			for _, j := range joined {
				texts = append(texts, j.Error())
			}
			if e.Error() != strings.Join(texts, "\n") {
				break
			}
			var out []error
			for _, j := range joined {
				out = append(out, parts(j)...)
			}
			return out
		}
		break
	}
	if c != nil {
		return []error{c.error}
	}
	return []error{err}
}

// spoolError adds advice to what goes wrong with a spool's directory, and gives it its exit status.
func spoolError(dir string, err error) error {
	if err == nil {
		return nil
	}
	var h interface{ Hint() string }
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &h):
	case errors.Is(err, fs.ErrNotExist):
		err = withHint(err, "name the directory that record or run was given with --spool")
	case errors.Is(err, fs.ErrPermission):
		err = withHint(err, "use sudo, or a directory that you may read and write")
	}
	if !strings.Contains(err.Error(), dir) {
		err = fmt.Errorf("spool %s: %w", dir, err)
	}
	return withCode(codeSpool, err)
}
