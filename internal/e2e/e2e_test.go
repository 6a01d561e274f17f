// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// Names of metrics; docs/metrics.md tells what they mean.
const (
	flow         = "network.flow.tcp."
	directionIn  = ";network.io.direction=receive"
	directionOut = ";network.io.direction=transmit"
)

func TestLossyTransferIsToldRightly(t *testing.T) {
	const size = 20 << 20
	tests := map[string]struct {
		opts netlab.Options
		tr   netlab.Transfer
		args []string
	}{
		"one segment per skb": { // fewer of them than make a CPU busy (capture.sockets.limit_above)
			opts: netlab.Options{NoOffload: true, Rate: 40e6, LossToB: netlab.Loss{OneIn: 500}},
			tr:   netlab.Transfer{Bytes: size, Congestion: "reno"},
		},
		"samples at a limited rate": {
			opts: netlab.Options{NoOffload: true, Rate: 120e6, LossToB: netlab.Loss{OneIn: 500}},
			tr:   netlab.Transfer{Bytes: size, Congestion: "reno"},
			args: []string{"--set", "capture.sockets.limit_above=0"},
		},
		"super-packets, ipv6": {
			opts: netlab.Options{Rate: 200e6, LossToB: netlab.Loss{OneIn: 200}},
			tr:   netlab.Transfer{Bytes: size + 1, Congestion: "cubic", IPv6: true},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			lab := netlab.ForTest(t, tt.opts)
			wire, err := lab.Count(lab.A, lab.A.Interface)
			require.NoError(t, err)
			limited := tt.args != nil
			dir := t.TempDir()
			spoolDir, live := filepath.Join(dir, "spool"), filepath.Join(dir, "live.jsonl")

			rec := start(t, lab.A, append([]string{"run", "--spool", spoolDir, "--output", "file:" + live}, tt.args...)...)
			before := snmp(t, lab.A)
			var ss *sampler
			tt.tr.Started = func(client, _ *net.TCPConn) {
				cookie, err := netlab.SocketCookie(client)
				require.NoError(t, err)
				ss = sample(ctx, lab.A, cookie)
			}
			r, err := lab.Transfer(ctx, tt.tr)
			require.NoError(t, err)
			require.NoError(t, lab.A.Quiet(ctx))
			require.NoError(t, lab.B.Quiet(ctx))
			socks := ss.stop(t)
			kernel := snmp(t, lab.A).Sub(before)
			rec.stop(t)
			out, err := wire.Out()
			require.NoError(t, err)
			in, err := wire.In()
			require.NoError(t, err)
			router, err := lab.ToB.In()
			require.NoError(t, err)
			t.Logf("%d bytes in %v; %d segments lost on purpose, %d retransmitted; %d samples of ss",
				r.Received, r.Elapsed, router.DroppedSegs, kernel["TcpRetransSegs"], len(socks))
			require.Positive(t, kernel["TcpRetransSegs"])

			t.Run("events are accounted for, and as many as there were packets", func(t *testing.T) {
				s := spoolInfo(t, spoolDir)
				requireBalanced(t, s)
				sent := hook(s, event.HookTransmit)
				t.Logf("%d of %d samples of sent segments left out", sent.Filtered, sent.Seen)
				require.Equal(t, limited, sent.Filtered > 0)
				ingress, egress := hook(s, event.HookTCIngress), hook(s, event.HookTCEgress)
				require.Equal(t, in.TCP, ingress.Seen)
				require.Equal(t, out.TCP, egress.Seen)
				require.Equal(t, in.TCP, ingress.Stored)
				require.Equal(t, out.TCP, egress.Stored)
				require.Len(t, s.Sessions, 1)
				require.True(t, s.Sessions[0].Complete)

				var inSegs, outSegs, outBytes uint64
				records(t, spoolDir, func(h *event.Header) {
					switch h.Hook {
					case event.HookTCIngress:
						inSegs += uint64(h.Segment().GSOSegs)
					case event.HookTCEgress:
						outSegs += uint64(h.Segment().GSOSegs)
						outBytes += uint64(h.Segment().PayloadLen)
					}
				})
				require.EqualValues(t, kernel["TcpOutSegs"]+kernel["TcpRetransSegs"], outSegs)
				require.Equal(t, in.Segments, inSegs)
				require.Equal(t, r.After.BytesSent, outBytes)
			})

			t.Run("metrics equal the kernel's counters", func(t *testing.T) {
				m := readMetrics(t, live, r.Client.Port())
				require.EqualValues(t, kernel["TcpRetransSegs"], m.total(t, flow+"retransmits"))
				require.EqualValues(t, tt.tr.Bytes, m.last(t, flow+"goodput"+directionOut))
				require.EqualValues(t, r.After.BytesSent, m.last(t, flow+"io"+directionOut))
				require.EqualValues(t, out.Segments, m.last(t, flow+"segments"+directionOut))
				require.EqualValues(t, in.Segments, m.last(t, flow+"segments"+directionIn))
			})

			t.Run("gauges are what was sampled, and that is what ss shows", func(t *testing.T) {
				requireGauges(t, readMetrics(t, live, r.Client.Port()), spoolDir, socks, r, limited)
			})

			t.Run("a replay gives the same metrics", func(t *testing.T) {
				again := filepath.Join(dir, "replay.jsonl")
				must(t, "replay", spoolDir, "--output", "file:"+again)
				want, err := os.ReadFile(live)
				require.NoError(t, err)
				got, err := os.ReadFile(again)
				require.NoError(t, err)
				require.NotEmpty(t, want)
				require.True(t, string(want) == string(got), "%s and %s differ", live, again)
			})

			must(t, "spool", "verify", spoolDir)
		})
	}
}

