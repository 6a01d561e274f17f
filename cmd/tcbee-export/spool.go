// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcbee/tcbee-export/internal/pipeline"
	"github.com/tcbee/tcbee-export/spool"
)

func (a *app) spoolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "spool",
		Short: "Look after spools",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.infoCommand(), a.verifyCommand(), a.cutCommand(), a.mergeCommand(), a.anonymizeCommand())
	return cmd
}

// spoolReport is what "spool info" and "spool verify" print.
type spoolReport struct {
	Dir         string              `json:"dir"`
	Version     int                 `json:"version"`
	Meta        spool.Meta          `json:"meta"`
	Recording   bool                `json:"recording"` // a recorder is at work
	DeviceBytes int64               `json:"device_bytes"`
	Segments    []spool.SegmentInfo `json:"segments"`
	Cursors     []spool.Cursor      `json:"cursors"`
	Verified    bool                `json:"verified"` // everything was decoded, not only the heads of blocks
	Encrypted   bool                `json:"encrypted"`
	Connections *int                `json:"connections,omitempty"` // as flows counts them (info only)
	pipeline.Summary
}

func (a *app) infoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "info DIR",
		Short: "Tell what a spool holds: when, where, how much, and what was lost",
		Long: `Tells what a spool holds: where it was recorded, its sessions, events by kind, how many connections, the account of every
hook (seen = stored + dropped + missed + filtered), and the holes. It reads little more than the heads of blocks. A
session that was not ended in order (its recorder was killed, or is still at work) says so. Of an encrypted
spool it tells without the key when it was recorded and how large it is.`,
		Example:           "  tcbee-export spool info /var/lib/tcbee\n  tcbee-export spool info /var/lib/tcbee --json | jq .hooks",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: dirs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd, args, pipeline.Inspect)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Read everything in a spool and check it",
		Long: `Decodes every block of a spool and checks every checksum, every record, every directory of connections and the
order that the recording promises. Each place that cannot be read is named, and the exit status is then 4.`,
		Example:           "  tcbee-export spool verify /var/lib/tcbee",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: dirs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd, args, pipeline.Verify)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

type inspection = func(context.Context, *spool.Reader, pipeline.Progress) (pipeline.Summary, error)

func (a *app) inspect(cmd *cobra.Command, args []string, inspect inspection) (err error) {
	if err := a.load(cmd.Flags()); err != nil {
		return err
	}
	ctx := cmd.Context()
	r, dir, err := a.openSpool(ctx, args, cmd.Name() != "verify")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, spoolError(dir, r.Close())) }()
	progress, done := a.progress(cmd.Name(), true)
	sum, err := inspect(ctx, r, progress)
	rep := spoolReport{
		Dir: dir, Version: spool.Version, Segments: r.Segments(), Cursors: []spool.Cursor{},
		Verified: cmd.Name() == "verify", Summary: sum,
	}
	if err == nil && !rep.Verified {
		var n int
		if n, err = a.connections(ctx, r, progress); err == nil {
			rep.Connections = &n
		}
	}
	done()
	locked := errors.Is(err, spool.ErrKey) && !rep.Verified
	if err != nil && !locked {
		return err
	}
	for _, s := range rep.Segments {
		rep.DeviceBytes += s.Device
		rep.Encrypted = rep.Encrypted || s.Encrypted
		if s.Meta != nil {
			rep.Meta = *s.Meta // the newest
		}
	}
	if live, err := spool.LiveStats(ctx, dir); err == nil {
		rep.Recording, rep.DeviceBytes = true, live.DeviceBytes
	}
	if cursors, err := spool.Cursors(dir); err == nil && cursors != nil {
		rep.Cursors = cursors
	}
	if locked {
		a.printLocked(&rep)
		return spoolError(dir, err)
	}
	if a.json {
		err = printJSON(a.stdout, rep)
	} else if rep.Verified && len(sum.Damaged) == 0 {
		_, err = fmt.Fprintf(a.stdout, "%s: ok: %d blocks, %s events, %s late\n", dir, sum.Blocks, count(sum.Events), count(sum.Late))
	} else if !rep.Verified {
		a.printInfo(a.stdout, &rep)
	}
	return errors.Join(err, damageError(sum.Damaged))
}

// connections counts what flows would list.
func (a *app) connections(ctx context.Context, r *spool.Reader, progress pipeline.Progress) (int, error) {
	if err := r.Seek(0); err != nil {
		return 0, err
	}
	flows, _, err := pipeline.Flows(ctx, r, pipeline.FlowOptions{Process: a.cfg.Process}, progress)
	return len(flows), err
}

