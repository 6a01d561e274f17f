// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// patience bounds what must end; it asserts nothing about speed.
const patience = 2 * time.Minute

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// labs counts those that were made.
var labs atomic.Uint32

// lab makes a network whose namespaces have paths.
func lab(t *testing.T, o netlab.Options) *netlab.Lab {
	t.Helper()
	requireBPF(t)
	o.Name = fmt.Sprintf("bpf%d", labs.Add(1)) // a test may make several
	return netlab.ForTest(t, o)
}

// in returns a configuration that captures one namespace of a lab.
func in(n *netlab.Namespace) Config {
	cfg := DefaultConfig()
	cfg.Netns = "/run/netns/" + n.Mount
	cfg.Sockets.Samples = SamplesEvery // as on a host that is not busy; see limit_test.go
	return cfg
}

// skipDevice ends a test that has no network device of a kind. A kernel without that kind says so; with TCBEE_REQUIRE_BPF=1
// every other reason is a failure.
func skipDevice(t *testing.T, kind string, err error) {
	t.Helper()
	reason := fmt.Errorf("no %s device: %w", kind, err)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip(reason)
	}
	netlab.Skip(t, reason)
}

// connect opens a connection to an address of another namespace; both ends are closed at the test's end.
func connect(t *testing.T, from, to *netlab.Namespace, addr netip.Addr, congestion string) (conn, peer *net.TCPConn) {
	t.Helper()
	ln, err := to.Listen(t.Context(), netip.AddrPortFrom(addr, 0))
	require.NoError(t, err)
	defer func() { require.NoError(t, ln.Close()) }()
	conn, err = from.Dial(t.Context(), ln.Addr().(*net.TCPAddr).AddrPort(), congestion)
	if errors.Is(err, unix.ENOENT) {
		netlab.Skip(t, fmt.Errorf("this kernel has no %s", congestion))
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // the test may have done so
	peer, err = ln.AcceptTCP()
	require.NoError(t, err)
	t.Cleanup(func() { _ = peer.Close() })
	return conn, peer
}

// busyConnection moves a megabyte each way over a connection of two namespaces, and waits until it is quiet.
func busyConnection(t *testing.T, l *netlab.Lab, ipv6 bool, congestion string) *net.TCPConn {
	t.Helper()
	conn, peer := connect(t, l.A, l.B, l.B.Addr(ipv6), congestion)
	go func() { _, _ = io.Copy(peer, io.LimitReader(peer, 1<<20)) }()
	go func() { _, _ = conn.Write(make([]byte, 1<<20)) }()
	_, err := io.ReadFull(conn, make([]byte, 1<<20))
	require.NoError(t, err)
	atRest(t, conn)
	return conn
}

// recorded is all that a capture gave.
type recorded struct {
	raw    []byte
	stored [event.Hooks]uint64
}

func (r *recorded) add(t testing.TB, b []byte) {
	t.Helper()
	require.NoError(t, r.keep(b))
}

func (r *recorded) keep(b []byte) error {
	if err := event.Check(b); err != nil {
		return err
	}
	r.raw = append(r.raw, b...)
	for h := range event.All(b) {
		if h.Kind < event.KindTick {
			r.stored[h.Hook]++
		}
	}
	return nil
}

// unnamed counts the accepted connections of which the kernel told (LISTEN to SYN_RECV) before they had an identity, as older
// ones do: that is filtered.
func (r *recorded) unnamed() (n uint64) {
	for h := range event.All(r.raw) {
		if h.Hook != event.HookSetState {
			continue
		}
		switch i := h.Incident(); {
		case i.OldState == event.Listen && i.NewState == event.SynRecv:
			n--
		case i.OldState == event.SynRecv && i.NewState == event.Established:
			n++
		}
	}
	return n
}

// identity requires that every event is accounted for.
func (r *recorded) identity(t testing.TB, a Accounting) {
	t.Helper()
	for h, n := range a.Total {
		require.Equal(t, n.Seen, r.stored[h]+n.Dropped+n.Missed+n.Filtered, "%v: stored %d of %+v", event.Hook(h), r.stored[h], n)
	}
}

// during captures while f runs, and returns all records.
func during(t testing.TB, cfg Config, f func(c *Capture)) (*recorded, Accounting) {
	t.Helper()
	c, err := Open(t.Context(), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	r := &recorded{}
	var end error
	var reading sync.WaitGroup
	reading.Go(func() {
		for end == nil {
			var b []byte
			if b, end = c.Next(context.Background()); end == nil {
				end = r.keep(b)
			}
		}
	})
	stop := func() {
		c.Stop()
		reading.Wait()
	}
	defer stop() // f may have failed: Close takes the batches' memory away
	f(c)
	stop()
	require.ErrorIs(t, end, io.EOF)
	return r, c.Accounting()
}

// firings counts tracepoints in a namespace by a program that is not the capture's.
type firings map[event.Hook]*netlab.Firings

func fire(t *testing.T, l *netlab.Lab, n *netlab.Namespace, hooks ...event.Hook) firings {
	t.Helper()
	f := firings{}
	for _, h := range hooks {
		var err error
		f[h], err = l.Firings(n, h.String())
		require.NoError(t, err)
	}
	return f
}

// of returns how often a tracepoint fired.
func (f firings) of(t *testing.T, h event.Hook) uint64 {
	t.Helper()
	n, _, err := f[h].Count()
	require.NoError(t, err)
	return n
}

// told requires that the capture has seen each firing that the other program has seen.
func (f firings) told(t *testing.T, r *recorded, a Accounting) {
	t.Helper()
	for h, other := range f {
		fired, missed, err := other.Count()
		require.NoError(t, err)
		// What the kernel misses it tells by program, not by namespace.
		n := a.Total[h]
		if h == event.HookSetState {
			fired -= r.unnamed()
		}
		require.LessOrEqual(t, n.Seen-n.Missed-n.Filtered, fired+missed, "%v", h)
		require.GreaterOrEqual(t, n.Seen-n.Filtered, fired, "%v", h)
	}
}

func TestTransferIsCapturedWhole(t *testing.T) {
	for name, tt := range map[string]struct {
		options netlab.Options
		ipv6    bool
	}{
		"ipv4":               {},
		"ipv6":               {ipv6: true},
		"losses, no offload": {options: netlab.Options{NoOffload: true, LossToB: netlab.Loss{OneIn: 200}}},
		"losses and offload": {options: netlab.Options{LossToB: netlab.Loss{OneIn: 100}}},
		"rate limit, ipv6":   {options: netlab.Options{Rate: 200_000_000}, ipv6: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := lab(t, tt.options)
			before, err := l.A.SNMP()
			require.NoError(t, err)
			count, err := l.Count(l.A, l.A.Interface)
			require.NoError(t, err)
			fired := fire(t, l, l.A, event.HookSetState, event.HookRetransmitSKB, event.HookDestroySock, event.HookTCPProbe)
			const size = 8 << 20
			var res netlab.Result
			r, a := during(t, in(l.A), func(*Capture) {
				res, err = l.Transfer(bounded(t), netlab.Transfer{Bytes: size, IPv6: tt.ipv6})
				require.NoError(t, err)
				require.NoError(t, l.A.Quiet(bounded(t)))
			})
			after, err := l.A.SNMP()
			require.NoError(t, err)
			snmp := after.Sub(before)
			r.identity(t, a)
			fired.told(t, r, a)

			var out, in netlab.Count
			out, err = count.Out()
			require.NoError(t, err)
			in, err = count.In()
			require.NoError(t, err)
			var segs, inSegs, payload, retrans uint64
			var final *event.Sample
			var opened, closed bool
			for h := range event.All(r.raw) {
				switch {
				case h.Hook == event.HookTCEgress:
					segs += uint64(h.Segment().GSOSegs)
					payload += uint64(h.Segment().PayloadLen)
					require.NotZero(t, h.Cookie)
					require.Equal(t, event.DirOut, h.Dir)
				case h.Hook == event.HookTCIngress:
					inSegs += uint64(h.Segment().GSOSegs)
				case h.Hook == event.HookRetransmitSKB:
					if h.Incident().Retransmitted() {
						retrans += uint64(h.Incident().Segs)
					}
				case h.Hook == event.HookDestroySock && h.Cookie == res.ClientCookie:
					final = h.Sample()
				case h.Hook == event.HookSetState && h.Cookie == res.ClientCookie:
					i := h.Incident()
					if i.NewState == event.SynSent {
						opened = true
						require.EqualValues(t, os.Getpid(), i.PID)
						require.EqualValues(t, event.HasProcess, i.Present)
					}
					closed = closed || i.NewState == event.Closed
				}
			}
			require.Equal(t, out.TCP, a.Total[event.HookTCEgress].Seen)
			require.Equal(t, in.TCP, a.Total[event.HookTCIngress].Seen)
			require.Equal(t, out.Segments, segs)
			require.Equal(t, in.Segments, inSegs)
			require.Equal(t, out.Payload, payload)
			require.Equal(t, "stop", stop(r.raw))

			// Kernels have been seen that now and then run no tracing program and count that nowhere: what the
			// tracepoints told is right, and all if all fired.
			untold := snmp["TcpRetransSegs"] - int64(retrans)
			require.GreaterOrEqual(t, untold, int64(0))
			require.LessOrEqual(t, untold, 2+snmp["TcpRetransSegs"]/4)
			if n := fired.of(t, event.HookSetState); n == 5 { // syn_sent, established, fin_wait1, fin_wait2, close
				require.True(t, opened)
				require.True(t, closed)
			} else {
				t.Logf("%d changes of state instead of 5", n)
			}
			if fired.of(t, event.HookDestroySock) == 0 {
				t.Log("tcp_destroy_sock did not fire")
				return
			}
			require.NotNil(t, final)
			require.EqualValues(t, size+2, final.BytesAcked, "SYN and FIN count as a byte each")
			require.Equal(t, res.Before.BytesRetrans, final.BytesRetrans)
			require.EqualValues(t, snmp["TcpRetransSegs"], final.TotalRetrans)
		})
	}
}

// stop says whether the records end and begin as a session does.
func stop(raw []byte) string {
	var first, last *event.Header
	var tick uint64
	for h := range event.All(raw) {
		if first == nil {
			first = h
		}
		last = h
		switch {
		case h.Kind == event.KindTick:
			if h.Time < tick {
				return "a Tick goes back"
			}
			tick = h.Time
		case h.Kind < event.KindTick && h.Time < tick:
			return h.Hook.String() + " record before the last Tick"
		}
	}
	if first == nil || first.Kind != event.KindAnchor || first.Anchor().Phase != event.AnchorStart {
		return "no anchor at the start"
	}
	if last.Kind != event.KindAnchor || last.Anchor().Phase != event.AnchorEnd || last.Anchor().Session != first.Anchor().Session {
		return "no anchor at the end"
	}
	return "stop"
}

func TestBacklogIsTold(t *testing.T) {
	requireBPF(t)
	cfg := benchConfig()
	cfg.RingBytes = 1 << 20
	c, err := Open(t.Context(), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	var told []bool
	c.OnBacklog(func(behind bool) { told = append(told, behind) })
	g, err := NewGenerator(c, 16)
	require.NoError(t, err)
	defer g.Close()
	for range 2 {
		for deadline := time.Now().Add(30 * time.Second); c.ring.used() <= uint64(cfg.RingBytes)/4; {
			require.True(t, time.Now().Before(deadline), "the ring does not fill up")
			_, err := g.cost(1000) // nobody reads meanwhile
			require.NoError(t, err)
		}
		for before := len(told); len(told) < before+2; {
			_, err := c.Next(t.Context())
			require.NoError(t, err)
		}
	}
	require.Equal(t, []bool{true, false, true, false}, told)
}

func TestFullRingLosesNothingSilently(t *testing.T) {
	requireBPF(t)
	cfg := benchConfig()
	cfg.RingBytes = minRing
	c, err := Open(t.Context(), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	g, err := NewGenerator(c, 16)
	require.NoError(t, err)
	defer g.Close()
	r := &recorded{}
	var sent uint64
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		n, err := g.Run(ctx, 0, 0) // nobody reads meanwhile
		cancel()
		require.NoError(t, err)
		sent += n
		for range 5 {
			b, err := c.Next(t.Context())
			require.NoError(t, err)
			r.add(t, b)
		}
	}
	all := collect(t, c)
	r.add(t, all)
	a := c.Accounting()
	r.identity(t, a)
	in, out := a.Total[event.HookTCIngress], a.Total[event.HookTCEgress]
	require.Equal(t, sent, in.Seen+out.Seen)
	require.NotZero(t, in.Dropped)
	var lost [event.Hooks]uint64
	var recorded [event.Hooks]event.Counters
	end := uint64(0)
	for h := range event.All(r.raw) {
		if h.Kind == event.KindLost {
			l := h.Lost()
			require.LessOrEqual(t, l.First, l.Last)
			require.Greater(t, l.First, end)
			end = l.Last
			for h, n := range l.Count {
				lost[h] += uint64(n)
			}
		}
		if h.Kind == event.KindAccounting && h.CPU == 0 {
			recorded = h.Accounting().Hook
		}
		if h.Kind == event.KindSegment {
			require.Greater(t, h.Time, end, "a record older than the hole before it")
		}
	}
	require.Equal(t, in.Dropped, lost[event.HookTCIngress])
	require.Equal(t, out.Dropped, lost[event.HookTCEgress])
	require.Equal(t, a.CPUs[0], recorded)
	require.Equal(t, "stop", stop(r.raw))
}

func TestSampleIsTCPInfo(t *testing.T) {
	for _, cc := range []string{"reno", "cubic", "bbr"} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(cc+map[bool]string{false: "/ipv4", true: "/ipv6"}[ipv6], func(t *testing.T) {
				l := lab(t, netlab.Options{LossToB: netlab.Loss{Nth: []uint64{20}}})
				conn := busyConnection(t, l, ipv6, cc)

				cookie, err := netlab.SocketCookie(conn)
				require.NoError(t, err)
				before, err := netlab.Info(conn)
				require.NoError(t, err)
				var after netlab.TCPInfo
				r, a := during(t, in(l.A), func(c *Capture) {
					c.inventory.wait.Wait()
					after, err = netlab.Info(conn)
					require.NoError(t, err)
				})
				r.identity(t, a)
				var s *event.Sample
				var owner *event.Incident
				for h := range event.All(r.raw) {
					if h.Cookie != cookie || h.Hook != event.HookInventory {
						continue
					}
					if h.Kind == event.KindSample {
						s = h.Sample()
					} else {
						owner = h.Incident()
					}
				}
				require.NotNil(t, s)
				require.NotNil(t, owner)
				require.EqualValues(t, os.Getpid(), owner.PID)
				require.Equal(t, conn.LocalAddr().(*net.TCPAddr).AddrPort(), owner.LocalAddr())
				require.Equal(t, conn.LocalAddr().(*net.TCPAddr).AddrPort(), s.LocalAddr())
				require.Equal(t, conn.RemoteAddr().(*net.TCPAddr).AddrPort(), s.PeerAddr())
				require.Equal(t, cc, strings.TrimRight(string(s.CAName[:]), "\x00"))
				compare(t, &before, &after, s)
			})
		}
	}
}

