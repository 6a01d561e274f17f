// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/config/configopaque"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // the server of the test decompresses
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tcbee/tcbee-export/processors"
)

// backend is an OTLP server that keeps what it receives.
type backend struct {
	pmetricotlp.UnimplementedGRPCServer
	url    string
	caFile string

	mu      sync.Mutex
	got     []pmetric.Metrics
	headers []map[string][]string
	encoded []string // content or gRPC encoding
	forget  bool     // keep nothing
	fail    []error  // answers of the first requests; nil: accept
}

func (b *backend) take(md pmetric.Metrics, headers map[string][]string, encoding string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.forget {
		return nil
	}
	b.headers = append(b.headers, headers)
	b.encoded = append(b.encoded, encoding)
	if len(b.fail) > 0 {
		err := b.fail[0]
		b.fail = b.fail[1:]
		if err != nil {
			return err
		}
	}
	b.got = append(b.got, md)
	return nil
}

func (b *backend) requests() []pmetric.Metrics {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]pmetric.Metrics(nil), b.got...)
}

// Export implements pmetricotlp.GRPCServer.
func (b *backend) Export(ctx context.Context, req pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return pmetricotlp.NewExportResponse(), b.take(req.Metrics(), md, grpcEncoding(ctx))
}

// grpcEncoding tells the grpc-encoding of the request, which the server hides from the metadata.
func grpcEncoding(ctx context.Context) string {
	s := grpc.ServerTransportStreamFromContext(ctx)
	if r, ok := s.(interface{ RecvCompress() string }); ok {
		return r.RecvCompress()
	}
	return ""
}

// ServeHTTP takes OTLP/HTTP in both encodings.
func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil && r.Header.Get("Content-Encoding") == "gzip" {
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, err = io.ReadAll(z)
		}
	}
	req := pmetricotlp.NewExportRequest()
	if err == nil {
		if r.Header.Get("Content-Type") == "application/json" {
			err = req.UnmarshalJSON(body)
		} else {
			err = req.UnmarshalProto(body)
		}
	}
	if err != nil || r.URL.Path != "/v1/metrics" {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	headers := map[string][]string{}
	for k, v := range r.Header {
		headers[strings.ToLower(k)] = v
	}
	if err := b.take(req.Metrics(), headers, r.Header.Get("Content-Encoding")); err != nil {
		code := http.StatusBadRequest
		if status.Code(err) == codes.Unavailable {
			code = http.StatusServiceUnavailable
		}
		w.WriteHeader(code)
	}
}

