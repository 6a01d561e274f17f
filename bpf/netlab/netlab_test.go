// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bounded is a deadline for a test that must never hang; it asserts nothing.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func snmp(t *testing.T, n *Namespace) SNMP {
	t.Helper()
	s, err := n.SNMP()
	require.NoError(t, err)
	return s
}

// lost returns how many packets the devices between A and B did not hand on: veth drops what finds the
// receive queue of its CPU full, behind the counters of one end and before those of the other.
func lost(t *testing.T, l *Lab) (sum uint64) {
	t.Helper()
	for _, at := range []struct {
		n      *Namespace
		device string
	}{{l.A, l.A.Interface}, {l.R, toBDevice}} {
		require.NoError(t, at.n.Do(func() error {
			link, err := netlink.LinkByName(at.device)
			if err == nil {
				sum += link.Attrs().Statistics.TxDropped
			}
			return err
		}))
	}
	return sum
}

func threadNamespace(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	require.NoError(t, err)
	return s
}

func TestTransferArrivesWholeAndIsCounted(t *testing.T) {
	tests := map[string]struct {
		opts Options
		tr   Transfer
	}{
		"ipv4":                  {Options{}, Transfer{Bytes: 3 << 20}},
		"ipv6":                  {Options{}, Transfer{Bytes: 3 << 20, IPv6: true}},
		"one segment per skb":   {Options{NoOffload: true}, Transfer{Bytes: 3<<20 + 1, Congestion: "reno"}},
		"rate and random loss":  {Options{NoOffload: true, Rate: 200e6, LossToB: Loss{OneIn: 100}}, Transfer{Bytes: 3 << 20, Congestion: "reno"}},
		"small mtu, no payload": {Options{MTU: 1280}, Transfer{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			l := ForTest(t, tt.opts)
			atA, err := l.Count(l.A, l.A.Interface)
			require.NoError(t, err)
			atB, err := l.Count(l.B, l.B.Interface)
			require.NoError(t, err)
			beforeA, beforeB := snmp(t, l.A), snmp(t, l.B)

			r, err := l.Transfer(ctx, tt.tr)
			require.NoError(t, err)
			require.Equal(t, tt.tr.Bytes, r.Received)
			require.NoError(t, l.A.Quiet(ctx))
			require.NoError(t, l.B.Quiet(ctx))

			a, b := snmp(t, l.A).Sub(beforeA), snmp(t, l.B).Sub(beforeB)
			outA, err := atA.Out()
			require.NoError(t, err)
			inA, err := atA.In()
			require.NoError(t, err)
			inB, err := atB.In()
			require.NoError(t, err)
			router, err := l.ToB.In()
			require.NoError(t, err)

			// The kernel's counters and ours tell the same.
			require.EqualValues(t, a["TcpOutSegs"]+a["TcpRetransSegs"], outA.Segments, "OutSegs excludes retransmissions")
			require.EqualValues(t, b["TcpInSegs"], inB.TCP, "InSegs counts skbs: a super-packet is one")
			require.EqualValues(t, a["TcpInSegs"], inA.TCP)
			require.EqualValues(t, r.After.TotalRetrans, a["TcpRetransSegs"])
			require.NotZero(t, r.After.RTT, "TCP_INFO outlives the connection")
			require.EqualValues(t, tt.tr.Bytes, r.Before.BytesAcked-1, "bytes_acked counts the SYN")
			require.EqualValues(t, r.Before.BytesSent, outA.Payload)
			require.EqualValues(t, r.Before.BytesSent-r.Before.BytesRetrans, tt.tr.Bytes)
			gone := lost(t, l)
			if gone == 0 {
				require.Equal(t, outA.Payload, router.Payload, "all that A sends reaches the router")
				require.Equal(t, outA.Segments, router.Segments)
			}
			if tt.opts.NoOffload {
				require.Equal(t, outA.TCP, outA.Segments, "one segment per skb")
			}
			if tt.opts.LossToB.OneIn > 0 {
				require.Positive(t, router.Dropped)
				require.Positive(t, a["TcpRetransSegs"])
			}
			if tt.opts.Rate == 0 && gone == 0 {
				require.Equal(t, router.Segments-router.DroppedSegs, inB.Segments)
			}
		})
	}
}

