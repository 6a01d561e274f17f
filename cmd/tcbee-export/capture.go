// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/config"
	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
)

// shutdownGrace is how long a sink may take to deliver what it still holds when the work is done;
// export.queue.drain bounds it further.
const shutdownGrace = 30 * time.Second

// temporaryBytes bounds a spool that is only a passage: run without --spool.
const temporaryBytes = 1 << 30

// recordFlushAge is how long a record may stay in the kernel where nobody waits for it: the fewer turns the reader has, the fewer
// times others wait for the CPU that it is on. (Metrics come from the default, and need less memory with it.)
const recordFlushAge = 500 * time.Millisecond

var errDuration = errors.New("the duration is over")

// captureFlags are the flags of the commands that capture.
type captureFlags struct {
	duration time.Duration
	ready    string
}

func (a *app) captureFlags(cmd *cobra.Command) *captureFlags {
	var c captureFlags
	f := cmd.Flags()
	f.StringSliceP("interface", "i", nil, "`INTERFACE` to capture on, or a pattern such as eth* or !lo; may be repeated (default all)")
	f.StringP("spool", "s", "", "`DIR` of the spool")
	f.String("samples", "", "which samples of a socket's state are taken: limited (the default: each, but on a busy CPU up to a rate of a socket), every, changes, off")
	f.DurationVarP(&c.duration, "duration", "d", 0, "stop after this time (default: at Ctrl-C or SIGTERM)")
	f.StringVar(&c.ready, "ready-file", "", "write the process id to `PATH` once everything is attached")
	config.Bind(f, "interface", "capture.interfaces")
	config.Bind(f, "spool", "spool.dir")
	config.Bind(f, "samples", "capture.sockets.samples")
	_ = cmd.MarkFlagDirname("spool")
	complete(cmd, "samples", string(bpf.SamplesLimited), string(bpf.SamplesEvery), string(bpf.SamplesChanges), string(bpf.SamplesOff))
	_ = cmd.RegisterFlagCompletionFunc("interface", interfaces)
	a.jsonFlag(cmd)
	f.Lookup("json").Usage = "print the account at the end as JSON on standard output"
	return &c
}

func (a *app) outputFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringP("output", "o", "", "where metrics go: otlp, terminal, or file:`PATH` for lines of OTLP/JSON")
	f.String("interval", "", "time between two collections, e.g. 1s")
	config.Bind(f, "output", "output")
	config.Bind(f, "interval", "export.interval")
	complete(cmd, "output", "otlp", "terminal", "file:")
}

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Capture, and send metrics while it goes on",
		Long: `Captures TCP on this host into a spool, derives metrics from what is stored and sends them on. At the end it
tells for every hook: seen = stored + dropped + missed + filtered.

Without --spool the spool is a temporary one, bounded and removed at the end.`,
		Example: `  sudo tcbee-export run --interface eth0 --output terminal --duration 30s
  sudo OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 tcbee-export run --spool /var/lib/tcbee --output otlp
  sudo tcbee-export run --spool /tmp/s --output file:metrics.jsonl --interval 1s`,
		Args: cobra.NoArgs,
	}
	c := a.captureFlags(cmd)
	a.outputFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.load(cmd.Flags()); err != nil {
			return err
		}
		return a.capture(cmd.Context(), c, true)
	}
	return cmd
}

func (a *app) recordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record",
		Short: "Capture into a spool; metrics can be made from it later",
		Long: `Captures TCP on this host into a spool: the write half alone. At the end it tells for every hook:
seen = stored + dropped + missed + filtered. The spool can be read while it is recorded.`,
		Example: `  sudo tcbee-export record --spool /var/lib/tcbee --interface eth0
  sudo tcbee-export record --spool /var/lib/tcbee --samples every # of each socket at each segment, whatever that costs
  sudo tcbee-export record --spool /tmp/s --duration 10s --json`,
		Args: cobra.NoArgs,
	}
	c := a.captureFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.load(cmd.Flags()); err != nil {
			return err
		}
		return a.capture(cmd.Context(), c, false)
	}
	return cmd
}

