// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/config/configcompression"
	"go.opentelemetry.io/collector/config/configopaque"
	"go.opentelemetry.io/collector/config/configoptional"
	"go.opentelemetry.io/collector/config/configretry"
	"go.opentelemetry.io/collector/config/configtls"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/exporter/otlpexporter"
	"go.opentelemetry.io/collector/exporter/otlphttpexporter"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// OTLP sends metrics to an OTLP endpoint with the Collector's own exporters, which do the
// queueing, splitting, retrying and compressing. Requests leave in the order of the collections.
type OTLP struct {
	cfg     Config
	log     *slog.Logger
	version string
	target  *url.URL

	exp       exporter.Metrics
	reader    *sdkmetric.ManualReader
	provider  *sdkmetric.MeterProvider
	delivered atomic.Bool // a collection was delivered (only known without a queue)
	refused   atomic.Int64

	shutdown sync.Once
	err      error
}

var _ Sink = (*OTLP)(nil)

// Stats counts data points.
type Stats struct {
	Sent    int64 // accepted by the endpoint
	Failed  int64 // given up: refused for good, retried for too long, or undelivered at Shutdown
	Refused int64 // not taken because the queue was full
}

// NewOTLP returns a sink for the endpoint of cfg, which must be valid. version is the program's,
// told in the User-Agent. log gets the failures of the requests that nobody waits for.
func NewOTLP(cfg Config, version string, log *slog.Logger) (*OTLP, error) {
	target, err := cfg.target()
	if err != nil {
		return nil, fmt.Errorf("export.endpoint: %w", err)
	}
	return &OTLP{cfg: cfg, log: log, version: version, target: target}, nil
}

// What the exporters count, of which Stats makes use.
const (
	pointsSent   = "otelcol_exporter_sent_metric_points"
	pointsFailed = "otelcol_exporter_send_failed_metric_points"
)

// countsOnly spares the exporters the measurements that nobody reads, such as the size of each request.
func countsOnly(i sdkmetric.Instrument) (sdkmetric.Stream, bool) {
	if i.Name == pointsSent || i.Name == pointsFailed {
		return sdkmetric.Stream{Name: i.Name}, true
	}
	return sdkmetric.Stream{Aggregation: sdkmetric.AggregationDrop{}}, true
}

// noHost is the Collector service that is not there: the exporters use no extensions.
type noHost struct{}

func (noHost) GetExtensions() map[component.ID]component.Component { return nil }

