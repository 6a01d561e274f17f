// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tcbee/tcbee-export/config"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// app is what all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string

	configFile string
	set        []string
	verbose    bool
	json       bool
	started    bool // the command line was understood, the command itself is at work

	cfg     config.Config // after load
	origins config.Origins
	log     *slog.Logger
}

// run carries out a command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return codeOK
	}
	name := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), root.Name()), " ")
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) && exitCode(err) == codeInterrupted {
		err = cause
	}
	if !a.started {
		// Cobra appends suggestions in lines of their own.
		text := strings.Join(strings.Fields(err.Error()), " ")
		err = withCode(codeUsage, withHint(errors.New(text), fmt.Sprintf(`"%s --help" shows how it is used`, cmd.CommandPath())))
	}
	report(a.stderr, name, err)
	return exitCode(err)
}

func (a *app) rootCommand() *cobra.Command {
	var codes strings.Builder
	for _, c := range exitCodes {
		fmt.Fprintf(&codes, "  %3d  %s\n", c.code, c.meaning)
	}
	root := &cobra.Command{
		Use:   "tcbee-export",
		Short: "Record TCP in the kernel, derive the metrics of every connection, send them over OTLP",
		Long: `tcbee-export records what the kernel's hooks see of TCP into a spool (record), derives the metrics of
every connection from it (replay), or does both at once (run). What replay gives is what ran.`,
		Example: `  sudo tcbee-export run --interface eth0 --duration 30s
  sudo tcbee-export record --spool /var/lib/tcbee
  tcbee-export flows /var/lib/tcbee
  tcbee-export replay /var/lib/tcbee --output file:metrics.jsonl`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			a.started = true
		},
	}
	root.SetHelpTemplate(root.HelpTemplate() + `{{if not .HasParent}}
Exit status:
` + codes.String() + `
Environment:
  TCBEE_CONFIG      the configuration file where --config is not given
  TCBEE_…           any key of the configuration: spool.max_bytes is TCBEE_SPOOL_MAX_BYTES
  OTEL_EXPORTER_OTLP_…  as the OpenTelemetry specification has them, where no key says otherwise
{{end}}`)
	p := root.PersistentFlags()
	p.StringVarP(&a.configFile, "config", "c", "", "configuration `FILE` (YAML)")
	p.StringArrayVar(&a.set, "set", nil, "`KEY=VALUE` of the configuration, e.g. spool.max_bytes=2GiB; may be repeated")
	p.BoolVarP(&a.verbose, "verbose", "v", false, "tell more: debug messages, the kernel verifier's log of a program that it refuses")
	p.String("log-level", "", "least severe messages to print: debug, info, warn, error")
	p.String("log-format", "", "messages as text or json")
	config.Bind(p, "log-level", "log.level")
	config.Bind(p, "log-format", "log.format")
	complete(root, "log-level", "debug", "info", "warn", "error")
	complete(root, "log-format", "text", "json")
	_ = root.MarkPersistentFlagFilename("config", "yaml", "yml")

	root.AddCommand(
		a.runCommand(), a.recordCommand(), a.replayCommand(), a.flowsCommand(),
		a.spoolCommand(), a.configCommand(), a.doctorCommand(), a.benchCommand(), a.demoCommand(), a.versionCommand(),
	)
	return root
}

// complete offers words for a flag to the shell.
func complete(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("BUG: " + err.Error())
	}
}

// dirs offers directories for the arguments.
func dirs(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// jsonFlag adds --json to a command that prints a table.
func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON instead of a table")
}

// load reads the configuration and sets up the log.
func (a *app) load(flags *pflag.FlagSet) error {
	file := a.configFile
	if file == "" {
		file = a.getenv("TCBEE_CONFIG")
	}
	set := a.set
	if a.verbose {
		set = append([]string{"log.level=debug", "capture.verbose=true"}, set...)
	}
	cfg, origins, err := config.Load(config.Sources{File: file, Environ: a.environ, Flags: flags, Set: set})
	if err != nil {
		return err
	}
	a.cfg, a.origins = cfg, origins
	level, err := cfg.Log.SlogLevel()
	if err != nil {
		return err
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(a.stderr, opts)
	if cfg.Log.Format == "json" {
		h = slog.NewJSONHandler(a.stderr, opts)
	}
	a.log = slog.New(h)
	return nil
}

func (a *app) getenv(name string) string {
	for _, kv := range a.environ {
		if val, ok := strings.CutPrefix(kv, name+"="); ok {
			return val
		}
	}
	return ""
}

// barDelay is how long work may take before a bar is drawn.
const barDelay = 300 * time.Millisecond

// progress shows a bar on standard error while blocks are worked off, if that is a terminal. The function that it
// returns second takes the bar away.
func (a *app) progress(what string, wanted bool) (pipeline.Progress, func()) {
	if !wanted || !isTerminal(a.stderr) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions(-1,
		progressbar.OptionSetWriter(a.stderr), progressbar.OptionSetDescription(what), progressbar.OptionSetItsString("blocks"),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(24),
	)
	shown := ^uint64(0)
	start := time.Now()
	drawn := false
	return func(done, all uint64) {
			// What is done at once needs no bar.
			if drawn = drawn || time.Since(start) > barDelay; !drawn {
				return
			}
			all = max(all, 1)
			if all != shown {
				shown = all
				bar.ChangeMax64(int64(all))
			}
			_ = bar.Set64(int64(min(done, all)))
		}, func() {
			if drawn {
				_ = bar.Finish()
			}
		}
}