// printLocked tells what is known of an encrypted spool without its key.
func (a *app) printLocked(rep *spoolReport) {
	var blocks uint64
	var size int64
	var first, last time.Time
	for i := range rep.Segments {
		s := &rep.Segments[i]
		blocks += s.Blocks
		size += s.Bytes
		if !s.FirstAt.IsZero() && (first.IsZero() || s.FirstAt.Before(first)) {
			first = s.FirstAt
		}
		if s.LastAt.After(last) {
			last = s.LastAt
		}
	}
	if a.json {
		return // what would be left out could be taken for nothing
	}
	fmt.Fprintf(a.stdout, "%-12s%s (version %d), encrypted\n", "spool", rep.Dir, rep.Version)
	fmt.Fprintf(a.stdout, "%-12s%s in %d segments, %s, %s on the device\n", "blocks", count(blocks), len(rep.Segments), bytesText(uint64(size)), bytesText(uint64(rep.DeviceBytes)))
	fmt.Fprintf(a.stdout, "%-12s%s to %s (UTC)\n", "stored", timeText(first), timeText(last))
}

// printInfo prints the report for a person.
func (a *app) printInfo(w io.Writer, rep *spoolReport) {
	width := terminalWidth(w)
	line := func(name, format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		fmt.Fprintf(w, "%-12s%s\n", name, text)
	}
	encrypted := ""
	if rep.Encrypted {
		encrypted = ", encrypted"
	}
	line("spool", "%s (version %d)%s", rep.Dir, rep.Version, encrypted)
	if m := rep.Meta; m.Host != "" {
		line("recorded on", "%s, kernel %s, by %s", m.Host, m.Kernel, m.Program)
	}
	if rep.Recording {
		line("state", "being recorded")
	}
	line("blocks", "%s in %d segments, %s, %s on the device", count(uint64(rep.Blocks)), len(rep.Segments), bytesText(rep.EncodedBytes), bytesText(uint64(rep.DeviceBytes)))
	if rep.Events > 0 {
		line("events", "%s, %.1f bytes each (%s of records before encoding)", count(rep.Events),
			float64(rep.EncodedBytes)/float64(rep.Events), bytesText(rep.RecordBytes))
	}
	for _, k := range slices.Sorted(maps.Keys(rep.Kinds)) {
		line("", "%s %s", count(rep.Kinds[k]), k)
	}
	if rep.Connections != nil && rep.Events > 0 {
		line("connections", "%s", count(uint64(*rep.Connections)))
	}
	for i := range rep.Segments {
		switch s := &rep.Segments[i]; {
		case s.LostTail == 1:
			line("recovered", "segment %08d: 1 torn block at its end was taken out", s.Number)
		case s.LostTail > 1:
			line("recovered", "segment %08d: %d torn blocks at its end were taken out", s.Number, s.LostTail)
		}
	}
	for _, c := range rep.Cursors {
		line("cursor", "%s at block %d", c.Name, c.ID)
	}
	fmt.Fprintln(w)
	t := &table{columns: []column{
		{title: "session"}, {title: "start (UTC)"}, {title: "duration", right: true}, {title: "events", right: true},
		{title: "blocks", right: true, rank: 1}, {title: "ended"},
	}}
	for i, s := range rep.Sessions {
		ended := "in order"
		switch {
		case s.Complete:
		case rep.Recording && i == len(rep.Sessions)-1:
			ended = "not yet"
		default:
			ended = "no: recorder was killed; up to 1 s before that is missing"
		}
		t.add(s.ID, timeText(s.Start), durationText(s.End.Sub(s.Start)), count(s.Events), count(uint64(s.Blocks)), ended)
	}
	t.print(w, width)
	if len(rep.Hooks) > 0 {
		fmt.Fprintln(w)
		hookTable(rep.Hooks).print(w, width)
	}
	if len(rep.Holes) > 0 {
		fmt.Fprintln(w)
		t := &table{columns: []column{{title: "lost", right: true}, {title: "cpu", right: true}, {title: "from (UTC)"}, {title: "for", right: true}}}
		for _, h := range rep.Holes[:min(len(rep.Holes), maxHoles)] {
			t.add(count(h.Count), fmt.Sprint(h.CPU), timeText(h.First), durationText(h.Last.Sub(h.First)))
		}
		t.print(w, width)
		if n := len(rep.Holes) - maxHoles; n > 0 {
			fmt.Fprintf(w, "and %d more holes (--json lists them all)\n", n)
		}
	} else if rep.Blocks > 0 {
		lost := ": nothing was lost"
		for i, s := range rep.Sessions {
			if !s.Complete && (!rep.Recording || i < len(rep.Sessions)-1) {
				lost = " before the recorder was killed"
			}
		}
		fmt.Fprintln(w, "\nno holes"+lost)
	}
}

// maxHoles bounds the table of holes.
const maxHoles = 20
