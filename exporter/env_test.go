// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/config/configopaque"
)

func TestStandardVariables(t *testing.T) {
	tests := map[string]struct {
		env      map[string]string
		given    func(*Config) // by the configuration
		explicit []string
		want     func(*Config)
		target   string
		fault    string
	}{
		"none": {want: func(*Config) {}, target: "http://localhost:4317"},
		"empty is unset": {
			env:  map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_TIMEOUT": " "},
			want: func(*Config) {}, target: "http://localhost:4317",
		},
		"general endpoint over grpc": {
			env:    map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://col:4317"},
			want:   func(c *Config) { c.Endpoint = "https://col:4317" },
			target: "https://col:4317",
		},
		"general endpoint over http gets the path": {
			env: map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "http://col:4318/base/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
			},
			want:   func(c *Config) { c.Endpoint, c.Protocol = "http://col:4318/base/", ProtocolHTTP },
			target: "http://col:4318/base/v1/metrics",
		},
		"endpoint of the signal is used as it is and wins": {
			env: map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT":         "http://col:4318",
				"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://prom:9090/api/v1/otlp/v1/metrics",
				"OTEL_EXPORTER_OTLP_PROTOCOL":         "grpc",
				"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/json",
			},
			want: func(c *Config) {
				c.MetricsEndpoint, c.Protocol = "http://prom:9090/api/v1/otlp/v1/metrics", ProtocolHTTPJSON
			},
			target: "http://prom:9090/api/v1/otlp/v1/metrics",
		},
		"the configuration wins over both": {
			env: map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT":         "http://col:4318",
				"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://prom:9090",
				"OTEL_EXPORTER_OTLP_TIMEOUT":          "1",
			},
			given:    func(c *Config) { c.Endpoint, c.Timeout = "http://mine:1", time.Minute },
			explicit: []string{"export.endpoint", "export.timeout"},
			want:     func(c *Config) { c.Endpoint, c.Timeout = "http://mine:1", time.Minute },
			target:   "http://mine:1",
		},
		"headers": {
			env: map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20eDp5, x-scope = a=b ,"},
			want: func(c *Config) {
				c.Headers = map[string]configopaque.String{"authorization": "Basic eDp5", "x-scope": "a=b"}
			},
		},
		"the rest": {
			env: map[string]string{
				"OTEL_EXPORTER_OTLP_COMPRESSION":                    "gzip",
				"OTEL_EXPORTER_OTLP_METRICS_COMPRESSION":            "none",
				"OTEL_EXPORTER_OTLP_TIMEOUT":                        "2500",
				"OTEL_EXPORTER_OTLP_CERTIFICATE":                    "ca.pem",
				"OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE":     "c.pem",
				"OTEL_EXPORTER_OTLP_CLIENT_KEY":                     "k.pem",
				"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta",
				"OTEL_SERVICE_NAME":                                 "edge",
				"OTEL_RESOURCE_ATTRIBUTES":                          "service.name=other,zone=a%2Cb",
			},
			given: func(c *Config) { c.Resource = map[string]string{"rack": "7"} },
			want: func(c *Config) {
				c.Compression, c.Timeout, c.Temporality = "none", 2500*time.Millisecond, Delta
				c.TLS = TLSConfig{CAFile: "ca.pem", CertFile: "c.pem", KeyFile: "k.pem"}
				c.Resource = map[string]string{"service.name": "edge", "zone": "a,b", "rack": "7"}
			},
		},
		"insecure": {
			env:    map[string]string{"OTEL_EXPORTER_OTLP_INSECURE": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "col:4317"},
			want:   func(c *Config) { c.TLS.Insecure, c.Endpoint = true, "col:4317" },
			target: "http://col:4317",
		},
		"all faults, no secrets": {
			env: map[string]string{
				"OTEL_EXPORTER_OTLP_PROTOCOL":        "udp",
				"OTEL_EXPORTER_OTLP_ENDPOINT":        "ftp://x",
				"OTEL_EXPORTER_OTLP_METRICS_HEADERS": "secret",
				"OTEL_EXPORTER_OTLP_COMPRESSION":     "rar",
				"OTEL_EXPORTER_OTLP_TIMEOUT":         "10s",
				"OTEL_EXPORTER_OTLP_INSECURE":        "yes",
			},
			want: func(*Config) {},
			fault: `OTEL_EXPORTER_OTLP_PROTOCOL: "udp" is none of grpc, http/protobuf, http/json
OTEL_EXPORTER_OTLP_ENDPOINT: scheme "ftp" is neither http nor https
OTEL_EXPORTER_OTLP_METRICS_HEADERS: entry 1 is not of the form key=value
OTEL_EXPORTER_OTLP_COMPRESSION: "rar" is neither gzip nor none
OTEL_EXPORTER_OTLP_TIMEOUT: "10s" is not a number of milliseconds above zero
OTEL_EXPORTER_OTLP_INSECURE: "yes" is neither true nor false`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, want := DefaultConfig(), DefaultConfig()
			if tt.given != nil {
				tt.given(&got)
			}
			tt.want(&want)
			err := got.ApplyEnv(
				func(k string) (string, bool) { v, ok := tt.env[k]; return v, ok },
				func(k string) bool { return slices.Contains(tt.explicit, k) },
			)
			if tt.fault != "" {
				require.EqualError(t, err, tt.fault)
			} else {
				require.NoError(t, err)
				require.NoError(t, got.Validate())
			}
			require.Empty(t, cmp.Diff(want, got))
			if tt.target != "" {
				require.Equal(t, tt.target, got.Target())
			}
		})
	}
}

func FuzzParsePairs(f *testing.F) {
	for _, s := range []string{"", "a=b", "a=b,c=%20d ,", "=x", "a=%zz", "a==,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		pairs, err := parsePairs(s)
		if err != nil {
			require.Nil(t, pairs)
			return
		}
		for key := range pairs {
			require.NotEmpty(t, key)
		}
	})
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"localhost:4317", "http://a", "https://[::1]:4318/x", "//", "a:b", "unix:///x", "http://%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, protocol := range []string{ProtocolGRPC, ProtocolHTTP} {
			u, err := parseEndpoint(protocol, s)
			if err != nil {
				continue
			}
			require.NotEmpty(t, u.Hostname())
			c := DefaultConfig()
			c.Protocol, c.Endpoint = protocol, s
			require.NoError(t, c.Validate())
			require.NotEmpty(t, c.Target())
		}
	})
}
