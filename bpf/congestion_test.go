// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"encoding/binary"
	"net"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// bbrInfo is struct tcp_bbr_info, as TCP_CC_INFO gives it.
type bbrInfo struct {
	bandwidth                    uint64
	minRTT, pacingGain, cwndGain uint32
}

func readBBRInfo(t *testing.T, conn syscall.Conn) (i bbrInfo) {
	t.Helper()
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		var buf [20]byte
		n := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_CC_INFO,
			uintptr(unsafe.Pointer(&buf)), uintptr(unsafe.Pointer(&n)), 0)
		require.Zero(t, errno)
		require.EqualValues(t, len(buf), n)
		word := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[4*i:]) }
		i = bbrInfo{uint64(word(0)) | uint64(word(1))<<32, word(2), word(3), word(4)}
	}))
	return i
}

// sampleOf captures the sample that the inventory takes of an open connection; look runs before and after.
func sampleOf(t *testing.T, l *netlab.Lab, conn *net.TCPConn, look func()) *event.Sample {
	t.Helper()
	cookie, err := netlab.SocketCookie(conn)
	require.NoError(t, err)
	look()
	r, a := during(t, in(l.A), func(c *Capture) {
		<-c.inventory.done
		look()
	})
	r.identity(t, a)
	for h := range event.All(r.raw) {
		if h.Cookie == cookie && h.Hook == event.HookInventory && h.Kind == event.KindSample {
			return h.Sample()
		}
	}
	t.Fatal("the inventory has no sample of the connection")
	return nil
}

// The private state of BBR is what the kernel tells by TCP_CC_INFO.
func TestBBRStateIsTCPCCInfo(t *testing.T) {
	l := lab(t, netlab.Options{LossToB: netlab.Loss{Nth: []uint64{20}}})
	conn := busyConnection(t, l, false, "bbr")
	var told []bbrInfo
	s := sampleOf(t, l, conn, func() { told = append(told, readBBRInfo(t, conn)) })
	require.Equal(t, told[0], told[1], "the connection was not quiet")
	b, ok := s.BBR()
	require.True(t, ok)
	require.Equal(t, told[0], bbrInfo{b.Bandwidth, b.MinRTT, b.PacingGain, b.CwndGain})
	require.NotZero(t, b.Bandwidth)
	require.NotZero(t, b.Rounds)
	require.NotZero(t, b.PriorCwnd, "it was in recovery")
	require.Less(t, b.Mode, event.BBRMode(event.BBRModes))
	_, ok = s.CUBIC()
	require.False(t, ok)
}

// The private state of CUBIC, which TCP_CC_INFO does not tell, fits the socket's threshold after a loss.
func TestCUBICState(t *testing.T) {
	for attempt := 1; ; attempt++ {
		l := lab(t, netlab.Options{NoOffload: true, LossToB: netlab.Loss{Nth: []uint64{40}}})
		s := sampleOf(t, l, busyConnection(t, l, false, "cubic"), func() {})
		c, ok := s.CUBIC()
		require.True(t, ok)
		require.NotZero(t, s.TotalRetrans)
		require.GreaterOrEqual(t, c.DelayMin, s.MinRTT)
		_, ok = s.BBR()
		require.False(t, ok)
		// bictcp_recalc_ssthresh: a loss multiplies the window by 717/1024. One that comes before the last window was
		// reached again leaves 1741/2048 of it to be remembered.
		window := c.LastMaxCwnd
		if window*717/1024 != s.SndSsthresh {
			window = (window*2048 + 1740) / 1741
		}
		if want := window * 717 / 1024; window == 0 || max(want, s.SndSsthresh)-min(want, s.SndSsthresh) > 1 {
			// A timeout forgets all, an undo brings the threshold back: slow machines have both.
			require.Less(t, attempt, 5, "threshold %d does not fit %+v", s.SndSsthresh, c)
			continue
		}
		return
	}
}

// Without a private state that is known none is told.
func TestRenoHasNoPrivateState(t *testing.T) {
	l := lab(t, netlab.Options{})
	s := sampleOf(t, l, busyConnection(t, l, false, "reno"), func() {})
	require.Zero(t, s.Present&(event.HasCAPriv|event.HasCAMore))
}

// A kernel whose struct is another one is found out by its type information.
func TestOtherLayoutsOfPrivateState(t *testing.T) {
	u32 := &btf.Int{Name: "u32", Size: 4}
	cubic := privateStates[0]
	require.Equal(t, "bictcp", cubic.name)
	members := func() []btf.Member {
		var m []btf.Member
		for i, name := range []string{"cnt", "last_max_cwnd", "last_cwnd", "last_time", "bic_origin_point", "bic_K", "delay_min", "epoch_start", "ack_cnt", "tcp_cwnd"} {
			m = append(m, btf.Member{Name: name, Type: u32, Offset: btf.Bits(32 * i)})
		}
		return append(m, btf.Member{Name: "found", Type: &btf.Int{Name: "u8", Size: 1}, Offset: 344}, btf.Member{Name: "curr_rtt", Type: u32, Offset: 448})
	}
	for name, tt := range map[string]struct {
		change func(m []btf.Member) []btf.Member
		want   bool
	}{
		"mainline":         {func(m []btf.Member) []btf.Member { return m }, true},
		"a field more":     {func(m []btf.Member) []btf.Member { return append(m, btf.Member{Name: "tick", Type: u32, Offset: 480}) }, true},
		"a field moved":    {func(m []btf.Member) []btf.Member { m[6].Offset += 32; return m }, false},
		"a field is wider": {func(m []btf.Member) []btf.Member { m[7].Type = &btf.Int{Name: "u64", Size: 8}; return m }, false},
		"a field is gone":  {func(m []btf.Member) []btf.Member { return m[1:] }, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tt.want, cubic.matches(&btf.Struct{Name: "bictcp", Size: 60, Members: tt.change(members())}))
		})
	}
}
