// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/collector/config/configopaque"
)

// Prefixes of the standard variables; that of the signal wins over the general one.
const (
	envGeneral = "OTEL_EXPORTER_OTLP_"
	envMetrics = "OTEL_EXPORTER_OTLP_METRICS_"
)

// ApplyEnv sets what the standard OTEL_* variables say wherever the configuration does not say
// it itself: explicit tells whether a key path (such as "export.endpoint") was given by file,
// variable or flag; nil means that none was. lookup is os.LookupEnv or a substitute. A variable
// that is empty counts as unset.
//
// Read are OTEL_EXPORTER_OTLP_{ENDPOINT, PROTOCOL, HEADERS, COMPRESSION, TIMEOUT, CERTIFICATE,
// CLIENT_KEY, CLIENT_CERTIFICATE, INSECURE}, their OTEL_EXPORTER_OTLP_METRICS_ twins, which win,
// OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE, OTEL_SERVICE_NAME and
// OTEL_RESOURCE_ATTRIBUTES, as the OpenTelemetry specification defines them. On an error c is as it was.
func (c *Config) ApplyEnv(lookup func(string) (string, bool), explicit func(key string) bool) error {
	if explicit == nil {
		explicit = func(string) bool { return false }
	}
	var errs []error
	fault := func(name, format string, args ...any) {
		errs = append(errs, fmt.Errorf(name+": "+format, args...))
	}
	get := func(name string) (string, bool) {
		v, ok := lookup(name)
		v = strings.TrimSpace(v)
		return v, ok && v != ""
	}
	// find gives the value of a variable, and the name that it was found under.
	find := func(what string, keys ...string) (value, name string, ok bool) {
		for _, key := range keys {
			if explicit("export." + key) {
				return "", "", false
			}
		}
		for _, prefix := range [...]string{envMetrics, envGeneral} {
			if v, ok := get(prefix + what); ok {
				return v, prefix + what, true
			}
		}
		return "", "", false
	}
	out := *c

	if v, name, ok := find("PROTOCOL", "protocol"); ok {
		switch v {
		case ProtocolGRPC, ProtocolHTTP, ProtocolHTTPJSON:
			out.Protocol = v
		default:
			fault(name, "%q is none of grpc, http/protobuf, http/json", v)
		}
	}
	if v, name, ok := find("ENDPOINT", "endpoint", "metrics_endpoint"); ok {
		if _, err := parseEndpoint(out.Protocol, v); err != nil {
			fault(name, "%w", err)
		} else if strings.HasPrefix(name, envMetrics) {
			out.Endpoint, out.MetricsEndpoint = "", v
		} else {
			out.Endpoint, out.MetricsEndpoint = v, ""
		}
	}
	if v, name, ok := find("HEADERS", "headers"); ok {
		pairs, err := parsePairs(v)
		headers := make(map[string]configopaque.String, len(pairs))
		for key, value := range pairs {
			if !headerName(key) {
				err = fmt.Errorf("%q cannot be the name of a header", key)
			}
			headers[strings.ToLower(key)] = configopaque.String(value)
		}
		if err != nil {
			fault(name, "%w", err)
		}
		out.Headers = headers
	}
	if v, name, ok := find("COMPRESSION", "compression"); ok {
		switch v {
		case "gzip", "none", "zstd", "snappy":
			out.Compression = v
		default:
			fault(name, "%q is neither gzip nor none", v)
		}
	}
	if v, name, ok := find("TIMEOUT", "timeout"); ok {
		if ms, err := strconv.ParseInt(v, 10, 32); err != nil || ms <= 0 {
			fault(name, "%q is not a number of milliseconds above zero", v)
		} else {
			out.Timeout = time.Duration(ms) * time.Millisecond
		}
	}
	if v, name, ok := find("INSECURE", "tls.insecure"); ok {
		switch strings.ToLower(v) {
		case "true":
			out.TLS.Insecure = true
		case "false":
			out.TLS.Insecure = false
		default:
			fault(name, "%q is neither true nor false", v)
		}
	}
	for _, f := range [...]struct {
		what, key string
		dst       *string
	}{
		{"CERTIFICATE", "tls.ca_file", &out.TLS.CAFile},
		{"CLIENT_CERTIFICATE", "tls.cert_file", &out.TLS.CertFile},
		{"CLIENT_KEY", "tls.key_file", &out.TLS.KeyFile},
	} {
		if v, _, ok := find(f.what, f.key); ok {
			*f.dst = v
		}
	}
	if name := envMetrics + "TEMPORALITY_PREFERENCE"; !explicit("export.temporality") {
		if v, ok := get(name); ok {
			switch strings.ToLower(v) {
			case Cumulative:
				out.Temporality = Cumulative
			case Delta, "lowmemory": // all our counters are of the kind that lowmemory makes deltas
				out.Temporality = Delta
			default:
				fault(name, "%q is none of cumulative, delta, lowmemory", v)
			}
		}
	}
	res := make(map[string]string)
	if v, ok := get("OTEL_RESOURCE_ATTRIBUTES"); ok {
		pairs, err := parsePairs(v)
		if err != nil {
			fault("OTEL_RESOURCE_ATTRIBUTES", "%w", err)
		}
		maps.Copy(res, pairs)
	}
	if v, ok := get("OTEL_SERVICE_NAME"); ok {
		res["service.name"] = v
	}
	if len(res) > 0 {
		maps.Copy(res, c.Resource) // the configuration wins, attribute by attribute
		out.Resource = res
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	*c = out
	return nil
}

// parsePairs reads key=value pairs between commas, values percent-encoded, as W3C Baggage has
// them. Its errors show no value: it may be a secret.
func parsePairs(s string) (map[string]string, error) {
	pairs := make(map[string]string)
	for i, item := range strings.Split(s, ",") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		key, value, ok := strings.Cut(item, "=")
		key = strings.TrimSpace(key)
		if !ok || key == "" {
			return nil, fmt.Errorf("entry %d is not of the form key=value", i+1)
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return nil, fmt.Errorf("the value of %q is not percent-encoded rightly", key)
		}
		pairs[key] = value
	}
	return pairs, nil
}
