// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"context"

	"github.com/tcbee/tcbee-export/bpf"
)

// dropRights does nothing on this system, which has no capture.
func (*app) dropRights(context.Context, *bpf.Capture, []uint, func()) (wait func()) { return func() {} }

func spoolRights(string) []uint { return nil }
