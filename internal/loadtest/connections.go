// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tcbee/tcbee-export/bpf"
)

// ConnectionOptions say how many connections are recorded at once.
type ConnectionOptions struct {
	Tested
	Connections int
	Rounds      int      // requests on each connection, after all are open
	Commands    []string // of those that Commands returns
}

// Commands are those that are measured: the connections are recorded, what was recorded is worked off by flows
// and replay, and run does it at once with other connections.
func Commands() []string { return []string{"record", "flows", "replay", "run"} }

// DefaultConnectionOptions opens 100,000 connections and asks three times on each.
func DefaultConnectionOptions() ConnectionOptions {
	return ConnectionOptions{Tested: Tested{Capture: bpf.DefaultConfig()}, Connections: 100_000, Rounds: 3, Commands: Commands()}
}

// perProcess is how many connections a pair of processes has at most, and so how many have the same port of the
// server: some of the 32,000 even ports that the kernel chooses the client's from, one after the other until one is
// free.
const perProcess = 10_000

// Validate reports the first fault by the name of its flag.
func (o ConnectionOptions) Validate() error {
	const most = 500_000
	switch {
	case o.Connections < 1 || o.Connections > most:
		return fmt.Errorf("--connections: %d is not between 1 and %d", o.Connections, most)
	case o.Rounds < 1 || o.Rounds > 1000:
		return fmt.Errorf("--rounds: %d is not between 1 and 1000", o.Rounds)
	}
	for _, c := range o.Commands {
		if !slices.Contains(Commands(), c) {
			return fmt.Errorf("--commands: %q is none of %s", c, strings.Join(Commands(), ", "))
		}
	}
	return nil
}

// ConnectionStep is one command at work on many connections.
type ConnectionStep struct {
	Command     string  `json:"command"`
	Connections uint64  `json:"connections"` // that it told of, by local address and port; 0: it does not tell
	Seconds     float64 `json:"seconds"`
	CPU         float64 `json:"cpu_seconds"`
	AnonBytes   uint64  `json:"rss_anon_bytes"` // the most that was seen, every 20 ms
	Events      uint64  `json:"events,omitempty"`
	Dropped     uint64  `json:"dropped"`
	Missed      uint64  `json:"missed"`
}

// ConnectionResult tells how many connections at once went.
type ConnectionResult struct {
	Connections int              `json:"connections"`
	SpoolBytes  uint64           `json:"spool_bytes"`
	Steps       []ConnectionStep `json:"steps"`
}
