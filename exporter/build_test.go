// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/processors"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The series of the tests: a family as the processors declare them, and one of the host.
var (
	cwnd     = &processors.Metric{Name: "network.flow.tcp.congestion_window", Unit: "{segment}", Description: "Congestion window.", Kind: processors.Gauge}
	srtt     = &processors.Metric{Name: "network.flow.tcp.rtt.smoothed", Unit: "s", Description: "Smoothed round-trip time.", Kind: processors.Gauge, Float: true}
	segments = &processors.Metric{Name: "network.flow.tcp.segments", Unit: "{segment}", Description: "Segments on the wire.", Kind: processors.Counter}
	blocked  = &processors.Metric{Name: "network.flow.tcp.flow_control.duration", Unit: "s", Description: "Time with a zero window.", Kind: processors.Counter, Float: true}
	active   = &processors.Metric{Name: "system.network.tcp.connection.active", Unit: "{connection}", Description: "Open connections.", Kind: processors.UpDown, Host: true}
	rtt      = &processors.Metric{Name: "system.network.tcp.rtt", Unit: "s", Description: "Round-trip times.", Kind: processors.Distribution, Float: true, Host: true}

	sCwnd    = &processors.Series{ID: 0, Metric: cwnd}
	sSRTT    = &processors.Series{ID: 1, Metric: srtt}
	sSegIn   = &processors.Series{ID: 2, Metric: segments, Attrs: []processors.Attr{{Key: "network.io.direction", Value: "receive"}}}
	sSegOut  = &processors.Series{ID: 3, Metric: segments, Attrs: []processors.Attr{{Key: "network.io.direction", Value: "transmit"}}}
	sBlocked = &processors.Series{ID: 4, Metric: blocked}
	sActive  = &processors.Series{ID: 5, Metric: active}
	sRTT     = &processors.Series{ID: 6, Metric: rtt}
)

const (
	sec = int64(time.Second)
	t0  = 1_700_000_000 * sec
)

var testResource = Resource{ServiceVersion: "1.2.3", HostName: "lab", HostID: "0123456789abcdef", OSVersion: "6.18.0"}

func conn(id uint64, start int64) *processors.Connection {
	return &processors.Connection{
		ID:    id,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Peer: netip.MustParseAddrPort("10.0.0.2:443"),
		Netns: initialNetns, Cookie: 0x2a, Role: processors.RoleClient,
		First: uint64(start - t0), Last: uint64(start - t0), StartWall: start,
	}
}

// tell makes two collections: in the first two connections and the host, in the second one of
// them ends.
func tell(b *Builder) (first, second pmetric.Metrics) {
	one, two := conn(1, t0-sec), conn(2, t0+sec)
	two.Local, two.Peer = netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8::2]:50000")
	two.Netns, two.Role, two.Cookie = 4026, processors.RoleServer, 0
	host := &processors.Host{Session: 9, StartWall: t0 - 5*sec}
	var h processors.Histogram
	for _, v := range []float64{0, 0.001, 0.002, 0.004, 0.0041} {
		h.Add(v)
	}

	b.Begin(t0+10*sec, nil)
	b.Host(host)
	b.Int(sActive, 2)
	b.Histogram(sRTT, &h)
	b.Connection(one)
	b.Int(sCwnd, 10)
	b.Float(sSRTT, 0.025)
	b.Int(sSegIn, 100)
	b.Int(sSegOut, 50)
	b.Connection(two)
	b.Int(sCwnd, 20)
	b.Int(sSegIn, 7)
	b.Float(sBlocked, 1.5)
	first = b.End()

	one.Ended, one.End, one.Last = true, processors.EndClosed, one.First+uint64(15*sec)
	h.Add(0.5)
	b.Begin(t0+20*sec, nil)
	b.Host(host)
	b.Int(sActive, 1)
	b.Histogram(sRTT, &h)
	b.Connection(one)
	b.Int(sCwnd, 12)
	b.Int(sSegIn, 130)
	b.Int(sSegOut, 51)
	b.Connection(two)
	b.Int(sCwnd, 21)
	b.Int(sSegIn, 7)
	b.Float(sBlocked, 2)
	return first, b.End()
}