func TestNthPacketIsDroppedExactly(t *testing.T) {
	ctx := bounded(t)
	l := ForTest(t, Options{NoOffload: true})
	atA, err := l.Count(l.A, l.A.Interface)
	require.NoError(t, err)
	atB, err := l.Count(l.B, l.B.Interface)
	require.NoError(t, err)
	require.NoError(t, l.ToB.Drop(20, 40))
	before := snmp(t, l.A)
	const size = 1 << 20
	r, err := l.Transfer(ctx, Transfer{Bytes: size, Congestion: "reno"})
	require.NoError(t, err)
	require.NoError(t, l.A.Quiet(ctx))
	require.NoError(t, l.B.Quiet(ctx))
	c, err := l.ToB.In()
	require.NoError(t, err)
	require.EqualValues(t, 2, c.Dropped)
	require.EqualValues(t, 2, c.DroppedSegs)
	require.EqualValues(t, 2*1448, c.DroppedLoad)

	// No other packet is missing at B, unless a device on the way had to drop it.
	out, err := atA.Out()
	require.NoError(t, err)
	in, err := atB.In()
	require.NoError(t, err)
	gone := lost(t, l) // mostly none
	require.LessOrEqual(t, out.Segments-in.Segments-2, gone)
	require.LessOrEqual(t, out.Data-in.Data-2, gone)
	// Each lost packet was sent again, and whatever else the kernel held to be lost: packets may change
	// their order on the way (each CPU has its own queue between two ends of a veth).
	d := snmp(t, l.A).Sub(before)
	require.GreaterOrEqual(t, d["TcpRetransSegs"], int64(2), "%v", d)
	require.EqualValues(t, d["TcpRetransSegs"], r.After.TotalRetrans, "%v", d)
	require.EqualValues(t, out.Payload-size, r.After.BytesRetrans, "%v", d)

	// Counted from now, not from the beginning.
	require.NoError(t, l.ToB.Drop(1))
	_, err = l.Exchange(ctx, Exchange{})
	require.NoError(t, err)
	c, err = l.ToB.In()
	require.NoError(t, err)
	require.EqualValues(t, 3, c.Dropped)
}

func TestExchangeEndsAsAsked(t *testing.T) {
	tests := map[string]struct {
		e      Exchange
		resets int64
	}{
		"closed in order": {Exchange{Connections: 5, Requests: 3, RequestBytes: 100, ResponseBytes: 5000}, 0},
		"reset":           {Exchange{Connections: 5, Requests: 3, Reset: true}, 5},
		"ipv6, from B":    {Exchange{IPv6: true}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			l := ForTest(t, Options{})
			if strings.Contains(name, "from B") {
				tt.e.From, tt.e.To = l.B, l.A
			}
			from, _ := l.ends(tt.e.From, tt.e.To)
			before := snmp(t, from)
			clients, err := l.Exchange(ctx, tt.e)
			require.NoError(t, err)
			require.Len(t, clients, max(tt.e.Connections, 1))
			require.NoError(t, l.A.Quiet(ctx))
			require.NoError(t, l.B.Quiet(ctx))
			d := snmp(t, from).Sub(before)
			require.EqualValues(t, len(clients), d["TcpActiveOpens"])
			require.EqualValues(t, tt.resets, d["TcpOutRsts"])
		})
	}
}

func TestClosedPortRefuses(t *testing.T) {
	l := ForTest(t, Options{})
	before := snmp(t, l.B)
	require.NoError(t, l.Refused(bounded(t), nil, nil, 9))
	require.EqualValues(t, 1, snmp(t, l.B).Sub(before)["TcpOutRsts"])
}

func TestSocketsShowWhatTCPInfoTells(t *testing.T) {
	ctx := bounded(t)
	l := ForTest(t, Options{})
	for _, ipv6 := range []bool{false, true} {
		client, server, err := l.pair(ctx, l.A, l.B, ipv6, 0, "reno")
		require.NoError(t, err)
		socks, err := l.A.Sockets(0)
		require.NoError(t, err)
		require.Len(t, socks, 1, "B's are not seen from A")
		s := socks[0]
		require.Equal(t, addrPort(client.LocalAddr()), s.Local)
		require.Equal(t, addrPort(client.RemoteAddr()), s.Peer)
		require.Equal(t, "reno", s.Congestion)
		require.EqualValues(t, 1, s.State)
		cookie, err := SocketCookie(client)
		require.NoError(t, err)
		require.Equal(t, cookie, s.Cookie)
		info, err := Info(client)
		require.NoError(t, err)
		require.Greater(t, info.Len, 200)
		// The times since the last packet go on by themselves.
		for _, i := range []*TCPInfo{&info, &s.Info} {
			i.LastDataSent, i.LastDataRecv, i.LastAckRecv, i.LastAckSent = 0, 0, 0, 0
		}
		require.Equal(t, info, s.Info)
		require.EqualValues(t, 10, info.SndCwnd)
		require.NotZero(t, info.RTT)
		require.NoError(t, server.Close())
		require.NoError(t, client.Close())
		require.NoError(t, l.A.Quiet(ctx))
	}
}

