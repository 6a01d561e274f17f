// SPDX-License-Identifier: Apache-2.0

// Package demo shows the whole program at work within seconds: it makes a small network that loses
// packets, moves data through it and captures that with the program itself ("run", then "flows").
// Where that is not allowed or not possible, it replays a small spool that is part of the program,
// and says so.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options of a demo. The zero value is not usable: give Stdout and Stderr.
type Options struct {
	// Stdout takes what the commands print, Stderr the rest. As *os.File they are handed to the
	// commands as they are, so that these see a terminal where there is one.
	Stdout, Stderr io.Writer
	// Program is the tcbee-export to run; "": this executable.
	Program string
	// Duration of the capture; 0: 10 s.
	Duration time.Duration
	// Bundled replays the bundled spool even where a capture is possible.
	Bundled bool
	// Rebundle, if not empty, records a small spool and writes it there, to become the bundled one.
	Rebundle string
}

// Shape of the demo's network and traffic.
const (
	defaultDuration = 10 * time.Second
	interval        = 2 * time.Second // between two collections
	demoRate        = 40_000_000      // bits/s
	demoLoss        = 250             // one data packet in so many
	busy            = 0.8             // share of the rate and time that the transfers need
	bundleDuration  = 8 * time.Second
	bundleRate      = 1_000_000
	bundleLoss      = 40
)

// cannotCapture wraps the reason why there is no live demo.
type cannotCapture struct{ err error }

func (e cannotCapture) Error() string { return e.err.Error() }
func (e cannotCapture) Unwrap() error { return e.err }

// Hint passes on what the cause has to say.
func (e cannotCapture) Hint() string {
	var h interface{ Hint() string }
	if errors.As(e.err, &h) {
		return h.Hint()
	}
	return ""
}

// Run runs the demo. When ctx ends early the capture is stopped in order, and what was captured is
// still shown; the network is removed in any case.
func Run(ctx context.Context, o Options) error {
	if o.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("demo: find this program: %w", err)
		}
		o.Program = self
	}
	if o.Rebundle != "" {
		if o.Duration == 0 {
			o.Duration = bundleDuration
		}
		return rebundle(ctx, o)
	}
	if o.Duration == 0 {
		o.Duration = defaultDuration
	}
	if o.Bundled {
		return replayBundle(ctx, o)
	}
	dir, err := os.MkdirTemp("", "tcbee-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	err = live(ctx, o, dir, network{rate: demoRate, loss: demoLoss})
	var cannot cannotCapture
	if errors.As(err, &cannot) {
		_ = os.RemoveAll(dir) // nothing was recorded
		fmt.Fprintf(o.Stderr, "No live demo: %v.\n", cannot)
		if h := cannot.Hint(); h != "" {
			fmt.Fprintf(o.Stderr, "hint: %s\n", h)
		}
		fmt.Fprintln(o.Stderr, "Instead, this replays a small recorded spool that is part of the program.")
		return replayBundle(ctx, o)
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return show(ctx, o, spoolIn(dir))
}

// network is what a live demo runs over.
type network struct {
	rate uint64 // bits/s
	loss uint32 // one in so many data packets
	// anonymous keeps what identifies this host out of the recording.
	anonymous bool
}

func spoolIn(dir string) string { return filepath.Join(dir, "spool") }

// show prints the table of connections, and where the spool is.
func show(ctx context.Context, o Options, spool string) error {
	// After Ctrl-C what was captured is still worth to be seen.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	fmt.Fprintln(o.Stdout)
	if err := command(ctx, o, "flows", spool); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	name := typed(o.Program)
	fmt.Fprintf(o.Stdout, `
The spool is kept in %s. Look at it again:
  %s replay %[1]s --output terminal
  %[2]s spool info %[1]s
  rm -r %[3]s
`, spool, name, filepath.Dir(spool))
	return nil
}

// announce prints a command as one would type it.
func announce(o Options, args []string) {
	fmt.Fprintf(o.Stderr, "$ %s %s\n", typed(o.Program), strings.Join(args, " "))
}

// typed returns a program as one would type it here.
func typed(program string) string {
	base := filepath.Base(program)
	if found, err := exec.LookPath(base); err == nil && found == program {
		return base
	}
	if dir, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(dir, program); err == nil && filepath.IsLocal(rel) {
			return "." + string(filepath.Separator) + rel
		}
	}
	return program
}

// command runs one command of the program to its end.
func command(ctx context.Context, o Options, args ...string) error {
	announce(o, args)
	cmd := exec.CommandContext(ctx, o.Program, args...)
	cmd.Stdout, cmd.Stderr = o.Stdout, o.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}

// replayBundle shows the bundled spool.
func replayBundle(ctx context.Context, o Options) error {
	dir, err := os.MkdirTemp("", "tcbee-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := unpackBundle(spoolIn(dir)); err != nil {
		return fmt.Errorf("demo: bundled spool: %w", err)
	}
	if err := command(ctx, o, "replay", spoolIn(dir), "--output", "terminal", "--interval", interval.String()); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return show(ctx, o, spoolIn(dir))
}

// rebundle records a small spool and packs it.
func rebundle(ctx context.Context, o Options) error {
	dir, err := os.MkdirTemp("", "tcbee-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := live(ctx, o, dir, network{rate: bundleRate, loss: bundleLoss, anonymous: true}); err != nil {
		return fmt.Errorf("demo: record a spool to bundle: %w", err)
	}
	n, err := packFile(o.Rebundle, spoolIn(dir))
	if err != nil {
		return fmt.Errorf("demo: bundle: %w", err)
	}
	fmt.Fprintf(o.Stdout, "%s: %d bytes\n", o.Rebundle, n)
	return nil
}