func TestFileOutputIsGolden(t *testing.T) {
	for _, temporality := range []string{Cumulative, Delta} {
		t.Run(temporality, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Temporality = temporality
			cfg.Resource = map[string]string{"deployment.environment.name": "test"}
			cfg.Attributes = append(cfg.Attributes, AttrHandshakeRole, AttrCookie)
			path := filepath.Join(t.TempDir(), "out.jsonl")
			sink := NewFile(path)
			require.NoError(t, sink.Start(t.Context()))
			first, second := tell(NewBuilder(cfg, testResource))
			require.NoError(t, sink.ConsumeMetrics(t.Context(), first))
			require.NoError(t, sink.ConsumeMetrics(t.Context(), second))
			require.NoError(t, sink.Shutdown(t.Context()))
			got, err := os.ReadFile(path)
			require.NoError(t, err)

			golden := filepath.Join("testdata", temporality+".jsonl")
			if *update {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))

			// Each line is a request that reads back as what was written.
			var dec pmetric.JSONUnmarshaler
			lines := bytes.SplitAfter(got, []byte("\n"))
			require.Len(t, lines, 3)
			for i, sent := range []pmetric.Metrics{first, second} {
				back, err := dec.UnmarshalMetrics(lines[i])
				require.NoError(t, err)
				require.Equal(t, marshal(t, sent), marshal(t, back))
			}
		})
	}
}

func marshal(t testing.TB, md pmetric.Metrics) []byte {
	var enc pmetric.ProtoMarshaler
	b, err := enc.MarshalMetrics(md)
	require.NoError(t, err)
	return b
}

func TestSameCallsGiveSameBytes(t *testing.T) {
	b := NewBuilder(DefaultConfig(), testResource)
	first, second := tell(b)
	again1, again2 := tell(NewBuilder(DefaultConfig(), testResource))
	require.Equal(t, marshal(t, first), marshal(t, again1))
	require.Equal(t, marshal(t, second), marshal(t, again2))
}

// points returns the values of a metric as text: attribute-free, flags and times relative to t0.
func points(t *testing.T, md pmetric.Metrics, name string) (out []string) {
	t.Helper()
	for _, rm := range md.ResourceMetrics().All() {
		for _, sm := range rm.ScopeMetrics().All() {
			for _, m := range sm.Metrics().All() {
				if m.Name() != name {
					continue
				}
				var dps pmetric.NumberDataPointSlice
				switch m.Type() {
				case pmetric.MetricTypeGauge:
					dps = m.Gauge().DataPoints()
				case pmetric.MetricTypeSum:
					dps = m.Sum().DataPoints()
				default:
					require.Fail(t, "not numbers", m.Type())
				}
				for _, p := range dps.All() {
					s := ""
					if p.StartTimestamp() != 0 {
						s = fmt.Sprintf("[%v..] ", time.Duration(int64(p.StartTimestamp())-t0))
					}
					s += fmt.Sprint(time.Duration(int64(p.Timestamp())-t0), " ")
					switch {
					case p.Flags().NoRecordedValue():
						require.Equal(t, pmetric.NumberDataPointValueTypeEmpty, p.ValueType())
						s += "end"
					case p.ValueType() == pmetric.NumberDataPointValueTypeInt:
						s += fmt.Sprint(p.IntValue())
					default:
						s += fmt.Sprintf("%.2f", p.DoubleValue())
					}
					out = append(out, s)
				}
			}
		}
	}
	return out
}

func TestTemporality(t *testing.T) {
	tests := map[string]struct {
		delta         bool
		metric        string
		first, second []string
	}{
		"cumulative counter goes on from the connection's start": {
			metric: segments.Name,
			first:  []string{"[-1s..] 10s 100", "[-1s..] 10s 50", "[1s..] 10s 7"},
			second: []string{"[-1s..] 14s 130", "[-1s..] 14s 51", "[1s..] 20s 7"},
		},
		"delta counter joins the collection before": {
			delta:  true,
			metric: segments.Name,
			first:  []string{"[-1s..] 10s 100", "[-1s..] 10s 50", "[1s..] 10s 7"},
			second: []string{"[10s..] 14s 30", "[10s..] 14s 1", "[10s..] 20s 0"},
		},
		"delta of floats": {
			delta:  true,
			metric: blocked.Name,
			first:  []string{"[1s..] 10s 1.50"},
			second: []string{"[10s..] 20s 0.50"},
		},
		"gauge of an ended connection ends": {
			metric: cwnd.Name,
			first:  []string{"10s 10", "10s 20"},
			second: []string{"14s 12", "14.001s end", "20s 21"},
		},
		"gauge that was told before only ends too": {
			metric: srtt.Name,
			first:  []string{"10s 0.03"},
			second: []string{"14.001s end"},
		},
		"up-down counter is no delta": {
			delta:  true,
			metric: active.Name,
			first:  []string{"[-5s..] 10s 2"},
			second: []string{"[10s..] 20s 1"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			if tt.delta {
				cfg.Temporality = Delta
			}
			first, second := tell(NewBuilder(cfg, testResource))
			require.Empty(t, cmp.Diff(tt.first, points(t, first, tt.metric)))
			require.Empty(t, cmp.Diff(tt.second, points(t, second, tt.metric)))
		})
	}
}

