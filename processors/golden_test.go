// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

var update = flag.Bool("update", false, "write the golden files and docs/metrics.md anew")

// scenario is a stream in which every family has something to tell. It calls told for each
// of its three collections.
func scenario(s *stream, told func(title string)) {
	// 1: a lossy upload with a fast retransmission, a tail loss probe and a timeout.
	up := s.end("10.0.0.1:40000", "10.0.0.2:80")
	up.cookie = 11
	up.connect(1000, 5000)
	up.sample(event.HookTransmit, func(m *event.Sample) { m.BytesAcked = 1 })
	up.segment(event.HookTCEgress, event.DirOut, "P.", 1001, 5001, 14480, 10)
	s.wait(20 * ms)
	for range 3 {
		up.in(".", 5001, 1001+1448, 0)
	}
	up.sample(event.HookTCPProbe, func(m *event.Sample) {
		m.BytesAcked, m.SndCwnd, m.SndSsthresh, m.CAState = 1449, 7, 7, event.CARecovery
		m.SndUna, m.SndNxt, m.WriteSeq = 2449, 15481, 15481
	})
	up.incident(event.HookCongStateSet, func(i *event.Incident) { i.CAState = event.CARecovery })
	up.incident(event.HookRetransmitSKB, func(i *event.Incident) {
		i.Segs, i.Len, i.Seq, i.TCPFlags, i.CAState = 2, 2896, 2449, event.ACK, event.CARecovery
	})
	up.segment(event.HookTCEgress, event.DirOut, ".", 2449, 5001, 2896, 2)

	// 2: a download that this host serves over IPv6.
	down := s.end("[2001:db8::1]:443", "[2001:db8::2]:50000")
	down.cookie = 12
	down.accept(7000, 9000)
	down.in("P.", 7001, 9001, 100)
	down.sample(event.HookTCPProbe, func(m *event.Sample) {
		m.SndCwnd, m.RTT, m.RTTVar, m.MinRTT, m.RTO = 20, 50_123, 1_000, 49_000, 251_000
	})
	down.segment(event.HookTCEgress, event.DirOut, "P.", 9001, 7101, 28000, 20)

	// 3: refused. 4: forwarded.
	no := s.end("10.0.0.1:40001", "10.0.0.3:81")
	no.cookie = 13
	no.state(event.Closed, event.SynSent)
	no.out("S", 1, 0, 0)
	no.in("R.", 0, 2, 0)
	no.incident(event.HookReceiveReset, func(i *event.Incident) { i.OldState = event.SynSent })
	no.state(event.SynSent, event.Closed)
	pass := s.end("192.0.2.1:1234", "198.51.100.7:22")
	pass.back().in("S", 100, 0, 0)
	s.link = 3
	pass.out("S", 100, 0, 0)
	s.link = 2
	s.tick(second)
	told("open")

	up.in(".", 5001, 15481, 0)
	up.sample(event.HookTCPProbe, func(m *event.Sample) {
		m.BytesAcked, m.SndCwnd, m.SndSsthresh, m.RTT = 14481, 9, 7, 21_500
		m.SndUna, m.SndNxt, m.WriteSeq = 15481, 15481, 15481
	})
	up.out("P.", 15481, 5001, 500)
	s.wait(200 * ms)
	up.incident(event.HookRetransmitSKB, func(i *event.Incident) {
		i.Segs, i.Len, i.Seq, i.TCPFlags, i.CAState = 1, 500, 15481, event.ACK, event.CAOpen
	})
	up.out("P.", 15481, 5001, 500)
	s.wait(300 * ms)
	up.incident(event.HookRetransmitSKB, func(i *event.Incident) {
		i.Segs, i.Len, i.Seq, i.TCPFlags, i.CAState = 1, 500, 15481, event.ACK, event.CALoss
	})
	up.out("P.", 15481, 5001, 500)
	// Its receiver stops it for 300 ms; a router marked the rest.
	zero := func(g *event.Segment) { g.Window = 0 }
	s.edit = zero
	up.in(".", 5001, 15981, 0)
	s.wait(100 * ms)
	up.in(".", 5001, 15981, 0)
	s.edit = func(g *event.Segment) { g.TOS, g.TCPFlags = 2, g.TCPFlags|event.ECE }
	s.wait(200 * ms)
	up.in(".", 5001, 15981, 0)
	s.edit = nil
	up.incident(event.HookBadChecksum, func(i *event.Incident) { i.Len = 10 })
	down.in(".", 7101, 37001, 0)
	down.sample(event.HookTCPProbe, func(m *event.Sample) {
		m.BytesAcked, m.BytesReceived, m.SndCwnd, m.RTT = 28000, 100, 40, 50_500
		m.SndUna, m.SndNxt, m.WriteSeq, m.RcvNxt = 37001, 37001, 37001, 7101
	})
	up.out("F.", 15981, 5001, 0)
	up.state(event.Established, event.FinWait1)
	up.in("F.", 5001, 15982, 0)
	up.state(event.FinWait1, event.FinWait2)
	up.state(event.FinWait2, event.Closed)
	up.sample(event.HookDestroySock, func(m *event.Sample) {
		m.State, m.BytesAcked, m.BytesReceived, m.SndCwnd, m.SndSsthresh, m.RTT = event.Closed, 14982, 1, 10, 7, 21_800
		m.SndUna, m.SndNxt, m.WriteSeq, m.RcvNxt = 15982, 15982, 15982, 5002
		m.BusyTime, m.RwndLimited, m.SndbufLimited, m.DSACKDups, m.RcvOOOPack = 900_000, 300_000, 100_000, 1, 2
		m.AppLimited, m.DeliveryRate, m.PacingRate = 1, 5, 1_600_000
	})
	up.out(".", 15982, 5002, 0)
	lost := &event.Lost{Header: event.Header{Time: s.now}, First: s.now - second, Last: s.now}
	lost.Count[event.HookTCIngress] = 4
	put(s, lost)
	s.tick(second)
	told("closed")

	s.tick(5 * second)
	s.anchor(event.AnchorEnd)
	told("end of the recording")
}

