// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options describe the network. The zero value is two namespaces over a router without limits.
type Options struct {
	// Name, if not empty, bind-mounts the namespaces below /run/netns, as
	// tcbeelab-PID-START-NAME-a, -b and -r, for "ip netns exec".
	Name string
	// Rate limits each direction on the router, bits per second on the link; 0: no limit.
	Rate uint64
	// Queue is the router's buffer before the limit, bytes; 0: 20 ms of Rate, at least 64 KiB.
	Queue uint32
	// LossToB and LossToA tell which data packets the router drops on their way.
	LossToB, LossToA Loss
	// NoOffload makes every skb one segment on the wire: segmentation and receive offloads
	// off, gso_max_segs 1. Without it TCP hands down super-packets of up to 64 KiB, and a
	// dropped packet is up to 45 lost segments.
	NoOffload bool
	// MTU of all devices, bytes; 0: 1500.
	MTU int
	// Direct joins A and B without a router: R, ToB and ToA are nil, nothing is limited, lost or
	// counted on the way.
	Direct bool
}

// Lab is a network of two ends and a router. Close it; its methods may be called from any goroutine.
type Lab struct {
	// A and B are the ends, R is the router between them, nil if they are joined directly.
	A, B, R *Namespace
	// ToB and ToA count (and, by Options, drop) what comes in at the router from A, and from B.
	ToB, ToA *Counter

	opts     Options
	counters []*Counter
	firings  []*Firings
	once     sync.Once
	closeErr error
}

// SetupError says that a network could not be made, and what to do.
type SetupError struct{ Err error }