// capture is run (with metrics) and record (without).
func (a *app) capture(ctx context.Context, c *captureFlags, metrics bool) (err error) {
	if c.duration < 0 {
		return withCode(codeUsage, fmt.Errorf("--duration: %v is below zero", c.duration))
	}
	cfg := a.cfg
	switch {
	case cfg.Spool.Dir != "":
	case !metrics:
		return withCode(codeUsage, withHint(errors.New("spool.dir: no directory is given"), "say where to record to: --spool DIR"))
	default:
		dir, err := os.MkdirTemp("", "tcbee-run-")
		if err != nil {
			return withCode(codeSpool, fmt.Errorf("temporary spool: %w", err))
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		cfg.Spool.Dir = filepath.Join(dir, "spool")
		if a.origins.Of("spool.max_bytes").Layer == config.LayerDefault {
			cfg.Spool.MaxBytes = temporaryBytes
		}
		a.log.Info("the spool is a temporary one and is removed at the end; --spool DIR keeps it", "dir", cfg.Spool.Dir)
	}
	cfg.Capture.FlushAge = a.flushAge(metrics)
	if err := removeReady(c.ready); err != nil {
		return err
	}

	meta := pipeline.HostMeta()
	if meta.Config, err = json.Marshal(config.Tree(cfg)); err != nil {
		panic("BUG: " + err.Error())
	}
	var sink exporter.Sink
	if metrics {
		if sink, err = a.openSink(ctx, cfg, cfg.Export); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.closeSink(ctx, sink)) }()
	}
	if err := largePages(captureHeap); err != nil {
		a.log.Debug("the recorder's memory lies in small pages", "error", err)
	}
	w, err := spool.Create(ctx, cfg.Spool, meta, a.log)
	if err != nil {
		return spoolError(cfg.Spool.Dir, err)
	}
	defer func() { err = errors.Join(err, spoolError(cfg.Spool.Dir, w.Close())) }()

	sched := newSchedule(cfg.Capture.FlushAge, a.log)
	sched.start()
	capture, err := bpf.Open(ctx, cfg.Capture, a.log)
	if err != nil {
		return captureError(err)
	}
	defer func() { err = errors.Join(err, withCode(codeKernel, capture.Close())) }()
	capture.OnBacklog(sched.hurry)
	if err := capture.Watch(sched.late, sched.quiet); err != nil {
		return withCode(codeKernel, err)
	}
	source := sched.source(capture)

	if c.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.duration, errDuration)
		defer cancel()
	}
	// The end of the time or a signal stops the source; what it has gathered is still worked off.
	detach := context.AfterFunc(ctx, capture.Stop)
	defer detach()
	if err := errors.Join(writeReady(c.ready), a.notifyReady()); err != nil {
		return err
	}
	defer a.dropRights(ctx, capture, append(spoolRights(cfg.Spool.Dir), sched.rights()...), sched.started)()
	a.log.Info("capturing", "interfaces", strings.Join(cfg.Capture.Interfaces, ","), "spool", cfg.Spool.Dir)

	work := context.WithoutCancel(ctx)
	var result pipeline.Result
	if metrics {
		result, err = pipeline.Run(work, source, w, meta, pipeline.ReadOptions{Process: cfg.Process, Export: cfg.Export}, sink, a.log)
	} else {
		result, err = pipeline.Record(work, source, w, a.log)
	}
	if perr := a.printResult(captured{result, capture.Accounting().Limited}, cfg.Capture.Sockets); perr != nil && err == nil {
		err = perr
	}
	if result.SinkErrors > 0 {
		err = errors.Join(err, withCode(codeExport, fmt.Errorf("%d collections were not delivered, the last one because: %w", result.SinkErrors, result.SinkErr)))
	}
	return errors.Join(err, damageError(result.Damaged))
}

// flushAge is how long a record may stay in the kernel: what was set, or else what suits the command.
func (a *app) flushAge(metrics bool) time.Duration {
	if !metrics && a.origins.Of("capture.flush_age").Layer == config.LayerDefault {
		return recordFlushAge
	}
	return a.cfg.Capture.FlushAge
}

// captureHeap is how much of a capture's heap lies in large pages at most: all that record has at full rate.
const captureHeap = 64 << 20

// captured is what a capture tells at its end.
type captured struct {
	pipeline.Result
	Limited uint64 `json:"limited"` // see bpf.Accounting
}

// printResult tells the account: as a table on standard error, where it does not mix with metrics, or as JSON.
func (a *app) printResult(r captured, sockets bpf.Sockets) error {
	if a.json {
		return printJSON(a.stdout, r)
	}
	printHooks(a, r.Hooks)
	if r.Limited > 0 {
		together := ""
		if sockets.CPURate > 0 {
			together = fmt.Sprintf(" (all of such a CPU up to %s)", count(uint64(sockets.CPURate)))
		}
		fmt.Fprintf(a.stderr, "%s samples among the filtered were left out: on a CPU with more than %s segments a second (capture.sockets.limit_above),\n"+
			"and for a quarter of a second after it on any other, a socket is sampled up to %s times a second%s, and when its congestion state changes; --samples every takes all\n",
			count(r.Limited), count(uint64(sockets.LimitAbove)), count(uint64(sockets.Rate)), together)
	}
	if r.Unstored > 0 {
		fmt.Fprintf(a.stderr, "%s events were lost because the spool took nothing (they are among the dropped)\n", count(r.Unstored))
	}
	return nil
}

