// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/processors"
)

// TestFlowsOfARealRecordingAreThoseOfTheTable records connections over lo that end in several ways, and lists them both ways.
func TestFlowsOfARealRecordingAreThoseOfTheTable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx := context.Background()
	cfg := bpf.DefaultConfig()
	cfg.Interfaces, cfg.Netns = []string{"lo"}, "own"
	capture, err := bpf.Open(ctx, cfg, discard)
	if err != nil {
		if os.Getenv("TCBEE_REQUIRE_BPF") != "" {
			t.Fatal(err)
		}
		t.Skipf("no capture here: %v", err)
	}
	dir := t.TempDir()
	w := newSpool(t, dir)
	var wg sync.WaitGroup
	var recorded error
	wg.Go(func() { _, recorded = Record(ctx, capture, w, discard) })

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := netip.MustParseAddrPort(l.Addr().String())
	var served sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				_, _ = io.Copy(c, c) // until the other side has closed, or reset
				_ = c.Close()
			})
		}
	})
	const clients, rounds = 8, 20
	var work sync.WaitGroup
	for i := range clients {
		work.Go(func() {
			buf := make([]byte, 100_000)
			for round := range rounds {
				c, err := net.Dial("tcp", server.String())
				if err != nil {
					continue
				}
				n := 1 + (i*7919+round*104729)%len(buf)
				_, _ = c.Write(buf[:n])
				_, _ = io.ReadFull(c, buf[:n])
				if (i+round)%4 == 0 {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				_ = c.Close()
				time.Sleep(time.Duration(i+round) * time.Millisecond) // so that they lie in several blocks
			}
		})
	}
	work.Wait()
	served.Wait()
	require.NoError(t, l.Close())
	capture.Stop()
	wg.Wait()
	require.NoError(t, recorded)
	var dropped uint64 // where others keep the CPUs busy
	for _, h := range capture.Accounting().Total {
		dropped += h.Dropped
	}
	require.NoError(t, capture.Close())
	require.NoError(t, w.Close())

	fast, exact := bothWays(t, dir, Selection{})
	type key struct {
		local, peer netip.AddrPort
		cookie      uint64
	}
	ours := func(flows []processors.Flow) map[key]processors.Flow {
		m := map[key]processors.Flow{}
		for _, f := range flows {
			if f.Local == server || f.Peer == server {
				m[key{f.Local, f.Peer, f.Cookie}] = f
			}
		}
		return m
	}
	want, got := ours(exact), ours(fast)
	if n := len(want); dropped == 0 {
		require.Equal(t, 2*clients*rounds, n)
	}
	// A connect in the block before its SYN makes microseconds of difference, or what passes until the thread that
	// connects has a CPU again.
	near := gocmp.Options{cmpopts.EquateApproxTime(time.Second), gocmp.FilterPath(func(p gocmp.Path) bool {
		name := p.Last().String()
		return name == ".Duration" || name == ".Handshake"
	}, cmpopts.EquateApprox(0, 1))}
	require.Empty(t, gocmp.Diff(want, got, near, cmpopts.EquateComparable(netip.AddrPort{}, key{}),
		cmpopts.IgnoreFields(processors.Flow{}, "ID", "GoodputIn", "GoodputOut")))
}
