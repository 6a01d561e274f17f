// SPDX-License-Identifier: Apache-2.0

// Package loadtest finds out what a host can record: it drives the real kernel programs with
// generated traffic and stores it through the real write half.
package loadtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
)

// Options of a measurement.
type Options struct {
	Capture bpf.Config   // the size of the ring is taken from here
	Spool   spool.Config // Dir is the parent of the spool that is made and removed; empty: the system's for temporary files
	Flows   int          // connections on the generating CPU
	CPU     int          // that generates
	Step    time.Duration
}

// DefaultOptions generates 512 connections on CPU 0, five seconds a step.
func DefaultOptions() Options {
	return Options{Capture: bpf.DefaultConfig(), Spool: spool.DefaultConfig(), Flows: 512, Step: 5 * time.Second}
}

// Step is one measurement at one rate.
type Step struct {
	Asked         int     `json:"asked_per_second"` // 0: as fast as the CPU can
	Seconds       float64 `json:"seconds"`
	Sent          uint64  `json:"sent"`   // packets generated
	Stored        uint64  `json:"stored"` // packets in the spool
	Dropped       uint64  `json:"dropped"`
	PerSecond     float64 `json:"stored_per_second"`
	BytesPerEvent float64 `json:"bytes_per_event"` // blocks in the spool, everything included
	RecorderCPU   float64 `json:"recorder_cpu"`    // cores that the process used, generating not included
	AnonBytes     uint64  `json:"rss_anon_bytes"`  // at the end of the step
}

// Lossless says that every packet was stored.
func (s Step) Lossless() bool { return s.Dropped == 0 && s.Sent == s.Stored }

// Result is what a host can record.
type Result struct {
	CPUs     int     `json:"cpus"`
	Flows    int     `json:"flows"`
	ZeroLoss float64 `json:"zero_loss_per_second"` // the highest rate of a step without loss
	Steps    []Step  `json:"steps"`
}

// Search measures at full speed, then halves the distance between the highest rate without
// loss and the lowest with it, and tells each step as it is done. If nothing is lost at full speed, that is
// the result.
func Search(ctx context.Context, o Options, log *slog.Logger, each func(Step)) (Result, error) {
	res := Result{CPUs: runtime.NumCPU(), Flows: o.Flows}
	try := func(rate int) (Step, error) {
		s, err := Measure(ctx, o, rate, log)
		if err != nil {
			return s, err
		}
		res.Steps = append(res.Steps, s)
		if s.Lossless() {
			res.ZeroLoss = max(res.ZeroLoss, s.PerSecond)
		}
		if each != nil {
			each(s)
		}
		return s, nil
	}
	s, err := try(0)
	if err != nil || s.Lossless() {
		return res, err
	}
	low, high := 0.0, float64(s.Sent)/s.Seconds
	for range 6 {
		rate := (low + high) / 2
		s, err := try(int(rate))
		if err != nil {
			return res, err
		}
		if s.Lossless() {
			low = rate
		} else {
			high = rate
		}
	}
	return res, nil
}

// At measures one rate only; 0 is as fast as the CPU can.
func At(ctx context.Context, o Options, perSecond int, log *slog.Logger) (Result, error) {
	res := Result{CPUs: runtime.NumCPU(), Flows: o.Flows}
	s, err := Measure(ctx, o, perSecond, log)
	if err != nil {
		return res, err
	}
	res.Steps = []Step{s}
	if s.Lossless() {
		res.ZeroLoss = s.PerSecond
	}
	return res, nil
}

// Measure records generated packets for one step.
func Measure(ctx context.Context, o Options, perSecond int, log *slog.Logger) (_ Step, err error) {
	step := Step{Asked: perSecond}
	cfg := o.Capture
	cfg.Interfaces = []string{"!*"} // nothing but what is generated
	cfg.Packets.Enabled, cfg.Sockets.Enabled, cfg.Events.Enabled, cfg.Inventory = true, false, false, false

	dir, err := os.MkdirTemp(o.Spool.Dir, "tcbee-bench-")
	if err != nil {
		return step, fmt.Errorf("make a spool for the measurement: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store := o.Spool
	store.Dir = dir
	w, err := spool.Create(ctx, store, pipeline.HostMeta(), log)
	if err != nil {
		return step, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	c, err := bpf.Open(ctx, cfg, log)
	if err != nil {
		return step, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	g, err := bpf.NewGenerator(c, o.Flows)
	if err != nil {
		return step, err
	}
	defer g.Close()

	runtime.GC()
	timed, cancel := context.WithTimeout(ctx, o.Step)
	defer cancel()
	var sendErr error
	var sent uint64
	done := make(chan struct{})
	cpu := processCPU()
	start := time.Now()
	go func() {
		defer close(done)
		sent, sendErr = g.Run(timed, o.CPU, perSecond)
		c.Stop()
	}()
	res, err := pipeline.Record(ctx, c, w, log)
	if err != nil {
		c.Stop()
	}
	<-done
	step.Seconds = time.Since(start).Seconds()
	if err := errors.Join(err, sendErr); err != nil {
		return step, err
	}
	step.Sent = sent
	for _, h := range res.Hooks {
		if h.Hook == event.HookTCIngress.String() || h.Hook == event.HookTCEgress.String() {
			step.Stored += h.Stored
			step.Dropped += h.Dropped
			if !h.Balanced() {
				return step, fmt.Errorf("the account of %s does not add up: %+v", h.Hook, h)
			}
		}
	}
	step.PerSecond = float64(step.Stored) / step.Seconds
	step.BytesPerEvent = float64(w.Stats().Bytes) / float64(max(step.Stored, 1))
	step.RecorderCPU = (processCPU() - cpu - g.Busy().Seconds()) / step.Seconds
	step.AnonBytes = rssAnon()
	return step, nil
}
