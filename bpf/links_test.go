// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// openFiles counts the file descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(fds)
}

// eventually waits for a condition that must come true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within %v: %s", patience, what)
}

func (i *interfaces) has(name string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range i.attached {
		if a.name == name {
			return true
		}
	}
	return false
}

func TestInterfacesComeAndGo(t *testing.T) {
	l := lab(t, netlab.Options{})
	cfg := in(l.R)
	cfg.Interfaces = []string{"!skip*"}
	const rounds = 20
	var files int
	r, _ := during(t, cfg, func(c *Capture) {
		require.NoError(t, l.R.Do(func() error {
			for n := range rounds {
				name := fmt.Sprintf("come%d", n)
				veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "skip" + name}
				if err := netlink.LinkAdd(veth); err != nil {
					return err
				}
				eventually(t, name+" attached", func() bool { return c.ifaces.has(name) })
				require.False(t, c.ifaces.has("skip"+name))
				if err := netlink.LinkDel(veth); err != nil {
					return err
				}
				eventually(t, name+" forgotten", func() bool { return !c.ifaces.has(name) })
				if n == 5 {
					files = openFiles(t)
				}
			}
			return nil
		}))
		require.Less(t, openFiles(t), files+(rounds-6)/2, "file descriptors leak")
	})
	links := 0
	for h := range event.All(r.raw) {
		if h.Kind == event.KindLink {
			links++
		}
	}
	require.Equal(t, rounds+3, links) // and lo, toa, tob
}

// kernelObjects counts what this process holds of the kernel's BPF objects, by kind.
func kernelObjects(t *testing.T) map[string]int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	count := map[string]int{}
	for _, fd := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if kind, ok := strings.CutPrefix(to, "anon_inode:bpf"); ok {
			count[kind]++
		}
	}
	return count
}

// deleteGroup removes all interfaces of a group of the current namespace at once.
func deleteGroup(group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// After a thousand interfaces came and went, a batch at a time, nothing is left of them.
func TestThousandInterfacesLeaveNothing(t *testing.T) {
	batches, pairs := 10, 50
	if testing.Short() {
		batches = 2
	}
	const group = 7
	throughEither(t, func(t *testing.T, classic bool) {
		l := lab(t, netlab.Options{})
		cfg := in(l.R)
		cfg.noTCX = classic
		base := 0 // lo, toa, tob, and what some kernels have in every namespace
		r, _ := during(t, cfg, func(c *Capture) {
			<-c.inventory.done
			attached := func() int {
				c.ifaces.mu.Lock()
				defer c.ifaces.mu.Unlock()
				return len(c.ifaces.attached)
			}
			base = attached()
			var objects map[string]int
			var routines int
			for batch := range batches {
				require.NoError(t, l.R.Do(func() error {
					for n := range pairs {
						name := fmt.Sprintf("many%d.%d", batch, n)
						veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Group: group}, PeerName: name + "p"}
						if err := netlink.LinkAdd(veth); err != nil {
							return err
						}
					}
					return nil
				}))
				require.Eventually(t, func() bool { return attached() == base+2*pairs }, patience, 5*time.Millisecond)
				require.NoError(t, l.R.Do(func() error { return deleteGroup(group) }))
				require.Eventually(t, func() bool { return attached() == base }, patience, 5*time.Millisecond)
				if batch == 0 {
					objects, routines = kernelObjects(t), runtime.NumGoroutine()
				}
			}
			// The last links may still be closing.
			eventually(t, "programs, maps and links of this process are no more than they were", func() bool {
				for kind, n := range kernelObjects(t) {
					if n > objects[kind] {
						return false
					}
				}
				return true
			})
			for end := time.Now().Add(patience); runtime.NumGoroutine() > routines && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			}
			require.LessOrEqual(t, runtime.NumGoroutine(), routines, "goroutines")
		})
		links := 0
		for h := range event.All(r.raw) {
			if h.Kind == event.KindLink {
				links++
			}
		}
		require.Equal(t, base+2*pairs*batches, links)
	})
}

// counting returns a tc program that counts its runs in a map and goes on to the next.
func counting(t *testing.T) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p, m
}

