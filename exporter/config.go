// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/collector/config/configopaque"
)

// Protocols of OTLP, named as OTEL_EXPORTER_OTLP_PROTOCOL names them.
const (
	ProtocolGRPC     = "grpc"
	ProtocolHTTP     = "http/protobuf"
	ProtocolHTTPJSON = "http/json"
)

// Temporalities of counters.
const (
	Cumulative = "cumulative" // the total since the connection was first seen
	Delta      = "delta"      // the increase since the collection before
)

// Config says how metrics are made and where they go over OTLP. The key path of a field is
// "export." and its mapstructure tag.
type Config struct {
	// Protocol is grpc, http/protobuf or http/json.
	Protocol string `mapstructure:"protocol"`
	// Endpoint is where OTLP goes. gRPC: host:port, or a URL whose scheme chooses TLS (https)
	// or not (http). HTTP: the base URL, to which /v1/metrics is added. Empty means
	// http://localhost:4317 for gRPC and http://localhost:4318 for HTTP. Without a scheme,
	// TLS is used unless that is switched off (tls.insecure).
	Endpoint string `mapstructure:"endpoint"`
	// MetricsEndpoint is the URL for metrics as it is, nothing added. It wins over the endpoint.
	MetricsEndpoint string `mapstructure:"metrics_endpoint"`
	// Headers go with every request. Their values are secrets: they print as [REDACTED].
	Headers map[string]configopaque.String `mapstructure:"headers"`
	// HeadersFile names a file of further headers, one "name: value" a line, read at start; a
	// name that is given as a header too keeps that value.
	HeadersFile string `mapstructure:"headers_file"`
	// Compression of requests: gzip, zstd, snappy or none.
	Compression string `mapstructure:"compression"`
	// Timeout of one request.
	Timeout time.Duration `mapstructure:"timeout"`
	TLS     TLSConfig     `mapstructure:"tls"`
	Retry   RetryConfig   `mapstructure:"retry"`
	Queue   QueueConfig   `mapstructure:"queue"`

	Points `mapstructure:",squash"`
}

// Points says how data points are made, wherever they go. Its keys stand beside those of Config.
type Points struct {
	// Interval is the time between two collections, in the time of the events.
	Interval time.Duration `mapstructure:"interval"`
	// Temporality of counters: cumulative or delta.
	Temporality string `mapstructure:"temporality"`
	// Attributes are the data point attributes that tell connections apart or describe them,
	// in the order in which they are written: docs/metrics.md lists them.
	Attributes []string `mapstructure:"attributes"`
	// Resource holds further resource attributes. They win over those found by the program.
	Resource map[string]string `mapstructure:"resource"`
}

// TLSConfig is about the certificates of a TLS connection; files are PEM.
type TLSConfig struct {
	// Insecure switches TLS off where the endpoint has no scheme that decides it.
	Insecure bool `mapstructure:"insecure"`
	// CAFile holds the authorities to trust instead of the system's.
	CAFile string `mapstructure:"ca_file"`
	// CertFile and KeyFile identify this client to the server; both or none.
	CertFile string `mapstructure:"cert_file"`
	KeyFile  string `mapstructure:"key_file"`
	// ServerName is expected in the server's certificate instead of the endpoint's host.
	ServerName string `mapstructure:"server_name"`
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool `mapstructure:"insecure_skip_verify"`
}

// RetryConfig says how often a request is tried again that failed for a passing reason.
type RetryConfig struct {
	// Enabled tries again what failed for a passing reason.
	Enabled bool `mapstructure:"enabled"`
	// InitialInterval is the wait after the first failure; each further one is longer by half,
	// up to MaxInterval.
	InitialInterval time.Duration `mapstructure:"initial_interval"`
	MaxInterval     time.Duration `mapstructure:"max_interval"`
	// MaxElapsedTime after the first try, the request is given up; 0 is never.
	MaxElapsedTime time.Duration `mapstructure:"max_elapsed_time"`
}

