// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/config"
	"github.com/tcbee/tcbee-export/internal/simulate"
)

func (a *app) benchSpoolCommand() *cobra.Command {
	o := simulate.DefaultOptions()
	var dir, svg string
	cmd := &cobra.Command{
		Use:   "spool",
		Short: "Record a simulated day, and watch rate, memory and directory",
		Long: `Makes the traffic of a simulated day, in the time that --for says, and stores it through the real write half:
thousands of connections that come and go, requests and bulk transfers, loss and SACK, socket samples and incidents. Retention
removes the oldest meanwhile, by spool.max_bytes and spool.max_age; ages are of the simulated clock, which runs evenly (a day
in ten minutes: 144 times as fast). In the middle of the day a few quiet hours have a tenth of the rate. At the end everything that was
left is read and compared with what was stored. It needs neither root nor the kernel's hooks, and the spool is removed again.`,
		Example: `  tcbee-export bench spool
  tcbee-export bench spool --for 30m --svg day.svg --json --dir /var/tmp --set spool.max_bytes=4GiB`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(cmd.Flags()); err != nil {
				return err
			}
			limits := o.Spool
			o.Spool = a.cfg.Spool
			o.Spool.Dir = dir
			if a.origins.Of("spool.max_bytes").Layer == config.LayerDefault {
				o.Spool.MaxBytes = limits.MaxBytes
			}
			if a.origins.Of("spool.max_age").Layer == config.LayerDefault {
				o.Spool.MaxAge = max(limits.MaxAge, o.LeastAge())
			}
			if err := o.Validate(); err != nil {
				return withCode(codeUsage, err)
			}
			storing, stored := a.progress("storing", true)
			stored = sync.OnceFunc(stored)
			defer stored()
			reading, read := a.progress("reading back", true)
			defer read()
			res, err := simulate.Run(cmd.Context(), o, a.log, func(done, all uint64) {
				if storing != nil {
					storing(done, all)
				}
			}, func(done, all uint64) {
				stored()
				if reading != nil {
					reading(done, all)
				}
			})
			stored()
			read()
			if err != nil {
				return err
			}
			if svg != "" {
				if err := os.WriteFile(svg, res.SVG(), 0o644); err != nil {
					return err
				}
			}
			if a.json {
				return printJSON(a.stdout, res)
			}
			printSimulation(a.stdout, &res)
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.For, "for", o.For, "how long to record")
	f.DurationVar(&o.Span, "span", o.Span, "simulated time that passes meanwhile")
	f.DurationVar(&o.Quiet, "quiet", o.Quiet, "simulated time in the middle that has a tenth of the rate")
	f.IntVar(&o.Rate, "rate", 0, "events a second that --for takes; 0 is as fast as they are stored")
	f.IntVar(&o.Connections, "connections", o.Connections, "connections at a time")
	f.Uint64Var(&o.Seed, "seed", 0, "of the traffic; 0 is a random one")
	f.StringVar(&dir, "dir", "", "`DIR` in which the spool is made, on the disk that matters (default: the one for temporary files)")
	f.StringVar(&svg, "svg", "", "draw the day into this `FILE`")
	_ = cmd.MarkFlagDirname("dir")
	_ = cmd.MarkFlagFilename("svg", "svg")
	a.jsonFlag(cmd)
	return cmd
}

// simulationRows of the table: an hour each, of a day.
const simulationRows = 24

func printSimulation(w io.Writer, res *simulate.Result) {
	t := &table{columns: []column{
		{title: "hour", right: true}, {title: "events", right: true}, {title: "events/s", right: true}, {title: "blocks/s", right: true, rank: 4},
		{title: "directory", right: true}, {title: "kept", right: true}, {title: "rss anon", right: true}, {title: "files", right: true, rank: 3},
		{title: "append p50", right: true, rank: 2}, {title: "p99", right: true, rank: 2}, {title: "most", right: true, rank: 1},
	}}
	for _, s := range res.Parts(simulationRows) {
		hour := fmt.Sprintf("%.1f", s.Hours)
		if s.Quiet {
			hour += " quiet"
		}
		t.add(hour, count(s.Events), count(uint64(s.PerSecond)), bytesText(uint64(s.Bytes))+"/s", bytesText(uint64(s.Directory)), hoursText(s.Kept),
			bytesText(s.Anon), fmt.Sprint(s.Files), micros(s.P50), micros(s.P99), micros(s.Max))
	}
	t.print(w, terminalWidth(w))
	fmt.Fprintf(w, "\n%s events of %s connections in %s, %.2f bytes each, written to the device %.3f times\n", count(res.Events), count(res.Connections),
		durationText(time.Duration(res.Seconds*float64(time.Second))), float64(res.Bytes)/float64(max(res.Events, 1)), float64(res.Written)/float64(max(res.Bytes, 1)))
	fmt.Fprintf(w, "the write half took %.0f ns of CPU time an event; appends: p50 %s, p99 %s, p99.9 %s, most %s; %d segments, %d waited for\n",
		res.WriteHalf, micros(res.P50), micros(res.P99), micros(res.P999), micros(res.Max), res.Segments, res.Stalls)
	fmt.Fprintf(w, "the directory took at most %s of %s; anonymous memory %s to %s; %s blocks were removed, the others (%s records) read back as stored\n",
		bytesText(uint64(res.Directory)), bytesText(uint64(res.MaxBytes)), bytesText(uint64(res.Anon.Min)), bytesText(uint64(res.Anon.Max)),
		count(res.Removed), count(res.Verified))
}

// micros writes microseconds.
func micros(us float64) string { return durationText(time.Duration(us * float64(time.Microsecond))) }

func hoursText(h float64) string { return fmt.Sprintf("%.1f h", h) }
