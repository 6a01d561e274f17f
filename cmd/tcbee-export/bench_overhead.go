// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/loadtest"
)

func (a *app) benchOverheadCommand() *cobra.Command {
	var groups []string
	var side string
	o := loadtest.DefaultOverheadOptions()
	cmd := &cobra.Command{
		Use:   "overhead",
		Short: "Measure what recording costs the traffic of this host",
		Long: `Joins two network namespaces by a veth pair and lets traffic run between them: bulk transfers, and requests of
200 bytes that are answered with as much. Each load runs in turn with programs that do nothing attached to the
very hooks of a capture, and with "record" at work, which stores into a temporary spool. Sender, receiver and recorder share the
host's CPUs, so that this shows the cost on a host that has none to spare.

The ratio of pairs is the median of the ratios of neighbouring runs: on a host whose speed wanders it tells
more than the ratio of the medians. The network, the processes and the spools are gone at the end.`,
		Example: `  sudo tcbee-export bench overhead
  sudo tcbee-export bench overhead --flows 1,64 --requests 0 --iperf3 --duration 10s
  sudo tcbee-export bench overhead --groups packets --json
  sudo tcbee-export bench overhead --side both --flows 0 --requests 16 --check
  sudo tcbee-export bench overhead --side both --flows 16 --requests 0 --no-offload --check`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			o.Capture, o.Args = a.cfg.Capture, a.passedOn()
			if cmd.Flags().Changed("groups") {
				on := map[string]*bool{
					"packets": &o.Capture.Packets.Enabled, "sockets": &o.Capture.Sockets.Enabled, "events": &o.Capture.Events.Enabled,
				}
				for _, enabled := range on {
					*enabled = false
				}
				for _, g := range groups {
					if on[g] == nil {
						return withCode(codeUsage, fmt.Errorf("--groups: %q is none of packets, sockets, events", g))
					}
					*on[g] = true
				}
			}
			switch side {
			case "one", "both":
				o.BothEnds = side == "both"
			default:
				return withCode(codeUsage, fmt.Errorf("--side: %q is neither one nor both", side))
			}
			if err := o.Validate(); err != nil {
				return withCode(codeUsage, err)
			}
			return measured(a, o.Runs(), func(each func()) (loadtest.OverheadResult, error) {
				return loadtest.Overhead(cmd.Context(), o, a.log, func(loadtest.Run) { each() })
			}, printOverhead)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Pairs, "pairs", o.Pairs, "runs of each load with empty programs, and with a recorder")
	f.DurationVar(&o.Duration, "duration", o.Duration, "how long each run is measured")
	f.IntSliceVar(&o.Flows, "flows", o.Flows, "connections of the bulk loads, 0 for none")
	f.IntSliceVar(&o.Requests, "requests", o.Requests, "connections of the loads of requests, 0 for none")
	f.StringSliceVar(&groups, "groups", nil, "what is recorded, of packets, sockets and events (default: as configured, which is all)")
	f.StringVar(&side, "side", "one", "record the sockets of one end, as if it were a host of its own, or of both")
	f.StringVar(&o.Congestion, "congestion", "", "congestion control of the senders (default: the host's)")
	f.BoolVar(&o.IPerf, "iperf3", false, "make the bulk loads with iperf3")
	f.BoolVar(&o.Check, "check", false, "hold what the packet hooks have seen against the interface's counters, nstat's, and a counting program beside them")
	f.BoolVar(&o.NoOffload, "no-offload", false, "no segmentation offload: each segment crosses the hooks by itself, so that bulk loads make many more events")
	f.StringVar(&o.Dir, "dir", "", "`DIR` in which the spools are made, on the disk that matters (default: the one for temporary files)")
	_ = cmd.MarkFlagDirname("dir")
	complete(cmd, "groups", "packets", "sockets", "events")
	complete(cmd, "side", "one", "both")
	a.jsonFlag(cmd)
	return cmd
}

// passedOn are the global flags that a command which this one starts is to have too.
func (a *app) passedOn() []string {
	var args []string
	if a.configFile != "" {
		args = append(args, "--config", a.configFile)
	}
	for _, kv := range a.set {
		args = append(args, "--set", kv)
	}
	return args
}

