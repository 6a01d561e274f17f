// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// incidents returns those of a hook, those of a socket in its order: CPUs hand over apart.
func (r *recorded) incidents(hook event.Hook) (all []*event.Incident) {
	for h := range event.All(r.raw) {
		if h.Hook == hook && h.Kind == event.KindIncident {
			all = append(all, h.Incident())
		}
	}
	slices.SortStableFunc(all, func(a, b *event.Incident) int {
		if a.Cookie != b.Cookie || a.SockSeq == 0 || b.SockSeq == 0 {
			return cmp.Compare(a.Time, b.Time)
		}
		return cmp.Compare(a.SockSeq, b.SockSeq)
	})
	return all
}

// inject puts frames onto the wire to a namespace, from the router.
func inject(t *testing.T, l *netlab.Lab, to *netlab.Namespace, device string, packets ...packet) {
	t.Helper()
	var mac net.HardwareAddr
	require.NoError(t, to.Do(func() error {
		dev, err := netlink.LinkByName(to.Interface)
		if err == nil {
			mac = dev.Attrs().HardwareAddr
		}
		return err
	}))
	require.NoError(t, l.R.Do(func() error {
		dev, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for _, p := range packets {
			frame := slices.Concat[[]byte](mac, dev.Attrs().HardwareAddr, be(0x0800), p)
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Attrs().Index}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// segmentTo is a segment without payload from one end to another, with right checksums.
func segmentTo(from, to netip.AddrPort, flags uint16) packet {
	p := tcp(flags, nil, 0).ip4(6, 0x4000, nil)
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	checksum(p)
	return p
}

// seen waits until a hook has met so many events.
func seen(t *testing.T, c *Capture, hook event.Hook, n uint64) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Accounting().Total[hook].Seen >= n }, time.Minute, 5*time.Millisecond, "%v", hook)
}

// tellsAll tries up to three times what tracepoints are to tell: kernels have been seen that now and then do not run a
// tracing program and do not count that either.
func tellsAll(t *testing.T, try func() (untold string)) {
	t.Helper()
	for attempt := 1; ; attempt++ {
		untold := try()
		if untold == "" {
			return
		}
		t.Logf("attempt %d: %s", attempt, untold)
		require.Less(t, attempt, 3, "the tracepoints never told all: %s", untold)
	}
}

// The process, user, cgroup and namespace of a connection are told at its opening, for one that connects and for one that is
// accepted.
func TestOpeningsTellTheProcess(t *testing.T) {
	tellsAll(t, func() string { return openingsTellTheProcess(t) })
}

func openingsTellTheProcess(t *testing.T) (untold string) {
	t.Helper()
	l := lab(t, netlab.Options{})
	netns, err := l.A.Cookie()
	require.NoError(t, err)
	var cookies [2]uint64 // of the one that connects, of the one that is accepted
	r, a := during(t, in(l.A), func(*Capture) {
		for i, ends := range [][2]*netlab.Namespace{{l.A, l.B}, {l.B, l.A}} {
			ln, err := ends[1].Listen(bounded(t), netip.AddrPortFrom(ends[1].IPv4, 0))
			require.NoError(t, err)
			client, err := ends[0].Dial(bounded(t), netip.MustParseAddrPort(ln.Addr().String()), "")
			require.NoError(t, err)
			server, err := ln.AcceptTCP()
			require.NoError(t, err)
			cookies[i], err = netlab.SocketCookie([]*net.TCPConn{client, server}[i])
			require.NoError(t, err)
			require.NoError(t, client.Close())
			require.NoError(t, server.Close())
			require.NoError(t, ln.Close())
		}
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	states := map[uint64][]event.TCPState{}
	for _, i := range r.incidents(event.HookSetState) {
		if i.Cookie != cookies[0] && i.Cookie != cookies[1] {
			continue
		}
		states[i.Cookie] = append(states[i.Cookie], i.NewState)
		require.Equal(t, netns, i.Netns)
		require.EqualValues(t, event.HasProcess, i.Present)
		require.EqualValues(t, os.Getpid(), i.PID)
		require.NotZero(t, i.TID)
		require.EqualValues(t, os.Geteuid(), i.UID)
		require.Equal(t, strings.TrimSpace(string(comm)), string(bytes.TrimRight(i.Comm[:], "\x00")))
		if id, ok := ownCgroup(t); ok {
			require.Equal(t, id, i.Cgroup)
		}
	}
	connected, accepted := states[cookies[0]], states[cookies[1]]
	opened := func(s []event.TCPState) bool {
		return slices.Contains(s, event.Established) && s[len(s)-1] == event.Closed
	}
	if !opened(connected) || !opened(accepted) || connected[0] != event.SynSent {
		return fmt.Sprintf("connected %v, accepted %v", connected, accepted)
	}
	return ""
}

// ownCgroup is the id of this process's version 2 cgroup, where that is mounted.
func ownCgroup(t *testing.T) (uint64, bool) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	_, path, found := strings.Cut("\n"+string(b), "\n0::")
	if !found {
		return 0, false
	}
	path, _, _ = strings.Cut(path, "\n")
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(root + path + "/cgroup.procs"); err != nil {
			continue
		}
		if id, err := (Filter{Cgroup: root + path}).cgroupID(); err == nil {
			return id, true
		}
	}
	return 0, false
}

// A SYN-ACK that nobody answers is sent again; a segment with a bad checksum is told with what it says.
func TestHalfOpenAndDamaged(t *testing.T) {
	l := lab(t, netlab.Options{})
	ln, err := l.A.Listen(bounded(t), netip.AddrPortFrom(l.A.IPv4, 0))
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	server := netip.MustParseAddrPort(ln.Addr().String())
	silent := netip.AddrPortFrom(netip.MustParseAddr("10.77.1.99"), 40001) // on the link, but nobody is it
	damaged := segmentTo(netip.AddrPortFrom(silent.Addr(), 40002), server, event.SYN)
	damaged[36] ^= 0x55
	r, a := during(t, in(l.A), func(c *Capture) {
		inject(t, l, l.A, "toa", segmentTo(silent, server, event.SYN), damaged)
		seen(t, c, event.HookBadChecksum, 1)
		seen(t, c, event.HookRetransmitSynAck, 1)
	})
	r.identity(t, a)
	again := r.incidents(event.HookRetransmitSynAck)
	require.NotEmpty(t, again)
	for _, i := range again {
		require.Equal(t, server, i.LocalAddr())
		require.Equal(t, silent, i.PeerAddr())
		require.EqualValues(t, 1, i.Segs)
		require.EqualValues(t, event.SYN|event.ACK, i.TCPFlags)
		require.Equal(t, event.NewSynRecv, i.NewState)
		require.Equal(t, event.DirOut, i.Dir)
		require.NotZero(t, i.Netns)
	}
	bad := r.incidents(event.HookBadChecksum)
	require.Len(t, bad, 1)
	require.Equal(t, server, bad[0].LocalAddr())
	require.EqualValues(t, 40002, bad[0].PeerPort)
	require.EqualValues(t, 0x01020304, bad[0].Seq)
	require.EqualValues(t, event.SYN, bad[0].TCPFlags)
	require.Zero(t, bad[0].Len)
	require.Equal(t, event.DirIn, bad[0].Dir)
	require.Equal(t, again[0].Netns, bad[0].Netns)
}

// Resets that come and go, with a connection and without.
func TestResetsAreTold(t *testing.T) {
	tellsAll(t, func() string { return resetsAreTold(t) })
}

func resetsAreTold(t *testing.T) (untold string) {
	t.Helper()
	l := lab(t, netlab.Options{})
	refused := uint16(9) // nobody listens there
	r, a := during(t, in(l.A), func(*Capture) {
		require.NoError(t, l.Refused(bounded(t), l.B, l.A, refused))
		require.NoError(t, l.Refused(bounded(t), l.A, l.B, refused))
		_, err := l.Exchange(bounded(t), netlab.Exchange{Requests: 2, Reset: true})
		require.NoError(t, err)
		_, err = l.Exchange(bounded(t), netlab.Exchange{From: l.B, To: l.A, Requests: 2, Reset: true})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	sent, received := r.incidents(event.HookSendReset), r.incidents(event.HookReceiveReset)
	// Kernels before 6.10 do not tell of a reset without a socket.
	reasons := tracepointArgs(btf.NewCache(), "tcp_send_reset") > 2
	want := 1
	if reasons {
		want = 2
	}
	if len(sent) < want || len(received) < 2 {
		return fmt.Sprintf("%d of %d resets sent, %d of 2 received", len(sent), want, len(received))
	}
	aborts := sent
	if len(sent) == 2 {
		require.Equal(t, netip.AddrPortFrom(l.A.IPv4, refused), sent[0].LocalAddr())
		require.NotZero(t, sent[0].TCPFlags&event.SYN, "the segment that it answers")
		require.Zero(t, sent[0].Cookie)
		aborts = sent[1:]
	}
	require.Len(t, aborts, 1)
	require.NotZero(t, aborts[0].Cookie, "the client aborts")
	require.Equal(t, l.A.IPv4, aborts[0].LocalAddr().Addr())
	require.NotEqual(t, refused, aborts[0].LocalPort)
	for _, i := range sent {
		require.Equal(t, l.B.IPv4, i.PeerAddr().Addr())
		require.Equal(t, event.DirOut, i.Dir)
		require.NotZero(t, i.Netns)
		if reasons {
			require.NotZero(t, i.Reason)
		}
	}
	require.Len(t, received, 2)
	require.Equal(t, netip.AddrPortFrom(l.B.IPv4, refused), received[0].PeerAddr())
	require.Equal(t, event.SynSent, received[0].OldState)
	require.Contains(t, []event.TCPState{event.Established, event.CloseWait, event.FinWait1, event.FinWait2}, received[1].OldState)
	for _, i := range received {
		require.NotZero(t, i.Cookie)
		require.Equal(t, event.DirIn, i.Dir)
	}
	return ""
}

// A lost segment: its retransmission, and the states of congestion avoidance on the way.
func TestLossIsTold(t *testing.T) {
	tellsAll(t, func() string { return lossIsTold(t) })
}

func lossIsTold(t *testing.T) (untold string) {
	t.Helper()
	l := lab(t, netlab.Options{NoOffload: true, LossToB: netlab.Loss{Nth: []uint64{30}}})
	cfg := in(l.A)
	cfg.Events.Hooks = append(cfg.Events.Hooks, event.HookRcvSpaceAdjust.String())
	var res netlab.Result
	r, a := during(t, cfg, func(*Capture) {
		var err error
		res, err = l.Transfer(bounded(t), netlab.Transfer{Bytes: 1 << 20})
		require.NoError(t, err)
		_, err = l.Transfer(bounded(t), netlab.Transfer{From: l.B, To: l.A, Bytes: 1 << 20})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	sent := map[uint32][]*event.Segment{}
	for h := range event.All(r.raw) {
		if h.Hook == event.HookTCEgress && h.Cookie == res.ClientCookie {
			sent[h.Segment().Seq] = append(sent[h.Segment().Seq], h.Segment())
		}
	}
	again := r.incidents(event.HookRetransmitSKB)
	if len(again) == 0 {
		return "no retransmission"
	}
	for _, i := range again {
		require.Equal(t, res.ClientCookie, i.Cookie)
		require.Equal(t, res.Client, i.LocalAddr())
		require.Equal(t, res.Server, i.PeerAddr())
		require.EqualValues(t, 1, i.Segs)
		require.NotZero(t, i.TCPFlags&event.ACK)
		if i.Err != 0 {
			continue
		}
		twice := sent[i.Seq]
		require.GreaterOrEqual(t, len(twice), 2, "sequence number %d", i.Seq)
		for _, s := range twice {
			require.Equal(t, i.Len, s.PayloadLen)
		}
		require.Contains(t, []event.TCPState{event.Established, event.FinWait1}, i.OldState)
	}
	state := event.CAOpen
	var all []event.CAState
	for _, i := range r.incidents(event.HookCongStateSet) {
		if i.Cookie != res.ClientCookie {
			continue
		}
		if event.CAState(i.OldState) != state {
			return fmt.Sprintf("from %v to %v, but it was %v", event.CAState(i.OldState), i.CAState, state)
		}
		state = i.CAState
		all = append(all, state)
	}
	if !slices.Contains(all, event.CARecovery) && !slices.Contains(all, event.CALoss) {
		return fmt.Sprintf("a loss, and the states %v", all)
	}

	// The window of A as a receiver grows, and ends as the last sample has it.
	space := map[uint64]uint32{}
	for _, i := range r.incidents(event.HookRcvSpaceAdjust) {
		require.NotZero(t, i.Value)
		require.GreaterOrEqual(t, i.Value, space[i.Cookie])
		space[i.Cookie] = i.Value
	}
	compared := 0
	for h := range event.All(r.raw) {
		if h.Hook == event.HookDestroySock && space[h.Cookie] != 0 {
			require.GreaterOrEqual(t, h.Sample().RcvSpace, space[h.Cookie])
			compared++
		}
	}
	require.NotZero(t, compared)
	return ""
}
