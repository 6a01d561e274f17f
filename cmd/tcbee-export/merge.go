// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

func (a *app) mergeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "merge NEW DIR...",
		Short: "Put the sessions of several spools, of one host or many, into a new one",
		Long: `Makes the new spool NEW of all sessions of the spools DIR, in the order of their beginnings. Each session keeps who
recorded it: replay gives its metrics the host.name of its own recorder. Blocks are copied as they are. A
session that is in two of the spools is refused.

NEW must not exist, or be an empty directory. It gets its name when it is complete. With
spool.encryption all of them have the same key.`,
		Example:           "  tcbee-export spool merge /tmp/all host1/tcbee host2/tcbee host3/tcbee",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: manyDirs,
	}
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := a.load(cmd.Flags()); err != nil {
			return err
		}
		var inputs []pipeline.Input
		for i := range args[1:] {
			r, dir, err := a.openSpool(cmd.Context(), args[1+i:2+i], checked)
			if err != nil {
				return err
			}
			defer func() { _ = r.Close() }()
			inputs = append(inputs, pipeline.Input{Dir: dir, Reader: r})
		}
		progress, done := a.progress("merge", true)
		d, err := pipeline.Merge(cmd.Context(), args[0], a.cfg.Spool.Encryption, inputs, progress)
		done()
		return a.derived(d, err)
	}
	return cmd
}

// twoDirs and manyDirs offer directories for two arguments, and for all.
func twoDirs(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

func manyDirs(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}