// gauges of a connection, and where TCP_INFO and a recorded sample have them.
var gauges = []struct {
	name   string
	info   func(*netlab.TCPInfo) float64
	sample func(*event.Sample) float64
}{
	{
		"rtt.smoothed",
		func(i *netlab.TCPInfo) float64 { return float64(i.RTT) / 1e6 },
		func(s *event.Sample) float64 { return float64(s.RTT) / 1e6 },
	},
	{
		"rto",
		func(i *netlab.TCPInfo) float64 { return float64(i.RTO) / 1e6 },
		func(s *event.Sample) float64 { return float64(s.RTO) / 1e6 },
	},
	{
		"congestion_window",
		func(i *netlab.TCPInfo) float64 { return float64(i.SndCwnd) },
		func(s *event.Sample) float64 { return float64(s.SndCwnd) },
	},
	{
		"slow_start_threshold",
		func(i *netlab.TCPInfo) float64 { return float64(i.SndSsthresh) },
		func(s *event.Sample) float64 { return float64(s.SndSsthresh) },
	},
}

// requireGauges holds the recorded samples against all that sock_diag showed, and every point of the gauges against
// the samples. Samples are taken at every packet if they are not limited; how often sock_diag looked is the scheduler's affair.
func requireGauges(t *testing.T, m metrics, spoolDir string, seen []sight, r netlab.Result, limited bool) {
	t.Helper()
	// Points have wall clock, sock_diag and samples the monotonic one.
	var offset int64
	var samples []*event.Sample
	records(t, spoolDir, func(h *event.Header) {
		if h.Kind == event.KindAnchor && offset == 0 {
			offset = h.Anchor().Realtime - int64(h.Time)
		}
		if h.Kind == event.KindSample && h.Cookie == r.ClientCookie {
			s := *h.Sample()
			samples = append(samples, &s)
		}
	})
	require.NotZero(t, offset)
	require.NotEmpty(t, samples)
	slices.SortStableFunc(samples, func(a, b *event.Sample) int { return cmp.Compare(a.Time, b.Time) })
	// around returns what the samples of a time say, and the last before and the first after it.
	around := func(from, to uint64, of func(*event.Sample) float64) (values []float64) {
		first := sort.Search(len(samples), func(i int) bool { return samples[i].Time >= from })
		last := sort.Search(len(samples), func(i int) bool { return samples[i].Time > to })
		for _, s := range samples[max(first-1, 0):min(last+1, len(samples))] {
			values = append(values, of(s))
		}
		return values
	}
	for _, g := range gauges {
		right, all := 0, 0
		for i := range seen {
			s := &seen[i]
			if s.asked < samples[0].Time || s.Mono > samples[len(samples)-1].Time {
				continue
			}
			all++
			values := around(s.asked, s.Mono, g.sample)
			if v := g.info(&s.Info); slices.Min(values) <= v && v <= slices.Max(values) {
				right++
			}
		}
		t.Logf("%s: of %d values of sock_diag %d lie between those of the samples around them", g.name, all, right)
		require.NotZero(t, all)
		// Between two samples a value may go one way and come back, between limited ones it does.
		if !limited {
			require.GreaterOrEqual(t, right, all*9/10, g.name)
		}

		points := m[flow+g.name]
		require.Greater(t, len(points), 1, g.name)
		for i, p := range points {
			if i == len(points)-1 {
				// The connection has ended: this is its last state, which is known exactly.
				require.InDelta(t, g.info(&r.After), p.value, 1e-9, g.name)
				continue
			}
			end := uint64(int64(p.time) - offset)
			const slew = uint64(time.Millisecond) // of the wall clock
			require.Contains(t, around(end-slew, end+slew, g.sample), p.value, "%s, point %d of %d", g.name, i+1, len(points))
		}
	}
}