// QueueConfig is about the queue between the pipeline and the network.
type QueueConfig struct {
	// Enabled lets the pipeline go on while requests are sent. Without a queue each
	// collection waits for its delivery and fails with it.
	Enabled bool `mapstructure:"enabled"`
	// Size is the most data points that wait. A full queue refuses, which is counted.
	Size int64 `mapstructure:"size"`
	// BatchSize is the most data points of one request; larger collections are split. The
	// default keeps requests under the 4 MiB that gRPC servers accept by default.
	BatchSize int64 `mapstructure:"batch_size"`
	// Drain is how long Shutdown waits at most for what is queued.
	Drain time.Duration `mapstructure:"drain"`
}

// DefaultConfig returns the configuration without any file, variable or flag.
func DefaultConfig() Config {
	return Config{
		Protocol:    ProtocolGRPC,
		Compression: "gzip",
		Timeout:     10 * time.Second,
		Retry: RetryConfig{
			Enabled:         true,
			InitialInterval: 5 * time.Second,
			MaxInterval:     30 * time.Second,
			MaxElapsedTime:  5 * time.Minute,
		},
		Queue: QueueConfig{
			Enabled:   true,
			Size:      500_000,
			BatchSize: 8192,
			Drain:     5 * time.Second,
		},
		Points: DefaultPoints(),
	}
}

// DefaultPoints returns the defaults of Points.
func DefaultPoints() Points {
	return Points{
		Interval:    10 * time.Second,
		Temporality: Cumulative,
		Attributes:  DefaultAttributes(),
	}
}

// Limits of Validate.
const (
	minInterval  = 100 * time.Millisecond
	maxBatchSize = 100_000
)

// Validate reports all faults, each by its key path. It reads no file and changes nothing.
func (c Config) Validate() error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("export."+key+": "+format, args...))
	}
	protocolKnown := true
	switch c.Protocol {
	case ProtocolGRPC, ProtocolHTTP, ProtocolHTTPJSON:
	default:
		protocolKnown = false
		fault("protocol", "%q is none of grpc, http/protobuf, http/json", c.Protocol)
	}
	if protocolKnown {
		for _, e := range [...]struct{ key, url string }{
			{"endpoint", c.Endpoint}, {"metrics_endpoint", c.MetricsEndpoint},
		} {
			if e.url == "" {
				continue
			}
			if _, err := parseEndpoint(c.Protocol, e.url); err != nil {
				fault(e.key, "%w", err)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		if !headerName(name) {
			fault("headers", "%q cannot be the name of a header", name)
		}
		if strings.ContainsAny(string(c.Headers[name]), "\r\n\x00") {
			fault("headers", "the value of %q has a line break or a zero byte in it", name)
		}
	}
	switch c.Compression {
	case "gzip", "zstd", "snappy", "none":
	default:
		fault("compression", "%q is none of gzip, zstd, snappy, none", c.Compression)
	}
	if c.Timeout <= 0 {
		fault("timeout", "%v is not above zero", c.Timeout)
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		fault("tls", "cert_file and key_file belong together, and only one is given")
	}
	if c.TLS.Insecure && (c.TLS.CAFile != "" || c.TLS.CertFile != "") {
		fault("tls.insecure", "true switches TLS off, but ca_file or cert_file is given")
	}
	if r := c.Retry; r.Enabled {
		if r.InitialInterval <= 0 {
			fault("retry.initial_interval", "%v is not above zero", r.InitialInterval)
		}
		if r.MaxInterval < r.InitialInterval {
			fault("retry.max_interval", "%v is below initial_interval %v", r.MaxInterval, r.InitialInterval)
		}
		if r.MaxElapsedTime < 0 {
			fault("retry.max_elapsed_time", "%v is below zero (0 is for ever)", r.MaxElapsedTime)
		} else if r.MaxElapsedTime > 0 && r.MaxElapsedTime < r.MaxInterval {
			fault("retry.max_elapsed_time", "%v is below max_interval %v", r.MaxElapsedTime, r.MaxInterval)
		}
	}
	if q := c.Queue; q.BatchSize < 1 || q.BatchSize > maxBatchSize {
		fault("queue.batch_size", "%d is not between 1 and %d", q.BatchSize, maxBatchSize)
	} else if q.Enabled && q.Size < q.BatchSize {
		fault("queue.size", "%d is below batch_size %d", q.Size, q.BatchSize)
	}
	if c.Queue.Drain < 0 {
		fault("queue.drain", "%v is below zero", c.Queue.Drain)
	}
	return errors.Join(append(errs, c.faults()...)...)
}

// Validate reports all faults, each by its key path. It changes nothing.
func (p Points) Validate() error { return errors.Join(p.faults()...) }

func (p Points) faults() []error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("export."+key+": "+format, args...))
	}
	if p.Interval < minInterval {
		fault("interval", "%v is below the minimum %v", p.Interval, minInterval)
	}
	switch p.Temporality {
	case Cumulative, Delta:
	default:
		fault("temporality", "%q is neither cumulative nor delta", p.Temporality)
	}
	errs = append(errs, validateAttributes(p.Attributes)...)
	for _, key := range slices.Sorted(maps.Keys(p.Resource)) {
		if key == "" {
			fault("resource", "an attribute has no name")
		}
	}
	return errs
}

