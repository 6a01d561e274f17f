// SPDX-License-Identifier: Apache-2.0

package tcbeereceiver

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/collector/receiver/receivertest"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // what the Collector sends with

	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// wanted are metrics that a lossy transfer must give.
var wanted = []string{
	"network.flow.tcp.congestion_window", "network.flow.tcp.goodput", "network.flow.tcp.handshake.duration", "network.flow.tcp.io",
	"network.flow.tcp.retransmits", "network.flow.tcp.rtt.smoothed", "network.flow.tcp.segments", "network.flow.tcp.state",
	"system.network.tcp.connection.opened", "system.network.tcp.retransmits",
}

// requireKnown fails for metrics that no processor declares.
func requireKnown(t *testing.T, got []string) {
	t.Helper()
	known := map[string]bool{}
	for _, m := range processors.Metrics() {
		known[m.Name] = true
	}
	for _, name := range got {
		require.True(t, known[name], name)
	}
}

// counter returns the last value of a counter of the connection that ends at peer, summed over
// its series with the attribute.
func counter(all []pmetric.Metrics, name string, peer netip.AddrPort, key, value string) int64 {
	last := map[string]int64{} // by attributes
	for _, md := range all {
		for _, rm := range md.ResourceMetrics().All() {
			for _, sm := range rm.ScopeMetrics().All() {
				for _, m := range sm.Metrics().All() {
					if m.Name() != name {
						continue
					}
					for _, p := range m.Sum().DataPoints().All() {
						attrs := p.Attributes().AsRaw()
						if attrs["network.peer.address"] != peer.Addr().String() || attrs["network.peer.port"] != int64(peer.Port()) {
							continue
						}
						if key != "" && attrs[key] != value {
							continue
						}
						id := ""
						for _, k := range slices.Sorted(maps.Keys(attrs)) {
							v, _ := p.Attributes().Get(k)
							id += k + "=" + v.AsString() + " "
						}
						last[id] = p.IntValue()
					}
				}
			}
		}
	}
	var sum int64
	for _, v := range last {
		sum += v
	}
	return sum
}

// ears is an OTLP/gRPC server that keeps what it hears.
type ears struct {
	pmetricotlp.UnimplementedGRPCServer
	mu  sync.Mutex
	got []pmetric.Metrics
}

// Export implements pmetricotlp.GRPCServer.
func (e *ears) Export(_ context.Context, req pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = append(e.got, req.Metrics())
	return pmetricotlp.NewExportResponse(), nil
}

const megabytes = 4

// patience bounds what must end; it asserts nothing about speed.
const patience = 3 * time.Minute

