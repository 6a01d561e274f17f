// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// requireBPF skips, saying why, where the capture cannot work; with TCBEE_REQUIRE_BPF=1 that
// is a failure.
func requireBPF(tb testing.TB) {
	tb.Helper()
	var why string
	if lack := missingCapabilities(); len(lack) > 0 {
		why = "the process lacks " + lack[0]
	} else if o, err := loadObject(DefaultConfig(), settings{hz: 250}); err != nil {
		why = err.Error()
	} else {
		o.close()
	}
	if why == "" {
		return
	}
	if os.Getenv("TCBEE_REQUIRE_BPF") == "1" {
		tb.Fatalf("TCBEE_REQUIRE_BPF=1, but there is no BPF here: %s", why)
	}
	tb.Skipf("no BPF here: %s", why)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// benchConfig captures nothing but what a generator makes.
func benchConfig() Config {
	cfg := DefaultConfig()
	cfg.Interfaces = []string{"none-*"}
	cfg.Events.Enabled = false
	cfg.Sockets.Enabled = false
	cfg.Inventory = false
	return cfg
}

// BenchmarkKernelPacket measures what recording a packet costs in the kernel: ns/event is the
// program with output less the writing of the packets, ns/output what is left of it
// without parsing and clock.
func BenchmarkKernelPacket(b *testing.B) {
	requireBPF(b)
	for _, flows := range []int{16, 256, 4096} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			c, err := Open(b.Context(), benchConfig(), quiet())
			require.NoError(b, err)
			defer func() { require.NoError(b, c.Close()) }()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			only := runs(b, c, programsProgGenerate, flows, generateOnly, programsTuple{}, false)
			parse := runs(b, c, programsProgGenerate, flows, generateParse, programsTuple{}, false)
			record := runs(b, c, programsProgGenerate, flows, generateRecord, programsTuple{}, true)
			b.ReportMetric(record-only, "ns/event")
			b.ReportMetric(record-parse, "ns/output")
			b.ReportMetric(only, "ns/generate")
			b.ReportMetric(1e9/(record-only), "events/s")
		})
	}
}

// BenchmarkKernelPacketAlone is the same with one ring record for each packet and the default
// wake-up, while a reader waits for them: what gathering is compared with.
func BenchmarkKernelPacketAlone(b *testing.B) {
	requireBPF(b)
	c, err := Open(b.Context(), benchConfig(), quiet())
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	parse := runs(b, c, programsProgGenerate, 256, generateParse, programsTuple{}, false)
	gathered := runs(b, c, programsProgGenerate, 256, generateRecord, programsTuple{}, false)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	require.NoError(b, err)
	defer func() { require.NoError(b, unix.Close(epoll)) }()
	require.NoError(b, unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, c.ring.fd, &unix.EpollEvent{Events: unix.EPOLLIN}))
	var stop atomic.Bool
	var wait sync.WaitGroup
	wait.Go(func() {
		var events [1]unix.EpollEvent
		for !stop.Load() {
			_, _ = unix.EpollWait(epoll, events[:], 10)
			drain(c)
		}
	})
	g, err := c.obj.generator(programsProgGenerate, 256, generateSingle, programsTuple{})
	require.NoError(b, err)
	defer g.Close()
	var costs []float64
	for b.Loop() {
		d, err := g.cost(60_000)
		require.NoError(b, err)
		costs = append(costs, float64(d.Nanoseconds()))
	}
	stop.Store(true)
	wait.Wait()
	slices.Sort(costs)
	alone := costs[len(costs)/2]
	b.ReportMetric(alone-parse, "ns/output")
	b.ReportMetric((alone-parse)/(gathered-parse), "times-gathered")
}

// runs returns the median time of a run of a generating program, with the ring drained in
// between: of the benchmark's iterations if loop is set, else of a few.
func runs(b *testing.B, c *Capture, name string, flows int, mode uint32, socket programsTuple, loop bool) float64 {
	b.Helper()
	g, err := c.obj.generator(name, flows, mode, socket)
	require.NoError(b, err)
	defer g.Close()
	var costs []float64
	once := func() {
		drain(c)
		d, err := g.cost(20_000)
		require.NoError(b, err)
		costs = append(costs, float64(d.Nanoseconds()))
	}
	if loop {
		for b.Loop() {
			once()
		}
	} else {
		for range 15 {
			once()
		}
	}
	slices.Sort(costs)
	return costs[len(costs)/2]
}

// drain throws away what the ring holds.
func drain(c *Capture) {
	for {
		c.ring.release()
		if c.ring.next() == nil {
			return
		}
	}
}

