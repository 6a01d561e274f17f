// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"cmp"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// limitedTo is with every socket limited, on however idle a CPU, each for itself.
func limitedTo(rate, burst int) Sockets {
	s := DefaultConfig().Sockets
	s.Samples, s.LimitAbove, s.Rate, s.Burst, s.CPURate = SamplesLimited, 0, rate, burst, 0
	return s
}

// requireLimited returns how many samples the limit left out: some of those that were filtered. The others are of the other namespace's sockets.
func requireLimited(t *testing.T, a Accounting) uint64 {
	t.Helper()
	require.LessOrEqual(t, a.Limited, a.Total[event.HookTransmit].Filtered+a.Total[event.HookTCPProbe].Filtered)
	return a.Limited
}

// bySocket returns the events of sockets that hooks see, each socket's in the kernel's order.
func bySocket(r *recorded) map[uint64][]*event.Header {
	sockets := map[uint64][]*event.Header{}
	for h := range event.All(r.raw) {
		if h.SockSeq != 0 && h.Cookie != 0 {
			sockets[h.Cookie] = append(sockets[h.Cookie], h)
		}
	}
	for _, all := range sockets {
		slices.SortFunc(all, func(a, b *event.Header) int { return cmp.Compare(a.SockSeq, b.SockSeq) })
	}
	return sockets
}

// vitals are what is sampled beyond the rate when they change.
type vitals struct {
	ssthresh, mss uint32
	state         event.CAState
	timeouts      uint8
}

func vitalsOf(m *event.Sample) vitals {
	return vitals{m.SndSsthresh, m.SndMSS & 0xffff, m.CAState, m.Retransmits}
}

// A socket's first samples are all taken, then as many as its rate allows, and more only where its vitals changed.
func TestSamplesKeepToTheirRate(t *testing.T) {
	for name, tt := range map[string]struct {
		options     netlab.Options
		rate, burst int
	}{
		"few":            {netlab.Options{NoOffload: true}, 1, 40},
		"one at a time":  {netlab.Options{NoOffload: true}, 50, 1},
		"with losses":    {netlab.Options{NoOffload: true, LossToB: netlab.Loss{OneIn: 100}, LossToA: netlab.Loss{OneIn: 100}}, 1, 5},
		"never too many": {netlab.Options{NoOffload: true}, maxRate, maxRate},
	} {
		t.Run(name, func(t *testing.T) {
			l := lab(t, tt.options)
			cfg := in(l.A)
			cfg.Sockets = limitedTo(tt.rate, tt.burst)
			r, a := during(t, cfg, func(*Capture) {
				for _, from := range []*netlab.Namespace{l.A, l.B} {
					to := l.B
					if from == l.B {
						to = l.A
					}
					_, err := l.Transfer(bounded(t), netlab.Transfer{From: from, To: to, Bytes: 4 << 20})
					require.NoError(t, err)
				}
				_, err := l.Exchange(bounded(t), netlab.Exchange{Connections: 3, Requests: 200})
				require.NoError(t, err)
				require.NoError(t, l.A.Quiet(bounded(t)))
			})
			r.identity(t, a)
			whole(t, r, a)
			hz, err := kernelHZ()
			require.NoError(t, err)
			missed := a.Total[event.HookTransmit].Missed + a.Total[event.HookTCPProbe].Missed

			sockets, full := 0, 0
			for cookie, all := range bySocket(r) {
				var first, last uint64
				var samples, sent, unsampled, changes int
				var was vitals
				for i, h := range all {
					switch h.Hook {
					case event.HookTransmit, event.HookTCPProbe:
						m := h.Sample()
						if samples == 0 {
							first = h.Time
						} else if was != vitalsOf(m) {
							changes++
						}
						was, last = vitalsOf(m), h.Time
						samples++
					case event.HookTCEgress:
						sent++
						beside := i > 0 && all[i-1].Hook == event.HookTransmit || i+1 < len(all) && all[i+1].Hook == event.HookTransmit
						if samples < tt.burst && !beside {
							unsampled++
						}
					}
				}
				if sent == 0 {
					continue
				}
				sockets++
				require.LessOrEqual(t, uint64(unsampled), missed, "socket %d: of its first samples", cookie)
				// A sample belongs to a tick of the kernel's clock, which may have begun before the first one's time.
				ticks := (last-first)*uint64(hz)/1e9 + 2
				most := uint64(tt.burst+changes) + ticks*uint64(tt.rate)/uint64(hz) + 1
				require.LessOrEqual(t, uint64(samples), most, "socket %d: %d of its %d segments in %d ticks, %d changes", cookie, samples, sent, ticks, changes)
				if samples >= tt.burst {
					full++
				}
			}
			require.Equal(t, 5, sockets)
			left := a.Total[event.HookTransmit].Filtered + a.Total[event.HookTCPProbe].Filtered
			if tt.rate == maxRate {
				require.Zero(t, full)
				return
			}
			require.Equal(t, 5, full)
			require.NotZero(t, left)
			require.NotZero(t, requireLimited(t, a))
		})
	}
}