// throughEither runs f for programs that are attached by tcx, where the kernel has it, and by clsact.
func throughEither(t *testing.T, f func(t *testing.T, classic bool)) {
	t.Run("tcx", func(t *testing.T) {
		requireBPF(t)
		if !haveTCXHere() {
			t.Skipf("this kernel (%s) has no tcx", release())
		}
		f(t, false)
	})
	t.Run("clsact", func(t *testing.T) { f(t, true) })
}

// haveTCXHere tells whether this kernel has tcx.
func haveTCXHere() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXEgress}) // of lo
	return err == nil
}

func TestOtherProgramsStillRun(t *testing.T) {
	throughEither(t, func(t *testing.T, classic bool) {
		l := lab(t, netlab.Options{})
		before, countBefore := counting(t)
		after, countAfter := counting(t)
		attach := func(p *ebpf.Program, anchor link.Anchor, priority uint16) {
			require.NoError(t, l.A.Do(func() error {
				dev, err := netlink.LinkByName(l.A.Interface)
				if err != nil {
					return err
				}
				index := dev.Attrs().Index
				if classic {
					if err := netlink.QdiscAdd(clsact(index)); err != nil && !errors.Is(err, unix.EEXIST) {
						return err
					}
					return netlink.FilterAdd(&netlink.BpfFilter{Fd: p.FD(), Name: "other", DirectAction: true,
						FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1,
							Protocol: unix.ETH_P_ALL, Priority: priority}})
				}
				ln, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXEgress, Anchor: anchor})
				if err == nil {
					t.Cleanup(func() { _ = ln.Close() })
				}
				return err
			}))
		}
		cfg := in(l.A)
		cfg.noTCX = classic
		attach(before, nil, 1)
		r, a := during(t, cfg, func(*Capture) {
			attach(after, link.Tail(), filterPriority+1)
			_, err := l.Exchange(bounded(t), netlab.Exchange{Requests: 50})
			require.NoError(t, err)
		})
		r.identity(t, a)
		for _, m := range []*ebpf.Map{countBefore, countAfter} {
			var n uint64
			require.NoError(t, m.Lookup(uint32(0), &n))
			require.GreaterOrEqual(t, n, a.Total[event.HookTCEgress].Seen)
		}
		require.NotZero(t, a.Total[event.HookTCEgress].Seen)
	})
}

// attachedPrograms counts the tcx programs of a device, or our filters.
func attachedPrograms(t *testing.T, n *netlab.Namespace, classic bool) (count int) {
	t.Helper()
	require.NoError(t, n.Do(func() error {
		dev, err := netlink.LinkByName(n.Interface)
		if err != nil {
			return err
		}
		index := dev.Attrs().Index
		if classic {
			for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				ours, err := ourFilters(index, parent)
				if err != nil {
					return err
				}
				count += len(ours)
			}
			return nil
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			res, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
			if err != nil {
				return err
			}
			count += len(res.Programs)
		}
		return nil
	}))
	return count
}

func TestNothingStaysAttached(t *testing.T) {
	if path := os.Getenv("TCBEE_TEST_HOLD"); path != "" {
		// The child of below: captures until it is killed.
		cfg := DefaultConfig()
		cfg.Netns = path
		cfg.noTCX = os.Getenv("TCBEE_TEST_CLASSIC") != ""
		_, err := Open(t.Context(), cfg, quiet())
		require.NoError(t, err)
		fmt.Println("attached")
		<-t.Context().Done()
	}
	throughEither(t, func(t *testing.T, classic bool) {
		l := lab(t, netlab.Options{})
		cfg := in(l.A)
		cfg.noTCX = classic
		base := attachedPrograms(t, l.A, classic)
		captureOnce := func() {
			_, _ = during(t, cfg, func(*Capture) {
				require.Equal(t, base+2, attachedPrograms(t, l.A, classic))
			})
		}
		captureOnce()
		require.Equal(t, base, attachedPrograms(t, l.A, classic))

		cmd := exec.CommandContext(bounded(t), os.Args[0], "-test.run=^TestNothingStaysAttached$")
		cmd.Env = append(os.Environ(), "TCBEE_TEST_HOLD="+filepath.Join("/run/netns", l.A.Mount))
		if classic {
			cmd.Env = append(cmd.Env, "TCBEE_TEST_CLASSIC=1")
		}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "attached\n", line)
		require.Equal(t, base+2, attachedPrograms(t, l.A, classic))
		require.NoError(t, cmd.Process.Signal(unix.SIGKILL))
		_ = cmd.Wait()
		if classic {
			captureOnce() // filters stay until then
			require.Equal(t, base, attachedPrograms(t, l.A, classic))
			return
		}
		eventually(t, "detached after SIGKILL", func() bool { return attachedPrograms(t, l.A, classic) == base })
	})
}

