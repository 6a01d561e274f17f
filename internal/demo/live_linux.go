// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// live captures the traffic of a small network into dir/spool with the command "run".
func live(ctx context.Context, o Options, dir string, n network) (err error) {
	lab, err := netlab.New(ctx, netlab.Options{
		Rate: n.rate, LossToB: netlab.Loss{OneIn: n.loss}, NoOffload: true,
	})
	var setup *netlab.SetupError
	if errors.As(err, &setup) && ctx.Err() == nil {
		return cannotCapture{err}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()

	fmt.Fprintf(o.Stderr, "Two network namespaces are joined by a router: %g Mbit/s, one data packet in %d is lost.\n",
		float64(n.rate)/1e6, n.loss)
	ready := filepath.Join(dir, "ready")
	args := []string{
		"run", "--interface", lab.A.Interface, "--set", "capture.netns=own", "--spool", spoolIn(dir),
		"--output", "terminal", "--interval", interval.String(), "--duration", o.Duration.String(), "--ready-file", ready,
	}
	announce(o, args)
	cmd := lab.A.Command(o.Program, args...)
	cmd.Stdout, cmd.Stderr = o.Stdout, o.Stderr
	// In a process group of its own a Ctrl-C reaches it once: from here.
	cmd.SysProcAttr.Setpgid = true
	// Ends when the command has ended.
	running, ended := context.WithCancelCause(context.Background())
	begin := lab.A.Start
	if n.anonymous {
		begin = func(cmd *exec.Cmd) error { return startAnonymous(running, lab.A, cmd, dir) }
	}
	if err := begin(cmd); err != nil {
		ended(err)
		return fmt.Errorf("start %s: %w", o.Program, err)
	}
	var exit error
	go func() {
		exit = cmd.Wait()
		ended(errors.New("run has ended"))
	}()
	stop := context.AfterFunc(ctx, func() { terminate(running, cmd) })
	defer stop()

	started := waitReady(running, ready) == nil
	if started {
		moveData(running, o, lab, n)
	}
	<-running.Done()
	if err := os.Remove(ready); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case exit == nil:
		return nil
	case ctx.Err() != nil && started:
		return nil // interrupted; the spool has what came before
	case !started && ctx.Err() == nil:
		return cannotCapture{fmt.Errorf("run: %w", exit)}
	}
	return fmt.Errorf("run: %w", exit)
}

// startAnonymous starts the command where host name, machine id and boot id say nothing. The
// files that stand in for the latter are made in dir.
func startAnonymous(running context.Context, n *netlab.Namespace, cmd *exec.Cmd, dir string) error {
	started := make(chan error)
	go func() {
		// The thread is unfit for anything else afterwards: it is never unlocked and ends with
		// this goroutine, which must outlive the command (see netlab.Namespace.Command).
		runtime.LockOSThread()
		started <- n.Do(func() error {
			if err := disguise(dir); err != nil {
				return fmt.Errorf("hide the host's identity: %w", err)
			}
			return cmd.Start()
		})
		<-running.Done()
	}()
	return <-started
}

// disguise gives the calling thread a mount and a UTS namespace without the host's identity.
func disguise(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for file, id := range map[string]string{
		"/etc/machine-id":                 strings.Repeat("0", 32) + "\n",
		"/proc/sys/kernel/random/boot_id": "00000000-0000-0000-0000-000000000000\n",
	} {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		standIn := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(standIn, []byte(id), 0o444); err != nil {
			return err
		}
		if err := unix.Mount(standIn, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", file, err)
		}
	}
	if err := unix.Sethostname([]byte("demo")); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	return nil
}

// terminate asks the command to end, and insists after a while.
func terminate(running context.Context, cmd *exec.Cmd) {
	_ = cmd.Process.Signal(unix.SIGINT) // fails only if it has ended
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-running.Done():
	case <-t.C:
		_ = cmd.Process.Signal(syscall.SIGKILL)
	}
}

// waitReady waits until the file is there or ctx ends.
func waitReady(ctx context.Context, file string) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		if _, err := os.Stat(file); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// moveData keeps the network busy until its work is done or ctx ends: a bulk transfer for each
// congestion control that the kernel has, requests and responses, a reset and a refusal.
func moveData(ctx context.Context, o Options, lab *netlab.Lab, n network) {
	var wg sync.WaitGroup
	run := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				fmt.Fprintf(o.Stderr, "demo traffic: %s: %v\n", what, err)
			}
		})
	}
	controls := congestionControls()
	// Together they need most of the time, and their ends are seen too.
	bytes := int64(float64(n.rate) / 8 * o.Duration.Seconds() * busy / float64(len(controls)))
	for _, cc := range controls {
		run("transfer with "+cc, func() error {
			_, err := lab.Transfer(ctx, netlab.Transfer{Bytes: bytes, Congestion: cc})
			return err
		})
	}
	run("requests", func() error {
		for _, ipv6 := range []bool{false, true} {
			_, err := lab.Exchange(ctx, netlab.Exchange{Requests: 20, RequestBytes: 200, ResponseBytes: 4000, IPv6: ipv6})
			if err != nil {
				return err
			}
		}
		_, err := lab.Exchange(ctx, netlab.Exchange{Requests: 2, Reset: true})
		return err
	})
	run("refused connection", func() error { return lab.Refused(ctx, nil, nil, 9) })
	wg.Wait()
}

// congestionControls returns those of the well-known ones that the kernel has.
func congestionControls() []string {
	have, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		return []string{""}
	}
	var out []string
	for _, cc := range strings.Fields(string(have)) {
		switch cc {
		case "reno", "cubic", "bbr":
			out = append(out, cc)
		}
	}
	if len(out) == 0 {
		return []string{""} // whatever the default is
	}
	return out
}
