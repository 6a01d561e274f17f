// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package bpf

import (
	"context"
	"time"
)

// Generator drives a Capture with generated traffic; there is none on this system.
type Generator struct{}

// NewGenerator returns ErrUnsupported on this system.
func NewGenerator(*Capture, int) (*Generator, error) { return nil, ErrUnsupported }

// Run returns ErrUnsupported on this system.
func (*Generator) Run(context.Context, int, int) (uint64, error) { return 0, ErrUnsupported }

// Busy is zero on this system.
func (*Generator) Busy() time.Duration { return 0 }

// Close does nothing on this system.
func (*Generator) Close() {}
