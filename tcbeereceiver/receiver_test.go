// SPDX-License-Identifier: Apache-2.0

package tcbeereceiver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componentstatus"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/confmaptest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// fake is a source of prepared batches. After them Next waits for Stop, as a capture does.
type fake struct {
	batches [][]byte
	err     error // after the batches, at once
	stuck   bool  // Stop has no effect
	stopped chan struct{}
	once    sync.Once
	closed  bool
	limited uint64
}

func newFake(batches ...[]byte) *fake {
	return &fake{batches: batches, stopped: make(chan struct{})}
}

func (f *fake) Next(ctx context.Context) ([]byte, error) {
	if len(f.batches) > 0 {
		b := f.batches[0]
		f.batches = f.batches[1:]
		return b, nil
	}
	if f.err != nil {
		return nil, f.err
	}
	select {
	case <-f.stopped:
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fake) Stop() {
	if !f.stuck {
		f.once.Do(func() { close(f.stopped) })
	}
}

func (f *fake) Accounting() bpf.Accounting { return bpf.Accounting{Limited: f.limited} }

func (f *fake) Close() error {
	f.closed = true
	return nil
}

// traffic is a session of three seconds in which one connection sends 30 kB.
func traffic() [][]byte {
	const start, wall = uint64(5e9), int64(1_700_000_000_000_000_000)
	anchor := func(at uint64, phase uint32) []byte {
		return event.Append(nil, &event.Anchor{Header: event.Header{Time: at}, Session: 7, Realtime: wall + int64(at-start), Phase: phase})
	}
	batches := [][]byte{anchor(start, event.AnchorStart)}
	at := start
	for i := range uint32(30) {
		at += 100e6
		h := event.Header{
			Time: at, Netns: 1, Cookie: 5, Family: 4, Hook: event.HookTCEgress, Dir: event.DirOut, LocalPort: 40000, PeerPort: 80,
			Local: netip.MustParseAddr("10.0.0.1").As16(), Peer: netip.MustParseAddr("10.0.0.2").As16(),
		}
		b := event.Append(nil, &event.Segment{
			Header: h, Seq: i * 1000, TCPFlags: event.ACK, PayloadLen: 1000, GSOSegs: 1,
			VLAN: event.NoVLAN, VLANInner: event.NoVLAN, WireLen: 1040, IPLen: 20, TCPLen: 20,
		})
		h.Hook, h.Time = event.HookTransmit, at+1
		b = event.Append(b, &event.Sample{Header: h, SndCwnd: 10 + i, RTT: 20000, State: event.Established, Present: event.HasTCP})
		batches = append(batches, event.Append(b, &event.Tick{Header: event.Header{Time: at + 2}}))
	}
	return append(batches, anchor(at+3, event.AnchorEnd))
}

func newReceiver(t *testing.T, src source, next consumer.Metrics) (*tcp, *Config) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Spool.Dir = filepath.Join(t.TempDir(), "spool")
	cfg.Export.Interval = time.Second
	r, err := NewFactory().CreateMetrics(t.Context(), receivertest.NewNopSettings(component.MustNewType(typeName)), cfg, next)
	require.NoError(t, err)
	rec := r.(*tcp)
	rec.open = func(context.Context, bpf.Config, *slog.Logger) (source, error) { return src, nil }
	return rec, cfg
}

