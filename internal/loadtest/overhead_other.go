// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package loadtest

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/tcbee/tcbee-export/bpf"
)

// Overhead returns an error on this system.
func Overhead(context.Context, OverheadOptions, *slog.Logger, func(Run)) (OverheadResult, error) {
	return OverheadResult{}, bpf.ErrUnsupported
}

// Traffic is one end of a load; there is none on this system.
type Traffic struct {
	Load
	Serve            bool
	Addr             string
	WarmUp, Duration time.Duration
	Congestion       string
}

// Run returns an error on this system.
func (Traffic) Run(context.Context, io.Writer) error { return bpf.ErrUnsupported }