func TestEndedConnectionIsForgotten(t *testing.T) {
	b := NewBuilder(DefaultConfig(), testResource)
	tell(b)
	require.Equal(t, 1, b.Tracked())
}

func TestPointsOfReusedAddressesNeverShareATime(t *testing.T) {
	tests := map[string]struct {
		prev, last, wall, want int64 // relative to t0
	}{
		"ended in between":            {10 * sec, 15 * sec, 20 * sec, 15 * sec},
		"ended just now":              {10 * sec, 20 * sec, 20 * sec, 20*sec - 2*endStep},
		"idle since before":           {10 * sec, 5 * sec, 20 * sec, 10*sec + endStep},
		"first collection":            {0, 15 * sec, 20 * sec, 15 * sec},
		"clock was set back meantime": {100 * sec, 15 * sec, 20 * sec, 15 * sec},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := NewBuilder(DefaultConfig(), testResource)
			c := conn(1, t0)
			if tt.prev != 0 {
				b.Begin(t0+tt.prev, nil)
				b.Connection(c)
				b.Int(sCwnd, 1)
				b.End()
			}
			c.Ended, c.Last = true, c.First+uint64(tt.last)
			b.Begin(t0+tt.wall, nil)
			b.Connection(c)
			b.Int(sCwnd, 2)
			require.Equal(t, []string{
				fmt.Sprint(time.Duration(tt.want), " 2"),
				fmt.Sprint(time.Duration(tt.want+endStep), " end"),
			}, points(t, b.End(), cwnd.Name))
		})
	}
}

func TestManyConnectionsBetweenTheSameEndsInOneCollection(t *testing.T) {
	b := NewBuilder(DefaultConfig(), testResource)
	b.Begin(t0+10*sec, nil)
	for i := range uint64(3) {
		c := conn(i+1, t0+5*sec)
		c.Ended = i < 2
		b.Connection(c)
		b.Int(sCwnd, int64(i))
	}
	require.Equal(t, []string{"5s 0", "5.001s end", "5.002s 1", "5.003s end", "10s 2"}, points(t, b.End(), cwnd.Name))
}

func TestSeriesKeepTheirIdentity(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Attributes = append(cfg.Attributes, AttrHandshakeRole, AttrCookie)
	b := NewBuilder(cfg, testResource)
	c := conn(1, t0)
	c.Role, c.Cookie = processors.RoleUnknown, 0
	var seen []map[string]any
	for i := range int64(2) {
		b.Begin(t0+(i+1)*sec, nil)
		b.Connection(c)
		b.Int(sCwnd, 1)
		md := b.End()
		seen = append(seen, md.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().At(0).Attributes().AsRaw())
		c.Role, c.Cookie = processors.RoleServer, 7 // became known
	}
	require.Empty(t, cmp.Diff(seen[0], seen[1]))
}

func TestNetworkNamespaceIsToldUnlessItIsHome(t *testing.T) {
	tests := map[string]struct {
		home, netns uint64
		want        any
	}{
		"unknown":            {0, 0, nil},
		"the machine's":      {0, 1, nil},
		"another":            {0, 42, int64(42)},
		"recorder's own":     {42, 42, nil},
		"not recorder's own": {42, 1, int64(1)},
		"unknown to a home":  {42, 0, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := NewBuilder(DefaultConfig(), Resource{Netns: tt.home})
			c := conn(1, t0)
			c.Netns = tt.netns
			b.Begin(t0+sec, nil)
			b.Connection(c)
			b.Int(sCwnd, 1)
			p := b.End().ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().At(0)
			require.Equal(t, tt.want, p.Attributes().AsRaw()[AttrNetns])
		})
	}
}

func TestNothingToTellIsEmpty(t *testing.T) {
	b := NewBuilder(DefaultConfig(), testResource)
	b.Begin(t0, nil)
	require.Zero(t, b.End().ResourceMetrics().Len())
}