// certificate makes a certificate for 127.0.0.1 that is its own authority.
func certificate(t testing.TB) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tcbee test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(keyOf(path), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// keyOf is the file of the key that belongs to a certificate's.
func keyOf(certFile string) string { return strings.TrimSuffix(certFile, ".pem") + ".key" }

func newBackend(t testing.TB, protocol string, secure bool) *backend {
	t.Helper()
	b := &backend{}
	var cert tls.Certificate
	if secure {
		cert, b.caFile = certificate(t)
	}
	if protocol == ProtocolGRPC {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		var opts []grpc.ServerOption
		b.url = "http://" + l.Addr().String()
		if secure {
			opts = append(opts, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
			b.url = "https://" + l.Addr().String()
		}
		s := grpc.NewServer(opts...)
		pmetricotlp.RegisterGRPCServer(s, b)
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Serve(l) })
		t.Cleanup(func() { s.Stop(); wg.Wait() })
		return b
	}
	s := httptest.NewUnstartedServer(b)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if secure {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	b.url = s.URL
	return b
}

// batch is one collection of n points.
func batch(n int) pmetric.Metrics {
	b := NewBuilder(DefaultConfig(), testResource)
	b.Begin(t0, nil)
	for i := range n {
		c := conn(uint64(i+1), t0)
		c.Netns = uint64(i + 100)
		b.Connection(c)
		b.Int(sCwnd, int64(i))
	}
	return b.End()
}

func started(t testing.TB, cfg Config) *OTLP {
	t.Helper()
	require.NoError(t, cfg.Validate())
	s, err := NewOTLP(cfg, "1.2.3", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.Start(t.Context()))
	t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return s
}

func TestOTLPDelivers(t *testing.T) {
	for _, protocol := range []string{ProtocolGRPC, ProtocolHTTP, ProtocolHTTPJSON} {
		for _, compression := range []string{"gzip", "none"} {
			for _, secure := range []bool{false, true} {
				name := protocol + " " + compression
				if secure {
					name += " TLS"
				}
				t.Run(name, func(t *testing.T) {
					b := newBackend(t, protocol, secure)
					file := filepath.Join(t.TempDir(), "headers")
					require.NoError(t, os.WriteFile(file, []byte("# secrets\nX-File: from file\nx-both: lost\n"), 0o600))
					cfg := DefaultConfig()
					cfg.Protocol, cfg.Endpoint, cfg.Compression, cfg.TLS.CAFile = protocol, b.url, compression, b.caFile
					cfg.Headers = map[string]configopaque.String{"X-Token": "abc", "x-both": "config"}
					cfg.HeadersFile = file
					s := started(t, cfg)
					first, second := tell(NewBuilder(cfg, testResource))
					want1, want2 := marshal(t, first), marshal(t, second)
					require.NoError(t, s.ConsumeMetrics(t.Context(), first))
					require.NoError(t, s.ConsumeMetrics(t.Context(), second))
					require.NoError(t, s.Shutdown(t.Context()))

					got := b.requests()
					require.Len(t, got, 2)
					require.Equal(t, want1, marshal(t, got[0]))
					require.Equal(t, want2, marshal(t, got[1]))
					h := b.headers[0]
					require.Equal(t, []string{"abc"}, h["x-token"])
					require.Equal(t, []string{"from file"}, h["x-file"])
					require.Equal(t, []string{"config"}, h["x-both"])
					require.Contains(t, h["user-agent"][0], "tcbee-export/1.2.3")
					want := compression
					if want == "none" {
						want = ""
					}
					require.Equal(t, want, b.encoded[0])
					require.EqualValues(t, 19, s.Stats().Sent)
				})
			}
		}
	}
}

func TestOTLPClientCertificate(t *testing.T) {
	cert, file := certificate(t) // serves both sides
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	require.NoError(t, err)
	pool.AddCert(leaf)
	b := &backend{}
	s := httptest.NewUnstartedServer(b)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{cert},
		// With 1.3 the refusal comes after the handshake, and may be overtaken by the end of the connection.
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}
	s.StartTLS()
	defer s.Close()

	cfg := DefaultConfig()
	cfg.Protocol, cfg.Endpoint, cfg.TLS.CAFile = ProtocolHTTP, s.URL, file
	cfg.Timeout, cfg.Retry.Enabled = time.Minute, false
	require.ErrorContains(t, started(t, cfg.Synchronous()).ConsumeMetrics(t.Context(), batch(1)), "remote error: tls: ")
	cfg.TLS.CertFile, cfg.TLS.KeyFile = file, keyOf(file)
	require.NoError(t, started(t, cfg.Synchronous()).ConsumeMetrics(t.Context(), batch(1)))
	require.Len(t, b.requests(), 1)
}

func TestOTLPSplitsLargeCollectionsInOrder(t *testing.T) {
	for _, queue := range []bool{true, false} {
		b := newBackend(t, ProtocolGRPC, false)
		cfg := DefaultConfig()
		cfg.Endpoint, cfg.Queue.BatchSize = b.url, 100
		if !queue {
			cfg = cfg.Synchronous()
		}
		s := started(t, cfg)
		require.NoError(t, s.ConsumeMetrics(t.Context(), batch(250)))
		if !queue {
			require.Len(t, b.requests(), 3)
		}
		require.NoError(t, s.Shutdown(t.Context()))
		var values []int64
		for _, md := range b.requests() {
			require.LessOrEqual(t, md.DataPointCount(), 100)
			for _, p := range md.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().All() {
				values = append(values, p.IntValue())
			}
		}
		require.Len(t, values, 250)
		require.IsIncreasing(t, values)
	}
}

func TestOTLPTriesAgain(t *testing.T) {
	for _, protocol := range []string{ProtocolGRPC, ProtocolHTTP} {
		b := newBackend(t, protocol, false)
		b.fail = []error{status.Error(codes.Unavailable, "starting"), nil}
		cfg := DefaultConfig()
		cfg.Protocol, cfg.Endpoint = protocol, b.url
		cfg.Retry.InitialInterval = 10 * time.Millisecond
		s := started(t, cfg.Synchronous())
		require.NoError(t, s.ConsumeMetrics(t.Context(), batch(3)))
		require.Len(t, b.requests(), 1)
	}
}