// Start reads certificates and headers and starts the queue. With a queue it does not connect:
// an endpoint that is not there yet may come. Without one somebody waits for the deliveries, and
// is told at once if nothing listens.
func (s *OTLP) Start(ctx context.Context) error {
	headers, err := s.headers()
	if err != nil {
		return err
	}
	if err := s.checkFiles(); err != nil {
		return err
	}
	if !s.cfg.Queue.Enabled {
		if err := s.knock(ctx); err != nil {
			return s.explain(err)
		}
	}
	s.reader = sdkmetric.NewManualReader()
	s.provider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.reader), sdkmetric.WithView(countsOnly))
	drop := func(zapcore.Entry) bool { return false }
	if !s.cfg.Queue.Enabled {
		// The error is returned to who waits for the delivery.
		drop = func(e zapcore.Entry) bool { return e.Level >= zapcore.ErrorLevel }
	}
	set := exporter.Settings{
		TelemetrySettings: component.TelemetrySettings{
			Logger:         zapTo(s.log.Handler().WithAttrs([]slog.Attr{slog.String("endpoint", s.target.String())}), drop),
			TracerProvider: noop.NewTracerProvider(),
			MeterProvider:  s.provider,
			Resource:       pcommon.NewResource(),
		},
		BuildInfo: component.BuildInfo{Command: ServiceName, Description: ServiceName, Version: s.version},
	}
	retry := configretry.NewDefaultBackOffConfig()
	retry.Enabled = s.cfg.Retry.Enabled
	retry.InitialInterval = s.cfg.Retry.InitialInterval
	retry.MaxInterval = s.cfg.Retry.MaxInterval
	retry.MaxElapsedTime = s.cfg.Retry.MaxElapsedTime
	tls := configtls.NewDefaultClientConfig()
	tls.Insecure = s.target.Scheme == "http"
	tls.InsecureSkipVerify = s.cfg.TLS.InsecureSkipVerify
	tls.ServerName = s.cfg.TLS.ServerName
	tls.CAFile, tls.CertFile, tls.KeyFile = s.cfg.TLS.CAFile, s.cfg.TLS.CertFile, s.cfg.TLS.KeyFile
	compression := configcompression.Type(s.cfg.Compression)

	var factory exporter.Factory
	var conf component.Config
	if s.cfg.Protocol == ProtocolGRPC {
		factory = otlpexporter.NewFactory()
		c := factory.CreateDefaultConfig().(*otlpexporter.Config)
		c.ClientConfig.Endpoint = s.target.Host
		c.ClientConfig.TLS = tls
		c.ClientConfig.Headers = headers
		c.ClientConfig.Compression = compression
		c.TimeoutConfig.Timeout = s.cfg.Timeout
		c.RetryConfig = retry
		c.QueueConfig = s.queue()
		conf = c
	} else {
		factory = otlphttpexporter.NewFactory()
		c := factory.CreateDefaultConfig().(*otlphttpexporter.Config)
		c.MetricsEndpoint = s.target.String()
		c.ClientConfig.TLS = tls
		c.ClientConfig.Headers = headers
		c.ClientConfig.Compression = compression
		c.ClientConfig.Timeout = s.cfg.Timeout
		c.RetryConfig = retry
		c.QueueConfig = s.queue()
		if s.cfg.Protocol == ProtocolHTTPJSON {
			c.Encoding = otlphttpexporter.EncodingJSON
		}
		conf = c
	}
	set.ID = component.NewID(factory.Type())
	if s.exp, err = factory.CreateMetrics(ctx, set, conf); err != nil {
		return s.explain(err)
	}
	if err := s.exp.Start(ctx, noHost{}); err != nil {
		s.exp = nil
		return s.explain(err)
	}
	return nil
}

// knock opens a connection to the endpoint and closes it. Where a proxy stands in between it
// tells nothing.
func (s *OTLP) knock(ctx context.Context) error {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: s.target})
	if err == nil && proxy == nil && s.cfg.Protocol == ProtocolGRPC {
		// gRPC asks for the proxy of https, also without TLS.
		proxy, err = http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: s.target.Host}})
	}
	if err != nil || proxy != nil {
		return nil // the exporter will tell it better
	}
	port := s.target.Port()
	if port == "" {
		port = s.target.Scheme // "http" and "https" are names of ports
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(s.target.Hostname(), port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// queue is the exporter's queue. It is there even where the caller waits for each delivery,
// because it is what splits requests.
func (s *OTLP) queue() configoptional.Optional[exporterhelper.QueueBatchConfig] {
	q := exporterhelper.NewDefaultQueueConfig()
	q.Sizer = exporterhelper.RequestSizerTypeItems
	q.NumConsumers = 1 // more would send collections out of order
	q.QueueSize = s.cfg.Queue.Size
	if !s.cfg.Queue.Enabled {
		q.QueueSize = 1 << 40
		q.WaitForResult = true
	}
	q.Batch = configoptional.Some(exporterhelper.BatchConfig{
		FlushTimeout: 200 * time.Millisecond, // means nothing while MinSize is 0
		Sizer:        exporterhelper.RequestSizerTypeItems,
		MaxSize:      s.cfg.Queue.BatchSize,
	})
	return configoptional.Some(q)
}

// headers gathers Headers and HeadersFile, sorted by name.
func (s *OTLP) headers() (configopaque.MapList, error) {
	all := make(map[string]configopaque.String)
	if path := s.cfg.HeadersFile; path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, s.fileError("headers_file", err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			name, value, ok := strings.Cut(line, ":")
			name = strings.TrimSpace(name)
			if !ok || !headerName(name) {
				// The line is not told: it may be a secret.
				return nil, fmt.Errorf("export.headers_file: %s:%d is not of the form \"name: value\"", path, i+1)
			}
			all[strings.ToLower(name)] = configopaque.String(strings.TrimSpace(value))
		}
	}
	for name, value := range s.cfg.Headers {
		all[strings.ToLower(name)] = value
	}
	var list configopaque.MapList
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, configopaque.Pair{Name: name, Value: all[name]})
	}
	return list, nil
}

