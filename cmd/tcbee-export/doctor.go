// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
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
			Groups   []groupState  `json:"groups"`
			Features []bpf.Feature `json:"features"`
		}{meta.Host, meta.Kernel, meta.Program, groupStates(features), features})
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
		fmt.Fprintln(a.stdout)
		t = &table{columns: []column{{title: "group"}, {title: "usable"}, {title: "missing"}}}
		for _, g := range groupStates(features) {
			t.add(g.Group, string(g.Usable), strings.Join(g.Missing, "; "))
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

// usable says how much of a group works.
type usable string

const (
	usableAll  usable = "yes"
	usablePart usable = "partly"
	usableNone usable = "no"
	usableOff  usable = "off" // the configuration asks for nothing of it
)

// groupState is what the features of a group that the configuration asks for amount to.
type groupState struct {
	Group     string   `json:"group"`
	Usable    usable   `json:"usable"`
	Missing   []string `json:"missing,omitempty"`   // what a recording lacks
	Fallbacks []string `json:"fallbacks,omitempty"` // what is done instead
}

// groupStates sums up the features, in the order in which their groups appear.
func groupStates(features []bpf.Feature) []groupState {
	var all []groupState
	var asked, works []int
	for _, f := range features {
		i := slices.IndexFunc(all, func(g groupState) bool { return g.Group == f.Group })
		if i < 0 {
			i = len(all)
			all, asked, works = append(all, groupState{Group: f.Group}), append(asked, 0), append(works, 0)
		}
		if !f.Enabled {
			continue
		}
		g := &all[i]
		asked[i]++
		if f.Fallback != "" && !slices.Contains(g.Fallbacks, f.Fallback) {
			g.Fallbacks = append(g.Fallbacks, f.Fallback)
		}
		if f.Usable {
			works[i]++
			continue
		}
		for _, m := range f.Missing {
			if !slices.Contains(g.Missing, m) {
				g.Missing = append(g.Missing, m)
			}
		}
	}
	for i := range all {
		switch works[i] {
		case asked[i]:
			all[i].Usable = usableAll
			if asked[i] == 0 {
				all[i].Usable = usableOff
			}
		case 0:
			all[i].Usable = usableNone
		default:
			all[i].Usable = usablePart
		}
	}
	return all
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