func TestOTLPFailuresTeach(t *testing.T) {
	nobody := func(t *testing.T) string { // a port that nobody listens on
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer func() { require.NoError(t, l.Close()) }()
		return "http://" + l.Addr().String()
	}
	deny := status.Error(codes.Unauthenticated, "who are you")
	invalid := status.Error(codes.InvalidArgument, "bad points")
	tests := map[string]struct {
		protocol string
		secure   bool
		set      func(t *testing.T, c *Config, b *backend)
		atStart  bool   // told by Start
		text     string // after protocol and target
		hint     string // contains
	}{
		"grpc refused": {
			protocol: ProtocolGRPC,
			set:      func(t *testing.T, c *Config, _ *backend) { c.Endpoint = nobody(t) },
			atStart:  true,
			text:     "connect: connection refused", hint: "nothing listens there",
		},
		"http refused": {
			protocol: ProtocolHTTP,
			set:      func(t *testing.T, c *Config, _ *backend) { c.Endpoint = nobody(t) },
			atStart:  true,
			text:     "connect: connection refused", hint: "nothing listens there",
		},
		"grpc denied": {
			protocol: ProtocolGRPC,
			set:      func(_ *testing.T, _ *Config, b *backend) { b.fail = []error{deny} },
			text:     "who are you", hint: "export.headers",
		},
		"grpc invalid": {
			protocol: ProtocolGRPC,
			set:      func(_ *testing.T, _ *Config, b *backend) { b.fail = []error{invalid} },
			text:     "bad points", hint: "does not accept",
		},
		"http wrong path": {
			protocol: ProtocolHTTP,
			set:      func(_ *testing.T, c *Config, b *backend) { c.MetricsEndpoint = b.url + "/elsewhere" },
			text:     "HTTP Status Code 404", hint: "is this an OTLP endpoint",
		},
		"grpc to http": {
			protocol: ProtocolHTTP,
			set:      func(_ *testing.T, c *Config, _ *backend) { c.Protocol = ProtocolGRPC },
			hint:     "is this an OTLP endpoint",
		},
		"http to grpc": {
			protocol: ProtocolGRPC,
			set:      func(_ *testing.T, c *Config, _ *backend) { c.Protocol = ProtocolHTTP },
			hint:     "is this an OTLP endpoint",
		},
		"grpc TLS to plain": {
			protocol: ProtocolGRPC,
			set: func(_ *testing.T, c *Config, b *backend) {
				c.Endpoint = strings.Replace(b.url, "http:", "https:", 1)
			},
			hint: "does not speak TLS",
		},
		"http TLS to plain": {
			protocol: ProtocolHTTP,
			set: func(_ *testing.T, c *Config, b *backend) {
				c.Endpoint = strings.Replace(b.url, "http:", "https:", 1)
			},
			hint: "does not speak TLS",
		},
		"grpc unknown authority": {
			protocol: ProtocolGRPC, secure: true, set: func(*testing.T, *Config, *backend) {},
			hint: "export.tls.ca_file",
		},
		"http unknown authority": {
			protocol: ProtocolHTTP, secure: true, set: func(*testing.T, *Config, *backend) {},
			hint: "export.tls.ca_file",
		},
		"no such host": {
			protocol: ProtocolHTTP, atStart: true,
			set:  func(_ *testing.T, c *Config, _ *backend) { c.Endpoint = "http://nowhere..invalid" }, // no resolver is asked for such a name
			hint: "check the host's name",
		},
		"grpc no answer": {
			protocol: ProtocolGRPC,
			set:      func(t *testing.T, c *Config, _ *backend) { c.Endpoint, c.Timeout = silent(t), 500*time.Millisecond },
			text:     "no answer within 500ms", hint: "export.timeout",
		},
		"http no answer": {
			protocol: ProtocolHTTP,
			set:      func(t *testing.T, c *Config, _ *backend) { c.Endpoint, c.Timeout = silent(t), 500*time.Millisecond },
			text:     "no answer within 500ms", hint: "export.timeout",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t, tt.protocol, tt.secure)
			cfg := DefaultConfig()
			// One attempt, and time for it: what is told is why it failed, not that time is up.
			cfg.Protocol, cfg.Endpoint, cfg.Timeout, cfg.Retry.Enabled = tt.protocol, b.url, time.Minute, false
			tt.set(t, &cfg, b)
			require.NoError(t, cfg.Validate())
			s, err := NewOTLP(cfg.Synchronous(), "1.2.3", slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			err = s.Start(t.Context())
			require.Equal(t, tt.atStart, err != nil, "%v", err)
			if err == nil {
				err = s.ConsumeMetrics(t.Context(), batch(1))
			}
			defer func() { require.NoError(t, s.Shutdown(context.Background())) }()
			require.Error(t, err)
			require.True(t, strings.HasPrefix(err.Error(), cfg.Protocol+" "+cfg.Target()+": "), err)
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), "rpc error")
			require.Contains(t, err.Error(), tt.text)
			var h interface{ Hint() string }
			require.ErrorAs(t, err, &h, err.Error())
			require.Contains(t, h.Hint(), tt.hint, err.Error())
			t.Log(err, "| hint:", h.Hint())
		})
	}
}

// silent is an endpoint that takes connections and says nothing.
func silent(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return "http://" + l.Addr().String()
}

