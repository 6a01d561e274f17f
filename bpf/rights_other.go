// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package bpf

import "context"

// Capabilities returns none on this system.
func Capabilities() []Capability { return nil }

// DropRights returns ErrUnsupported on this system.
func (*Capture) DropRights(context.Context, ...uint) ([]string, error) { return nil, ErrUnsupported }
