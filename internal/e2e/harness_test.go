// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// patience bounds what must end; it asserts nothing about speed.
const patience = 4 * time.Minute

var buildDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		_ = os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// program builds tcbee-export once, as a user gets it, and returns its path.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tcbee-e2e-")
	if err != nil {
		return "", err
	}
	buildDir = dir
	bin := filepath.Join(dir, "tcbee-export")
	// With the settings that the tests were built with, so that compiled packages are shared.
	cmd := exec.Command("go", "build", "-o", bin, "github.com/tcbee/tcbee-export/cmd/tcbee-export")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

func bin(t *testing.T) string {
	t.Helper()
	p, err := program()
	require.NoError(t, err)
	return p
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// environ configures the program: only the namespace that it runs in, and a collection a second.
func environ() []string {
	return append(os.Environ(), "TCBEE_CAPTURE_NETNS=own", "TCBEE_EXPORT_INTERVAL=1s")
}

// command runs tcbee-export to its end and returns what it printed.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(bounded(t), bin(t), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = environ()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is command where only success will do.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := command(t, args...)
	require.Zero(t, code, "tcbee-export %v\n%s\n%s", args, out, errs)
	return out
}

// recorder is a capturing tcbee-export inside a namespace.
type recorder struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
	done     chan struct{} // closed when it has ended
	waitErr  error
}

// start runs tcbee-export in a namespace, capturing that namespace only, and returns when its
// hooks are attached.
func start(t *testing.T, n *netlab.Namespace, args ...string) *recorder {
	t.Helper()
	ctx := bounded(t)
	ready := filepath.Join(t.TempDir(), "ready")
	args = append(args, "--interface", n.Interface, "--ready-file", ready)
	r := &recorder{done: make(chan struct{})}
	r.cmd = n.Command(bin(t), args...)
	r.cmd.Env = environ()
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	require.NoError(t, n.Start(r.cmd))
	go func() {
		r.waitErr = r.cmd.Wait()
		close(r.done)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // fails when it has ended
		<-r.done
	})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return r
		}
		select {
		case <-tick.C:
		case <-r.done:
			t.Fatalf("tcbee-export %v ended before it was ready: %v\n%s\n%s", args, r.waitErr, &r.out, &r.err)
		case <-ctx.Done():
			t.Fatalf("tcbee-export %v did not become ready\n%s", args, &r.err)
		}
	}
}

// stop ends it in order, as Ctrl-C does.
func (r *recorder) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, r.cmd.Process.Signal(unix.SIGINT))
	select {
	case <-r.done:
	case <-bounded(t).Done():
		t.Fatalf("tcbee-export did not end after SIGINT\n%s", &r.err)
	}
	require.NoError(t, r.waitErr, "%s\n%s", &r.out, &r.err)
}

// kill ends it with SIGKILL.
func (r *recorder) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, r.cmd.Process.Kill())
	<-r.done
}

// spoolInfo is what "spool info --json" tells, as far as the tests need it.
func spoolInfo(t *testing.T, dir string) pipeline.Summary {
	t.Helper()
	out := must(t, "spool", "info", "--json", dir)
	var s struct {
		pipeline.Summary
	}
	require.NoError(t, json.Unmarshal([]byte(out), &s), "%s", out)
	return s.Summary
}

func hook(s pipeline.Summary, h event.Hook) pipeline.HookCount {
	for _, c := range s.Hooks {
		if c.Hook == h.String() {
			return c
		}
	}
	return pipeline.HookCount{Hook: h.String()}
}

func requireBalanced(t *testing.T, s pipeline.Summary) {
	t.Helper()
	require.NotEmpty(t, s.Hooks)
	for _, c := range s.Hooks {
		require.True(t, c.Balanced(), "seen = stored + dropped + missed + filtered: %+v", c)
	}
}

