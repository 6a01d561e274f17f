// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestComparisonTellsRatiosOfMediansAndOfPairs(t *testing.T) {
	one, many := Load{Bulk, 1}, Load{Requests, 16}
	runs := []Run{
		// The third pair met a slow moment of the host: the pair's ratio does not mind.
		{Load: one, BitsPerSecond: 10}, {Load: one, BitsPerSecond: 9, Recorded: true},
		{Load: one, BitsPerSecond: 9.5, Recorded: true}, {Load: one, BitsPerSecond: 10},
		{Load: one, BitsPerSecond: 4}, {Load: one, BitsPerSecond: 3.8, Recorded: true},
		{Load: many, PerSecond: 100, P50: 1, P99: 2, Machine: Machine{Packets: 200, CPU: 4e-6}},
		{Load: many, PerSecond: 50, P50: 2, P99: 3, Machine: Machine{Packets: 100, CPU: 3e-6}, Recorded: true},
	}
	got := compare(runs)
	require.Equal(t, Comparison{
		Load: one, Figure: Throughput, Unit: "bit/s", Empty: 10, Recorded: 9, Ratio: 0.9, PairRatio: 0.95, Lowest: 0.9, Highest: 0.95,
	}, got[0])
	figures := map[string]float64{}
	for _, c := range got {
		if c.Load == many {
			figures[c.Figure] = c.Ratio
		}
	}
	require.InDeltaMapValues(t, map[string]float64{RequestRate: 0.5, LatencyP50: 2, LatencyP99: 1.5, SystemCPU: 1.5}, figures, 1e-9)
}

func TestMedian(t *testing.T) {
	require.InDelta(t, 2, median([]float64{3, 1, 2}), 0)
	require.InDelta(t, 2.5, median([]float64{4, 1, 3, 2}), 0)
}

func TestPacketCostIsWhatAnObserverAdds(t *testing.T) {
	run := func(o Observer, cpu float64) PacketRun {
		return PacketRun{Observer: o, Seconds: 1, Machine: Machine{Packets: 1000, CPU: cpu}, Lost: 1, Observed: 999, OwnCPU: 1e-4}
	}
	r := PacketResult{Runs: []PacketRun{
		run(Nobody, 1e-3), run(Record, 1.2e-3), run(TCPDump, 1.6e-3),
		run(Record, 1.1e-3), run(TCPDump, 1.5e-3), run(Nobody, 1e-3),
	}}
	r.sum([]Observer{Nobody, Record, TCPDump})
	require.Len(t, r.Costs, 3)
	require.InDelta(t, 1000, r.Costs[0].PerPacket, 1e-6)
	require.InDelta(t, 150, r.Costs[1].PerPacket, 1e-6)
	require.InDelta(t, 100, r.Costs[1].Lowest, 1e-6)
	require.InDelta(t, 200, r.Costs[1].Highest, 1e-6)
	require.InDelta(t, 550, r.Costs[2].PerPacket, 1e-6)
	require.InDelta(t, 100, r.Costs[2].Own, 1e-6)
	require.EqualValues(t, 2, r.Costs[2].Lost)
	require.InDelta(t, 150.0/550, r.Ratio, 1e-9)
	require.InDelta(t, (200.0/600+100.0/500)/2, r.PairRatio, 1e-9)
}

func TestOptionsAreChecked(t *testing.T) {
	overhead, packets, connections := DefaultOverheadOptions(), DefaultPacketOptions(), DefaultConnectionOptions()
	require.NoError(t, overhead.Validate())
	require.NoError(t, packets.Validate())
	require.NoError(t, connections.Validate())
	tests := map[string]struct {
		err  func() error
		want string
	}{
		"no load":            {func() error { o := overhead; o.Flows, o.Requests = []int{0}, nil; return o.Validate() }, "--flows"},
		"no pairs":           {func() error { o := overhead; o.Pairs = 0; return o.Validate() }, "--pairs"},
		"too long":           {func() error { o := overhead; o.Duration *= 1e6; return o.Validate() }, "--duration"},
		"negative flows":     {func() error { o := overhead; o.Flows = []int{-1}; return o.Validate() }, "--flows"},
		"no rate":            {func() error { o := packets; o.Rate = 0; return o.Validate() }, "--rate"},
		"no such CPU":        {func() error { o := packets; o.CPU = 1 << 20; return o.Validate() }, "--cpu"},
		"no connection":      {func() error { o := connections; o.Connections = 0; return o.Validate() }, "--connections"},
		"no such command":    {func() error { o := connections; o.Commands = []string{"sing"}; return o.Validate() }, "--commands"},
		"rounds out of time": {func() error { o := packets; o.Rounds = -1; return o.Validate() }, "--rounds"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { require.ErrorContains(t, tt.err(), tt.want) })
	}
}
