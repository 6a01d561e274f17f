// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// Many connections both ways on all CPUs: nothing is lost but what is counted, and the
// counters are those of others.
func TestLoadOnAllCPUs(t *testing.T) {
	l := lab(t, netlab.Options{})
	ctx := bounded(t)
	before, err := l.A.SNMP()
	require.NoError(t, err)
	count, err := l.Count(l.A, l.A.Interface)
	require.NoError(t, err)
	fired := fire(t, l, l.A, event.HookTCPProbe, event.HookSetState, event.HookDestroySock, event.HookReceiveReset)
	r, a := during(t, in(l.A), func(*Capture) {
		var wait sync.WaitGroup
		failed := make([]error, 6)
		for i := range 6 {
			wait.Go(func() {
				tr := netlab.Transfer{From: l.A, To: l.B, Bytes: 24 << 20, IPv6: i%2 == 0}
				if i%3 == 0 {
					tr.From, tr.To = l.B, l.A
				}
				_, failed[i] = l.Transfer(ctx, tr)
			})
		}
		wait.Wait()
		require.NoError(t, errors.Join(failed...))
		_, err := l.Exchange(bounded(t), netlab.Exchange{Connections: 100, Requests: 5, Reset: true})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(ctx))
		require.NoError(t, l.B.Quiet(ctx))
	})
	after, err := l.A.SNMP()
	require.NoError(t, err)
	snmp := after.Sub(before)
	r.identity(t, a)
	require.Equal(t, "stop", stop(r.raw))
	in, err := count.In()
	require.NoError(t, err)
	out, err := count.Out()
	require.NoError(t, err)
	require.Equal(t, in.TCP, a.Total[event.HookTCIngress].Seen)
	require.Equal(t, out.TCP, a.Total[event.HookTCEgress].Seen)
	require.EqualValues(t, snmp["TcpInSegs"], a.Total[event.HookTCIngress].Seen)
	fired.told(t, r, a)
	// What tcp_probe did not see was merged in the backlog or is outside of ESTABLISHED.
	outside := snmp["TcpInSegs"] - snmp["TcpExtTCPBacklogCoalesce"] - int64(r.stored[event.HookTCPProbe])
	require.GreaterOrEqual(t, outside, int64(0))
	t.Logf("received %d segments: %d probed, %d merged, %d outside of ESTABLISHED", snmp["TcpInSegs"],
		r.stored[event.HookTCPProbe], snmp["TcpExtTCPBacklogCoalesce"], outside)

	for h, n := range a.Total {
		if n.Seen > 0 {
			t.Logf("%-22v %+v", event.Hook(h), n)
		}
	}
	whole(t, r, a)
}

// whole requires that each socket's events are numbered from 1 without a gap, if none was lost.
func whole(t *testing.T, r *recorded, a Accounting) {
	t.Helper()
	for h, n := range a.Total {
		if n.Dropped > 0 {
			t.Logf("%v: %+v: numbers are not looked at", event.Hook(h), n)
			return
		}
	}
	events := map[uint64][]*event.Header{}
	for h := range event.All(r.raw) {
		if h.SockSeq != 0 {
			events[h.Cookie] = append(events[h.Cookie], h)
		}
	}
	require.NotEmpty(t, events)
	for cookie, all := range events {
		slices.SortFunc(all, func(a, b *event.Header) int { return cmp.Compare(a.SockSeq, b.SockSeq) })
		for i, h := range all {
			require.EqualValues(t, i+1, h.SockSeq, "events of socket %d: %s", cookie, told(all))
		}
	}
}

// told lists events for the message of a failed test.
func told(events []*event.Header) string {
	var b strings.Builder
	for _, h := range events[:min(len(events), 40)] {
		fmt.Fprintf(&b, "\n%4d cpu %d %d ns %v %v %v -> %v", h.SockSeq, h.CPU, h.Time, h.Hook, h.Dir, h.LocalAddr(), h.PeerAddr())
		if h.Kind == event.KindIncident {
			fmt.Fprintf(&b, " %v to %v", h.Incident().OldState, h.Incident().NewState)
		}
	}
	return b.String()
}