// names are the metrics in md.
func names(all []pmetric.Metrics) []string {
	set := map[string]bool{}
	for _, md := range all {
		for _, rm := range md.ResourceMetrics().All() {
			for _, sm := range rm.ScopeMetrics().All() {
				for _, m := range sm.Metrics().All() {
					set[m.Name()] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func TestFactoryNeedsNoRights(t *testing.T) {
	f := NewFactory()
	require.Equal(t, "tcbee", f.Type().String())
	require.Equal(t, component.StabilityLevelAlpha, f.MetricsStability())
	cfg := f.CreateDefaultConfig()
	require.NoError(t, componenttest.CheckConfigStruct(cfg))
	require.NoError(t, confmap.Validate(cfg))
	r, err := f.CreateMetrics(t.Context(), receivertest.NewNopSettings(f.Type()), cfg, consumertest.NewNop())
	require.NoError(t, err)
	require.NoError(t, r.Shutdown(t.Context()), "without Start")
	require.NoError(t, r.Shutdown(t.Context()), "twice")
}

func TestConfiguration(t *testing.T) {
	load := func(t *testing.T, raw map[string]any) (*Config, error) {
		cfg := DefaultConfig()
		if err := confmap.NewFromStringMap(raw).Unmarshal(cfg); err != nil {
			return nil, err
		}
		return cfg, confmap.Validate(cfg)
	}
	t.Run("the sample", func(t *testing.T) {
		conf, err := confmaptest.LoadConf(filepath.Join("testdata", "config.yaml"))
		require.NoError(t, err)
		sub, err := conf.Sub("receivers::tcbee")
		require.NoError(t, err)
		raw := sub.ToStringMap()
		raw["export"].(map[string]any)["interval"] = "2s" // the Collector resolves ${env:…}
		cfg, err := load(t, raw)
		require.NoError(t, err)
		want := DefaultConfig()
		want.Capture.Interfaces = []string{"*"}
		want.Spool.Dir, want.Spool.MaxBytes = "${env:TCBEE_SPOOL:-/var/lib/tcbee/spool}", 2<<30
		want.Export.Interval = 2 * time.Second
		require.Equal(t, want, cfg)
	})
	t.Run("unknown key", func(t *testing.T) {
		_, err := load(t, map[string]any{"capture": map[string]any{"interface": "lo"}})
		require.ErrorContains(t, err, "interface")
	})
	t.Run("every fault once", func(t *testing.T) {
		_, err := load(t, map[string]any{
			"capture": map[string]any{"ring_bytes": 1000},
			"spool":   map[string]any{"segment_age": "1ms"},
			"process": map[string]any{"linger": "-1s"},
			"export":  map[string]any{"interval": "1ms", "temporality": "none"},
		})
		for _, key := range []string{"capture.ring_bytes:", "spool.segment_age:", "process.linger:", "export.interval:", "export.temporality:"} {
			require.ErrorContains(t, err, key)
		}
	})
}

func TestDeliversToTheNextConsumer(t *testing.T) {
	src := newFake(traffic()...)
	src.limited = 7
	var sink consumertest.MetricsSink
	r, cfg := newReceiver(t, src, &sink)
	var log bytes.Buffer // of one goroutine after the other
	r.log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, r.Start(ctx, componenttest.NewNopHost()))
	cancel() // the context of Start ends with the start-up
	require.Eventually(t, func() bool { return len(sink.AllMetrics()) >= 3 }, time.Minute, time.Millisecond)
	require.NoError(t, r.Shutdown(t.Context()))
	require.NoError(t, r.Shutdown(t.Context()), "twice")
	require.True(t, src.closed)
	require.Contains(t, log.String(), `samples=7`)

	got := names(sink.AllMetrics())
	require.Subset(t, got, []string{"network.flow.tcp.congestion_window", "network.flow.tcp.io", "network.flow.tcp.rtt.smoothed"})
	known := processors.Metrics()
	for _, name := range got {
		require.True(t, slices.ContainsFunc(known, func(m *processors.Metric) bool { return m.Name == name }), name)
	}
	last := sink.AllMetrics()[len(sink.AllMetrics())-1]
	host, ok := last.ResourceMetrics().At(0).Resource().Attributes().Get("service.name")
	require.True(t, ok)
	require.Equal(t, "tcbee-export", host.Str())

	// What was captured is in the spool.
	sp, err := spool.Open(t.Context(), cfg.Spool.Dir, spool.ReadOptions{})
	require.NoError(t, err)
	blocks, _ := sp.Size()
	require.NotZero(t, blocks)
	require.NoError(t, sp.Close())
}

func TestTemporarySpoolIsRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, cfg := newReceiver(t, newFake(traffic()...), consumertest.NewNop())
	cfg.Spool.Dir = ""
	require.NoError(t, r.Start(t.Context(), componenttest.NewNopHost()))
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "tcbee-otelcol-*"))
	require.NoError(t, err)
	require.Len(t, dirs, 1)
	require.NoError(t, r.Shutdown(t.Context()))
	require.NoDirExists(t, dirs[0])
}

// advised is an error with a hint.
type advised struct{ error }

func (advised) Hint() string { return "run with sudo" }

func TestStartFailsWithTheReasonAndTheHint(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, cfg := newReceiver(t, nil, consumertest.NewNop())
	cfg.Spool.Dir = ""
	refused := errors.New("attach tp_btf/tcp_probe: operation not permitted")
	r.open = func(context.Context, bpf.Config, *slog.Logger) (source, error) { return nil, advised{refused} }
	err := r.Start(t.Context(), componenttest.NewNopHost())
	require.EqualError(t, err, "tcbee: attach tp_btf/tcp_probe: operation not permitted (run with sudo)")
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left, "nothing is left behind")
	require.NoError(t, r.Shutdown(t.Context()))
}

