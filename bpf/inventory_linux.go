// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// inventoryPortion is how many sockets are sampled before the ring is looked at.
const inventoryPortion = 256

var inventoryProgram = program{programsProgInventory, groupSockets, event.HookInventory, "connections that existed before"}

// inventory records the sockets that were there before the capture. It runs beside the
// reader, because their records may be more than the ring holds.
type inventory struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup
	told   atomic.Uint64 // incidents made in user space
	done   chan struct{} // closed when nothing more is to be listed
}

// startInventory begins to list the sockets of the namespaces that are captured.
func (c *Capture) startInventory() error {
	c.inventory.done = make(chan struct{})
	if !c.cfg.Inventory {
		close(c.inventory.done)
		return nil
	}
	p := inventoryProgram
	prog, err := c.obj.load(p.name, c.cfg.Verbose)
	var it *link.Iter
	if err == nil {
		if it, err = link.AttachIter(link.IterOptions{Program: prog}); err != nil {
			err = explain("attach iter/tcp", err, c.cfg.Verbose)
		}
	}
	if err != nil {
		c.log.Warn("hook left out", "hook", p.hook.String(), "missing", p.lacks, "error", err)
		close(c.inventory.done)
		return nil
	}
	c.programs = append(c.programs, loaded{p, prog, nil})
	ctx, cancel := context.WithCancel(context.Background())
	c.inventory.cancel = cancel
	c.inventory.wait.Go(func() {
		defer close(c.inventory.done)
		defer func() { _ = it.Close() }()
		if err := c.takeInventory(ctx, it); err != nil && ctx.Err() == nil {
			c.log.Warn("inventory incomplete", "error", err)
		}
	})
	return nil
}

// stopInventory ends an inventory that is still running.
func (c *Capture) stopInventory() {
	if c.inventory.cancel != nil {
		c.inventory.cancel()
		c.inventory.wait.Wait()
	}
}

func (c *Capture) takeInventory(ctx context.Context, it *link.Iter) error {
	own, err := c.ns.again() // the capture's thread is not kept busy
	if err != nil {
		return err
	}
	spaces := []*namespace{own}
	defer func() {
		for _, ns := range spaces {
			ns.close()
		}
	}()
	var errs []error
	if c.cfg.Netns == "all" {
		more, err := otherNamespaces(c.ns)
		errs = append(errs, err)
		spaces = append(spaces, more...)
	}
	owners := processes()
	for _, ns := range spaces {
		err := ns.do(func() error {
			cookie, err := netnsCookie()
			if err != nil {
				return err
			}
			if err := c.sampleAll(ctx, it); err != nil {
				return err
			}
			return c.tellOwners(ctx, cookie, owners)
		})
		// Without CAP_SYS_ADMIN the other namespaces stay closed: that is no fault.
		if err != nil && (ns == own || !errors.Is(err, unix.EPERM)) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sampleAll runs the iterator over the current namespace, no faster than the reader drains the ring.
func (c *Capture) sampleAll(ctx context.Context, it *link.Iter) error {
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("list the sockets: %w", err)
	}
	defer func() { _ = r.Close() }()
	buf := make([]byte, inventoryPortion)
	for {
		for c.ring.used() > uint64(len(c.ring.producer))/8 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
		if _, err := r.Read(buf); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil && !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("list the sockets: %w", err)
		}
	}
}

// owner is a process that holds a socket.
type owner struct {
	pid  uint32
	comm [16]byte
}

// processes maps the inode of each socket to a process that holds it: the one with the
// lowest number. Processes that may not be looked at are left out.
func processes() map[uint32]owner {
	owners := map[uint32]owner{}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return owners
	}
	for _, d := range dirs {
		pid, err := strconv.ParseUint(d.Name(), 10, 32)
		if err != nil {
			continue
		}
		var o *owner
		fds, _ := os.ReadDir(filepath.Join("/proc", d.Name(), "fd"))
		for _, fd := range fds {
			to, _ := os.Readlink(filepath.Join("/proc", d.Name(), "fd", fd.Name()))
			text, ok := strings.CutPrefix(to, "socket:[")
			if !ok {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32)
			if err != nil {
				continue
			}
			if o == nil {
				o = &owner{pid: uint32(pid)}
				comm, _ := os.ReadFile(filepath.Join("/proc", d.Name(), "comm"))
				copy(o.comm[:15], bytes.TrimSuffix(comm, []byte("\n")))
			}
			if old, there := owners[uint32(inode)]; !there || old.pid > o.pid {
				owners[uint32(inode)] = *o
			}
		}
	}
	return owners
}

// tellOwners records the process of each socket of the current namespace.
func (c *Capture) tellOwners(ctx context.Context, cookie uint64, owners map[uint32]owner) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		socks, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return fmt.Errorf("list the sockets' processes: %w", err)
		}
		for _, s := range socks {
			o, known := owners[s.INode]
			if !known || s.INode == 0 {
				continue
			}
			in := event.Incident{PID: o.pid, TID: o.pid, UID: s.UID, Comm: o.comm, Present: event.HasProcess,
				OldState: event.TCPState(s.State), NewState: event.TCPState(s.State)}
			in.Hook = event.HookInventory
			in.Netns = cookie
			in.Cookie = uint64(s.ID.Cookie[0]) | uint64(s.ID.Cookie[1])<<32
			in.LocalPort, in.PeerPort = s.ID.SourcePort, s.ID.DestinationPort
			in.Local, in.Peer = mapped(s.ID.Source), mapped(s.ID.Destination)
			in.Family = 4
			if s.ID.Source.To4() == nil || s.ID.Destination.To4() == nil {
				in.Family = 6
			}
			if err := c.tellOwner(ctx, &in); err != nil {
				return err
			}
		}
	}
	return nil
}

// sideMax is how many bytes of an inventory may wait for the reader.
const sideMax = 1 << 20

// tellOwner records an incident of the inventory, no faster than the reader takes them.
func (c *Capture) tellOwner(ctx context.Context, in *event.Incident) error {
	for {
		c.mu.Lock()
		if len(c.side) < sideMax {
			in.Time = monotonic() // with the lock: a Tick that was already told is earlier
			c.side = event.Append(c.side, in)
			c.inventory.told.Add(1)
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// mapped returns an address as records have it.
func mapped(ip net.IP) (a [16]byte) {
	copy(a[:], ip.To16())
	return a
}

// otherNamespaces opens all network namespaces but one that a process or a name holds.
func otherNamespaces(but *namespace) ([]*namespace, error) {
	seen := map[uint64]bool{}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(but.fd), &st); err != nil {
		return nil, fmt.Errorf("look at the own namespace: %w", err)
	}
	seen[st.Ino] = true
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	named, _ := filepath.Glob("/run/netns/*")
	var all []*namespace
	for _, path := range append(named, paths...) {
		if err := syscall.Stat(path, &st); err != nil || seen[st.Ino] {
			continue
		}
		if ns, err := openNamespace(path); err == nil {
			seen[st.Ino] = true
			all = append(all, ns)
		}
	}
	return all, nil
}
