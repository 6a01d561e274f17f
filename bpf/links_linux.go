// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// namespace is a network namespace that is held open, and a thread that stays in it: entering one
// takes CAP_SYS_ADMIN, which a capture that runs need not have any more.
type namespace struct {
	fd   netns.NsHandle
	name string

	once    sync.Once
	refused error // why the namespace could not be entered
	tid     int
	work    chan func()
	ended   chan struct{}
}

// openNamespace opens the namespace at path, or that of the calling thread if it is empty.
func openNamespace(path string) (*namespace, error) {
	if path == "" {
		fd, err := netns.Get()
		if err != nil {
			return nil, fmt.Errorf("open the own network namespace: %w", err)
		}
		return &namespace{fd: fd, name: "own"}, nil
	}
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, hint(fmt.Errorf("capture.netns: open %s: %w", path, err), "\"ip netns list\" shows the named ones")
	}
	return &namespace{fd: fd, name: path}, nil
}

// again opens the namespace once more, with another thread.
func (n *namespace) again() (*namespace, error) {
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace %s again: %w", n.name, err)
	}
	return &namespace{fd: netns.NsHandle(fd), name: n.name}, nil
}

// close ends the thread. Nothing is done in the namespace any more.
func (n *namespace) close() {
	if n.work != nil {
		close(n.work)
		<-n.ended
	}
	_ = n.fd.Close()
}

// do runs f in the namespace, on its thread; f may call do.
func (n *namespace) do(f func() error) error {
	n.once.Do(func() {
		n.work, n.ended = make(chan func()), make(chan struct{})
		entered := make(chan error)
		go n.thread(entered)
		n.refused = <-entered
	})
	if n.refused != nil {
		return n.refused
	}
	if unix.Gettid() == n.tid {
		return f()
	}
	result := make(chan error, 1)
	n.work <- func() { result <- f() }
	return <-result
}

// thread enters the namespace and does what do asks for until close. The goroutine keeps its thread, which
// ends with it: nobody else is to run in a namespace that is not theirs.
func (n *namespace) thread(entered chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread's namespace is what /proc tells of the process: it is held until another one is found.
		go n.thread(entered)
		<-n.ended
		runtime.UnlockOSThread()
		return
	}
	defer close(n.ended)
	n.tid = unix.Gettid()
	entered <- n.enter()
	for f := range n.work {
		f()
	}
}

func (n *namespace) enter() error {
	own, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the own network namespace: %w", err)
	}
	defer func() { _ = own.Close() }()
	if own.Equal(n.fd) {
		return nil
	}
	if err := netns.Set(n.fd); err != nil {
		return hint(fmt.Errorf("enter the network namespace %s: %w", n.name, err), "this takes CAP_SYS_ADMIN")
	}
	return nil
}

// netnsCookie returns the cookie of the current namespace: of a socket made in it.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the namespace's cookie: %w", err)
	}
	return cookie, nil
}

// interfaces keeps the tc programs attached to all interfaces that are wanted.
type interfaces struct {
	cfg  Config
	ns   *namespace
	log  *slog.Logger
	told func(*event.Link)

	classic     bool          // no tcx: attach by clsact
	in, out     *ebpf.Program // with a link header; out may be nil
	inL3, outL3 *ebpf.Program // without
	xdp         *ebpf.Program // instead of in, nil: not asked for

	mu       sync.Mutex
	attached map[int]*attached
	done     chan struct{}
	closed   sync.Once
	watching sync.WaitGroup
}

// attached is an interface with programs.
type attached struct {
	name  string
	links []io.Closer
}

// close detaches, in the reverse order: what was made first goes last.
func (a *attached) close() error {
	var errs []error
	for _, ln := range slices.Backward(a.links) {
		errs = append(errs, ln.Close())
	}
	return errors.Join(errs...)
}

// hasLinkHeader tells whether packets of a device begin with an Ethernet header, by its ARPHRD type.
func hasLinkHeader(kind string) bool { return kind == "ether" || kind == "loopback" }