// Synchronous returns c without a queue and with a short patience, for a run that has an end
// and a person waiting for it (replay): each collection waits for its delivery, and what the
// endpoint refuses is the error of ConsumeMetrics. Until the first delivery only Timeout is
// given to retries, so that an endpoint that is not there is told at once.
func (c Config) Synchronous() Config {
	c.Queue.Enabled = false
	c.Retry.InitialInterval = min(c.Retry.InitialInterval, time.Second)
	c.Retry.MaxInterval = min(c.Retry.MaxInterval, 5*time.Second)
	return c
}

// Target returns where requests go, as a URL, credentials left out: for messages.
func (c Config) Target() string {
	t, err := c.target()
	if err != nil {
		return c.Endpoint
	}
	return t.String()
}

// target is the URL that requests go to: for gRPC without a path, for HTTP with the whole
// path. The scheme is always http or https and says whether TLS is used.
func (c *Config) target() (*url.URL, error) {
	exact := c.MetricsEndpoint != ""
	endpoint := c.Endpoint
	if exact {
		endpoint = c.MetricsEndpoint
	}
	if endpoint == "" {
		endpoint = "http://localhost:4317"
		if c.Protocol != ProtocolGRPC {
			endpoint = "http://localhost:4318"
		}
	}
	u, err := parseEndpoint(c.Protocol, endpoint)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "" {
		u.Scheme = "https"
		if c.TLS.Insecure {
			u.Scheme = "http"
		}
	}
	if c.Protocol == ProtocolGRPC {
		u.Path, u.RawQuery = "", ""
		return u, nil
	}
	if !exact {
		u.Path = strings.TrimSuffix(u.Path, "/") + "/v1/metrics"
	} else if u.Path == "" {
		u.Path = "/"
	}
	return u, nil
}

// parseEndpoint takes a URL, or host:port with the scheme left empty.
func parseEndpoint(protocol, endpoint string) (*url.URL, error) {
	text := endpoint
	if !strings.Contains(endpoint, "://") {
		text = "//" + endpoint
	}
	u, err := url.Parse(text)
	if err != nil {
		// The error of url.Parse quotes the URL, which may hold a password.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("is not a URL: %w", err)
	}
	switch {
	case u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("scheme %q is neither http nor https", u.Scheme)
	case u.User != nil:
		return nil, errors.New("holds a user name; give it as a header instead (authorization)")
	case u.Hostname() == "":
		return nil, fmt.Errorf("%q has no host", endpoint)
	case u.Fragment != "":
		return nil, fmt.Errorf("%q has a fragment", endpoint)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("%q: port %s is not between 1 and 65535", endpoint, port)
		}
	} else if protocol == ProtocolGRPC {
		// The semantic conventions leave the port to the scheme; OTLP/gRPC has 4317.
		u.Host = net.JoinHostPort(u.Hostname(), "4317")
	}
	return u, nil
}

// headerName reports whether s is a token of RFC 9110 section 5.6.2.
func headerName(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