func TestKilledRecorderLosesOnlyItsLastMoment(t *testing.T) {
	ctx := bounded(t)
	lab := netlab.ForTest(t, netlab.Options{NoOffload: true, Rate: 100e6, LossToB: netlab.Loss{OneIn: 1000}})
	wire, err := lab.Count(lab.A, lab.A.Interface)
	require.NoError(t, err)
	spoolDir := filepath.Join(t.TempDir(), "spool")

	// A recorder has stored within a second what it has seen. How far it may be behind where others want the
	// processor too is the scheduler's affair.
	const rounds, moment = 3, 3 * time.Second
	var stored uint64 // of the rounds before
	for round := range rounds {
		first, err := wire.Out()
		require.NoError(t, err)
		rec := start(t, lab.A, "record", "--spool", spoolDir)
		// More than will be sent: the transfer is broken off.
		moving, breakOff := context.WithCancel(ctx)
		moved := make(chan error, 1)
		go func() {
			_, err := lab.Transfer(moving, netlab.Transfer{Bytes: 1 << 40, Congestion: "reno"})
			moved <- err
		}()
		// The history of an independent count, until a random number of packets have passed.
		type reading struct{ time, packets uint64 }
		var history []reading
		enough := 32_000 + rand.Uint64N(8_000) // at 100 Mbit/s: 3.9 s to 4.9 s
		for len(history) == 0 || history[len(history)-1].packets < enough {
			c, err := wire.Out()
			require.NoError(t, err)
			require.NoError(t, ctx.Err())
			history = append(history, reading{netlab.Mono(), c.TCP - first.TCP})
			waitTick(ctx)
		}
		killed := netlab.Mono()
		rec.kill(t)
		breakOff()
		require.Error(t, <-moved)
		require.NoError(t, lab.A.Quiet(ctx))

		must(t, "spool", "verify", spoolDir)
		s := spoolInfo(t, spoolDir)
		require.Len(t, s.Sessions, round+1)
		require.False(t, s.Sessions[round].Complete, "spool info tells that the session has no end")
		got := hook(s, event.HookTCEgress).Stored - stored
		stored += got
		var due, behind uint64
		for _, h := range history {
			if h.time+uint64(moment) <= killed {
				due = h.packets
			}
			if h.packets <= got {
				behind = killed - h.time
			}
		}
		t.Logf("killed after %d packets, %d of them stored: %v were lost", history[len(history)-1].packets, got, time.Duration(behind))
		require.Positive(t, due)
		require.GreaterOrEqual(t, got, due)
		require.NotEmpty(t, must(t, "flows", spoolDir))
	}

	// Recording goes on in the same spool, and ends in order.
	rec := start(t, lab.A, "record", "--spool", spoolDir)
	_, err = lab.Exchange(ctx, netlab.Exchange{Connections: 3})
	require.NoError(t, err)
	require.NoError(t, lab.A.Quiet(ctx))
	rec.stop(t)
	s := spoolInfo(t, spoolDir)
	require.Len(t, s.Sessions, rounds+1)
	require.True(t, s.Sessions[rounds].Complete)
}

func TestFinalSampleEqualsTCPInfo(t *testing.T) {
	// Ages go on between the two readings; listeners and time have their own fields.
	differ := map[string]string{
		"LastDataSent": "an age", "LastDataRecv": "an age", "LastAckRecv": "an age",
	}
	for _, cc := range []string{"reno", "bbr"} {
		t.Run(cc, func(t *testing.T) {
			ctx := bounded(t)
			lab := netlab.ForTest(t, netlab.Options{NoOffload: true, Rate: 100e6, LossToB: netlab.Loss{OneIn: 300}})
			spoolDir := filepath.Join(t.TempDir(), "spool")
			fired, err := lab.Firings(lab.A, "tcp_destroy_sock")
			require.NoError(t, err)
			rec := start(t, lab.A, "record", "--spool", spoolDir)
			r, err := lab.Transfer(ctx, netlab.Transfer{Bytes: 4 << 20, Congestion: cc})
			require.NoError(t, err)
			require.NoError(t, lab.A.Quiet(ctx))
			rec.stop(t)
			n, _, err := fired.Count()
			require.NoError(t, err)
			if n == 0 {
				t.Skip("the kernel ran no program when the socket was destroyed")
			}

			var final *event.Sample
			records(t, spoolDir, func(h *event.Header) {
				if h.Hook == event.HookDestroySock && h.Cookie == r.ClientCookie {
					require.Nil(t, final, "one final sample")
					s := *h.Sample()
					final = &s
				}
			})
			require.NotNil(t, final)
			require.Equal(t, r.Client, final.LocalAddr())
			require.Equal(t, r.Server, final.PeerAddr())
			require.Equal(t, cc, string(bytes.TrimRight(final.CAName[:], "\x00")))
			require.Equal(t, r.After.SndWscale(), final.SndWscale)
			require.Equal(t, r.After.RcvWscale(), final.RcvWscale)
			require.Equal(t, r.After.AppLimited(), final.AppLimited)

			// The two structs name their fields alike.
			got, want := reflect.ValueOf(final).Elem(), reflect.ValueOf(r.After)
			compared := 0
			for i := range want.NumField() {
				name := want.Type().Field(i).Name
				f := got.FieldByName(name)
				if !f.IsValid() || differ[name] != "" {
					continue
				}
				compared++
				require.Equal(t, want.Field(i).Uint(), f.Uint(), name)
			}
			require.Greater(t, compared, 55)
		})
	}
}
