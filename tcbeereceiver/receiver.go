// SPDX-License-Identifier: Apache-2.0

package tcbeereceiver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componentstatus"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
)

// source is a *bpf.Capture, or a test's substitute.
type source interface {
	pipeline.Source
	// Stop detaches; Next returns what is left and then io.EOF.
	Stop()
	Accounting() bpf.Accounting
}

// tcp is the receiver. Start opens spool and kernel, a goroutine runs the pipeline, Shutdown
// stops the source and waits until the goroutine has worked off what was captured.
type tcp struct {
	cfg  *Config
	next consumer.Metrics
	log  *slog.Logger
	open func(context.Context, bpf.Config, *slog.Logger) (source, error)

	mu     sync.Mutex
	stop   func()             // of the source; nil before Start
	cancel context.CancelFunc // of the pipeline
	done   chan struct{}      // closed when the goroutine ends
	err    error              // of the goroutine, once done is closed
}

// Start loads the kernel programs and starts the pipeline. Failures to do so are its error; a
// pipeline that breaks later reports a permanent error as the component's status.
func (r *tcp) Start(ctx context.Context, host component.Host) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done != nil {
		return errors.New("tcbee: started twice")
	}
	s, err := r.begin(ctx)
	if err != nil {
		return hinted(fmt.Errorf("tcbee: %w", err))
	}
	// The context of Start ends with the start-up.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.stop, r.cancel, r.done = s.source.Stop, cancel, make(chan struct{})
	go func() {
		defer close(r.done)
		if r.err = s.run(work, r); r.err != nil {
			componentstatus.ReportStatus(host, componentstatus.NewPermanentErrorEvent(r.err))
		}
	}()
	return nil
}

// Shutdown stops the capture and waits, as long as ctx lasts, until the last metrics are
// delivered and the spool is closed.
func (r *tcp) Shutdown(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		return nil
	}
	r.stop()
	select {
	case <-r.done:
	default:
		select {
		case <-r.done:
		case <-ctx.Done():
			r.cancel()
			return fmt.Errorf("tcbee: not all that was captured could be worked off in time; the spool keeps it: %w", context.Cause(ctx))
		}
	}
	r.cancel()
	err := r.err
	r.err = nil // told once
	return err
}

// session is what Start has opened.
type session struct {
	source source
	spool  *spool.Writer
	meta   spool.Meta
	temp   string // directory to remove at the end; "" if the spool is to stay
}

func (r *tcp) begin(ctx context.Context) (_ *session, err error) {
	s := &session{meta: pipeline.HostMeta()}
	conf := confmap.New()
	if err := conf.Marshal(r.cfg); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if s.meta.Config, err = json.Marshal(conf.ToStringMap()); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	cfg := r.cfg.Spool
	if cfg.Dir == "" {
		if s.temp, err = os.MkdirTemp("", "tcbee-otelcol-"); err != nil {
			return nil, fmt.Errorf("temporary spool: %w", err)
		}
		cfg.Dir = filepath.Join(s.temp, "spool")
		if cfg.MaxBytes == 0 || cfg.MaxBytes > temporaryBytes {
			cfg.MaxBytes = max(temporaryBytes, 8*cfg.SegmentBytes)
		}
		r.log.Info("the spool is a temporary one and is removed at shutdown; spool.dir keeps it", "dir", cfg.Dir)
	}
	// Both take the context for the start only.
	if s.spool, err = spool.Create(ctx, cfg, s.meta, r.log); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if s.source, err = r.open(ctx, r.cfg.Capture, r.log); err != nil {
		return nil, errors.Join(err, s.close())
	}
	r.log.Info("capturing", "interfaces", r.cfg.Capture.Interfaces, "spool", cfg.Dir)
	return s, nil
}

// run is the pipeline until the source ends. It closes the session.
func (s *session) run(ctx context.Context, r *tcp) error {
	export := exporter.DefaultConfig()
	export.Points = r.cfg.Export
	result, err := pipeline.Run(ctx, s.source, s.spool, s.meta,
		pipeline.ReadOptions{Process: r.cfg.Process, Export: export}, r.next, r.log)
	for _, h := range result.Hooks {
		r.log.Info("hook", "hook", h.Hook, "seen", h.Seen, "stored", h.Stored, "dropped", h.Dropped, "missed", h.Missed, "filtered", h.Filtered)
	}
	if n := s.source.Accounting().Limited; n > 0 {
		r.log.Info("samples were left out because a CPU was busy (sockets.samples: limited)", "samples", n)
	}
	if result.SinkErrors > 0 {
		r.log.Warn("collections were refused by the next consumer", "collections", result.SinkErrors, "error", result.SinkErr)
	}
	if err = errors.Join(err, s.close()); err != nil {
		return hinted(fmt.Errorf("tcbee: %w", err))
	}
	return nil
}

func (s *session) close() error {
	var errs []error
	if s.source != nil {
		errs = append(errs, s.source.Close())
	}
	if s.spool != nil {
		errs = append(errs, s.spool.Close())
	}
	if s.temp != "" {
		errs = append(errs, os.RemoveAll(s.temp))
	}
	return errors.Join(errs...)
}

// hinted puts the hint of an error into its text: the Collector prints nothing else.
func hinted(err error) error {
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		return fmt.Errorf("%w (%s)", err, h.Hint())
	}
	return err
}