// Whatever the rate, the first segment that a socket sends after its congestion state changed gives a sample with that state.
func TestCongestionStatesAreSampledBeyondTheRate(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true, LossToB: netlab.Loss{OneIn: 50}})
	cfg := in(l.A)
	cfg.Sockets = limitedTo(1, 1)
	r, a := during(t, cfg, func(*Capture) {
		_, err := l.Transfer(bounded(t), netlab.Transfer{Bytes: 4 << 20, Congestion: "reno"})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	shown, bare := 0, uint64(0)
	for _, all := range bySocket(r) {
		var state event.CAState // of the last incident
		var told, sampled, known bool
		var last event.CAState // of the last sample
		for i, h := range all {
			switch {
			case h.Hook == event.HookCongStateSet:
				state, told, sampled = h.Incident().CAState, true, false
			case h.Kind == event.KindSample:
				last, known = h.Sample().CAState, true
				if told && !sampled && h.Hook == event.HookTransmit {
					require.Equal(t, state, last, "event %d", h.SockSeq)
					shown++
				}
				sampled = sampled || h.Hook == event.HookTransmit
			case h.Hook == event.HookTCEgress && told && !sampled && known && state != last:
				if i+1 == len(all) || all[i+1].Hook != event.HookTransmit {
					bare++
				}
			}
		}
	}
	require.Greater(t, shown, 10)
	require.LessOrEqual(t, bare, a.Total[event.HookTransmit].Missed)
}

// As long as its CPU is not busy, every segment of a socket is sampled; when it is busy a socket is limited, and some time later not any more.
func TestSocketsAreLimitedOnABusyCPU(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true})
	cfg := in(l.A)
	cfg.Sockets.Samples, cfg.Sockets.LimitAbove, cfg.Sockets.Rate, cfg.Sockets.Burst = SamplesLimited, 300, 1, 1
	left := func(c *Capture) uint64 { return requireLimited(t, c.Accounting()) }
	// Fewer segments than a quarter of a second may have.
	few := func() {
		_, err := l.Exchange(bounded(t), netlab.Exchange{Connections: 1, Requests: 15})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	}
	r, a := during(t, cfg, func(c *Capture) {
		few()
		require.Zero(t, left(c))
		_, err := l.Transfer(bounded(t), netlab.Transfer{Bytes: 16 << 20})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
		crowd := left(c)
		require.NotZero(t, crowd)
		time.Sleep(time.Second) // so much of the kernel's clock has to pass, half of it would do
		few()
		require.Equal(t, crowd, left(c))
	})
	r.identity(t, a)
	whole(t, r, a)
}