// open attaches to all that are there and follows those that come and go.
func (i *interfaces) open() error {
	i.attached = map[int]*attached{}
	i.done = make(chan struct{})
	updates, err := i.follow(true)
	if err != nil {
		i.detach()
		return err
	}
	i.watching.Go(func() {
		for {
			i.watch(updates)
			// The subscription ends by itself if changes come faster than they are read.
			for updates = nil; updates == nil; {
				select {
				case <-i.done:
					return
				case <-time.After(100 * time.Millisecond):
				}
				if updates, err = i.follow(false); err != nil {
					i.log.Warn("interfaces not followed, trying again", "error", err)
				}
			}
			i.log.Warn("changes of interfaces came too fast; their list was read anew")
		}
	})
	return nil
}

// follow subscribes to changes, then attaches to what is there and forgets what is not. At
// the start a failure to attach is an error, later a warning.
func (i *interfaces) follow(start bool) (<-chan netlink.LinkUpdate, error) {
	updates := make(chan netlink.LinkUpdate, 256)
	end := make(chan struct{})
	err := i.ns.do(func() error {
		err := netlink.LinkSubscribeWithOptions(updates, end, netlink.LinkSubscribeOptions{ReceiveBufferSize: 4 << 20})
		if err != nil {
			close(updates)
			return fmt.Errorf("follow the interfaces: %w", err)
		}
		existing, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list the interfaces: %w", err)
		}
		if start {
			if err := i.check(existing); err != nil {
				return err
			}
		}
		there := map[int]bool{}
		for _, l := range existing {
			there[l.Attrs().Index] = true
			if err := i.consider(l); err != nil && start {
				return err
			} else if err != nil {
				i.log.Warn("interface not captured", "interface", l.Attrs().Name, "error", err)
			}
		}
		i.mu.Lock()
		gone := map[int]*attached{}
		for index, a := range i.attached {
			if !there[index] {
				gone[index] = a
			}
		}
		i.mu.Unlock()
		for index, a := range gone {
			i.forget(index, a)
		}
		return nil
	})
	if err != nil {
		close(end)
		// The subscription's goroutine ends by closing updates.
		go func() {
			for range updates {
			}
		}()
		return nil, err
	}
	i.watching.Go(func() {
		<-i.done
		close(end)
	})
	return updates, nil
}