func TestTwoReceiversDoNotShareASpool(t *testing.T) {
	first, cfg := newReceiver(t, newFake(), consumertest.NewNop())
	require.NoError(t, first.Start(t.Context(), componenttest.NewNopHost()))
	second, other := newReceiver(t, newFake(), consumertest.NewNop())
	other.Spool.Dir = cfg.Spool.Dir
	require.ErrorIs(t, second.Start(t.Context(), componenttest.NewNopHost()), spool.ErrLocked)
	require.NoError(t, second.Shutdown(t.Context()))
	require.ErrorContains(t, first.Start(t.Context(), componenttest.NewNopHost()), "started twice")
	require.NoError(t, first.Shutdown(t.Context()))
}

func TestShutdownHonoursItsContext(t *testing.T) {
	src := newFake(traffic()...)
	src.stuck = true
	r, _ := newReceiver(t, src, consumertest.NewNop())
	require.NoError(t, r.Start(t.Context(), componenttest.NewNopHost()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.Shutdown(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "the spool keeps it")
	<-r.done // it gave up for good: nothing runs on
	require.True(t, src.closed)
}

// observer is a host that keeps the statuses that are reported to it.
type observer struct {
	component.Host
	events chan *componentstatus.Event
}

func (o *observer) Report(e *componentstatus.Event) { o.events <- e }

func TestABrokenPipelineIsReported(t *testing.T) {
	src := newFake(traffic()...)
	src.err = errors.New("ring is gone")
	r, _ := newReceiver(t, src, consumertest.NewNop())
	host := &observer{componenttest.NewNopHost(), make(chan *componentstatus.Event, 1)}
	require.NoError(t, r.Start(t.Context(), host))
	e := <-host.events
	require.Equal(t, componentstatus.StatusPermanentError, e.Status())
	require.ErrorContains(t, e.Err(), "ring is gone")
	require.ErrorContains(t, r.Shutdown(t.Context()), "ring is gone")
	require.NoError(t, r.Shutdown(t.Context()))
}

func TestARefusingConsumerDoesNotEndTheCapture(t *testing.T) {
	r, _ := newReceiver(t, newFake(traffic()...), consumertest.NewErr(errors.New("queue full")))
	require.NoError(t, r.Start(t.Context(), componenttest.NewNopHost()))
	require.NoError(t, r.Shutdown(t.Context()))
}

func TestStartWithoutRightsTellsWhatIsMissing(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() == 0 {
		t.Skip("needs Linux and a user without rights")
	}
	r, err := NewFactory().CreateMetrics(t.Context(), receivertest.NewNopSettings(component.MustNewType(typeName)), DefaultConfig(), consumertest.NewNop())
	require.NoError(t, err)
	require.ErrorContains(t, r.Start(t.Context(), componenttest.NewNopHost()), "sudo")
}
