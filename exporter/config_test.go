// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/config/configopaque"
)

func TestDefaultConfigIsValid(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	require.NoError(t, DefaultConfig().Synchronous().Validate())
}

func TestValidateReportsEveryFaultByKey(t *testing.T) {
	c := DefaultConfig()
	c.Protocol = "carrier-pigeon"
	c.Headers = map[string]configopaque.String{"a b": "secret", "ok": "two\nlines"}
	c.Compression = "rar"
	c.Timeout = 0
	c.TLS = TLSConfig{CertFile: "c.pem", Insecure: true}
	c.Retry.InitialInterval, c.Retry.MaxInterval, c.Retry.MaxElapsedTime = 0, -1, time.Nanosecond-2
	c.Queue.Size, c.Queue.Drain = 1, -1
	c.Interval = time.Millisecond
	c.Temporality = "sideways"
	c.Attributes = []string{AttrLocalAddress, AttrLocalAddress, "colour", AttrLocalPort, AttrPeerAddress, AttrNetns}
	c.Resource = map[string]string{"": "x"}
	err := c.Validate()
	var joined interface{ Unwrap() []error }
	require.ErrorAs(t, err, &joined)
	var keys []string
	for _, e := range joined.Unwrap() {
		key, _, _ := strings.Cut(e.Error(), ":")
		keys = append(keys, key)
	}
	require.Empty(t, cmp.Diff([]string{
		"export.protocol", "export.headers", "export.headers", "export.compression", "export.timeout",
		"export.tls", "export.tls.insecure", "export.retry.initial_interval", "export.retry.max_interval",
		"export.retry.max_elapsed_time", "export.queue.size", "export.queue.drain", "export.interval", "export.temporality",
		"export.attributes", "export.attributes", "export.attributes", "export.resource",
	}, keys))
	require.NotContains(t, err.Error(), "secret")
}

func TestTarget(t *testing.T) {
	tests := map[string]struct {
		protocol, endpoint, metrics string
		insecure                    bool
		want                        string
		fault                       string
	}{
		"grpc default":                  {protocol: ProtocolGRPC, want: "http://localhost:4317"},
		"http default":                  {protocol: ProtocolHTTP, want: "http://localhost:4318/v1/metrics"},
		"json default":                  {protocol: ProtocolHTTPJSON, want: "http://localhost:4318/v1/metrics"},
		"grpc without scheme is TLS":    {protocol: ProtocolGRPC, endpoint: "col:4317", want: "https://col:4317"},
		"grpc insecure":                 {protocol: ProtocolGRPC, endpoint: "col:4317", insecure: true, want: "http://col:4317"},
		"scheme wins over insecure":     {protocol: ProtocolGRPC, endpoint: "https://col:1", insecure: true, want: "https://col:1"},
		"grpc port is 4317":             {protocol: ProtocolGRPC, endpoint: "http://col", want: "http://col:4317"},
		"grpc drops the path":           {protocol: ProtocolGRPC, endpoint: "http://col:1/x", want: "http://col:1"},
		"grpc IPv6":                     {protocol: ProtocolGRPC, endpoint: "[::1]:4317", want: "https://[::1]:4317"},
		"http base":                     {protocol: ProtocolHTTP, endpoint: "http://p:9090/api/v1/otlp", want: "http://p:9090/api/v1/otlp/v1/metrics"},
		"http base with slash":          {protocol: ProtocolHTTP, endpoint: "http://p/otlp/", want: "http://p/otlp/v1/metrics"},
		"http without scheme":           {protocol: ProtocolHTTP, endpoint: "p:4318", insecure: true, want: "http://p:4318/v1/metrics"},
		"exact":                         {protocol: ProtocolHTTP, endpoint: "http://x", metrics: "https://p/in", want: "https://p/in"},
		"exact without path is root":    {protocol: ProtocolHTTP, metrics: "https://p", want: "https://p/"},
		"no host":                       {protocol: ProtocolHTTP, endpoint: "http://", fault: "export.endpoint: \"http://\" has no host"},
		"bad port":                      {protocol: ProtocolGRPC, endpoint: "a:70000", fault: "export.endpoint: \"a:70000\": port 70000 is not between 1 and 65535"},
		"bad scheme":                    {protocol: ProtocolGRPC, endpoint: "ftp://a", fault: "export.endpoint: scheme \"ftp\" is neither http nor https"},
		"password in the URL":           {protocol: ProtocolHTTP, endpoint: "http://u:pw@a", fault: "export.endpoint: holds a user name; give it as a header instead (authorization)"},
		"metrics_endpoint faults by it": {protocol: ProtocolHTTP, metrics: "a b", fault: "export.metrics_endpoint: is not a URL: invalid character \" \" in host name"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := DefaultConfig()
			c.Protocol, c.Endpoint, c.MetricsEndpoint, c.TLS.Insecure = tt.protocol, tt.endpoint, tt.metrics, tt.insecure
			if tt.fault != "" {
				require.EqualError(t, c.Validate(), tt.fault)
				require.NotContains(t, fmt.Sprint(c.Validate()), "pw")
				return
			}
			require.NoError(t, c.Validate())
			require.Equal(t, tt.want, c.Target())
		})
	}
}

func TestHeaderValuesDoNotPrint(t *testing.T) {
	c := DefaultConfig()
	c.Headers = map[string]configopaque.String{"authorization": "secret"}
	require.NotContains(t, fmt.Sprintf("%v %+v %#v %s", c, c, c, errors.New(fmt.Sprint(c.Headers))), "secret")
}
