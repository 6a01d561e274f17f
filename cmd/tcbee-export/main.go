// SPDX-License-Identifier: Apache-2.0

// Command tcbee-export records TCP traffic from the kernel's hooks into a spool, derives the metrics of
// every connection from it, and sends them over OTLP. "tcbee-export --help" lists its commands.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run gives the commands the process's surroundings and returns its exit status. The first SIGINT or
// SIGTERM asks for an orderly end, a second one ends the process at once. What is attached to the
// kernel ends with the process in any case.
func run(args []string) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		fmt.Fprintln(os.Stderr, "tcbee-export: aborted by a second signal; what was stored is kept")
		os.Exit(codeInterrupted)
	}()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ()}
	return a.run(ctx, args)
}
