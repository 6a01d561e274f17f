// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"log/slog"
	"time"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// schedule is nothing on this system, which has no capture.
type schedule struct{}

func newSchedule(time.Duration, *slog.Logger) *schedule { return nil }

func (*schedule) rights() []uint { return nil }

func (*schedule) hurry(bool) {}

func (*schedule) start() {}

func (*schedule) started() {}

func (*schedule) late(bool) {}

func (*schedule) quiet() {}

func (*schedule) source(src pipeline.Source) pipeline.Source { return src }
