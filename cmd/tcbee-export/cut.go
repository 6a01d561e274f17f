// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

func (a *app) cutCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cut DIR NEW",
		Short: "Cut a time or some connections out of a spool, into a new one",
		Long: `Makes the new spool NEW of a part of the spool DIR. NEW can be read and replayed as if only that part had been
recorded: a connection that was open before is joined in the middle. Losses within the window and the
interfaces come along. The account of the hooks does not, since it counts events that are not there any more;
only a session that is taken whole keeps it.

NEW must not exist, or be an empty directory. It gets its name when it is complete. With
spool.encryption it is encrypted by the same key as DIR.
` + selectionHelp,
		Example: `  tcbee-export spool cut /var/lib/tcbee /tmp/incident --from 2026-11-22T17:00:00Z --to 2026-11-22T17:05:00Z
  tcbee-export spool cut /var/lib/tcbee /tmp/last --from -10m --connection 10.0.0.0/8:443
  tcbee-export spool cut /var/lib/tcbee /tmp/one --connection '10.0.0.5:40112-[2001:db8::1]:443'`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: twoDirs,
	}
	s := a.selectionFlags(cmd)
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := a.load(cmd.Flags()); err != nil {
			return err
		}
		sel, err := s.selection()
		if err != nil {
			return err
		}
		if sel.All() {
			return withCode(codeUsage, withHint(errors.New("nothing says what to cut out"), "give --from, --to or --connection"))
		}
		r, dir, err := a.openSpool(cmd.Context(), args[:1], checked)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, spoolError(dir, r.Close())) }()
		progress, done := a.progress("cut", true)
		d, err := pipeline.Cut(cmd.Context(), r, args[1], a.cfg.Spool.Encryption, sel, progress)
		done()
		return a.derived(d, err)
	}
	return cmd
}