func TestOTLPShutdownTellsWhatWasNotDelivered(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		b := newBackend(t, ProtocolHTTP, false)
		b.fail = []error{status.Error(codes.Unavailable, ""), status.Error(codes.Unavailable, "")}
		cfg := DefaultConfig()
		cfg.Protocol, cfg.Endpoint = ProtocolHTTP, b.url
		s := started(t, cfg)
		require.NoError(t, s.ConsumeMetrics(t.Context(), batch(7)))
		require.ErrorContains(t, s.Shutdown(t.Context()), "7 points could not be delivered at the end")
		require.ErrorContains(t, s.Shutdown(t.Context()), "7 points", "the second time too")
	})
	t.Run("too slow", func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Protocol, cfg.Endpoint, cfg.Queue.Drain, cfg.Timeout = ProtocolHTTP, silent(t), 50*time.Millisecond, time.Second
		s := started(t, cfg)
		require.NoError(t, s.ConsumeMetrics(t.Context(), batch(7)))
		require.ErrorContains(t, s.Shutdown(t.Context()), "in time")
	})
}

func TestOTLPFullQueueRefusesAndCounts(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Protocol, cfg.Endpoint, cfg.Timeout = ProtocolHTTP, silent(t), time.Second
	cfg.Queue.Size, cfg.Queue.BatchSize, cfg.Queue.Drain = 10, 10, time.Millisecond
	s := started(t, cfg)
	require.NoError(t, s.ConsumeMetrics(t.Context(), batch(10)))
	err := s.ConsumeMetrics(t.Context(), batch(4))
	require.ErrorContains(t, err, "the queue is full, 4 points were not taken")
	require.EqualValues(t, 4, s.Stats().Refused)
}

func TestOTLPStartNamesBadFiles(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	require.NoError(t, os.WriteFile(bad, []byte("secret without a colon\n"), 0o600))
	tests := map[string]struct {
		set  func(*Config)
		want string
	}{
		"no CA":       {func(c *Config) { c.TLS.CAFile = filepath.Join(dir, "none") }, "export.tls.ca_file: open"},
		"no headers":  {func(c *Config) { c.HeadersFile = filepath.Join(dir, "none") }, "export.headers_file: open"},
		"bad headers": {func(c *Config) { c.HeadersFile = bad }, "export.headers_file: " + bad + ":1 is not of the form"},
		"bad CA":      {func(c *Config) { c.TLS.CAFile, c.Endpoint = bad, "https://a:1" }, "CA"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			tt.set(&cfg)
			s, err := NewOTLP(cfg, "", slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			err = s.Start(t.Context())
			require.ErrorContains(t, err, tt.want)
			require.NotContains(t, err.Error(), "secret")
			require.NoError(t, s.Shutdown(t.Context()))
		})
	}
}

func TestOTLPWithoutStart(t *testing.T) {
	s, err := NewOTLP(DefaultConfig(), "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.Error(t, s.ConsumeMetrics(t.Context(), batch(1)))
	require.NoError(t, s.Shutdown(t.Context()))
	require.Zero(t, s.Stats())
}

// BenchmarkOTLP builds, encodes, sends and receives collections of 10,000 points over loopback; the
// server's decoding is a part of it.
func BenchmarkOTLP(b *testing.B) {
	for _, protocol := range []string{ProtocolGRPC, ProtocolHTTP} {
		for _, compression := range []string{"none", "gzip"} {
			b.Run(strings.ReplaceAll(protocol, "/", "-")+"/"+compression, func(b *testing.B) {
				server := newBackend(b, protocol, false)
				server.forget = true
				cfg := DefaultConfig()
				cfg.Protocol, cfg.Endpoint, cfg.Compression, cfg.Queue.BatchSize = protocol, server.url, compression, 10_000
				s := started(b, cfg.Synchronous())
				conns := make([]*processors.Connection, 2000)
				for i := range conns {
					conns[i] = conn(uint64(i+1), t0)
					conns[i].Local = netip.AddrPortFrom(conns[i].Local.Addr(), uint16(i+1000))
				}
				build := NewBuilder(cfg, testResource)
				wall, n := t0, 0
				b.ReportAllocs()
				for b.Loop() {
					wall += 10 * sec
					build.Begin(wall, nil)
					for _, c := range conns {
						build.Connection(c)
						build.Int(sCwnd, 10)
						build.Float(sSRTT, 0.02)
						build.Int(sSegIn, wall)
						build.Int(sSegOut, wall)
						build.Float(sBlocked, 1)
					}
					md := build.End()
					n += md.DataPointCount()
					require.NoError(b, s.ConsumeMetrics(b.Context(), md))
				}
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "points/s")
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/point")
			})
		}
	}
}