// Frames with VLAN tags that come in over a device: the kernel has moved the outer tag into
// the skb's metadata by then.
func TestTaggedFramesFromADevice(t *testing.T) {
	l := lab(t, netlab.Options{})
	body := tcp(event.ACK, []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, 30).ip4(6, 0x4000, nil)
	frames := []struct {
		frame packet
		vlan  [2]uint16
	}{
		{body.in(eth(0x0800)), [2]uint16{event.NoVLAN, event.NoVLAN}},
		{body.in(eth(0x8100), vlan(0x2007, 0x0800)), [2]uint16{0x2007, event.NoVLAN}},
		{body.in(eth(0x88a8), vlan(0x0064, 0x8100), vlan(0x00c8, 0x0800)), [2]uint16{0x64, 0xc8}},
	}
	cfg := in(l.A)
	cfg.Interfaces = []string{l.A.Interface}
	r, a := during(t, cfg, func(c *Capture) {
		require.NoError(t, l.R.Do(func() error {
			dev, err := netlink.LinkByName("toa")
			if err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			for i, f := range frames {
				if err := unix.Sendto(fd, f.frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Attrs().Index}); err != nil {
					return err
				}
				// One at a time: this thread may be moved, and each CPU has its own queue.
				eventually(t, "the frame comes in", func() bool { return c.Accounting().Total[event.HookTCIngress].Seen == uint64(i+1) })
			}
			return nil
		}))
	})
	r.identity(t, a)
	var received []*event.Header
	for h := range event.All(r.raw) {
		if h.Kind == event.KindSegment && h.LocalPort == 443 {
			received = append(received, h)
		}
	}
	require.Len(t, received, len(frames))
	// Each may have come on another CPU, and CPUs send what they gathered in any order.
	slices.SortFunc(received, func(a, b *event.Header) int { return cmp.Compare(a.Time, b.Time) })
	for i, h := range received {
		s := h.Segment()
		require.Equal(t, frames[i].vlan, [2]uint16{s.VLAN, s.VLANInner})
		require.EqualValues(t, 30, s.PayloadLen)
		require.EqualValues(t, 12, s.OptionsLen)
		require.Equal(t, "192.0.2.1:40000", h.PeerAddr().String())
	}
}

// exchangeOver moves a few bytes over a connection to an address of another namespace.
func exchangeOver(t *testing.T, from, to *netlab.Namespace, ip string) {
	t.Helper()
	conn, peer := connect(t, from, to, netip.MustParseAddr(ip), "")
	_, err := conn.Write([]byte("question"))
	require.NoError(t, err)
	buf := make([]byte, 8)
	_, err = peer.Read(buf)
	require.NoError(t, err)
	_, err = peer.Write([]byte("answer"))
	require.NoError(t, err)
	_, err = conn.Read(buf)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, peer.Close())
	require.NoError(t, from.Quiet(bounded(t)))
	require.NoError(t, to.Quiet(bounded(t)))
}

// An ipip tunnel has no link header: packets at the hook begin with their IP header.
func TestTunnelDevice(t *testing.T) {
	l := lab(t, netlab.Options{})
	tunnel := func(n *netlab.Namespace, local, remote netip.Addr, ip string) error {
		return n.Do(func() error {
			dev := &netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "tunl7"}, Local: local.AsSlice(), Remote: remote.AsSlice()}
			if err := netlink.LinkAdd(dev); err != nil {
				return err
			}
			a, err := netlink.ParseAddr(ip)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(dev, a); err != nil {
				return err
			}
			return netlink.LinkSetUp(dev)
		})
	}
	if err := tunnel(l.A, l.A.IPv4, l.B.IPv4, "10.8.0.1/24"); err != nil {
		skipDevice(t, "ipip", err)
	}
	require.NoError(t, tunnel(l.B, l.B.IPv4, l.A.IPv4, "10.8.0.2/24"))
	tunnelled(t, l, "tunl7", "10.8.0.1", "10.8.0.2")
}

