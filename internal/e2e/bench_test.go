// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/loadtest"
)

// bench runs a measurement, which must leave nothing in its directory, and returns what it tells.
func bench[T any](t *testing.T, args ...string) (res T) {
	t.Helper()
	netlab.ForTest(t, netlab.Options{Direct: true}) // skips where there are no namespaces
	dir := t.TempDir()
	out := must(t, append(append([]string{"bench"}, args...), "--dir", dir, "--json")...)
	require.NoError(t, json.Unmarshal([]byte(out), &res), out)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	return res
}

func TestManyConnectionsAtOnceAreAllTold(t *testing.T) {
	const connections = 5000
	// All their events fit into the ring at once: a recorder that gets no CPU for a while loses none.
	res := bench[loadtest.ConnectionResult](t, "connections", "--connections", strconv.Itoa(connections), "--commands", "record,flows")
	require.Len(t, res.Steps, 2)
	record, flows := res.Steps[0], res.Steps[1]
	t.Logf("%d events, %d missed; RssAnon %d MiB, of flows %d MiB", record.Events, record.Missed, record.AnonBytes>>20, flows.AnonBytes>>20)
	require.Zero(t, record.Dropped)
	// The handshake, three requests with their answers and the end are 14 packets at least.
	require.Greater(t, record.Events, uint64(connections*14))
	require.EqualValues(t, connections, flows.Connections)
	require.Less(t, record.AnonBytes, uint64(256<<20), "the budget")
}

func TestBenchOverheadMeasuresBothKindsOfLoad(t *testing.T) {
	var res loadtest.OverheadResult
	// How much moves in a time is the machine's affair.
	for d, moved := 300*time.Millisecond, false; !moved && d < time.Minute; d *= 4 {
		res = bench[loadtest.OverheadResult](t, "overhead", "--pairs", "1", "--duration", d.String(), "--flows", "2", "--requests", "2", "--check")
		moved = !slices.ContainsFunc(res.Runs, func(r loadtest.Run) bool { return r.Packets == 0 })
	}
	require.Len(t, res.Runs, 4)
	require.Len(t, res.Comparisons, 6)
	for _, c := range res.Comparisons {
		require.Positive(t, c.Empty, "%+v", c)
		require.Positive(t, c.Recorded, "%+v", c)
	}
	for _, r := range res.Runs {
		require.Positive(t, r.Packets)
		require.Equal(t, r.Recorded, r.Seen > 0, "%+v", r)
		require.Equal(t, r.Seen, r.Stored+r.Dropped+r.Missed+r.Filtered)
		require.Equal(t, r.Recorded, r.Checked != nil, "%+v", r)
		if c := r.Checked; c != nil {
			require.GreaterOrEqual(t, c.PacketsIn+c.PacketsOut, r.Packets, "counted from before to after the load was measured")
			require.GreaterOrEqual(t, c.SegmentsOut, c.PacketsOut)
		}
	}
}

func TestBenchPacketsCountsEveryPacket(t *testing.T) {
	res := bench[loadtest.PacketResult](t, "packets", "--rounds", "1", "--duration", "300ms", "--rate", "100000", "--compare", "none")
	require.Len(t, res.Runs, 2)
	for _, r := range res.Runs {
		require.EqualValues(t, 30_000, r.Sent)
		require.Positive(t, r.Packets)
		if r.Observer == loadtest.Record {
			// A receive queue that is full drops before the hook; frames of other protocols are counted, too.
			require.LessOrEqual(t, r.Observed+r.Lost, min(r.Sent, r.Packets))
			require.GreaterOrEqual(t, r.Observed+r.Lost+100, min(r.Sent, r.Packets))
		}
	}
}