// checkFiles reports certificate files that cannot be read, by their keys.
func (s *OTLP) checkFiles() error {
	var errs []error
	for _, f := range [...]struct{ key, path string }{
		{"tls.ca_file", s.cfg.TLS.CAFile}, {"tls.cert_file", s.cfg.TLS.CertFile}, {"tls.key_file", s.cfg.TLS.KeyFile},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.ReadFile(f.path); err != nil {
			errs = append(errs, s.fileError(f.key, err))
		}
	}
	return errors.Join(errs...)
}

func (s *OTLP) fileError(key string, err error) error {
	hint := "name a file that exists"
	if errors.Is(err, fs.ErrPermission) {
		hint = "give the user who runs this the right to read the file"
	}
	return &hinted{fmt.Errorf("export.%s: %w", key, err), hint}
}

// ConsumeMetrics queues md or, without a queue, delivers it. See Config.Synchronous for how long
// that may take.
func (s *OTLP) ConsumeMetrics(ctx context.Context, md pmetric.Metrics) error {
	if s.exp == nil {
		return errors.New("OTLP exporter is not started")
	}
	points := int64(md.DataPointCount()) // md is not ours afterwards
	wait := !s.cfg.Queue.Enabled
	if wait && !s.delivered.Load() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
	}
	err := s.exp.ConsumeMetrics(ctx, md)
	switch {
	case err == nil:
		if wait {
			s.delivered.Store(true)
		}
		return nil
	case errors.Is(err, exporterhelper.ErrQueueIsFull):
		s.refused.Add(points)
		return &hinted{
			fmt.Errorf("%s %s: the queue is full, %d points were not taken", s.cfg.Protocol, s.target, points),
			"the endpoint is down or slower than the metrics come; raise export.interval or export.queue.size",
		}
	}
	return s.explain(err)
}

// Stats returns the counts so far.
func (s *OTLP) Stats() Stats {
	st := Stats{Refused: s.refused.Load()}
	if s.reader == nil {
		return st
	}
	var rm metricdata.ResourceMetrics
	if err := s.reader.Collect(context.Background(), &rm); err != nil {
		return st // after Shutdown of the provider
	}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			sum, ok := m.Data.(metricdata.Sum[int64])
			if !ok {
				continue
			}
			var total int64
			for _, p := range sum.DataPoints {
				total += p.Value
			}
			switch m.Name {
			case pointsSent:
				st.Sent += total
			case pointsFailed:
				st.Failed += total
			}
		}
	}
	return st
}

// Shutdown sends what is queued, each request once, and waits for it as long as ctx and
// Config.Queue.Drain allow.
func (s *OTLP) Shutdown(ctx context.Context) error {
	s.shutdown.Do(func() {
		if s.exp == nil {
			return
		}
		if s.cfg.Queue.Drain > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, s.cfg.Queue.Drain)
			defer cancel()
		}
		before := s.Stats()
		done := make(chan error, 1)
		go func() { done <- s.exp.Shutdown(context.WithoutCancel(ctx)) }()
		select {
		case err := <-done:
			if err != nil {
				s.err = s.explain(err)
			}
			// Without a queue each failure was told when it happened.
			if lost := s.Stats().Failed - before.Failed; lost > 0 && s.err == nil && s.cfg.Queue.Enabled {
				s.err = &hinted{
					fmt.Errorf("%s %s: %d points could not be delivered at the end", s.cfg.Protocol, s.target, lost),
					"the spool keeps the events: replay it when the endpoint is back",
				}
			}
		case <-ctx.Done():
			// The exporter's goroutine ends with the request that it waits for.
			if !s.cfg.Queue.Enabled {
				return
			}
			s.err = &hinted{
				fmt.Errorf("%s %s: not all points could be delivered in time at the end: %w", s.cfg.Protocol, s.target, context.Cause(ctx)),
				"the spool keeps the events: replay it when the endpoint is back",
			}
		}
	})
	return s.err
}