// A socket that is limited goes on being sampled, at its rate: it is not forgotten that it has a sample to come.
func TestLimitedSocketsAreSampledAtTheirRate(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true, Rate: 50_000_000})
	hz, err := kernelHZ()
	require.NoError(t, err)
	const rate = 20
	due := uint64(1e9/rate + 2e9/hz) // a sample belongs to a tick, and so does a segment
	cfg := in(l.A)
	cfg.Sockets = limitedTo(rate, 1)
	r, a := during(t, cfg, func(*Capture) {
		for _, ends := range [][2]*netlab.Namespace{{l.A, l.B}, {l.B, l.A}} {
			_, err := l.Transfer(bounded(t), netlab.Transfer{From: ends[0], To: ends[1], Bytes: 8 << 20}) // more than a second
			require.NoError(t, err)
		}
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	whole(t, r, a)
	require.NotZero(t, requireLimited(t, a))
	sockets, unsampled := 0, uint64(0)
	for _, all := range bySocket(r) {
		var last uint64 // sample
		samples, late := 0, 0
		for i, h := range all {
			switch {
			case h.Kind == event.KindSample:
				last, late = h.Time, 0
				samples++
			case h.Hook == event.HookTCEgress && last != 0 && h.Time-last > due:
				// One segment may have been looked at before a sample was due: a preemptible kernel lets time pass in between.
				if all[i-1].Hook != event.HookTransmit && (i+1 == len(all) || all[i+1].Hook != event.HookTransmit) {
					if late++; late > 1 {
						unsampled++
					}
				}
			}
		}
		if len(all) < 1000 {
			continue
		}
		sockets++
		require.Greater(t, samples, rate/2)
	}
	require.Equal(t, 2, sockets)
	require.LessOrEqual(t, unsampled, a.Total[event.HookTransmit].Missed)
}

// However many sockets there are, and whatever each of them may have, all of a busy CPU together have no more samples than its rate,
// but where their vitals changed, and go on having as many.
func TestSocketsOfABusyCPUShareItsSamples(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true, Rate: 50_000_000})
	hz, err := kernelHZ()
	require.NoError(t, err)
	const rate = 10
	cfg := in(l.A)
	cfg.Sockets = limitedTo(maxRate, maxRate)
	cfg.Sockets.CPURate = rate
	r, a := during(t, cfg, func(*Capture) {
		ctx := bounded(t)
		var wait sync.WaitGroup
		failed := make([]error, 8)
		for i := range failed {
			wait.Go(func() { _, failed[i] = l.Exchange(ctx, netlab.Exchange{Requests: 200, ResponseBytes: 8000}) })
		}
		_, err := l.Exchange(ctx, netlab.Exchange{From: l.B, To: l.A, Connections: 200})
		require.NoError(t, err)
		wait.Wait()
		require.NoError(t, errors.Join(failed...))
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	whole(t, r, a)
	require.NotZero(t, requireLimited(t, a))
	type perCPU struct {
		first, last                uint64 // segments of the sockets
		segments, samples, changes int
	}
	cpus := map[uint16]*perCPU{}
	for _, all := range bySocket(r) {
		var was *vitals
		for _, h := range all {
			if h.Hook != event.HookTCEgress && h.Hook != event.HookTransmit && h.Hook != event.HookTCPProbe {
				continue
			}
			c := cpus[h.CPU]
			if c == nil {
				c = &perCPU{first: h.Time}
				cpus[h.CPU] = c
			}
			c.first, c.last = min(c.first, h.Time), max(c.last, h.Time)
			if h.Hook == event.HookTCEgress {
				c.segments++
				continue
			}
			c.samples++
			v := vitalsOf(h.Sample())
			if was != nil && v != *was {
				c.changes++
			}
			was = &v
		}
	}
	busy := 0
	for cpu, c := range cpus {
		ticks := (c.last-c.first)*uint64(hz)/1e9 + 2
		most := int((uint64(hz)/4+ticks)*rate/uint64(hz)) + 1
		t.Logf("CPU %d: %+v, of %d", cpu, *c, most)
		require.LessOrEqual(t, c.samples, most+c.changes, "CPU %d: of %d segments in %d ticks", cpu, c.segments, ticks)
		if c.segments > 5*most {
			busy++
			require.Greater(t, c.samples, most/2, "CPU %d: of %d segments in %d ticks", cpu, c.segments, ticks)
		}
	}
	require.NotZero(t, busy)
}

// A change of the congestion state is sampled whatever the CPU's rate, but many of them use it up for half a second at most.
func TestChangesLeaveABusyCPUItsSamples(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true, Rate: 50_000_000})
	cfg := in(l.A)
	cfg.Sockets = limitedTo(maxRate, maxRate)
	cfg.Sockets.CPURate = 2
	var clients []netip.AddrPort
	r, a := during(t, cfg, func(*Capture) {
		// More than the link's queue holds.
		ctx := bounded(t)
		var wait sync.WaitGroup
		failed := make([]error, 8)
		for i := range failed {
			wait.Go(func() { _, failed[i] = l.Transfer(ctx, netlab.Transfer{Bytes: 1 << 20}) })
		}
		wait.Wait()
		require.NoError(t, errors.Join(failed...))
		var err error
		clients, err = l.Exchange(bounded(t), netlab.Exchange{Requests: 2400, ResponseBytes: 8000}) // 3 s
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	whole(t, r, a)
	var was vitals
	changes, samples := 0, 0
	for h := range event.All(r.raw) {
		later := h.LocalAddr() == clients[0]
		switch {
		case h.Hook == event.HookCongStateSet && !later:
			changes++
		case later && (h.Hook == event.HookTransmit || h.Hook == event.HookTCPProbe):
			if v := vitalsOf(h.Sample()); v == was {
				samples++
			} else {
				was = v
			}
		}
	}
	t.Logf("%d changes, then %d samples", changes, samples)
	require.Greater(t, changes, 32, "they use up less than 8 s of two CPUs")
	require.Greater(t, samples, 2)
}

// A socket that was on a busy CPU is limited on one that has little to do, too, as long as that is lately.
func TestSocketsOfABusyCPUAreLimitedOnOthers(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	l := lab(t, netlab.Options{NoOffload: true})
	cfg := in(l.A)
	cfg.Sockets.Samples, cfg.Sockets.LimitAbove, cfg.Sockets.Rate, cfg.Sockets.Burst = SamplesLimited, 300, 1, 1
	const few = 20 // segments: with their ACKs less than a quarter of a second's worth
	for range 5 {
		var cookie uint64
		r, a := during(t, cfg, func(*Capture) {
			conn, peer := connect(t, l.A, l.B, l.B.IPv4, "")
			var err error
			cookie, err = netlab.SocketCookie(conn)
			require.NoError(t, err)
			done := make(chan error, 2)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread's affinity ends with it
				err := pin(0)
				_, _ = io.Copy(io.Discard, peer)
				done <- errors.Join(err, peer.Close())
			}()
			go func() {
				runtime.LockOSThread() // as above
				err := pin(0)
				for i := 0; i < 400+2*few && err == nil; i++ {
					switch i {
					case 400:
						err = pin(1)
					case 400 + few:
						time.Sleep(600 * time.Millisecond)
					}
					if err == nil {
						_, err = conn.Write(make([]byte, 100))
					}
				}
				done <- errors.Join(err, conn.Close())
			}()
			require.NoError(t, <-done)
			require.NoError(t, <-done)
			require.NoError(t, l.A.Quiet(bounded(t)))
		})
		r.identity(t, a)
		whole(t, r, a)
		var first, last uint64 // segments on the busy CPU
		busy, segments, samples, later, laterSamples := 0, 0, 0, 0, 0
		for _, h := range bySocket(r)[cookie] {
			switch {
			case h.CPU == 0 && h.Hook == event.HookTCEgress && segments == 0:
				if first == 0 {
					first = h.Time
				}
				last = h.Time
				busy++
			case h.CPU == 1 && last != 0 && h.Time-last > 500e6 && h.Hook == event.HookTCEgress && h.Segment().PayloadLen > 0:
				later++
			case h.CPU == 1 && last != 0 && h.Time-last > 500e6 && h.Hook == event.HookTransmit && h.Sample().TriggerLen > 0:
				laterSamples++
			case h.CPU == 1 && last != 0 && h.Time-last > 150e6:
				// The machine had other things to do: perhaps not lately any more.
			case h.CPU == 1 && h.Hook == event.HookTCEgress && h.Segment().PayloadLen > 0:
				segments++
			case h.CPU == 1 && h.Hook == event.HookTransmit:
				samples++
			}
		}
		if requireLimited(t, a) == 0 {
			// A slow machine's CPU is not busy, and one that writes faster than it sends merges what it sends.
			require.True(t, last-first > uint64(time.Second) || busy < cfg.Sockets.LimitAbove, "%d segments in %d ns", busy, last-first)
			continue
		}
		if segments < few/2 {
			continue
		}
		require.NotZero(t, later)
		require.LessOrEqual(t, later, laterSamples+int(a.Total[event.HookTransmit].Missed), "half a second later")
		require.Less(t, samples, few/4, "of %d segments on the other CPU", segments) // its rate, a change, the end
		return
	}
	t.Fatal("in five attempts the socket was not limited, or not on the other CPU in time")
}