// records reads a spool whole, in its order.
func records(t *testing.T, dir string, each func(*event.Header)) {
	t.Helper()
	r, err := spool.Open(t.Context(), dir, spool.ReadOptions{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	dec := block.NewDecoder()
	var buf []byte
	for {
		id, src, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		buf, err = dec.Decode(buf[:0], src)
		require.NoError(t, err, "block %d", id)
		require.NoError(t, event.Check(buf), "block %d", id)
		for h := range event.All(buf) {
			each(h)
		}
	}
}

// point is one data point of one connection.
type point struct {
	time  uint64 // ns since 1970
	value float64
}

// metrics of one connection: by name, and ";key=value" for each attribute that is not the
// connection's; points in the order of time.
type metrics map[string][]point

// Attributes that every point of a connection has.
var ofConnection = map[string]bool{
	"network.local.address": true, "network.local.port": true,
	"network.peer.address": true, "network.peer.port": true,
	"network.transport": true, "network.type": true,
	"network.tcp.handshake.role": true, "tcbee.socket.cookie": true, "tcbee.netns.cookie": true,
}

// readMetrics reads an OTLP-JSON file and returns the points of the connection with that local port.
func readMetrics(t *testing.T, file string, localPort uint16) metrics {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	out := metrics{}
	add := func(name string, points pmetric.NumberDataPointSlice) {
		for _, p := range points.All() {
			// A series that ends says so with a point without a value.
			if v, ok := p.Attributes().Get("network.local.port"); !ok || v.Int() != int64(localPort) || p.Flags().NoRecordedValue() {
				continue
			}
			key := name
			p.Attributes().Range(func(k string, v pcommon.Value) bool {
				if !ofConnection[k] {
					key += ";" + k + "=" + v.AsString()
				}
				return true
			})
			pt := point{time: uint64(p.Timestamp()), value: p.DoubleValue()}
			if p.ValueType() == pmetric.NumberDataPointValueTypeInt {
				pt.value = float64(p.IntValue())
			}
			out[key] = append(out[key], pt)
		}
	}
	var dec pmetric.JSONUnmarshaler
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		md, err := dec.UnmarshalMetrics(lines.Bytes())
		require.NoError(t, err)
		for _, rm := range md.ResourceMetrics().All() {
			for _, sm := range rm.ScopeMetrics().All() {
				for _, m := range sm.Metrics().All() {
					switch m.Type() {
					case pmetric.MetricTypeGauge:
						add(m.Name(), m.Gauge().DataPoints())
					case pmetric.MetricTypeSum:
						add(m.Name(), m.Sum().DataPoints())
					}
				}
			}
		}
	}
	require.NoError(t, lines.Err())
	return out
}

// last returns the last value of a metric, or fails.
func (m metrics) last(t *testing.T, key string) float64 {
	t.Helper()
	pts := m[key]
	if len(pts) == 0 {
		keys := []string{}
		for k := range m {
			keys = append(keys, k)
		}
		require.Fail(t, "no such metric", "%s; there are %q", key, keys)
	}
	return pts[len(pts)-1].value
}

// total returns the sum of a metric's last values over all its series.
func (m metrics) total(t *testing.T, name string) (sum float64) {
	t.Helper()
	for key := range m {
		if key == name || strings.HasPrefix(key, name+";") {
			sum += m.last(t, key)
		}
	}
	return sum
}

// sight is what sock_diag showed of a socket between two times: asked and Mono.
type sight struct {
	netlab.Socket
	asked uint64 // CLOCK_MONOTONIC, ns
}

// sampler reads TCP_INFO of a socket through sock_diag, as ss(8) does, again and again.
type sampler struct {
	stopped context.CancelFunc
	done    chan struct{}
	samples []sight
	err     error
}

func sample(ctx context.Context, n *netlab.Namespace, cookie uint64) *sampler {
	ctx, cancel := context.WithCancel(ctx)
	s := &sampler{stopped: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			asked := netlab.Mono()
			socks, err := n.Sockets(0)
			if err != nil {
				s.err = err
				return
			}
			for _, sock := range socks {
				if sock.Cookie == cookie && sock.Info.Len > 0 {
					s.samples = append(s.samples, sight{sock, asked})
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return s
}

func (s *sampler) stop(t *testing.T) []sight {
	t.Helper()
	s.stopped()
	<-s.done
	require.NoError(t, s.err)
	return s.samples
}

func snmp(t *testing.T, n *netlab.Namespace) netlab.SNMP {
	t.Helper()
	s, err := n.SNMP()
	require.NoError(t, err)
	return s
}

// waitTick lets a poll of an oracle breathe.
func waitTick(ctx context.Context) {
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
