// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/loadtest"
)

func (a *app) benchPacketsCommand() *cobra.Command {
	var compare string
	var duration time.Duration
	o := loadtest.DefaultPacketOptions()
	cmd := &cobra.Command{
		Use:   "packets",
		Short: "Measure what a recorded packet costs the whole host, next to tcpdump",
		Long: `Joins two network namespaces by a veth pair and sends small TCP segments of many connections over it, a fixed
number at a fixed rate. At the receiving end there is nobody in turn, "record" with packets alone, and
"tcpdump -s 96 --immediate-mode -w". What each adds is the CPU time of the whole host, from what was not idle, over
the packets: a recorder's work is done in the kernel by those who send and receive too, and its own process
shows only a part of it.`,
		Example: `  sudo tcbee-export bench packets
  sudo tcbee-export bench packets --rate 500000 --compare none --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			o.Capture, o.Args = a.cfg.Capture, a.passedOn()
			if duration < 100*time.Millisecond || duration > time.Hour {
				return withCode(codeUsage, fmt.Errorf("--duration: %v is not between 100ms and 1h", duration))
			}
			o.Packets = int(duration.Seconds() * float64(o.Rate))
			var missing error
			switch compare {
			case "tcpdump":
				_, missing = exec.LookPath("tcpdump")
				if missing != nil && cmd.Flags().Changed("compare") {
					return withCode(codeUsage, fmt.Errorf("--compare tcpdump: %w", missing))
				}
				o.TCPDump = missing == nil
			case "none":
			default:
				return withCode(codeUsage, fmt.Errorf("--compare: %q is neither tcpdump nor none", compare))
			}
			if err := o.Validate(); err != nil {
				return withCode(codeUsage, err)
			}
			return measured(a, o.Runs(), func(each func()) (loadtest.PacketResult, error) {
				return loadtest.Packets(cmd.Context(), o, a.log, func(loadtest.PacketRun) { each() })
			}, func(w io.Writer, res loadtest.PacketResult) { printPackets(w, res, missing) })
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Rounds, "rounds", o.Rounds, "runs of each")
	f.IntVar(&o.Rate, "rate", o.Rate, "packets a second")
	f.DurationVar(&duration, "duration", 10*time.Second, "of each run; with --rate it gives the number of packets")
	f.IntVar(&o.Flows, "flows", o.Flows, "connections that the packets belong to")
	f.IntVar(&o.CPU, "cpu", o.CPU, "CPU that sends")
	f.StringVar(&compare, "compare", "tcpdump", "what else is measured: tcpdump or none")
	f.StringVar(&o.Dir, "dir", "", "`DIR` in which spools and tcpdump's files are made, on the disk that matters (default: the one for temporary files)")
	_ = cmd.MarkFlagDirname("dir")
	complete(cmd, "compare", "tcpdump", "none")
	a.jsonFlag(cmd)
	return cmd
}

// printPackets prints a table; missing says why there is no tcpdump in it, if one was to be.
func printPackets(w io.Writer, res loadtest.PacketResult, missing error) {
	t := &table{columns: []column{
		{title: "observer"}, {title: "packets/s", right: true}, {title: "system cpu per packet", right: true},
		{title: "from", right: true, rank: 1}, {title: "to", right: true, rank: 1}, {title: "own process", right: true},
		{title: "stored", right: true}, {title: "lost", right: true},
	}}
	ns := func(f float64) string { return fmt.Sprintf("%.0f ns", f) }
	for _, c := range res.Costs {
		sign, own, stored, lost := "+ ", ns(c.Own), count(c.Observed), count(c.Lost)
		if c.Observer == loadtest.Nobody {
			sign, own, stored, lost = "", "-", "-", "-"
		}
		t.add(string(c.Observer), count(uint64(c.Rate)), sign+ns(c.PerPacket), ns(c.Lowest), ns(c.Highest), own, stored, lost)
	}
	t.print(w, terminalWidth(w))
	switch {
	case res.Ratio != 0:
		fmt.Fprintf(w, "\nrecord adds %.2f times what tcpdump adds (median of the rounds' ratios: %.2f)\n", res.Ratio, res.PairRatio)
	case missing != nil:
		fmt.Fprintf(w, "\nthere is no tcpdump to compare with: %v\n", missing)
	}
	var stolen, cpu float64
	var unseen uint64
	for _, r := range res.Runs {
		unseen += r.Sent - min(r.Sent, r.Packets)
		stolen += r.Stolen
		cpu += r.Seconds * float64(res.CPUs)
	}
	if unseen > 0 {
		fmt.Fprintf(w, "%s packets were dropped by a receive queue that was full, before anybody saw them\n", count(unseen))
	}
	printStolen(w, stolen/cpu)
}