// explain makes one line of an exporter's error: what, where and what to do.
func (s *OTLP) explain(err error) error {
	text := err.Error()
	code := codes.Unknown
	var st interface{ GRPCStatus() *status.Status }
	if errors.As(err, &st) {
		code = st.GRPCStatus().Code()
		text = st.GRPCStatus().Message()
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		text = ue.Err.Error()
	}
	// The transports wrap the cause in a sentence of their own, and quote it.
	if _, quoted, ok := strings.Cut(text, "connection error: desc = "); ok {
		if inner, err := strconv.Unquote(quoted); err == nil {
			text = inner
		}
	}
	text = strings.TrimPrefix(text, "transport: ")
	text = strings.TrimPrefix(text, "Error while dialing: ")
	text = strings.TrimPrefix(text, "error exporting items, request to "+s.target.String()+" responded with ")
	if strings.Contains(text, "readLoopPeekFailLocked") {
		text = "the endpoint closed the connection" // what net/http says then is not for people
	}
	text = strings.Join(strings.Fields(text), " ")

	var hint string
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
	}
	other := "http/protobuf (port 4318)"
	if s.cfg.Protocol != ProtocolGRPC {
		other = "grpc (port 4317)"
	}
	switch {
	case has("first record does not look like a TLS handshake", "HTTP response to HTTPS client"):
		hint = "the endpoint does not speak TLS: write it with http://, or set export.tls.insecure"
	case has("certificate", "x509"):
		hint = "set export.tls.ca_file to the authority that signed the endpoint's certificate"
	case has("connection refused"):
		hint = "nothing listens there: start a Collector, or name another place with export.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
	case has("no such host", "produced zero addresses", "name resolver error"):
		hint = "check the host's name in export.endpoint"
	case code == codes.Unauthenticated, code == codes.PermissionDenied, has("Status Code 401", "Status Code 403"):
		hint = "give the credentials that the endpoint wants in export.headers or OTEL_EXPORTER_OTLP_HEADERS"
	case code == codes.Unimplemented, has("Status Code 404", "Status Code 405", "frame too large", "malformed HTTP", "EOF", "server preface", "closed the connection", "reset by peer", "broken pipe"):
		hint = "is this an OTLP endpoint, and does it speak " + s.cfg.Protocol + "? Otherwise set export.protocol to " + other + ", or mend the path"
	case code == codes.ResourceExhausted, has("larger than max", "Status Code 413"):
		hint = "lower export.queue.batch_size, or raise the limit of the endpoint"
	case errors.Is(err, context.DeadlineExceeded), code == codes.DeadlineExceeded, has("Client.Timeout", "deadline exceeded", "i/o timeout"):
		text = fmt.Sprintf("no answer within %v", s.cfg.Timeout)
		hint = "check that the endpoint can be reached, or raise export.timeout"
	case code == codes.Unavailable:
		hint = "the endpoint is not ready; try again later"
	case code == codes.InvalidArgument, has("Status Code 400"):
		hint = "the endpoint does not accept these points; its own log says more"
	}
	line := &failure{fmt.Sprintf("%s %s: %s", s.cfg.Protocol, s.target, text), err}
	if hint == "" {
		hint = "check export.endpoint and export.protocol, and what the endpoint's own log says"
	}
	return &hinted{line, hint}
}

// failure is an error told in other words.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }

// Unwrap gives the error as the exporter told it.
func (f *failure) Unwrap() error { return f.err }
