// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// grace is how long a process may take to start or to end, longGrace what one may take that works off at its end what
// it still has.
const (
	grace     = 30 * time.Second
	longGrace = 10 * time.Minute
)

// text is what a process has written so far.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// process is a child.
type process struct {
	cmd     *exec.Cmd
	out     *os.File // of pipe
	lines   *bufio.Scanner
	in      io.WriteCloser
	stderr  text
	ended   chan struct{}
	waitErr error
}

// start starts cmd inside a namespace; it is asked to end when ctx ends. It is not in the terminal's
// process group, so that a Ctrl-C reaches it once.
func (p *process) start(ctx context.Context, n *netlab.Namespace, cmd *exec.Cmd) error {
	cmd.SysProcAttr.Setpgid = true
	cmd.Stderr = &p.stderr
	p.cmd, p.ended = cmd, make(chan struct{})
	if err := n.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	cancel := context.AfterFunc(ctx, p.interrupt)
	go func() {
		defer close(p.ended)
		if err := cmd.Wait(); err != nil {
			p.waitErr = fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), cmd.Args[1], err, strings.TrimSpace(p.stderr.String()))
		}
		cancel()
	}()
	return nil
}

// pipe starts cmd, whose output line reads and to which tell talks.
func (p *process) pipe(ctx context.Context, n *netlab.Namespace, cmd *exec.Cmd) error {
	// Not StdoutPipe: Wait closes that while there is still something to read.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return errors.Join(err, r.Close(), w.Close())
	}
	cmd.Stdout = w
	if err := errors.Join(p.start(ctx, n, cmd), w.Close()); err != nil {
		return errors.Join(err, r.Close())
	}
	p.out, p.lines = r, bufio.NewScanner(r)
	return nil
}

// tell writes one line.
func (p *process) tell(line string) error {
	_, err := fmt.Fprintln(p.in, line)
	return err
}

// line returns the next line of output. If there is none, the error says why the process has ended.
func (p *process) line() (string, error) {
	if p.lines.Scan() {
		return p.lines.Text(), nil
	}
	if err := errors.Join(p.lines.Err(), p.wait()); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%s ended before its time", filepath.Base(p.cmd.Path))
}

// expect reads one line.
func (p *process) expect(want string) error {
	got, err := p.line()
	if err == nil && got != want {
		err = fmt.Errorf("%s was to say %q, not %q", filepath.Base(p.cmd.Path), want, got)
	}
	return err
}

// interrupt asks the process to end.
func (p *process) interrupt() {
	_ = p.cmd.Process.Signal(unix.SIGINT) // fails only if it has ended
}

// wait waits for the end, for a while; then it insists.
func (p *process) wait() error { return p.waitFor(grace) }

func (p *process) waitFor(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.ended:
	case <-t.C:
		_ = p.cmd.Process.Kill() // fails only if it has ended
		<-p.ended
	}
	if p.out != nil {
		_ = p.out.Close()
	}
	return p.waitErr
}

// end waits for a process that ends by itself, unless something has gone wrong before: then it is ended.
func (p *process) end(err *error) {
	if *err != nil {
		p.interrupt()
		_ = p.wait() // how it ends is a consequence
		return
	}
	*err = p.wait()
}

// watch reads the process's anonymous memory again and again and tells the most when it has ended.
func (p *process) watch() <-chan uint64 {
	most := make(chan uint64, 1)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var high uint64
		for {
			high = max(high, rssAnonOf(p.cmd.Process.Pid))
			select {
			case <-tick.C:
			case <-p.ended:
				most <- high
				return
			}
		}
	}()
	return most
}

// cpu is the CPU time that the process, which has ended, has used, in seconds.
func (p *process) cpu() float64 {
	return (p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()).Seconds()
}