// printHooks prints the account of the hooks on standard error.
func printHooks(a *app, hooks []pipeline.HookCount) {
	t := hookTable(hooks)
	if len(t.rows) == 0 {
		fmt.Fprintln(a.stderr, "no hook has seen anything")
		return
	}
	t.print(a.stderr, terminalWidth(a.stderr))
	for _, h := range hooks {
		if !h.Balanced() {
			fmt.Fprintf(a.stderr, "%s: seen is not stored + dropped + missed + filtered\n", h.Hook)
		}
	}
}

func hookTable(hooks []pipeline.HookCount) *table {
	t := &table{columns: []column{
		{title: "hook"}, {title: "seen", right: true}, {title: "stored", right: true}, {title: "dropped", right: true},
		{title: "missed", right: true}, {title: "filtered", right: true},
	}}
	for _, h := range hooks {
		if h.Unaccounted {
			t.add(h.Hook, "-", count(h.Stored), "-", "-", "-")
			continue
		}
		seen := count(h.Seen)
		if h.AtLeast {
			seen = "≥ " + seen
		}
		t.add(h.Hook, seen, count(h.Stored), count(h.Dropped), count(h.Missed), count(h.Filtered))
	}
	return t
}

// openSink makes and starts the sink that the configuration names.
func (a *app) openSink(ctx context.Context, cfg config.Config, export exporter.Config) (exporter.Sink, error) {
	var sink exporter.Sink
	switch path, isFile := strings.CutPrefix(cfg.Output, "file:"); {
	case isFile:
		sink = exporter.NewFile(path)
	case cfg.Output == "otlp":
		var err error
		if sink, err = exporter.NewOTLP(export, pipeline.Version(), a.sinkLog(export)); err != nil {
			return nil, withCode(codeUsage, err)
		}
	default:
		sink = exporter.NewTerminal(a.stdout)
	}
	if err := sink.Start(ctx); err != nil {
		return nil, errors.Join(withCode(codeExport, err), sink.Shutdown(ctx))
	}
	return sink, nil
}

// sinkLog is the log of a sink. One that is waited for tells its failures as errors: that it tries again
// is then a matter for --verbose.
func (a *app) sinkLog(export exporter.Config) *slog.Logger {
	if export.Queue.Enabled || a.verbose {
		return a.log
	}
	return slog.New(slog.DiscardHandler)
}

// closeSink lets the sink deliver what it holds. An interrupt that ended the work does not cut that short.
func (a *app) closeSink(ctx context.Context, sink exporter.Sink) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	return withCode(codeExport, sink.Shutdown(ctx))
}

// captureError gives what goes wrong at the start of a capture its exit status.
func captureError(err error) error {
	switch {
	case errors.Is(err, bpf.ErrNoInterface):
		return withCode(codeUsage, err)
	case errors.Is(err, context.Canceled):
		return err
	}
	return withCode(codeKernel, err)
}

// damageError tells of blocks that could not be read. Those that retention took away meanwhile are not damaged.
func damageError(damaged []pipeline.Damage) error {
	var errs []error
	for _, d := range damaged {
		if errors.Is(d.Err, spool.ErrRemoved) {
			continue
		}
		errs = append(errs, withCode(codeSpool, errors.New(d.Text)))
	}
	if n := len(errs); n > maxDamageLines {
		errs = append(errs[:maxDamageLines], withCode(codeSpool, fmt.Errorf("and %d more places that cannot be read", n-maxDamageLines)))
	}
	return errors.Join(errs...)
}

// maxDamageLines bounds what is printed of a spool that is damaged all over.
const maxDamageLines = 20

func removeReady(name string) error {
	if name == "" {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return withCode(codeUsage, fmt.Errorf("--ready-file: %w", err))
	}
	return nil
}

// writeReady makes the file appear whole.
func writeReady(name string) error {
	if name == "" {
		return nil
	}
	tmp := name + ".tmp"
	err := os.WriteFile(tmp, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return withCode(codeUsage, fmt.Errorf("--ready-file: %w", err))
	}
	return nil
}