// atRest waits until nothing happens on a connection any more, delayed ACKs and probes included: until its
// TCP_INFO stays the same for a while, but for ages.
func atRest(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	read := func() netlab.TCPInfo {
		i, err := netlab.Info(conn)
		require.NoError(t, err)
		i.LastDataSent, i.LastDataRecv, i.LastAckRecv = 0, 0, 0
		return i
	}
	last, same := read(), 0
	for end := time.Now().Add(patience); same < 10; {
		require.True(t, time.Now().Before(end), "the connection does not come to rest")
		time.Sleep(50 * time.Millisecond)
		if now := read(); now == last {
			same++
		} else {
			last, same = now, 0
		}
	}
}

// compare requires that each field of a sample lies between two readings of TCP_INFO.
func compare(t *testing.T, before, after *netlab.TCPInfo, s *event.Sample) {
	t.Helper()
	fields := map[string][3]uint64{}
	add := func(name string, a, b, got uint64) { fields[name] = [3]uint64{a, b, got} }
	u := func(v any) uint64 {
		switch v := v.(type) {
		case uint8:
			return uint64(v)
		case uint16:
			return uint64(v)
		case uint32:
			return uint64(v)
		}
		return v.(uint64)
	}
	b, a := before, after
	for name, v := range map[string][3]any{
		"state": {b.State, a.State, uint8(s.State)}, "ca_state": {b.CAState, a.CAState, uint8(s.CAState)},
		"retransmits": {b.Retransmits, a.Retransmits, s.Retransmits}, "probes": {b.Probes, a.Probes, s.Probes},
		"backoff": {b.Backoff, a.Backoff, s.Backoff}, "options": {b.TCPOptions, a.TCPOptions, s.TCPOptions},
		"snd_wscale": {b.SndWscale(), a.SndWscale(), s.SndWscale}, "rcv_wscale": {b.RcvWscale(), a.RcvWscale(), s.RcvWscale},
		"app_limited":          {b.AppLimited(), a.AppLimited(), s.AppLimited},
		"fastopen_client_fail": {b.FastopenClientFail(), a.FastopenClientFail(), s.FastopenClientFail},
		"rto":                  {b.RTO, a.RTO, s.RTO}, "ato": {b.ATO, a.ATO, s.ATO}, "snd_mss": {b.SndMSS, a.SndMSS, s.SndMSS},
		"rcv_mss": {b.RcvMSS, a.RcvMSS, s.RcvMSS}, "unacked": {b.Unacked, a.Unacked, s.Unacked},
		"sacked": {b.Sacked, a.Sacked, s.Sacked}, "lost": {b.Lost, a.Lost, s.Lost}, "retrans": {b.Retrans, a.Retrans, s.Retrans},
		"last_data_sent": {b.LastDataSent, a.LastDataSent, s.LastDataSent},
		"last_data_recv": {b.LastDataRecv, a.LastDataRecv, s.LastDataRecv},
		"last_ack_recv":  {b.LastAckRecv, a.LastAckRecv, s.LastAckRecv},
		"pmtu":           {b.PMTU, a.PMTU, s.PMTU}, "rcv_ssthresh": {b.RcvSsthresh, a.RcvSsthresh, s.RcvSsthresh},
		"rtt": {b.RTT, a.RTT, s.RTT}, "rttvar": {b.RTTVar, a.RTTVar, s.RTTVar},
		"snd_ssthresh": {b.SndSsthresh, a.SndSsthresh, s.SndSsthresh}, "snd_cwnd": {b.SndCwnd, a.SndCwnd, s.SndCwnd},
		"advmss": {b.AdvMSS, a.AdvMSS, s.AdvMSS}, "reordering": {b.Reordering, a.Reordering, s.Reordering},
		"rcv_rtt": {b.RcvRTT, a.RcvRTT, s.RcvRTT}, "rcv_space": {b.RcvSpace, a.RcvSpace, s.RcvSpace},
		"total_retrans": {b.TotalRetrans, a.TotalRetrans, s.TotalRetrans},
		"pacing_rate":   {b.PacingRate, a.PacingRate, s.PacingRate}, "max_pacing_rate": {b.MaxPacingRate, a.MaxPacingRate, s.MaxPacingRate},
		"bytes_acked": {b.BytesAcked, a.BytesAcked, s.BytesAcked}, "bytes_received": {b.BytesReceived, a.BytesReceived, s.BytesReceived},
		"segs_out": {b.SegsOut, a.SegsOut, s.SegsOut}, "segs_in": {b.SegsIn, a.SegsIn, s.SegsIn},
		"notsent_bytes": {b.NotsentBytes, a.NotsentBytes, s.NotsentBytes}, "min_rtt": {b.MinRTT, a.MinRTT, s.MinRTT},
		"data_segs_in": {b.DataSegsIn, a.DataSegsIn, s.DataSegsIn}, "data_segs_out": {b.DataSegsOut, a.DataSegsOut, s.DataSegsOut},
		"delivery_rate": {b.DeliveryRate, a.DeliveryRate, s.DeliveryRate}, "busy_time": {b.BusyTime, a.BusyTime, s.BusyTime},
		"rwnd_limited": {b.RwndLimited, a.RwndLimited, s.RwndLimited}, "sndbuf_limited": {b.SndbufLimited, a.SndbufLimited, s.SndbufLimited},
		"delivered": {b.Delivered, a.Delivered, s.Delivered}, "delivered_ce": {b.DeliveredCE, a.DeliveredCE, s.DeliveredCE},
		"bytes_sent": {b.BytesSent, a.BytesSent, s.BytesSent}, "bytes_retrans": {b.BytesRetrans, a.BytesRetrans, s.BytesRetrans},
		"dsack_dups": {b.DSACKDups, a.DSACKDups, s.DSACKDups}, "reord_seen": {b.ReordSeen, a.ReordSeen, s.ReordSeen},
		"rcv_ooopack": {b.RcvOOOPack, a.RcvOOOPack, s.RcvOOOPack}, "snd_wnd": {b.SndWnd, a.SndWnd, s.SndWnd},
		"rcv_wnd": {b.RcvWnd, a.RcvWnd, s.RcvWnd}, "rehash": {b.Rehash, a.Rehash, s.Rehash},
		"total_rto": {b.TotalRTO, a.TotalRTO, s.TotalRTO}, "total_rto_recoveries": {b.TotalRTORecoveries, a.TotalRTORecoveries, s.TotalRTORecoveries},
		"total_rto_time": {b.TotalRTOTime, a.TotalRTOTime, s.TotalRTOTime},
		"received_ce":    {b.ReceivedCE, a.ReceivedCE, s.ReceivedCE},
		"delivered_e1":   {b.DeliveredE1Bytes, a.DeliveredE1Bytes, s.DeliveredE1Bytes}, "delivered_e0": {b.DeliveredE0Bytes, a.DeliveredE0Bytes, s.DeliveredE0Bytes},
		"delivered_ce_bytes": {b.DeliveredCEBytes, a.DeliveredCEBytes, s.DeliveredCEBytes},
		"received_e1":        {b.ReceivedE1Bytes, a.ReceivedE1Bytes, s.ReceivedE1Bytes}, "received_e0": {b.ReceivedE0Bytes, a.ReceivedE0Bytes, s.ReceivedE0Bytes},
		"received_ce_bytes": {b.ReceivedCEBytes, a.ReceivedCEBytes, s.ReceivedCEBytes},
		"accecn_fail_mode":  {b.AccECNFailMode, a.AccECNFailMode, s.AccECNFailMode}, "accecn_opt_seen": {b.AccECNOptSeen, a.AccECNOptSeen, s.AccECNOptSeen},
	} {
		add(name, u(v[0]), u(v[1]), u(v[2]))
	}
	// What this kernel's tcp_info does not reach to is absent from the sample, but for the receive window, which sockets had
	// before tcp_info told it (6.2).
	if b.Len <= int(unsafe.Offsetof(b.RcvWnd)) {
		require.NotZero(t, s.RcvWnd)
		delete(fields, "rcv_wnd")
	}
	require.NotZero(t, s.Present&event.HasRcvWnd)
	require.Equal(t, b.Len > int(unsafe.Offsetof(b.TotalRTO)), s.Present&event.HasTotalRTO != 0)
	require.Equal(t, b.Len > int(unsafe.Offsetof(b.ReceivedCE)), s.Present&event.HasAccECN != 0)
	for name, f := range fields {
		require.True(t, f[0] <= f[2] && f[2] <= f[1], "%s: sample %d, TCP_INFO %d before and %d after", name, f[2], f[0], f[1])
	}
}