// A tun device: what a program writes into it comes in without a link header, and what the
// host answers goes out so.
func TestTunDevice(t *testing.T) {
	l := lab(t, netlab.Options{})
	tun := -1
	err := l.A.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		tun = fd
		req, err := unix.NewIfreq("tun7")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		dev, err := netlink.LinkByName("tun7")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("198.51.100.2/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(dev, a); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(dev); err != nil {
			return err
		}
		to := &net.IPNet{IP: net.IPv4(192, 0, 2, 0).To4(), Mask: net.CIDRMask(24, 32)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: to})
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		netlab.Skip(t, fmt.Errorf("no tun device on this kernel: %w", err))
	}
	require.NoError(t, err)
	defer func() { _ = unix.Close(tun) }()
	// A SYN to a port where nobody listens; the answer is a reset.
	syn := tcp(event.SYN, nil, 0).ip4(6, 0x4000, nil)
	checksum(syn)
	cfg := in(l.A)
	cfg.Interfaces = []string{"tun7"}
	var reply [128]byte
	r, a := during(t, cfg, func(*Capture) {
		_, err := unix.Write(tun, syn)
		require.NoError(t, err)
		eventually(t, "a reset comes out of the tun device", func() bool {
			n, err := unix.Read(tun, reply[:])
			return err == nil && n >= 40 && reply[0] == 0x45 && reply[33]&event.RST != 0
		})
	})
	r.identity(t, a)
	in, out, reset, dropped := 0, 0, 0, 0
	for h := range event.All(r.raw) {
		switch {
		case h.Kind == event.KindSegment && h.Dir == event.DirIn:
			require.EqualValues(t, event.SYN, h.Segment().TCPFlags)
			in++
		case h.Kind == event.KindSegment:
			require.NotZero(t, h.Segment().TCPFlags&event.RST)
			require.EqualValues(t, 40, h.Segment().WireLen)
			out++
		case h.Hook == event.HookSendReset:
			reset++
		case h.Hook == event.HookKfreeSKB:
			dropped++
			require.NotZero(t, h.Incident().Reason)
			require.NotZero(t, h.Incident().Location)
		default:
			continue
		}
		require.Equal(t, "198.51.100.2:443", h.LocalAddr().String(), "%v", h.Hook)
		require.Equal(t, "192.0.2.1:40000", h.PeerAddr().String(), "%v", h.Hook)
	}
	want := 1
	if tracepointArgs(btf.NewCache(), "tcp_send_reset") < 3 {
		want = 0 // such kernels (6.1) tell of no reset without a socket
	}
	require.Equal(t, []int{1, 1, want}, []int{in, out, reset})
	require.NotZero(t, dropped, "the SYN was dropped for want of a socket")
}

