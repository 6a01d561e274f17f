// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host can capture, why not the rest, and what to do about it",
		Long: `Probes the rights, the kernel's features and every hook with the configuration in force, without capturing. The
exit status is 3 if something is not usable that the configuration asks for and nothing stands in for.`,
		Example: "  sudo tcbee-export doctor\n  tcbee-export doctor --json | jq '.features[] | select(.usable | not)'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			return a.doctor()
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) doctor() error {
	features := bpf.Probe(a.cfg.Capture)
	meta := pipeline.HostMeta()
	bad := 0
	for _, f := range features {
		if f.Enabled && !f.Usable && f.Fallback == "" {
			bad++
		}
	}
	if a.json {
		err := printJSON(a.stdout, struct {
			Host     string        `json:"host"`
			Kernel   string        `json:"kernel_release"`
			Program  string        `json:"program"`
			Features []bpf.Feature `json:"features"`
		}{meta.Host, meta.Kernel, meta.Program, features})
		if err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "%s on %s, kernel %s\n\n", meta.Program, meta.Host, meta.Kernel)
		t := &table{columns: []column{{title: "group"}, {title: "feature"}, {title: "usable"}, {title: "why, and what follows"}}}
		for _, f := range features {
			state := "yes"
			switch {
			case !f.Enabled:
				state = "off"
				if !f.Usable {
					state = "off, no"
				}
			case !f.Usable && f.Fallback != "":
				state = "fallback"
			case !f.Usable:
				state = "NO"
			}
			t.add(f.Group, f.Name, state, follow(f))
		}
		t.print(a.stdout, terminalWidth(a.stdout))
		hints := map[string]bool{}
		for _, f := range features {
			if f.Hint != "" && f.Enabled && !f.Usable && !hints[f.Hint] {
				hints[f.Hint] = true
				fmt.Fprintln(a.stdout, "hint:", f.Hint)
			}
		}
	}
	if bad > 0 {
		return withCode(codeKernel, errors.New(plural(bad, "feature that is asked for is not usable", "features that are asked for are not usable")))
	}
	return nil
}

// follow says why a feature is not usable and what that means.
func follow(f bpf.Feature) string {
	var parts []string
	if f.Through != "" {
		parts = append(parts, "by "+f.Through)
	}
	if f.Reason != "" {
		parts = append(parts, strings.Join(strings.Fields(f.Reason), " "))
	}
	if f.Fallback != "" {
		parts = append(parts, "instead: "+f.Fallback)
	}
	if len(f.Missing) > 0 && !f.Usable {
		parts = append(parts, "missing: "+strings.Join(f.Missing, ", "))
	}
	return strings.Join(parts, "; ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
