// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
)

// What the store checks of a block that is read: all of it, or nothing where blocks are decoded, which checks what is used of them.
const (
	checked = false
	trusted = true
)

// openSpool opens the spool that the argument names, or else spool.dir.
func (a *app) openSpool(ctx context.Context, args []string, trust bool) (*spool.Reader, string, error) {
	dir := a.cfg.Spool.Dir
	if len(args) > 0 {
		dir = args[0]
	}
	if dir == "" {
		return nil, "", withCode(codeUsage, withHint(errors.New("no spool is named"), "give its directory as the argument, or as spool.dir"))
	}
	r, err := spool.Open(ctx, dir, spool.ReadOptions{Encryption: a.cfg.Spool.Encryption, Log: a.log, Trust: trust})
	if err != nil {
		return nil, dir, spoolError(dir, err)
	}
	for _, n := range r.Notices() {
		a.log.Warn("spool", "dir", dir, "notice", n)
	}
	return r, dir, nil
}

func (a *app) replayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay DIR",
		Short: "Make metrics from a spool: the same as run sent, with the original times",
		Long: `Reads a spool and gives the metrics that run gave, or would have given, with their original timestamps. What
cannot be read of a damaged spool is told and passed over. The time between collections (--interval) has
to be the same for the same data points. Of a part of a recording it gives what run would have given, had it
recorded only that part.
` + selectionHelp,
		Example: `  tcbee-export replay /var/lib/tcbee --output terminal
  tcbee-export replay /var/lib/tcbee --output file:metrics.jsonl --interval 1s
  OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 tcbee-export replay /var/lib/tcbee --output otlp`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: dirs,
	}
	a.outputFlags(cmd)
	s := a.selectionFlags(cmd)
	a.jsonFlag(cmd)
	cmd.Flags().Lookup("json").Usage = "print what was done as JSON on standard output"
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.load(cmd.Flags()); err != nil {
			return err
		}
		sel, err := s.selection()
		if err != nil {
			return err
		}
		return a.replay(cmd.Context(), args, sel)
	}
	return cmd
}

func (a *app) replay(ctx context.Context, args []string, sel pipeline.Selection) (err error) {
	r, dir, err := a.openSpool(ctx, args, trusted)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spoolError(dir, r.Close())) }()
	export := a.cfg.Export.Synchronous()
	sink, err := a.openSink(ctx, a.cfg, export)
	if err != nil {
		return err
	}
	// A bar and a table on one terminal would overwrite each other.
	progress, done := a.progress("replay", a.cfg.Output != "terminal" || !isTerminal(a.stdout))
	start := time.Now()
	result, err := pipeline.Replay(ctx, r, pipeline.ReadOptions{Process: a.cfg.Process, Export: export, Select: sel}, sink, progress)
	done()
	if err = errors.Join(err, a.closeSink(ctx, sink)); err != nil {
		return errors.Join(err, damageError(result.Damaged))
	}
	if a.json {
		err = printJSON(a.stdout, result)
	} else {
		fmt.Fprintf(a.stderr, "%d blocks replayed in %s\n", result.Blocks, durationText(time.Since(start)))
	}
	return errors.Join(err, damageError(result.Damaged))
}