func printOverhead(w io.Writer, res loadtest.OverheadResult) {
	t := &table{columns: []column{
		{title: "load"}, {title: "figure"}, {title: "empty programs", right: true}, {title: "recorded", right: true},
		{title: "ratio", right: true}, {title: "of pairs", right: true}, {title: "from", right: true, rank: 1}, {title: "to", right: true, rank: 1},
	}}
	ratio := func(f float64) string { return fmt.Sprintf("%.3f", f) }
	for _, c := range res.Comparisons {
		t.add(fmt.Sprintf("%s, %d", c.Kind, c.Connections), c.Figure, figureText(c.Empty, c.Unit), figureText(c.Recorded, c.Unit),
			ratio(c.Ratio), ratio(c.PairRatio), ratio(c.Lowest), ratio(c.Highest))
	}
	t.print(w, terminalWidth(w))
	sum, seconds := res.Recorders()
	var stolen, cpu float64
	for _, r := range res.Runs {
		stolen += r.Stolen
		cpu += r.Seconds * float64(res.CPUs)
	}
	fmt.Fprintf(w, "\n%s events seen: %s stored, %s filtered, %s missed, %s dropped; the recorder used %.2f of %d CPUs and at most %s of RssAnon\n",
		count(sum.Seen), count(sum.Stored), count(sum.Filtered), count(sum.Missed), count(sum.Dropped), sum.CPU/seconds, res.CPUs, bytesText(sum.AnonBytes))
	var in, out, checked uint64
	for _, r := range res.Runs {
		if c := r.Checked; c != nil {
			in, out, checked = in+c.PacketsIn, out+c.PacketsOut, checked+1
		}
	}
	if checked > 0 {
		fmt.Fprintf(w, "of %s runs the hooks have seen every packet that the interface, nstat and another program have counted: %s in, %s out\n",
			count(checked), count(in), count(out))
	}
	printStolen(w, stolen/cpu)
}

// printStolen warns where a hypervisor has disturbed a measurement.
func printStolen(w io.Writer, share float64) {
	if share > 0.01 {
		fmt.Fprintf(w, "the hypervisor took %.0f %% of the CPU time away: measure again when the host is quieter\n", 100*share)
	}
}

// figureText writes a figure with its unit.
func figureText(f float64, unit string) string {
	switch unit {
	case "bit/s":
		return fmt.Sprintf("%.2f Gbit/s", f/1e9)
	case "s":
		return durationText(time.Duration(f * 1e9))
	case "ns":
		return fmt.Sprintf("%.0f ns", f)
	}
	return count(uint64(f)) + "/s"
}

// benchTrafficCommand is one end of a load, for the other commands to start.
func (a *app) benchTrafficCommand() *cobra.Command {
	var t loadtest.Traffic
	var kind, listen, connect string
	kinds := []loadtest.Kind{loadtest.Bulk, loadtest.Requests, loadtest.Many}
	cmd := &cobra.Command{
		Use:    "traffic",
		Short:  "Be one end of a load",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t.Kind, t.Serve, t.Addr = loadtest.Kind(kind), listen != "", listen+connect
			if (listen == "") == (connect == "") || t.Connections < 1 || !slices.Contains(kinds, t.Kind) {
				return withCode(codeUsage, fmt.Errorf("needs --listen or --connect, --connections, and as --kind one of %v", kinds))
			}
			return t.Run(cmd.Context(), a.stdin, a.stdout)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "of load")
	f.StringVar(&listen, "listen", "", "address to serve at")
	f.StringVar(&connect, "connect", "", "address of the server")
	f.IntVar(&t.Connections, "connections", 1, "number of connections")
	f.DurationVar(&t.WarmUp, "warm-up", 0, "time before what is measured")
	f.DurationVar(&t.Duration, "duration", time.Second, "of what is measured")
	f.IntVar(&t.Rounds, "rounds", 1, "requests on each of many connections")
	f.StringVar(&t.Congestion, "congestion", "", "congestion control of the client")
	return cmd
}
