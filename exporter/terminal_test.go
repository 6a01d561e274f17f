// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/processors"
)

var (
	ssthresh = &processors.Metric{Name: "network.flow.tcp.slow_start_threshold", Unit: "{segment}", Kind: processors.Gauge}
	rto      = &processors.Metric{Name: "network.flow.tcp.rto", Unit: "s", Kind: processors.Gauge, Float: true}
	volume   = &processors.Metric{Name: "network.flow.tcp.io", Unit: "By", Kind: processors.Counter}
	resent   = &processors.Metric{Name: "network.flow.tcp.retransmits", Unit: "{segment}", Kind: processors.Counter}
	state    = &processors.Metric{Name: "network.flow.tcp.state", Unit: "1", Kind: processors.Gauge}

	sSsthresh = &processors.Series{ID: 10, Metric: ssthresh}
	sRTO      = &processors.Series{ID: 11, Metric: rto}
	sOut      = &processors.Series{ID: 12, Metric: volume, Attrs: []processors.Attr{{Key: "network.io.direction", Value: "transmit"}}}
	sIn       = &processors.Series{ID: 13, Metric: volume, Attrs: []processors.Attr{{Key: "network.io.direction", Value: "receive"}}}
	sFast     = &processors.Series{ID: 14, Metric: resent, Attrs: []processors.Attr{{Key: "network.tcp.retransmit.type", Value: "fast"}}}
	sTimeout  = &processors.Series{ID: 15, Metric: resent, Attrs: []processors.Attr{{Key: "network.tcp.retransmit.type", Value: "timeout"}}}
	sEstab    = &processors.Series{ID: 16, Metric: state, Attrs: []processors.Attr{{Key: "network.connection.state", Value: "established"}}}
	sSynSent  = &processors.Series{ID: 17, Metric: state, Attrs: []processors.Attr{{Key: "network.connection.state", Value: "syn_sent"}}}
)

// screens makes three collections of n connections; the first ends in the last.
func screens(n int, temporality string) []pmetric.Metrics {
	cfg := DefaultConfig()
	cfg.Temporality = temporality
	b := NewBuilder(cfg, testResource)
	conns := make([]*processors.Connection, n)
	for i := range conns {
		conns[i] = conn(uint64(i+1), t0)
		conns[i].Local = netip.AddrPortFrom(conns[i].Local.Addr(), uint16(40000+i))
		if i%3 == 1 {
			conns[i].Local = netip.MustParseAddrPort("[2001:db8:1234:5678:9abc:def0:1234:5678]:443")
			conns[i].Peer = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(1000+i))
			conns[i].Netns = 4026531
		}
	}
	var all []pmetric.Metrics
	for round := int64(1); round <= 3; round++ {
		b.Begin(t0+round*10*sec, nil)
		for i, c := range conns {
			if round == 3 && i == 0 {
				c.Ended, c.Last = true, c.First+uint64(25*sec)
			}
			b.Connection(c)
			b.Int(sCwnd, 10*round+int64(i))
			b.Float(sSRTT, 0.000_25*float64(i*i*100+1))
			if i%2 == 0 {
				b.Int(sSsthresh, 7)
			}
			b.Float(sRTO, 0.204)
			b.Int(sOut, round*round*1_000_000*int64(i+1))
			b.Int(sIn, round*1000)
			b.Int(sFast, round)
			b.Int(sTimeout, 2*round)
			b.Int(sEstab, 1)
			b.Int(sSynSent, 0)
		}
		all = append(all, b.End())
	}
	return all
}

func TestTerminalIsGolden(t *testing.T) {
	tests := map[string]struct {
		conns, width, height int
		tty                  bool
		temporality          string
	}{
		"plain":  {conns: 30},
		"delta":  {conns: 2, temporality: Delta},
		"wide":   {conns: 5, tty: true, width: 180, height: 40},
		"usual":  {conns: 5, tty: true, width: 80, height: 24},
		"narrow": {conns: 5, tty: true, width: 60, height: 6},
		"tiny":   {conns: 5, tty: true, width: 20, height: 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			sink := NewTerminal(&out)
			if tt.tty {
				sink.size = func() (int, int, bool) { return tt.width, tt.height, true }
			}
			require.NoError(t, sink.Start(t.Context()))
			if tt.temporality == "" {
				tt.temporality = Cumulative
			}
			for _, md := range screens(tt.conns, tt.temporality) {
				require.NoError(t, sink.ConsumeMetrics(t.Context(), md))
			}
			require.NoError(t, sink.Shutdown(t.Context()))
			got := strings.ReplaceAll(out.String(), "\x1b", "<ESC>")
			if tt.tty {
				for _, line := range strings.Split(got, "\n") {
					if i := strings.LastIndex(line, "<ESC>[J"); i >= 0 {
						line = line[i+len("<ESC>[J"):]
					}
					require.LessOrEqual(t, utf8.RuneCountInString(line), tt.width, line)
				}
			}
			golden := filepath.Join("testdata", "terminal-"+name+".txt")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}

func TestTerminalRatesOfReusedAddresses(t *testing.T) {
	b := NewBuilder(DefaultConfig(), testResource)
	old, young := conn(1, t0), conn(2, t0+6*sec)
	old.Ended, old.Last = true, old.First+uint64(5*sec)
	b.Begin(t0+10*sec, nil)
	b.Connection(old)
	b.Int(sCwnd, 1)
	b.Int(sOut, 5_000)
	b.Connection(young)
	b.Int(sCwnd, 2)
	b.Int(sOut, 8_000)
	sink := NewTerminal(&bytes.Buffer{})
	sink.parts.add(b.End())
	rows := sink.finish(sink.parts.rows)
	require.Len(t, rows, 1)
	require.InDelta(t, 2000, rows[0].out, 1e-6) // the younger's 8 kB in 4 s
	require.False(t, rows[0].ended)
}

func TestTerminalDrawsACollectionOfPartsOnce(t *testing.T) {
	whole, parts := new(bytes.Buffer), new(bytes.Buffer)
	for _, out := range []*bytes.Buffer{whole, parts} {
		sink := NewTerminal(out)
		for _, md := range screens(3, Cumulative) {
			if out == parts {
				// The metrics of a collection, one by one.
				for _, m := range md.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().All() {
					one := pmetric.NewMetrics()
					m.CopyTo(one.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty())
					require.NoError(t, sink.ConsumeMetrics(WithMore(t.Context()), one))
				}
				md = pmetric.NewMetrics()
			}
			require.NoError(t, sink.ConsumeMetrics(t.Context(), md))
		}
	}
	require.Equal(t, whole.String(), parts.String())
	require.Equal(t, 3, strings.Count(whole.String(), "3 connections"))
}

func TestTerminalTellsWriteErrors(t *testing.T) {
	sink := NewTerminal(failing{})
	require.ErrorContains(t, sink.ConsumeMetrics(t.Context(), screens(1, Cumulative)[0]), "no paper")
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, fmt.Errorf("no paper") }

func TestUnits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.000_001: "1.00µs", 0.000_25: "250µs", 0.0123: "12.3ms", 0.9999: "1000ms", 1.5: "1.50s"} {
		require.Equal(t, want, seconds(v))
	}
	for v, want := range map[float64]string{0: "0B", 999: "999B", 1000: "1.00kB", 12_345_678: "12.3MB", 2e12: "2.00TB"} {
		require.Equal(t, want, size(v))
	}
	require.Equal(t, "abcd…yz:443", shorten("abcdefghijklmnopqrstuvwxyz:443", 11))
}
