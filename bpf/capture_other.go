// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package bpf

import (
	"context"
	"io"
	"log/slog"
)

// Capture is a running capture; there is none on this system.
type Capture struct{}

// Open returns ErrUnsupported on this system.
func Open(context.Context, Config, *slog.Logger) (*Capture, error) { return nil, ErrUnsupported }

// OpenEmpty returns ErrUnsupported on this system.
func OpenEmpty(Config, *slog.Logger) (io.Closer, error) { return nil, ErrUnsupported }

// Next returns io.EOF on this system.
func (*Capture) Next(context.Context) ([]byte, error) { return nil, io.EOF }

// OnBacklog does nothing on this system.
func (*Capture) OnBacklog(func(behind bool)) {}

// Watch does nothing on this system.
func (*Capture) Watch(func(bool), func()) error { return nil }

// Stop does nothing on this system.
func (*Capture) Stop() {}

// Close does nothing on this system.
func (*Capture) Close() error { return nil }

// Accounting returns zeros on this system.
func (*Capture) Accounting() Accounting { return Accounting{} }

// Probe says that nothing is usable on this system.
func Probe(Config) []Feature {
	return []Feature{{Group: "transport", Name: "linux", Enabled: true, Reason: ErrUnsupported.Error()}}
}