// TestFamilies holds what each family tells of the scenario against its golden.
func TestFamilies(t *testing.T) {
	for _, p := range All() {
		t.Run(p.Name(), func(t *testing.T) {
			r := &Registry{}
			p.Bind(r)
			own := map[string]bool{}
			for _, m := range r.metrics {
				own[m.Name] = true
			}
			s := newStream(t, DefaultConfig())
			var got strings.Builder
			scenario(s, func(title string) {
				fmt.Fprintf(&got, "# %s\n", title)
				for line := range strings.Lines(s.collect()) {
					if name := strings.Fields(line)[0]; !strings.HasPrefix(line, "  ") || own[name] {
						got.WriteString(line)
					}
				}
			})
			golden(t, filepath.Join("testdata", p.Name()+".golden"), got.String())
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run go test ./processors -update")
	require.Empty(t, cmp.Diff(string(want), got), "if this is meant: go test ./processors -update")
}

func TestDocumentationListsEveryMetric(t *testing.T) {
	golden(t, filepath.Join("..", "docs", "metrics.md"), Markdown())
}

func TestMetricsAreWellFormed(t *testing.T) {
	tab, err := NewTable(DefaultConfig())
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, m := range tab.Metrics() {
		require.False(t, seen[m.Name], "%s is declared twice", m.Name)
		seen[m.Name] = true
		prefix := "network.flow.tcp."
		if m.Host {
			prefix = "system.network.tcp."
		}
		require.True(t, strings.HasPrefix(m.Name, prefix), m.Name)
		require.NotEmpty(t, m.Unit, m.Name)
		require.NotEmpty(t, m.Source, m.Name)
		require.Regexp(t, `^[A-Z].*[^.]\.$`, m.Description, m.Name)
		require.Equal(t, m.Unit == "s", m.Float && m.Unit == "s", "%s: seconds are floats", m.Name)
	}
	for i, s := range tab.Series() {
		require.Equal(t, i, s.ID)
		require.Len(t, s.Attrs, len(s.Metric.Attributes), s.Metric.Name)
		for j, a := range s.Attrs {
			require.Equal(t, s.Metric.Attributes[j], a.Key, s.Metric.Name)
		}
	}
}

// TestValuesComeInTheOrderOfTheSeries is the promise of Emitter.
func TestValuesComeInTheOrderOfTheSeries(t *testing.T) {
	s := newStream(t, DefaultConfig())
	scenario(s, func(string) { s.tab.Collect(&ordered{t: t}) })
}

type ordered struct {
	t    *testing.T
	host bool
	last int
	id   uint64
}

func (o *ordered) Host(*Host) { o.host, o.last = true, -1 }

func (o *ordered) Connection(c *Connection) {
	require.Greater(o.t, c.ID, o.id)
	o.host, o.last, o.id = false, -1, c.ID
}

func (o *ordered) value(s *Series, float bool) {
	require.Equal(o.t, o.host, s.Metric.Host, s.Metric.Name)
	require.Greater(o.t, s.ID, o.last, s.Metric.Name)
	require.Equal(o.t, float, s.Metric.Float, s.Metric.Name)
	o.last = s.ID
}

func (o *ordered) Int(s *Series, _ int64)     { o.value(s, false) }
func (o *ordered) Float(s *Series, _ float64) { o.value(s, true) }
func (o *ordered) Histogram(s *Series, _ *Histogram) {
	o.value(s, true)
	require.Equal(o.t, Distribution, s.Metric.Kind)
}

func TestMetricsThatAreOffAreNotTold(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Off = []string{"network.flow.tcp.rtt.*", "network.flow.tcp.rto", "network.flow.tcp.state", "system.*"}
	require.NoError(t, cfg.Validate())
	s := newStream(t, cfg)
	var out string
	scenario(s, func(string) { out += s.collect() })
	for _, name := range []string{"rtt", "rto", "tcp.state", "system."} {
		require.NotContains(t, out, name)
	}
	require.Contains(t, out, "network.flow.tcp.io")
	require.Contains(t, out, "handshake.duration")
	for i, series := range s.tab.Series() {
		require.Equal(t, i, series.ID)
	}
	require.Len(t, s.tab.families, len(All())-1, "a family that is all off costs nothing")
}

func TestConfigTellsAllFaults(t *testing.T) {
	cfg := Config{Off: []string{"network.flow.tcp.io", "nothing", "no.such.*"}}
	err := cfg.Validate()
	require.ErrorContains(t, err, "process.idle_timeout: 0s is below the minimum 1s")
	require.ErrorContains(t, err, "process.handshake_timeout")
	require.ErrorContains(t, err, "process.linger: 0s is outside of 100ms to 2m0s")
	require.ErrorContains(t, err, `process.off[1]: no metric is named "nothing"`)
	require.ErrorContains(t, err, `process.off[2]`)
	require.NotContains(t, err.Error(), "off[0]")
	require.NoError(t, DefaultConfig().Validate())
	_, err = NewTable(cfg)
	require.Error(t, err)
}
