// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/loadtest"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what this host can do",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(a.benchCaptureCommand(), a.benchOverheadCommand(), a.benchSpoolCommand(), a.benchPacketsCommand(), a.benchConnectionsCommand(), a.benchTrafficCommand())
	return cmd
}

func (a *app) benchCaptureCommand() *cobra.Command {
	var rate int
	var dir string
	o := loadtest.DefaultOptions()
	cmd := &cobra.Command{
		Use:   "capture",
		Short: "Find the highest rate of packets that is recorded without a loss",
		Long: `Drives the kernel programs of a capture with generated packets on one CPU and stores them through the real
write half: hundreds of connections in both directions with moving sequence numbers, acknowledgments, timestamps,
windows, repeated and selectively acknowledged segments. First as fast as the CPU can; if that loses anything, at
rates in between until the highest one without loss is found. No packet touches the network, and the
spool is removed again.`,
		Example: `  sudo tcbee-export bench capture
  sudo tcbee-export bench capture --step 60s --rate 4000000 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			if o.Step < 100*time.Millisecond || o.Step > time.Hour {
				return withCode(codeUsage, fmt.Errorf("--step: %v is not between 100ms and 1h", o.Step))
			}
			if rate < 0 {
				return withCode(codeUsage, fmt.Errorf("--rate: %d is negative", rate))
			}
			o.Capture, o.Spool = a.cfg.Capture, a.cfg.Spool
			o.Spool.Dir = dir
			t := &table{columns: []column{
				{title: "asked/s", right: true}, {title: "sent", right: true}, {title: "stored", right: true},
				{title: "dropped", right: true}, {title: "stored/s", right: true}, {title: "bytes/event", right: true},
				{title: "recorder cpu", right: true, rank: 1}, {title: "rss anon", right: true, rank: 2},
			}}
			each := func(s loadtest.Step) {
				asked := "most"
				if s.Asked > 0 {
					asked = count(uint64(s.Asked))
				}
				t.add(asked, count(s.Sent), count(s.Stored), count(s.Dropped), count(uint64(s.PerSecond)),
					fmt.Sprintf("%.2f", s.BytesPerEvent), fmt.Sprintf("%.2f", s.RecorderCPU), bytesText(s.AnonBytes))
			}
			res := loadtest.Result{Flows: o.Flows}
			var err error
			if cmd.Flags().Changed("rate") {
				res, err = loadtest.At(cmd.Context(), o, rate, a.log)
				for _, s := range res.Steps {
					each(s)
				}
			} else {
				res, err = loadtest.Search(cmd.Context(), o, a.log, each)
			}
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(a.stdout, res)
			}
			t.print(a.stdout, terminalWidth(a.stdout))
			if res.ZeroLoss == 0 {
				fmt.Fprintln(a.stdout, "\nevery step lost packets")
				return nil
			}
			fmt.Fprintf(a.stdout, "\n%s packets/s recorded without a loss, one of %d CPUs generating %d connections\n",
				count(uint64(res.ZeroLoss)), res.CPUs, res.Flows)
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.Step, "step", o.Step, "how long each rate is tried")
	f.IntVar(&rate, "rate", 0, "try only this rate, packets a second; 0 is as fast as it goes")
	f.IntVar(&o.Flows, "flows", o.Flows, "connections that the packets belong to")
	f.IntVar(&o.CPU, "cpu", o.CPU, "CPU that generates")
	f.StringVar(&dir, "dir", "", "`DIR` in which the spool is made, on the disk that matters (default: the one for temporary files)")
	_ = cmd.MarkFlagDirname("dir")
	a.jsonFlag(cmd)
	return cmd
}

// measured runs a measurement of so many runs, each of which it tells, with a bar of progress, and prints what came of it.
func measured[T any](a *app, runs int, measure func(each func()) (T, error), print func(io.Writer, T)) error {
	bar, done := a.progress("measuring", !a.json)
	n := 0
	res, err := measure(func() {
		if n++; bar != nil {
			bar(uint64(n), uint64(runs))
		}
	})
	done()
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(a.stdout, res)
	}
	print(a.stdout, res)
	return nil
}
