// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/loadtest"
)

func (a *app) benchConnectionsCommand() *cobra.Command {
	o := loadtest.DefaultConnectionOptions()
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "Record very many connections at once, and tell what that takes",
		Long: `Opens connections between two network namespaces until all are open at once, lets each transfer a few requests
and answers, and closes them, while the client's side is recorded with all groups. Then it works off the spool with
"flows" and "replay", and does the same again with "run", which derives metrics while it records. For each it
tells the time, what was lost, and the most anonymous memory that the process had.`,
		Example: `  sudo tcbee-export bench connections
  sudo tcbee-export bench connections --connections 20000 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			o.Capture, o.Args = a.cfg.Capture, a.passedOn()
			if err := o.Validate(); err != nil {
				return withCode(codeUsage, err)
			}
			t := &table{columns: []column{
				{title: "command"}, {title: "connections", right: true}, {title: "events", right: true}, {title: "dropped", right: true}, {title: "missed", right: true},
				{title: "seconds", right: true}, {title: "cpu seconds", right: true}, {title: "rss anon", right: true},
			}}
			res, err := loadtest.Connections(cmd.Context(), o, a.log, func(s loadtest.ConnectionStep) {
				told, events, dropped, missed := "-", "-", "-", "-"
				if s.Connections > 0 {
					told = count(s.Connections)
				}
				if s.Events > 0 {
					events, dropped, missed = count(s.Events), count(s.Dropped), count(s.Missed)
				}
				t.add(s.Command, told, events, dropped, missed, fmt.Sprintf("%.2f", s.Seconds), fmt.Sprintf("%.2f", s.CPU), bytesText(s.AnonBytes))
			})
			if a.json && err == nil {
				return printJSON(a.stdout, res)
			}
			if len(t.rows) > 0 {
				t.print(a.stdout, terminalWidth(a.stdout))
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "\n%s connections at once; the spool took %s\n", count(uint64(res.Connections)), bytesText(res.SpoolBytes))
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Connections, "connections", o.Connections, "open at once")
	f.IntVar(&o.Rounds, "rounds", o.Rounds, "requests on each, after all are open")
	f.StringSliceVar(&o.Commands, "commands", o.Commands, "what is measured")
	f.StringVar(&o.Dir, "dir", "", "`DIR` in which the spools are made, on the disk that matters (default: the one for temporary files)")
	_ = cmd.MarkFlagDirname("dir")
	complete(cmd, "commands", loadtest.Commands()...)
	a.jsonFlag(cmd)
	return cmd
}
