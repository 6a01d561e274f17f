// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/processors"
)

// flowOrders are the words of flows --sort; numbers come largest first.
var flowOrders = []struct {
	name    string
	compare func(a, b *processors.Flow) int
}{
	{"start", func(a, b *processors.Flow) int { return a.Start.Compare(b.Start) }},
	{"bytes", func(a, b *processors.Flow) int { return cmp.Compare(b.BytesIn+b.BytesOut, a.BytesIn+a.BytesOut) }},
	{"retransmits", func(a, b *processors.Flow) int { return cmp.Compare(b.Retransmits, a.Retransmits) }},
	{"duration", func(a, b *processors.Flow) int { return cmp.Compare(b.Duration, a.Duration) }},
	{"srtt", func(a, b *processors.Flow) int { return cmp.Compare(b.SRTT, a.SRTT) }},
	{"peer", func(a, b *processors.Flow) int { return a.Peer.Compare(b.Peer) }},
}

func (a *app) flowsCommand() *cobra.Command {
	var (
		sort  string
		limit int
		names []string
		part  *selectionFlags
		exact bool
	)
	for _, o := range flowOrders {
		names = append(names, o.name)
	}
	cmd := &cobra.Command{
		Use:   "flows DIR",
		Short: "List the connections in a spool",
		Long: `Lists the connections in a spool: who, when, payload bytes, retransmitted segments, the last smoothed RTT, the
largest congestion window, and how each ended. On a terminal that is too narrow some columns are left out.

It adds up the directories of the spool's blocks, which takes a hundredth of the time of replay and gives the same
numbers for ordinary connections. Goodput is not among them. Where packets pass several interfaces of this host, where
only packets were recorded, or where every last one counts, --exact works off the events themselves.
` + selectionHelp,
		Example: `  tcbee-export flows /var/lib/tcbee --sort bytes --limit 20
  tcbee-export flows /var/lib/tcbee --from -5m --connection 10.0.0.0/8:443
  tcbee-export flows /var/lib/tcbee --json | jq '.[] | select(.retransmits > 0)'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: dirs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			at := slices.Index(names, sort)
			if at < 0 {
				return withCode(codeUsage, fmt.Errorf("--sort: %q is none of %s", sort, strings.Join(names, ", ")))
			}
			if limit < 0 {
				return withCode(codeUsage, fmt.Errorf("--limit: %d is below zero", limit))
			}
			sel, err := part.selection()
			if err != nil {
				return err
			}
			return a.flows(cmd, args, sel, exact, flowOrders[at].compare, limit)
		},
	}
	part = a.selectionFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&sort, "sort", "start", "order: "+strings.Join(names, ", "))
	f.IntVarP(&limit, "limit", "n", 0, "list only the first `N` (default all)")
	f.BoolVar(&exact, "exact", false, "work off every event, as replay does, instead of adding up what blocks say of themselves")
	complete(cmd, "sort", names...)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) flows(cmd *cobra.Command, args []string, sel pipeline.Selection, exact bool, order func(a, b *processors.Flow) int, limit int) (err error) {
	ctx := cmd.Context()
	r, dir, err := a.openSpool(ctx, args, trusted)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spoolError(dir, r.Close())) }()
	progress, done := a.progress("flows", true)
	flows, damaged, err := pipeline.Flows(ctx, r, pipeline.FlowOptions{Process: a.cfg.Process, Select: sel, Exact: exact}, progress)
	done()
	if err != nil {
		return err
	}
	slices.SortStableFunc(flows, func(x, y processors.Flow) int {
		return cmp.Or(order(&x, &y), cmp.Compare(x.ID, y.ID))
	})
	all := len(flows)
	if limit > 0 && all > limit {
		flows = flows[:limit]
	}
	if a.json {
		if exact {
			err = printJSON(a.stdout, flows)
		} else {
			err = printJSON(a.stdout, withoutGoodput(flows))
		}
	} else {
		a.printFlows(flows, all)
	}
	return errors.Join(err, damageError(damaged))
}

// digestFlow is a connection of which no goodput is known.
type digestFlow struct {
	*processors.Flow
	GoodputOut *uint64 `json:"goodput_out,omitempty"`
	GoodputIn  *uint64 `json:"goodput_in,omitempty"`
}

func withoutGoodput(flows []processors.Flow) []digestFlow {
	list := make([]digestFlow, len(flows))
	for i := range flows {
		list[i].Flow = &flows[i]
	}
	return list
}

func (a *app) printFlows(flows []processors.Flow, all int) {
	t := &table{columns: []column{
		{title: "start (UTC)", rank: 4}, {title: "for", right: true, rank: 3}, {title: "local"}, {title: "peer"}, {title: "process", rank: 6},
		{title: "out", right: true}, {title: "in", right: true, rank: 2}, {title: "retrans", right: true},
		{title: "srtt", right: true}, {title: "min rtt", right: true, rank: 7}, {title: "max cwnd", right: true, rank: 1},
		{title: "ended"}, {title: "lost", right: true, rank: 5},
	}}
	var sum processors.Flow
	for i := range flows {
		f := &flows[i]
		process, lost := f.Comm, ""
		if f.PID != 0 {
			process = fmt.Sprintf("%s/%d", f.Comm, f.PID)
		}
		if f.LostEvents > 0 {
			lost = "≤" + count(f.LostEvents)
		}
		cwnd := "-"
		if f.MaxCwnd > 0 {
			cwnd = fmt.Sprint(f.MaxCwnd)
		}
		t.add(timeText(f.Start), durationText(secs(f.Duration)), f.Local.String(), f.Peer.String(), process,
			bytesText(f.BytesOut), bytesText(f.BytesIn), count(f.Retransmits), rttText(f.SRTT), rttText(f.MinRTT), cwnd,
			strings.ReplaceAll(f.End.String(), "_", " "), lost)
		sum.BytesIn += f.BytesIn
		sum.BytesOut += f.BytesOut
		sum.Retransmits += f.Retransmits
	}
	hidden := t.print(a.stdout, terminalWidth(a.stdout))
	shown := fmt.Sprintf("%d connections", all)
	if len(flows) < all {
		shown = fmt.Sprintf("%d of %d connections", len(flows), all)
	}
	fmt.Fprintf(a.stdout, "%s, %s out, %s in, %s segments retransmitted\n", shown, bytesText(sum.BytesOut), bytesText(sum.BytesIn), count(sum.Retransmits))
	if hidden > 0 {
		fmt.Fprintf(a.stderr, "%d columns did not fit in; --json has all\n", hidden)
	}
}

func secs(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func rttText(s float64) string {
	if s == 0 {
		return "-"
	}
	return durationText(secs(s))
}
