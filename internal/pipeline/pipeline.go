// SPDX-License-Identifier: Apache-2.0

// Package pipeline is the only wiring: Record is the write half (kernel to spool), Replay
// the read half (spool to metrics), Run both at once. The command and the Collector receiver
// are two callers of the same functions.
package pipeline

import (
	"context"
	"fmt"

	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/spool"
)

// Source gives events. *bpf.Capture is the one of a live host.
type Source interface {
	// Next returns the next batch of well-formed records (see package event). It is valid
	// until the next call. After the last one it returns io.EOF.
	Next(ctx context.Context) ([]byte, error)
	Close() error
}

// Sink takes metrics: an exporter, or the next consumer of a Collector pipeline.
type Sink interface {
	ConsumeMetrics(ctx context.Context, md pmetric.Metrics) error
}

// Damage is a block that could not be read. Reading goes on after it.
type Damage struct {
	Block spool.ID `json:"block"`
	Err   error    `json:"-"`
	Text  string   `json:"error"`
}

func (d Damage) Error() string { return fmt.Sprintf("block %d: %v", d.Block, d.Err) }

// Unwrap returns what was wrong with the block.
func (d Damage) Unwrap() error { return d.Err }

// SinkError is a failure of the sink, not of the recording.
type SinkError struct{ Err error }

func (e *SinkError) Error() string { return "export: " + e.Err.Error() }

// Unwrap returns the sink's error.
func (e *SinkError) Unwrap() error { return e.Err }
