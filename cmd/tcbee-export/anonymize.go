// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

func (a *app) anonymizeCommand() *cobra.Command {
	var (
		keyFile  string
		generate bool
		opts     pipeline.AnonymizeOptions
	)
	cmd := &cobra.Command{
		Use:   "anonymize DIR NEW",
		Short: "Copy a spool without what tells whose traffic it was",
		Long: `Makes the new spool NEW of the spool DIR, in which addresses are replaced by pseudonyms (Crypto-PAn: addresses
with a common prefix keep one of the same length), also those within MPTCP options. Removed are ids and names of
processes, users and cgroups, names of interfaces but lo, the names and ids of the host, and the
configuration. Ports, times, and everything of TCP stay as they are: what metrics say is the same.

The same key gives the same pseudonyms in every spool, and who has it can find the addresses again: keep it apart from NEW,
or throw it away. It is 32 bytes in a file, as they are or in hexadecimal or base64 digits.

Timing and sizes alone can tell a known connection: this protects from reading, not from who has seen the
same traffic elsewhere.`,
		Example: `  tcbee-export spool anonymize /var/lib/tcbee /tmp/public --key-file ~/tcbee.key --generate-key
  tcbee-export spool anonymize other/tcbee /tmp/public2 --key-file ~/tcbee.key`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: twoDirs,
	}
	f := cmd.Flags()
	f.StringVar(&keyFile, "key-file", "", "`FILE` that holds the key")
	f.BoolVar(&generate, "generate-key", false, "make a new key in that file first, which must not exist")
	f.BoolVar(&opts.KeepProcess, "keep-process", false, "keep ids and names of processes, users and cgroups")
	_ = cmd.MarkFlagFilename("key-file")
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := a.load(cmd.Flags()); err != nil {
			return err
		}
		if keyFile == "" {
			return withCode(codeUsage, withHint(errors.New("--key-file is missing"), "name the file of the key; --generate-key makes one there"))
		}
		r, dir, err := a.openSpool(cmd.Context(), args[:1], trusted)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, spoolError(dir, r.Close())) }()
		if generate {
			if err := pipeline.CheckTarget(args[1]); err != nil {
				return a.derived(pipeline.Derived{Dir: args[1]}, err)
			}
			if err := pipeline.GenerateKey(keyFile); err != nil {
				return withCode(codeUsage, err)
			}
			a.log.Info("made a key: whoever has it can find the addresses again", "file", keyFile)
		}
		key, open, err := pipeline.ReadKey(keyFile)
		if err != nil {
			return withCode(codeUsage, err)
		}
		if open {
			a.log.Warn("others than its owner may read the key; chmod 600 mends that", "file", keyFile)
		}
		opts.Key = key
		progress, done := a.progress("anonymize", true)
		d, err := pipeline.Anonymize(cmd.Context(), r, args[1], a.cfg.Spool.Encryption, opts, progress)
		done()
		if err != nil && generate {
			_ = os.Remove(keyFile) // nothing was made with it
		}
		return a.derived(d, err)
	}
	return cmd
}
