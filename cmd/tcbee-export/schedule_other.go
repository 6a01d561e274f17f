// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import "log/slog"

// schedule is nothing on this system, which has no capture.
type schedule struct{}

func newSchedule(*slog.Logger) *schedule { return nil }

func (*schedule) rights() []uint { return nil }

func (*schedule) hurry(bool) {}
