// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// selectionFlags are the flags that choose a part of a recording.
type selectionFlags struct {
	from, to    string
	connections []string
}

const selectionHelp = `
--from and --to take a time (RFC 3339; without a zone UTC), a duration after the recording's start (10m) or
before its end (-10m). --connection takes ADDR, ADDR/BITS, ADDR:PORT or :PORT, which match either end, or
ADDR:PORT-ADDR:PORT for both; IPv6 addresses with a port stand in brackets. It may be repeated: what any of
them matches is taken. Blocks of the spool that hold nothing of it are not decoded.`

func (a *app) selectionFlags(cmd *cobra.Command) *selectionFlags {
	var s selectionFlags
	f := cmd.Flags()
	f.StringVar(&s.from, "from", "", "only what happened at this `TIME` or later")
	f.StringVar(&s.to, "to", "", "only what happened before this `TIME`")
	f.StringArrayVar(&s.connections, "connection", nil, "only connections with this `END`, or these two; may be repeated")
	return &s
}

func (s *selectionFlags) selection() (pipeline.Selection, error) {
	var sel pipeline.Selection
	fail := func(flag string, err error) (pipeline.Selection, error) {
		return sel, withCode(codeUsage, fmt.Errorf("--%s: %w", flag, err))
	}
	var err error
	if s.from != "" {
		if sel.From, err = pipeline.ParseMoment(s.from); err != nil {
			return fail("from", err)
		}
	}
	if s.to != "" {
		if sel.To, err = pipeline.ParseMoment(s.to); err != nil {
			return fail("to", err)
		}
	}
	for _, text := range s.connections {
		p, err := pipeline.ParsePattern(text)
		if err != nil {
			return fail("connection", err)
		}
		sel.Connections = append(sel.Connections, p)
	}
	return sel, nil
}
