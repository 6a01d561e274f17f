// SPDX-License-Identifier: Apache-2.0

// Package exporter turns what the processors tell into OpenTelemetry metrics and sends them
// on: [Builder] makes pmetric.Metrics, and the sinks take them to an OTLP endpoint over gRPC
// or HTTP ([NewOTLP]), into a file of OTLP-JSON lines ([NewFile]) or onto a terminal
// ([NewTerminal]).
//
// Nothing here has a clock that reaches the data: every timestamp comes with the events, so
// that a replay builds the same bytes as the live run.
package exporter

import (
	"context"

	"go.opentelemetry.io/collector/pdata/pmetric"
)

// ScopeName is the instrumentation scope of all metrics: this module's path.
const ScopeName = "github.com/tcbee/tcbee-export"

// SchemaURL names the version of the semantic conventions that attribute names follow.
const SchemaURL = "https://opentelemetry.io/schemas/1.43.0"

// Sink is where metrics go. The order of calls is Start, ConsumeMetrics any number of times,
// Shutdown; Shutdown may be called more than once and without Start.
type Sink interface {
	// Start prepares the sink. It may fail for what no configuration check can see: a
	// certificate that is not there, a file that cannot be made.
	Start(ctx context.Context) error
	// ConsumeMetrics takes md over, a collection or a part of one (More): the caller does not
	// use it any more. An error means that md, or some of it, was not delivered.
	ConsumeMetrics(ctx context.Context, md pmetric.Metrics) error
	// Shutdown delivers what is still queued, as long as ctx lasts, and releases everything.
	Shutdown(ctx context.Context) error
}

// hinted is an error with a piece of advice for the person who reads it.
type hinted struct {
	error
	hint string
}

// Hint says what to do about the error.
func (e *hinted) Hint() string { return e.hint }

// Unwrap gives the error without its hint.
func (e *hinted) Unwrap() error { return e.error }

// moreKey is the key of WithMore.
type moreKey struct{}

// WithMore returns a context for all parts of a collection but the last.
func WithMore(ctx context.Context) context.Context { return context.WithValue(ctx, moreKey{}, true) }

// More tells a sink, from the context of ConsumeMetrics, that other parts of the same collection follow.
func More(ctx context.Context) bool { return ctx.Value(moreKey{}) != nil }