// checksum sets the IPv4 and TCP checksums of a packet without options.
func checksum(p packet) {
	sum := func(start uint32, b []byte) uint16 {
		for i := 0; i < len(b); i += 2 {
			start += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for start>>16 != 0 {
			start = start&0xffff + start>>16
		}
		return ^uint16(start)
	}
	copy(p[10:], []byte{0, 0})
	copy(p[10:], be(sum(0, p[:20])))
	copy(p[36:], []byte{0, 0})
	var pseudo uint32
	for i := 12; i < 20; i += 2 {
		pseudo += uint32(p[i])<<8 | uint32(p[i+1])
	}
	pseudo += 6 + uint32(len(p)-20)
	copy(p[36:], be(sum(pseudo, p[20:])))
}

func tunnelled(t *testing.T, l *netlab.Lab, dev, local, peer string) {
	t.Helper()
	cfg := in(l.A)
	cfg.Interfaces = []string{dev}
	r, a := during(t, cfg, func(*Capture) { exchangeOver(t, l.A, l.B, peer) })
	r.identity(t, a)
	in, out := uint32(0), uint32(0)
	again := map[[2]uint32]bool{} // a segment may be sent twice
	for h := range event.All(r.raw) {
		if h.Kind != event.KindSegment {
			continue
		}
		s := h.Segment()
		require.Equal(t, local, h.LocalAddr().Addr().String())
		require.Equal(t, peer, h.PeerAddr().Addr().String())
		require.EqualValues(t, 20, s.IPLen)
		require.EqualValues(t, s.WireLen, uint32(s.IPLen)+uint32(s.TCPLen)+s.PayloadLen)
		key := [2]uint32{uint32(h.Dir), s.Seq}
		switch {
		case s.PayloadLen == 0 || again[key]:
			continue
		case h.Dir == event.DirIn:
			in += s.PayloadLen
		default:
			out += s.PayloadLen
		}
		again[key] = true
	}
	require.EqualValues(t, 6, in)
	require.EqualValues(t, 8, out)
}

// On a kernel without tcx the programs are filters. They see the same, let others run, and
// leave nothing behind.
func TestWithoutTCX(t *testing.T) {
	l := lab(t, netlab.Options{})
	cfg := in(l.A)
	cfg.noTCX = true
	var index int
	discs := func() (n int) {
		require.NoError(t, l.A.Do(func() error {
			dev, err := netlink.LinkByName(l.A.Interface)
			if err != nil {
				return err
			}
			index = dev.Attrs().Index
			all, err := netlink.QdiscList(dev)
			for _, q := range all {
				if q.Type() == "clsact" {
					n++
				}
			}
			return err
		}))
		return n
	}
	require.Zero(t, discs())
	// What a killed capture left behind.
	stale, _ := counting(t)
	require.NoError(t, l.A.Do(func() error {
		if err := netlink.QdiscAdd(clsact(index)); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 7,
				Protocol: unix.ETH_P_ALL, Priority: filterPriority},
			Fd: stale.FD(), Name: filterName + "2147483646", DirectAction: true})
	}))
	count, err := l.Count(l.A, l.A.Interface)
	require.NoError(t, err)
	r, a := during(t, cfg, func(*Capture) {
		require.NoError(t, l.A.Do(func() error {
			ours, err := ourFilters(index, netlink.HANDLE_MIN_EGRESS)
			require.Len(t, ours, 1, "the stale one is gone")
			return err
		}))
		_, err := l.Transfer(bounded(t), netlab.Transfer{Bytes: 4 << 20})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	in, err := count.In()
	require.NoError(t, err)
	out, err := count.Out()
	require.NoError(t, err)
	require.Equal(t, in.TCP, a.Total[event.HookTCIngress].Seen)
	require.Equal(t, out.TCP, a.Total[event.HookTCEgress].Seen)
	require.NotZero(t, r.stored[event.HookTransmit])
	require.NoError(t, l.A.Do(func() error {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			ours, err := ourFilters(index, parent)
			require.NoError(t, err)
			require.Empty(t, ours)
		}
		return netlink.QdiscDel(clsact(index))
	}))

	// With no qdisc there before, none stays either.
	_, _ = during(t, cfg, func(*Capture) { require.Equal(t, 1, discs()) })
	require.Zero(t, discs())
}

// With XDP received packets are seen once, by it; lo has no driver to do it.
func TestXDPInsteadOfIngress(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true})
	cfg := in(l.A)
	cfg.Packets.XDP = true
	before, err := l.A.SNMP()
	require.NoError(t, err)
	r, a := during(t, cfg, func(*Capture) {
		_, err := l.Transfer(bounded(t), netlab.Transfer{Bytes: 1 << 20})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	after, err := l.A.SNMP()
	require.NoError(t, err)
	r.identity(t, a)
	require.Zero(t, a.Total[event.HookTCIngress].Seen)
	require.EqualValues(t, after.Sub(before)["TcpInSegs"], a.Total[event.HookXDP].Seen)
	require.NotZero(t, r.stored[event.HookTCEgress])
}
