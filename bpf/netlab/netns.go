// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namedDir is where ip(8) keeps namespaces that have a name.
const namedDir = "/run/netns"

// namePrefix begins the name of every namespace that this package mounts. It is followed by
// PID-STARTTIME-NAME, so that a name tells whether its maker still lives.
const namePrefix = "tcbeelab-"

// Namespace is a network namespace that this process holds.
type Namespace struct {
	// Label is "a", "b" or "r".
	Label string
	// Mount is the name under /run/netns, empty when the namespace is anonymous.
	Mount string
	// Interface is the name of the device that leads to the router; empty in R.
	Interface string
	// IPv4 and IPv6 are the addresses of Interface; invalid in R.
	IPv4, IPv6 netip.Addr

	fd  netns.NsHandle
	lab *Lab
}

// newNamespace makes a namespace and leaves the calling thread in the one it was in.
func newNamespace(label, name string) (*Namespace, error) {
	runtime.LockOSThread()
	orig, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("network namespace of this thread: %w", err)
	}
	defer orig.Close()

	n := &Namespace{Label: label}
	if name == "" {
		n.fd, err = netns.New()
	} else {
		n.Mount = fmt.Sprintf("%s%d-%d-%s-%s", namePrefix, os.Getpid(), startTime(os.Getpid()), name, label)
		n.fd, err = netns.NewNamed(n.Mount)
	}
	// From here on the thread may be in the new namespace. One that cannot return must not
	// be used for anything else: it stays locked and ends with its goroutine.
	now, get := netns.Get()
	if get == nil {
		defer now.Close()
	}
	if get != nil || !now.Equal(orig) {
		if back := netns.Set(orig); back != nil {
			return nil, errors.Join(err, fmt.Errorf("return from the new namespace: %w", back))
		}
	}
	runtime.UnlockOSThread()
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", label, err)
	}
	return n, nil
}

// Do runs f on the calling goroutine, whose thread is inside the namespace meanwhile. Sockets that
// f opens stay in the namespace wherever they are used later; goroutines that f starts do not
// inherit it. Read /proc/thread-self/net, not /proc/net, within f.
func (n *Namespace) Do(f func() error) (err error) {
	runtime.LockOSThread()
	orig, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("network namespace of this thread: %w", err)
	}
	defer orig.Close()
	if err := netns.Set(n.fd); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.Label, err)
	}
	defer func() {
		if back := netns.Set(orig); back != nil {
			// Stay locked: the thread is unfit for others.
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", n.Label, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// starter is a thread that lives as long as this process. Pdeathsig means the end of the thread that started a
// process, and threads end with goroutines that leave them locked, as those that are pinned to a CPU do.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start starts cmd inside the namespace. All its threads and children belong to it.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	starter() <- func() { started <- n.Do(cmd.Start) }
	return <-started
}

// Run runs cmd inside the namespace and waits for it.
func (n *Namespace) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Command returns a command to be given to [Namespace.Start] or [Namespace.Run].
// It is killed when the lab's process dies, however that happens.
func (n *Namespace) Command(name string, arg ...string) *exec.Cmd {
	cmd := exec.Command(name, arg...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// Cookie returns the namespace's cookie, as bpf_get_netns_cookie tells it.
func (n *Namespace) Cookie() (cookie uint64, err error) {
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("SO_NETNS_COOKIE: %w", err)
		}
		return nil
	})
	return cookie, err
}

// sysctl writes value to /proc/sys/net/key of the namespace that the thread is in.
func sysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// Sysctl sets a kernel parameter of the namespace; key is a path below /proc/sys/net.
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error { return sysctl(key, value) })
}

func (n *Namespace) close() error {
	var err error
	if n.Mount != "" {
		err = netns.DeleteNamed(n.Mount)
	}
	return errors.Join(err, n.fd.Close())
}

// startTime returns when a process started, in clock ticks since boot, or 0 if it is gone. With
// it a process id that is used again is not taken for its predecessor.
func startTime(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field, the name, is in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	if !ok {
		return 0
	}
	f := strings.Fields(rest) // begins with field 3
	if len(f) < 20 {
		return 0
	}
	t, _ := strconv.ParseUint(f[19], 10, 64)
	return t
}

// Reap removes named namespaces whose maker is dead and returns their names. [New] calls it.
func Reap() ([]string, error) {
	return reap(namedDir)
}

func reap(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("left-over namespaces: %w", err)
	}
	var gone []string
	var errs []error
	for _, e := range entries {
		pid, start, ok := parseName(e.Name())
		if !ok || startTime(pid) == start {
			continue
		}
		path := filepath.Join(dir, e.Name())
		// EINVAL: nothing is mounted there, its maker died between two calls.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount left-over namespace %s: %w", path, err))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("left-over namespace: %w", err))
			continue
		}
		gone = append(gone, e.Name())
	}
	return gone, errors.Join(errs...)
}

// parseName tells the process that made the named namespace.
func parseName(name string) (pid int, start uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok {
		return 0, 0, false
	}
	p, rest, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, 0, false
	}
	s, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(p)
	if err != nil || pid <= 0 {
		return 0, 0, false
	}
	start, err = strconv.ParseUint(s, 10, 64)
	return pid, start, err == nil
}
