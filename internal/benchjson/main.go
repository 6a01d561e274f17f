// SPDX-License-Identifier: Apache-2.0

// Command benchjson runs a command that prints Go benchmark results, passes its output on, and writes
// the results as JSON: benchmark name to events_per_second, ns_per_event, bytes_per_event and
// allocs_per_event, each where the benchmark tells it.
//
//	benchjson -o bench.json go test -run '^$' -bench . ./...
//
// It ends with the command's exit status.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	out := flag.String("o", "bench.json", "the file to write")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "benchjson: no command given\nusage: benchjson [-o FILE] COMMAND [ARG]...")
		os.Exit(2)
	}
	code, err := run(*out, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchjson:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(out string, args []string) (int, error) {
	var text bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(os.Stdout, &text), os.Stderr
	code := 0
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return 1, fmt.Errorf("run %s: %w", args[0], err)
		}
		code = max(exit.ExitCode(), 1)
	}
	results := parse(text.String())
	if len(results) == 0 {
		return code, fmt.Errorf("%q printed no benchmark result; %s is not written", strings.Join(args, " "), out)
	}
	js, err := encode(results)
	if err != nil {
		return code, err
	}
	return code, os.WriteFile(out, js, 0o644)
}