// BenchmarkKernelSample measures what a full sample of a real socket costs in the kernel.
func BenchmarkKernelSample(b *testing.B) {
	requireBPF(b)
	c, err := Open(b.Context(), benchConfig(), quiet())
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(b, err)
	defer func() { _ = l.Close() }()
	conn, err := net.Dial("tcp4", l.Addr().String())
	require.NoError(b, err)
	defer func() { _ = conn.Close() }()
	// As a packet that comes to conn would have it: source is the peer.
	local, peer := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	tuple := programsTuple{Saddr: be32(peer.Addr()), Daddr: be32(local.Addr()), Sport: be16(peer.Port()), Dport: be16(local.Port())}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g, err := c.obj.generator(programsProgGenerateSamples, 1, generateOnly, tuple)
	require.NoError(b, err)
	ret, _, err := g.prog.Test(g.frame)
	g.Close()
	require.NoError(b, err)
	require.EqualValues(b, 1<<32-1, ret, "the socket was not found")
	const each = 8 // SAMPLES in generate.h
	find := runs(b, c, programsProgGenerateSamples, 1, generateOnly, tuple, false) / each
	clocked := runs(b, c, programsProgGenerateSamples, 1, generateParse, tuple, false) / each
	full := runs(b, c, programsProgGenerateSamples, 1, generateRecord, tuple, true) / each
	b.ReportMetric(full-find, "ns/event")
	b.ReportMetric(full-clocked, "ns/output")
	b.ReportMetric(find, "ns/find")
	b.ReportMetric(1e9/(full-find), "events/s")
}

func be16(p uint16) uint16 { return p<<8 | p>>8 }

func be32(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// BenchmarkReader measures Next: the processor time to hand out a record, in place and checked.
func BenchmarkReader(b *testing.B) {
	requireBPF(b)
	cfg := benchConfig()
	cfg.RingBytes = 64 << 20
	c, err := Open(b.Context(), cfg, quiet())
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	g, err := NewGenerator(c, 256)
	require.NoError(b, err)
	defer g.Close()
	var events, size uint64
	var busy int64
	b.ReportAllocs()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for b.Loop() {
		b.StopTimer()
		_, err := g.cost(200_000)
		require.NoError(b, err)
		b.StartTimer()
		start := clock(unix.CLOCK_THREAD_CPUTIME_ID)
		for range 700 {
			batch, err := c.Next(context.Background())
			require.NoError(b, err)
			for h := range event.All(batch) {
				if h.Kind == event.KindSegment {
					events++
				}
			}
			size += uint64(len(batch))
		}
		busy += clock(unix.CLOCK_THREAD_CPUTIME_ID) - start
	}
	ns := float64(busy) / float64(events)
	b.ReportMetric(ns, "ns/event")
	b.ReportMetric(1e9/ns, "events/s")
	b.ReportMetric(float64(size)/float64(events), "B/event")
}

// BenchmarkCapture drives one CPU as hard as it goes while another reads, and looks at each
// record as the block builder would have to.
func BenchmarkCapture(b *testing.B) {
	requireBPF(b)
	if runtime.NumCPU() < 2 {
		b.Skip("needs two CPUs")
	}
	c, err := Open(b.Context(), benchConfig(), quiet())
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	g, err := NewGenerator(c, 256)
	require.NoError(b, err)
	defer g.Close()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Second)
	defer cancel()
	var sent uint64
	var failed error
	done := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(done)
		sent, failed = g.Run(ctx, 0, 0)
		c.Stop()
	}()
	runtime.LockOSThread()
	require.NoError(b, pin(1))
	defer func() {
		var all unix.CPUSet
		for i := range runtime.NumCPU() {
			all.Set(i)
		}
		require.NoError(b, unix.SchedSetaffinity(0, &all))
		runtime.UnlockOSThread()
	}()
	var stored uint64
	for {
		batch, err := c.Next(context.Background())
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(b, err)
		for h := range event.All(batch) {
			if h.Kind == event.KindSegment {
				stored++
			}
		}
	}
	<-done
	took := time.Since(start).Seconds()
	require.NoError(b, failed)
	a := c.Accounting().Total
	dropped := a[event.HookTCIngress].Dropped + a[event.HookTCEgress].Dropped
	require.Equal(b, sent, stored+dropped)
	b.ReportMetric(float64(stored)/took, "events/s")
	b.ReportMetric(took*1e9/float64(stored), "ns/event")
	b.ReportMetric(float64(dropped)/float64(sent)*100, "%lost")
}