func TestDeltaHistogramIsTheDifference(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Temporality = Delta
	_, second := tell(NewBuilder(cfg, testResource))
	metrics := second.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
	m := metrics.At(metrics.Len() - 1)
	require.Equal(t, rtt.Name, m.Name())
	require.Equal(t, pmetric.AggregationTemporalityDelta, m.ExponentialHistogram().AggregationTemporality())
	p := m.ExponentialHistogram().DataPoints().At(0)
	require.EqualValues(t, 1, p.Count())
	require.InDelta(t, 0.5, p.Sum(), 1e-9)
	require.False(t, p.HasMin())
	// 0.5 = 2^-1 is the upper limit of the bucket (2^(-9/8), 2^(-8/8)].
	require.EqualValues(t, -9, p.Positive().Offset())
	require.Equal(t, []uint64{1}, p.Positive().BucketCounts().AsRaw())
}

func TestFileErrorsTeach(t *testing.T) {
	sink := NewFile(filepath.Join(t.TempDir(), "no", "such", "dir"))
	err := sink.Start(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	var h interface{ Hint() string }
	require.ErrorAs(t, err, &h)
	require.Error(t, sink.ConsumeMetrics(t.Context(), pmetric.NewMetrics()))
	require.NoError(t, sink.Shutdown(context.Background()))
}

func BenchmarkBuild(b *testing.B) {
	const conns = 1000
	all := make([]*processors.Connection, conns)
	for i := range all {
		all[i] = conn(uint64(i+1), t0)
		all[i].Local = netip.AddrPortFrom(all[i].Local.Addr(), uint16(i+1000))
	}
	for _, temporality := range []string{Cumulative, Delta} {
		b.Run(temporality, func(b *testing.B) {
			cfg := DefaultConfig()
			cfg.Temporality = temporality
			build := NewBuilder(cfg, testResource)
			wall, n := t0, 0
			b.ReportAllocs()
			for b.Loop() {
				wall += 10 * sec
				build.Begin(wall, nil)
				for _, c := range all {
					build.Connection(c)
					build.Int(sCwnd, 10)
					build.Float(sSRTT, 0.02)
					build.Int(sSegIn, wall)
					build.Int(sSegOut, wall)
					build.Float(sBlocked, 1)
				}
				n += build.End().DataPointCount()
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "points/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/point")
		})
	}
}

func TestLargeCollectionsComeInParts(t *testing.T) {
	const conns, values = partPoints/2 + 7, 5
	tell := func(from, n int, part func(pmetric.Metrics)) pmetric.Metrics {
		b := NewBuilder(DefaultConfig(), testResource)
		b.Begin(t0+10*sec, part)
		b.Host(&processors.Host{Session: 9, StartWall: t0 - 5*sec})
		b.Int(sActive, conns)
		for i := from; i < from+n; i++ {
			c := conn(uint64(i+1), t0)
			c.Local = netip.AddrPortFrom(c.Local.Addr(), uint16(i))
			b.Connection(c)
			b.Int(sCwnd, int64(i))
			b.Float(sSRTT, 0.025)
			b.Int(sSegIn, 100)
			b.Int(sSegOut, 50)
			b.Float(sBlocked, 1.5)
		}
		return b.End()
	}
	var parts []pmetric.Metrics
	last := tell(0, conns, func(md pmetric.Metrics) { parts = append(parts, md) })
	parts = append(parts, last)
	require.Len(t, parts, (1+conns*values+partPoints)/(partPoints+values-1))
	total, first := 0, 0
	for i, md := range parts {
		n := md.DataPointCount()
		total += n
		if i < len(parts)-1 {
			require.GreaterOrEqual(t, n, partPoints)
			require.Less(t, n, partPoints+values)
		}
		require.Positive(t, n)
		// Every part is a collection of its own: resource, scope, all points of its connections.
		whole := n / values
		want := tell(first, whole, nil)
		if i > 0 { // the host is told in the first one
			metrics := want.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
			metrics.RemoveIf(func(m pmetric.Metric) bool { return m.Name() == sActive.Metric.Name })
		}
		require.True(t, bytes.Equal(marshal(t, want), marshal(t, md)), "part %d", i)
		first += whole
	}
	require.Equal(t, 1+conns*values, total)

	// What is just enough for a part has no empty one after it.
	calls := 0
	last = tell(0, partPoints/values+1, func(pmetric.Metrics) { calls++ })
	require.Zero(t, calls)
	require.GreaterOrEqual(t, last.DataPointCount(), partPoints)
}