// consider attaches to an interface of the current namespace if it is wanted and not attached
// yet. One that vanishes meanwhile is no error.
func (i *interfaces) consider(l netlink.Link) error {
	a := l.Attrs()
	i.mu.Lock()
	old := i.attached[a.Index]
	i.mu.Unlock()
	if old != nil || !i.cfg.wantsInterface(a.Name) {
		return nil
	}
	err := i.attach(l)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// check reports names without wildcards that no interface has.
func (i *interfaces) check(existing []netlink.Link) error {
	var names []string
	for _, l := range existing {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	var errs []error
	for _, p := range i.cfg.Interfaces {
		if !strings.HasPrefix(p, "!") && !strings.ContainsAny(p, `*?[\`) && !slices.Contains(names, p) {
			errs = append(errs, fmt.Errorf("%w: %q; there are: %s", ErrNoInterface, p, strings.Join(names, ", ")))
		}
	}
	return hint(errors.Join(errs...), `name one of them, or a pattern such as "eth*"`)
}

// attach puts the programs on an interface of the current namespace. Attaching behind all
// others lets it see what they let through; it returns TCX_NEXT and so ends no chain.
func (i *interfaces) attach(l netlink.Link) error {
	a := l.Attrs()
	in, out := i.in, i.out
	if !hasLinkHeader(a.EncapType) {
		in, out = i.inL3, i.outL3
	}
	at := &attached{name: a.Name}
	if i.xdp != nil && hasLinkHeader(a.EncapType) {
		if ln, err := attachXDP(a.Index, i.xdp); err == nil {
			at.links = append(at.links, ln)
			in = nil
		} else {
			i.log.Warn("no XDP on this interface: received packets are seen at tc", "interface", a.Name, "error", err)
		}
	}
	for _, h := range []struct {
		prog *ebpf.Program
		at   ebpf.AttachType
		name string
	}{{in, ebpf.AttachTCXIngress, "ingress"}, {out, ebpf.AttachTCXEgress, "egress"}} {
		if h.prog == nil {
			continue
		}
		var ln io.Closer
		var err error
		if i.classic {
			ln, err = attachFilter(i.ns, a.Index, h.prog, h.at)
		} else {
			ln, err = link.AttachTCX(link.TCXOptions{Interface: a.Index, Program: h.prog, Attach: h.at})
		}
		if err != nil {
			_ = at.close()
			return explain(fmt.Sprintf("attach to %s of %s", h.name, a.Name), err, false)
		}
		at.links = append(at.links, ln)
	}
	i.mu.Lock()
	i.attached[a.Index] = at
	i.mu.Unlock()
	rec := event.Link{Ifindex: uint32(a.Index), Flags: a.RawFlags, MTU: uint32(a.MTU), Type: arphrd(a.EncapType)}
	copy(rec.Name[:], a.Name)
	i.told(&rec)
	i.log.Debug("interface captured", "interface", a.Name, "index", a.Index)
	return nil
}

// attachXDP attaches to the driver, or to the stack where the driver cannot.
func attachXDP(index int, prog *ebpf.Program) (link.Link, error) {
	ln, native := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPDriverMode})
	if native == nil {
		return ln, nil
	}
	ln, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPGenericMode})
	if err != nil {
		return nil, errors.Join(native, err)
	}
	return ln, nil
}

// arphrd turns the name of a link type back into the kernel's number.
func arphrd(kind string) uint32 {
	switch kind {
	case "ether":
		return unix.ARPHRD_ETHER
	case "loopback":
		return unix.ARPHRD_LOOPBACK
	case "ppp":
		return unix.ARPHRD_PPP
	case "ipip":
		return unix.ARPHRD_TUNNEL
	case "tunnel6":
		return unix.ARPHRD_TUNNEL6
	case "sit":
		return unix.ARPHRD_SIT
	case "gre":
		return unix.ARPHRD_IPGRE
	case "none":
		return unix.ARPHRD_NONE
	}
	return unix.ARPHRD_VOID
}

// watch attaches interfaces that appear and forgets those that vanish, until updates is closed.
func (i *interfaces) watch(updates <-chan netlink.LinkUpdate) {
	for u := range updates {
		a := u.Attrs()
		switch u.Header.Type {
		case unix.RTM_DELLINK:
			i.mu.Lock()
			old := i.attached[a.Index]
			i.mu.Unlock()
			if old != nil && u.IfInfomsg.Family == unix.AF_UNSPEC {
				i.forget(a.Index, old)
			}
		case unix.RTM_NEWLINK:
			if !i.cfg.wantsInterface(a.Name) {
				continue
			}
			if err := i.ns.do(func() error { return i.consider(u.Link) }); err != nil {
				i.log.Warn("interface not captured", "interface", a.Name, "error", err)
			}
		}
	}
}

func (i *interfaces) forget(index int, a *attached) {
	i.mu.Lock()
	delete(i.attached, index)
	i.mu.Unlock()
	_ = a.close() // the device took its programs along
	i.log.Debug("interface gone", "interface", a.name, "index", index)
}

// close detaches from all.
func (i *interfaces) close() {
	i.closed.Do(func() {
		close(i.done)
		i.watching.Wait()
		i.detach()
	})
}

func (i *interfaces) detach() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for index, a := range i.attached {
		if err := a.close(); err != nil {
			i.log.Warn("detach", "interface", a.name, "error", err)
		}
		delete(i.attached, index)
	}
}
