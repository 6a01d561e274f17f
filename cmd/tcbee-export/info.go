// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/config"
	"github.com/tcbee/tcbee-export/internal/demo"
	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
)

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of the program and of what it writes",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
				Spool   int    `json:"spool_version"`
			}{pipeline.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, spool.Version}
			if a.json {
				return printJSON(a.stdout, v)
			}
			_, err := fmt.Fprintf(a.stdout, "tcbee-export %s (%s, %s/%s), writes spools of version %d\n", v.Version, v.Go, v.OS, v.Arch, v.Spool)
			return err
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show or check the configuration",
		Long: `The configuration has these layers, later ones win: defaults, the file (--config or TCBEE_CONFIG), TCBEE_…
variables, flags. A list or a map is replaced by a later layer as a whole.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the configuration in force, and where each value comes from",
		Long: `Prints the configuration in force as YAML that can be used as a file, with the source of each value as a
comment. Secrets are not printed.`,
		Example: `  tcbee-export config show
  TCBEE_SPOOL_MAX_BYTES=2GiB tcbee-export config show --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			settings := config.Settings(a.cfg, a.origins)
			if a.json {
				return printJSON(a.stdout, settings)
			}
			_, err := fmt.Fprint(a.stdout, config.YAML(settings))
			return err
		},
	}
	a.jsonFlag(show)
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file and report everything that is wrong with it",
		Long: `Checks the keys, the values and what belongs together, with the TCBEE_… variables and flags that are set.
Nothing is opened, sent or attached.`,
		Example: "  tcbee-export config check /etc/tcbee.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.configFile = args[0]
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.stdout, "%s: ok\n", args[0])
			return err
		},
	}
	cmd.AddCommand(show, check)
	return cmd
}

func (a *app) demoCommand() *cobra.Command {
	o := demo.Options{Stdout: a.stdout, Stderr: a.stderr}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the program at work on a small network of its own that loses packets",
		Long: `Makes two network namespaces with a lossy, rate-limited link between them, moves data through it, runs "run"
on it with a spool in a temporary directory and "flows" on what came out, and removes the network again, also
after Ctrl-C. Without root it replays a small recording that is part of the program, and says so.`,
		Example: "  sudo tcbee-export demo\n  tcbee-export demo --bundled",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.Duration, "duration", 0, "how long to capture (default 10s)")
	f.BoolVar(&o.Bundled, "bundled", false, "replay the recording that is part of the program")
	f.StringVar(&o.Rebundle, "rebundle", "", "record a new one into `FILE`")
	_ = f.MarkHidden("rebundle")
	return cmd
}
