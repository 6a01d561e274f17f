// SPDX-License-Identifier: Apache-2.0

// Package tcbeereceiver is tcbee-export as a receiver of the OpenTelemetry Collector: it captures
// the TCP connections of the host it runs on and gives their metrics to the pipeline. It runs
// the very code of `tcbee-export run`, with the next consumer as the sink.
package tcbeereceiver

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/receiver"
	"go.uber.org/zap/exp/zapslog"

	"github.com/tcbee/tcbee-export/bpf"
)

// typeName is the receiver's name in a Collector configuration.
const typeName = "tcbee"

// NewFactory returns the factory of the receiver tcbee. It needs no rights: the kernel is not
// touched before Start, so that `validate` can be called by anybody.
func NewFactory() receiver.Factory {
	return receiver.NewFactory(
		component.MustNewType(typeName),
		func() component.Config { return DefaultConfig() },
		receiver.WithMetrics(newMetrics, component.StabilityLevelAlpha),
	)
}

func newMetrics(_ context.Context, set receiver.Settings, cfg component.Config, next consumer.Metrics) (receiver.Metrics, error) {
	return &tcp{
		cfg:  cfg.(*Config),
		next: next,
		// The stack of a message of ours says nothing that its text does not.
		log:  slog.New(zapslog.NewHandler(set.Logger.Core(), zapslog.AddStacktraceAt(slog.LevelError+1))),
		open: openCapture,
	}, nil
}

func openCapture(ctx context.Context, cfg bpf.Config, log *slog.Logger) (source, error) {
	c, err := bpf.Open(ctx, cfg, log)
	if err != nil {
		return nil, err // not a nil *Capture in an interface
	}
	return c, nil
}
