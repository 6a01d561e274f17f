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

// Packets returns an error on this system.
func Packets(context.Context, PacketOptions, *slog.Logger, func(PacketRun)) (PacketResult, error) {
	return PacketResult{}, bpf.ErrUnsupported
}

// Connections returns an error on this system.
func Connections(context.Context, ConnectionOptions, *slog.Logger, func(ConnectionStep)) (ConnectionResult, error) {
	return ConnectionResult{}, bpf.ErrUnsupported
}

// Traffic is one end of a load; there is none on this system.
type Traffic struct {
	Load
	Serve            bool
	Addr             string
	WarmUp, Duration time.Duration
	Rounds           int
	Congestion       string
}

// Run returns an error on this system.
func (Traffic) Run(context.Context, io.Reader, io.Writer) error { return bpf.ErrUnsupported }