// Error returns the text of the cause.
func (e *SetupError) Error() string { return "make a test network: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *SetupError) Unwrap() error { return e.Err }

// Hint tells the person what to do.
func (e *SetupError) Hint() string {
	switch {
	case errors.Is(e.Err, fs.ErrPermission):
		return "needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF: run as root"
	case errors.Is(e.Err, unix.EOPNOTSUPP), errors.Is(e.Err, unix.EINVAL), errors.Is(e.Err, unix.ENOENT):
		return "needs network namespaces, veth, tbf and tcx or clsact in the kernel"
	}
	return ""
}

// New makes a network. ctx is only for the making; the lab lives until Close.
func New(ctx context.Context, o Options) (*Lab, error) {
	l := &Lab{opts: o}
	if err := l.setup(ctx); err != nil {
		return nil, &SetupError{errors.Join(err, l.Close())}
	}
	return l, nil
}

const (
	endDevice = "lab0"
	toADevice = "toa"
	toBDevice = "tob"
)

// One side of the router.
type side struct {
	n        *Namespace
	device   string // on the router
	net4     string // without the last number
	net6     string
	mac, via string
}

func (l *Lab) setup(ctx context.Context) error {
	if _, err := Reap(); err != nil {
		return err
	}
	for _, ns := range []struct {
		label string
		n     **Namespace
	}{{"a", &l.A}, {"b", &l.B}, {"r", &l.R}} {
		if ns.label == "r" && l.opts.Direct {
			continue
		}
		n, err := newNamespace(ns.label, l.opts.Name)
		if err != nil {
			return err
		}
		n.lab = l
		*ns.n = n
		if err := n.Do(func() error { return prepare(ns.label == "r") }); err != nil {
			return fmt.Errorf("namespace %s: %w", ns.label, err)
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("RLIMIT_MEMLOCK: %w", err)
	}
	if l.opts.Direct {
		return l.join()
	}
	sides := []side{
		{l.A, toADevice, "10.77.1.", "fd77:1::", "02:77:00:00:01:02", "02:77:00:00:01:01"},
		{l.B, toBDevice, "10.77.2.", "fd77:2::", "02:77:00:00:02:02", "02:77:00:00:02:01"},
	}
	for _, s := range sides {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.connect(s); err != nil {
			return fmt.Errorf("link between %s and the router: %w", s.n.Label, err)
		}
	}
	var err error
	if l.ToB, err = l.count(l.R, toADevice, directions{ingress: true}, l.opts.LossToB); err != nil {
		return err
	}
	l.ToA, err = l.count(l.R, toBDevice, directions{ingress: true}, l.opts.LossToA)
	return err
}

// prepare sets up the namespace that the thread is in.
func prepare(router bool) error {
	// Before any device is there, so that addresses are usable at once and nothing but
	// our traffic is on the links.
	set := [][2]string{
		{"ipv4/tcp_no_metrics_save", "1"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv6/conf/default/router_solicitations", "0"},
		{"ipv6/conf/all/accept_dad", "0"},
	}
	if router {
		set = append(set, [2]string{"ipv4/ip_forward", "1"}, [2]string{"ipv6/conf/all/forwarding", "1"})
	}
	for _, kv := range set {
		if err := sysctl(kv[0], kv[1]); err != nil {
			if errors.Is(err, fs.ErrNotExist) && kv[0] != "ipv4/ip_forward" {
				continue // IPv6 is off, or the kernel does not have it
			}
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

func (l *Lab) connect(s side) error {
	mtu := l.opts.MTU
	if mtu == 0 {
		mtu = 1500
	}
	mac, err := net.ParseMAC(s.mac)
	if err != nil {
		return err
	}
	via, err := net.ParseMAC(s.via)
	if err != nil {
		return err
	}
	err = l.R.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = s.device, mtu, via
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = endDevice, mac, uint32(mtu)
		veth.PeerNamespace = netlink.NsFd(s.n.fd)
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("veth %s: %w", s.device, err)
		}
		if err := l.device(s.device, s.net4+"1/24", s.net6+"1/64"); err != nil {
			return err
		}
		link, err := netlink.LinkByName(s.device)
		if err != nil {
			return fmt.Errorf("%s: %w", s.device, err)
		}
		if err := neighbour(link, mac, s.net4+"2", s.net6+"2"); err != nil {
			return err
		}
		if l.opts.Rate == 0 {
			return nil
		}
		return limit(link, l.opts.Rate, l.opts.Queue)
	})
	if err != nil {
		return err
	}
	s.n.Interface = endDevice
	s.n.IPv4, s.n.IPv6 = netip.MustParseAddr(s.net4+"2"), netip.MustParseAddr(s.net6+"2")
	return s.n.Do(func() error {
		if err := l.device(endDevice, s.net4+"2/24", s.net6+"2/64"); err != nil {
			return err
		}
		link, err := netlink.LinkByName(endDevice)
		if err != nil {
			return fmt.Errorf("%s: %w", endDevice, err)
		}
		if err := neighbour(link, via, s.net4+"1", s.net6+"1"); err != nil {
			return err
		}
		for _, gw := range []string{s.net4 + "1", s.net6 + "1"} {
			r := netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}
			if err := netlink.RouteAdd(&r); err != nil {
				return fmt.Errorf("default route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

// join makes the link between A and B. Both ends of a direct link are in one network.
func (l *Lab) join() error {
	mtu := l.opts.MTU
	if mtu == 0 {
		mtu = 1500
	}
	ends := []struct {
		n          *Namespace
		net4, net6 string // without the last number
		mac        string
	}{{l.A, "10.77.1.", "fd77:1::", "02:77:00:00:01:02"}, {l.B, "10.77.2.", "fd77:2::", "02:77:00:00:02:02"}}
	var macs [2]net.HardwareAddr
	for i, e := range ends {
		var err error
		if macs[i], err = net.ParseMAC(e.mac); err != nil {
			return err
		}
		e.n.Interface = endDevice
		e.n.IPv4, e.n.IPv6 = netip.MustParseAddr(e.net4+"2"), netip.MustParseAddr(e.net6+"2")
	}
	err := l.A.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = endDevice, mtu, macs[0]
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = endDevice, macs[1], uint32(mtu)
		veth.PeerNamespace = netlink.NsFd(l.B.fd)
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("veth between a and b: %w", err)
	}
	for i, e := range ends {
		peer := ends[1-i].n
		err := e.n.Do(func() error {
			if err := l.device(endDevice, e.net4+"2/16", e.net6+"2/16"); err != nil {
				return err
			}
			link, err := netlink.LinkByName(endDevice)
			if err != nil {
				return fmt.Errorf("%s: %w", endDevice, err)
			}
			return neighbour(link, macs[1-i], peer.IPv4.String(), peer.IPv6.String())
		})
		if err != nil {
			return fmt.Errorf("namespace %s: %w", e.n.Label, err)
		}
	}
	return nil
}

// device gives addresses to a device of the current namespace and brings it up.
func (l *Lab) device(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if l.opts.NoOffload {
		if err := offloadsOff(link); err != nil {
			return err
		}
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s on %s: %w", a, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// neighbour makes static entries, so that no ARP or neighbour discovery is on the link.
func neighbour(link netlink.Link, mac net.HardwareAddr, ips ...string) error {
	for _, ip := range ips {
		n := netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.ParseIP(ip), HardwareAddr: mac,
		}
		if err := netlink.NeighSet(&n); err != nil {
			return fmt.Errorf("neighbour %s on %s: %w", ip, link.Attrs().Name, err)
		}
	}
	return nil
}

// Close removes the network: programs, links and namespaces. Processes that still run inside keep
// their namespace alive, without its links. It may be called more than once.
func (l *Lab) Close() error {
	l.once.Do(func() {
		var errs []error
		for _, c := range l.counters {
			errs = append(errs, c.Close())
		}
		holder, devices := l.R, []string{toADevice, toBDevice}
		if l.opts.Direct {
			holder, devices = l.A, []string{endDevice}
		}
		if holder != nil {
			// Sockets and processes may outlive us; the links must not.
			errs = append(errs, holder.Do(func() error {
				for _, name := range devices {
					link, err := netlink.LinkByName(name)
					if errors.As(err, &netlink.LinkNotFoundError{}) {
						continue
					}
					if err == nil {
						err = netlink.LinkDel(link)
					}
					if err != nil {
						return fmt.Errorf("remove link %s: %w", name, err)
					}
				}
				return nil
			}))
		}
		for _, n := range []*Namespace{l.A, l.B, l.R} {
			if n != nil {
				errs = append(errs, n.close())
			}
		}
		l.closeErr = errors.Join(errs...)
	})
	return l.closeErr
}

// TB is what [ForTest] needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// ForTest makes a network that is closed when the test ends. Where that is not possible the
// test is skipped and the reason printed; with TCBEE_REQUIRE_BPF=1 it fails instead.
func ForTest(t TB, o Options) *Lab {
	t.Helper()
	l, err := New(t.Context(), o)
	if err != nil {
		Skip(t, err)
		return nil
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the test network: %v", err)
		}
	})
	return l
}

// Skip ends a test that cannot run here: as skipped, or as failed with TCBEE_REQUIRE_BPF=1.
func Skip(t TB, reason error) {
	t.Helper()
	if os.Getenv("TCBEE_REQUIRE_BPF") == "1" {
		t.Fatalf("%v (TCBEE_REQUIRE_BPF=1 forbids to skip)", reason)
		return
	}
	var h interface{ Hint() string }
	if errors.As(reason, &h) && h.Hint() != "" {
		t.Skipf("%v (%s)", reason, h.Hint())
		return
	}
	t.Skipf("%v", reason)
}