// What a filter leaves out makes no CPU busy: others' traffic does not limit the samples of what is wanted.
func TestUnwantedSegmentsLimitNobody(t *testing.T) {
	l := lab(t, netlab.Options{NoOffload: true})
	for name, tt := range map[string]struct {
		filter Filter
		most   bool // of the segments are wanted
	}{
		"the many are wanted": {Filter{Prefixes: []string{"::/0"}, Sample: 1}, true},
		"the few are wanted":  {Filter{Prefixes: []string{"10.0.0.0/8"}, Sample: 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := in(l.A)
			cfg.Filter = tt.filter
			cfg.Sockets.Samples, cfg.Sockets.LimitAbove, cfg.Sockets.Rate, cfg.Sockets.Burst = SamplesLimited, 300, 1, 1
			r, a := during(t, cfg, func(*Capture) {
				_, err := l.Transfer(bounded(t), netlab.Transfer{Bytes: 16 << 20, IPv6: true})
				require.NoError(t, err)
				_, err = l.Exchange(bounded(t), netlab.Exchange{Connections: 1, Requests: 15})
				require.NoError(t, err)
				require.NoError(t, l.A.Quiet(bounded(t)))
			})
			r.identity(t, a)
			whole(t, r, a)
			require.Equal(t, tt.most, a.Limited > 0)
			require.NotZero(t, r.stored[event.HookTransmit])
			require.NotZero(t, r.stored[event.HookTCPProbe])
			require.NotZero(t, a.Total[event.HookTCPProbe].Filtered)
		})
	}
}