// A connection whose sender moves between CPUs all the time.
func TestFlowThatMovesBetweenCPUs(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	l := lab(t, netlab.Options{})
	var cookie uint64
	r, a := during(t, in(l.A), func(*Capture) {
		conn, peer := connect(t, l.A, l.B, l.B.IPv4, "")
		var err error
		cookie, err = netlab.SocketCookie(conn)
		require.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, peer)
			_ = peer.Close()
		}()
		moved := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread's affinity ends with it
			var err error
			for i := 0; i < 4000 && err == nil; i++ {
				if i%20 == 0 {
					err = pin(i / 20 % 2)
				}
				if err == nil {
					_, err = conn.Write(make([]byte, 1000))
				}
			}
			moved <- err
		}()
		require.NoError(t, <-moved)
		require.NoError(t, conn.Close())
		<-done
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	require.Equal(t, "stop", stop(r.raw))
	whole(t, r, a)
	cpus := map[uint16]int{}
	for h := range event.All(r.raw) {
		if h.Cookie == cookie && h.Hook == event.HookTCEgress {
			cpus[h.CPU]++
		}
	}
	require.Greater(t, len(cpus), 1, "the flow stayed on one CPU")
}

// An accepted socket begins as a copy of its listener, which has had events; its own count begins at 1 all the same, also
// where a sent packet is the first thing that is seen of it.
func TestAcceptedSocketsCountFromOne(t *testing.T) {
	l := lab(t, netlab.Options{})
	ln, err := l.A.Listen(t.Context(), netip.AddrPortFrom(l.A.IPv4, 0))
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	cfg := in(l.A)
	cfg.Events.Enabled = false
	cfg.Sockets.Samples = SamplesOff // but for the inventory's, the listener's event
	var cookie uint64
	r, a := during(t, cfg, func(c *Capture) {
		<-c.inventory.done
		conn, err := l.B.Dial(t.Context(), ln.Addr().(*net.TCPAddr).AddrPort(), "")
		require.NoError(t, err)
		peer, err := ln.AcceptTCP()
		require.NoError(t, err)
		cookie, err = netlab.SocketCookie(peer)
		require.NoError(t, err)
		_, err = peer.Write([]byte("hello"))
		require.NoError(t, err)
		require.NoError(t, peer.CloseWrite())
		_, err = io.Copy(io.Discard, conn)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		require.NoError(t, peer.Close())
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	require.NotZero(t, r.stored[event.HookInventory])
	sockets := bySocket(r)
	require.GreaterOrEqual(t, len(sockets[cookie]), 2)
	require.Equal(t, event.HookTCEgress, sockets[cookie][0].Hook)
	for i, h := range sockets[cookie] {
		require.EqualValues(t, i+1, h.SockSeq)
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	requireBPF(t)
	c, err := Open(t.Context(), benchConfig(), quiet())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for err == nil {
		_, err = c.Next(ctx)
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = c.Next(t.Context())
	require.NoError(t, err, "the capture goes on")
	c.Stop()
	c.Stop()
	for err == nil {
		_, err = c.Next(t.Context())
	}
	require.ErrorIs(t, err, io.EOF)
	_, err = c.Next(t.Context())
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	_, err = c.Next(t.Context())
	require.ErrorContains(t, err, "closed")
}

// Who puts events in order holds them until a Tick: a busy capture makes one for each quarter of the ring, however long a turn may last.
func TestTicksComeByVolumeToo(t *testing.T) {
	requireBPF(t)
	cfg := benchConfig()
	cfg.FlushAge, cfg.RingBytes = maxFlushAge, 4*minTurn
	c, err := Open(bounded(t), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	g, err := NewGenerator(c, 16)
	require.NoError(t, err)
	defer g.Close()
	// More than a quarter of the ring, of which all but what a slot still gathers lies in it.
	const rounds, packets = 10, 2 * minTurn / int(unsafe.Sizeof(event.Segment{}))
	const most = len(programsSlot{}.Data) / 64
	var segments, ticks int
	for round := range rounds {
		_, err := g.cost(packets)
		require.NoError(t, err)
		for segments < (round+1)*packets-most {
			b, err := c.Next(bounded(t))
			require.NoError(t, err)
			for h := range event.All(b) {
				switch h.Kind {
				case event.KindSegment:
					segments++
				case event.KindTick:
					ticks++
				}
			}
		}
	}
	require.GreaterOrEqual(t, ticks, rounds-1)
}