// TestOtelcolCapturesWithTheSample runs the Collector that the builder built, with the sample
// configuration, on a lossy transfer. `make otelcol-test` builds it and says where it is.
func TestOtelcolCapturesWithTheSample(t *testing.T) {
	binary := os.Getenv("TCBEE_OTELCOL")
	if binary == "" {
		t.Skip("needs a Collector: make otelcol-test")
	}
	lab := netlab.ForTest(t, netlab.Options{Rate: 100e6, LossToB: netlab.Loss{Nth: []uint64{20, 40}}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	listener, err := lab.A.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
	require.NoError(t, err)
	var server ears
	s := grpc.NewServer(grpc.MaxRecvMsgSize(4 << 20))
	pmetricotlp.RegisterGRPCServer(s, &server)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(listener) })
	defer func() { s.Stop(); wg.Wait() }()

	dir := t.TempDir()
	file := filepath.Join(dir, "metrics.jsonl")
	cmd := lab.A.Command(binary, "--config", filepath.Join("testdata", "config.yaml"))
	cmd.Env = append(os.Environ(),
		"TCBEE_SPOOL="+filepath.Join(dir, "spool"), "TCBEE_FILE="+file,
		"TCBEE_ENDPOINT="+listener.Addr().String(), "TCBEE_INTERVAL=1s")
	logs, in := io.Pipe()
	cmd.Stderr = in
	require.NoError(t, lab.A.Start(cmd))
	ready := make(chan struct{})
	var text bytes.Buffer
	wg.Go(func() {
		lines := bufio.NewScanner(logs)
		for lines.Scan() {
			text.Write(append(lines.Bytes(), '\n'))
			if strings.Contains(lines.Text(), "Everything is ready") {
				close(ready)
			}
		}
	})
	var exit error
	exited := make(chan struct{})
	wg.Go(func() {
		defer close(exited)
		exit = cmd.Wait()
		_ = in.Close()
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Log(text.String())
		}
	})
	select {
	case <-ready:
	case <-exited:
		require.NoError(t, exit, "the Collector ended at its start")
	case <-ctx.Done():
		require.NoError(t, ctx.Err())
	}

	before, err := lab.A.SNMP()
	require.NoError(t, err)
	moved, err := lab.Transfer(ctx, netlab.Transfer{Bytes: megabytes << 20})
	require.NoError(t, err)
	require.NoError(t, lab.B.Quiet(ctx)) // in A, the Collector has a connection of its own
	after, err := lab.A.SNMP()
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	<-exited
	require.NoError(t, exit)

	text2, err := os.ReadFile(file)
	require.NoError(t, err)
	var written []pmetric.Metrics
	var dec pmetric.JSONUnmarshaler
	for line := range bytes.Lines(text2) {
		md, err := dec.UnmarshalMetrics(line)
		require.NoError(t, err)
		written = append(written, md)
	}
	got := names(written)
	t.Log(strings.Join(got, "\n"))
	require.Subset(t, got, wanted)
	requireKnown(t, got)
	server.mu.Lock()
	require.Equal(t, got, names(server.got), "OTLP and the file tell the same")
	server.mu.Unlock()

	require.EqualValues(t, megabytes<<20, counter(written, "network.flow.tcp.goodput", moved.Server, "network.io.direction", "transmit"))
	resent := counter(written, "network.flow.tcp.retransmits", moved.Server, "", "")
	require.NotZero(t, resent)
	require.EqualValues(t, after.Sub(before)["TcpRetransSegs"], resent)

	sp, err := spool.Open(ctx, filepath.Join(dir, "spool"), spool.ReadOptions{})
	require.NoError(t, err)
	blocks, _ := sp.Size()
	require.NotZero(t, blocks)
	require.NoError(t, sp.Close())
}

// TestCapturesLiveTraffic is the same in process: the receiver between two namespaces.
func TestCapturesLiveTraffic(t *testing.T) {
	lab := netlab.ForTest(t, netlab.Options{Rate: 100e6, LossToB: netlab.Loss{Nth: []uint64{20, 40}}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var sink consumertest.MetricsSink
	f := NewFactory()
	cfg := f.CreateDefaultConfig().(*Config)
	// The namespace has no name: it is reached through a process that lives in it.
	sleeper := lab.A.Command("sleep", "infinity")
	require.NoError(t, lab.A.Start(sleeper))
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	cfg.Capture.Netns = filepath.Join("/proc", strconv.Itoa(sleeper.Process.Pid), "ns/net")
	cfg.Capture.Interfaces = []string{"!lo"}
	cfg.Export.Interval = 200 * time.Millisecond
	t.Setenv("TMPDIR", t.TempDir())
	r, err := f.CreateMetrics(ctx, receivertest.NewNopSettings(component.MustNewType(typeName)), cfg, &sink)
	require.NoError(t, err)
	if err := r.Start(ctx, componenttest.NewNopHost()); err != nil {
		netlab.Skip(t, err)
	}
	moved, err := lab.Transfer(ctx, netlab.Transfer{Bytes: megabytes << 20})
	require.NoError(t, err)
	require.NoError(t, lab.A.Quiet(ctx))
	require.NoError(t, r.Shutdown(ctx))

	got := names(sink.AllMetrics())
	require.Subset(t, got, wanted)
	requireKnown(t, got)
	require.EqualValues(t, megabytes<<20, counter(sink.AllMetrics(), "network.flow.tcp.goodput", moved.Server, "network.io.direction", "transmit"))
	require.NotZero(t, counter(sink.AllMetrics(), "network.flow.tcp.retransmits", moved.Server, "", ""))
}