func TestDoReturnsToTheThreadsNamespace(t *testing.T) {
	l := ForTest(t, Options{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := threadNamespace(t)
	var inA, inB string
	boom := errors.New("boom")
	err := l.A.Do(func() error {
		inA = threadNamespace(t)
		return errors.Join(boom, l.B.Do(func() error {
			inB = threadNamespace(t)
			return nil
		}))
	})
	require.ErrorIs(t, err, boom)
	require.NotEqual(t, home, inA)
	require.NotEqual(t, inA, inB)
	require.Equal(t, home, threadNamespace(t))

	require.Panics(t, func() { _ = l.A.Do(func() error { panic("boom") }) })
	require.Equal(t, home, threadNamespace(t), "also after a panic")
}

func TestProcessesStartInsideTheNamespace(t *testing.T) {
	l := ForTest(t, Options{})
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := l.A.Command(self, "-test.run=^TestHelperPrintsItsNetwork$")
	cmd.Env = append(os.Environ(), "NETLAB_HELPER=1")
	var out strings.Builder
	cmd.Stdout = &out
	require.NoError(t, l.A.Run(cmd))
	require.Contains(t, out.String(), l.A.IPv4.String())
}

func TestHelperPrintsItsNetwork(t *testing.T) {
	if os.Getenv("NETLAB_HELPER") == "" {
		t.Skip("runs as a child of other tests")
	}
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	fmt.Println(addrs)
}

func TestNamedNamespacesAreMountedAndReaped(t *testing.T) {
	l := ForTest(t, Options{Name: "test"})
	path := filepath.Join(namedDir, l.A.Mount)
	require.FileExists(t, path)
	gone, err := Reap()
	require.NoError(t, err)
	require.NotContains(t, gone, l.A.Mount, "its maker lives")
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)

	// A maker that is dead: our own id, with another start.
	left := filepath.Join(namedDir, fmt.Sprintf("%s%d-%d-test-a", namePrefix, os.Getpid(), 1))
	require.NoError(t, os.WriteFile(left, nil, 0o444))
	require.NoError(t, unix.Mount("/proc/thread-self/ns/net", left, "bind", unix.MS_BIND, ""))
	gone, err = Reap()
	require.NoError(t, err)
	require.Contains(t, gone, filepath.Base(left))
	require.NoFileExists(t, left)
}

func TestReapLeavesForeignNamesAlone(t *testing.T) {
	dir := t.TempDir()
	dead := exec.Command("/proc/self/exe", "-test.run=^$")
	require.NoError(t, dead.Run())
	gone := fmt.Sprintf("%s%d-77-x-a", namePrefix, dead.Process.Pid)
	for _, name := range []string{gone, "blue", namePrefix + "x", namePrefix + "1-2", namePrefix + "-1-2-a"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: umount(2)")
	}
	got, err := reap(dir)
	require.NoError(t, err)
	require.Equal(t, []string{gone}, got)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 4)
	none, err := reap(filepath.Join(dir, "missing"))
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestCloseEndsEverything(t *testing.T) {
	l := ForTest(t, Options{})
	prog := l.ToB.in.prog
	require.NoError(t, l.Close())
	require.NoError(t, l.Close(), "twice")
	require.Equal(t, -1, prog.FD())
	_, err := l.ToB.In()
	require.Error(t, err)
}

func TestCounterWorksWithClsact(t *testing.T) {
	ctx := bounded(t)
	l := ForTest(t, Options{NoOffload: true})
	tcx, err := l.Count(l.A, l.A.Interface)
	require.NoError(t, err)
	c := &Counter{in: &counted{}, out: &counted{}, n: l.A}
	require.NoError(t, l.A.Do(func() error {
		ifi, err := net.InterfaceByName(l.A.Interface)
		if err != nil {
			return err
		}
		for p, where := range map[*counted]ebpf.AttachType{c.in: ebpf.AttachTCXIngress, c.out: ebpf.AttachTCXEgress} {
			err = errors.Join(err, p.load(Loss{}))
			if err == nil {
				p.link, err = attachClsact(ifi.Index, p.prog, where)
			}
		}
		return err
	}))
	_, err = l.Transfer(ctx, Transfer{Bytes: 1 << 20})
	require.NoError(t, err)
	require.NoError(t, l.A.Quiet(ctx))
	for _, of := range []func(*Counter) (Count, error){(*Counter).In, (*Counter).Out} {
		want, err := of(tcx)
		require.NoError(t, err)
		got, err := of(c)
		require.NoError(t, err)
		require.Positive(t, got.TCP)
		// IPv6 sends reports of its own; they may come between the two beginnings.
		want.Packets, want.Bytes, got.Packets, got.Bytes = 0, 0, 0, 0
		require.Equal(t, want, got)
	}
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "twice")
}

func TestParseSNMP(t *testing.T) {
	tests := map[string]struct {
		in   string
		want SNMP
		err  string
	}{
		"two groups":   {"Tcp: A B\nTcp: 1 -1\nUdp: A\nUdp: 18446744073709551615\n", SNMP{"TcpA": 1, "TcpB": -1, "UdpA": -1}, ""},
		"empty":        {"", SNMP{}, ""},
		"short":        {"Tcp: A B\nTcp: 1\n", nil, "1 values"},
		"mixed":        {"Tcp: A\nUdp: 1\n", nil, "values of"},
		"not a number": {"Tcp: A\nTcp: x\n", nil, "TcpA"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := SNMP{}
			err := parseSNMP(got, []byte(tt.in))
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestParseDiagRefusesWhatIsTorn(t *testing.T) {
	whole := make([]byte, 72, 100)
	whole = append(whole, 8, 0, diagCong, 0, 'r', 'e', 'n', 'o')
	s, err := parseDiag(whole)
	require.NoError(t, err)
	require.Equal(t, "reno", s.Congestion)
	for _, n := range []int{0, 71, 77, 79} {
		_, err := parseDiag(whole[:n])
		require.Error(t, err, "%d bytes", n)
	}
}