func TestMissingInterfaceIsNamed(t *testing.T) {
	requireBPF(t)
	cfg := DefaultConfig()
	cfg.Interfaces = []string{"nosuchif0"}
	_, err := Open(t.Context(), cfg, quiet())
	require.ErrorContains(t, err, `no such interface: "nosuchif0"; there are: `)
	require.ErrorContains(t, err, "lo")
	require.NotContains(t, err.Error(), "\n")
	var h interface{ Hint() string }
	require.ErrorAs(t, err, &h)
}

func TestIdleCaptureTicksEverySecond(t *testing.T) {
	l := lab(t, netlab.Options{})
	c, err := Open(t.Context(), in(l.R), quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	var r recorded
	var ticks []uint64
	ctx := bounded(t)
	for len(ticks) < 4 {
		b, err := c.Next(ctx)
		require.NoError(t, err)
		r.add(t, b)
		for h := range event.All(b) {
			if h.Kind == event.KindTick {
				ticks = append(ticks, h.Time)
			}
		}
	}
	// The first Ticks belong to the interfaces that are told at the start. After that not more than one a
	// second, and how late they are is the scheduler's affair.
	require.GreaterOrEqual(t, ticks[3]-ticks[2], uint64(tickIdle)*9/10)
	r.add(t, collect(t, c))
	require.Equal(t, "stop", stop(r.raw))
}
