// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/tcbee/tcbee-export/bpf"
)

// PacketOptions say how the cost of a recorded packet is measured.
type PacketOptions struct {
	Tested
	Rounds  int  // runs of each observer
	Rate    int  // packets/s
	Packets int  // in each run
	Flows   int  // connections that the packets belong to
	CPU     int  // that sends
	TCPDump bool // compare with tcpdump
}

// DefaultPacketOptions measures five rounds of 10 s at 0.9 M packets/s of 512 connections, with the group packets
// alone.
func DefaultPacketOptions() PacketOptions {
	return PacketOptions{Tested: Tested{Capture: bpf.DefaultConfig()}, Rounds: 5, Rate: 900_000, Packets: 9_000_000, Flows: 512}
}

// Validate reports the first fault by the name of its flag.
func (o PacketOptions) Validate() error {
	const mostFlows = 1 << 14
	switch {
	case o.Rounds < 1 || o.Rounds > 1000:
		return fmt.Errorf("--rounds: %d is not between 1 and 1000", o.Rounds)
	case o.Rate < 1:
		return fmt.Errorf("--rate: %d is not positive", o.Rate)
	case o.Packets < 1 || o.Packets > 1<<32:
		return fmt.Errorf("--packets: %d is not between 1 and %d", o.Packets, 1<<32)
	case o.Flows < 1 || o.Flows > mostFlows:
		return fmt.Errorf("--flows: %d is not between 1 and %d", o.Flows, mostFlows)
	case o.CPU < 0 || o.CPU >= runtime.NumCPU():
		return fmt.Errorf("--cpu: %d is not between 0 and %d", o.CPU, runtime.NumCPU()-1)
	}
	return nil
}

// An Observer of packets.
type Observer string

// Observers.
const (
	Nobody  Observer = "nobody"
	Record  Observer = "record"
	TCPDump Observer = "tcpdump"
)

func (o PacketOptions) observers() []Observer {
	if o.TCPDump {
		return []Observer{Nobody, Record, TCPDump}
	}
	return []Observer{Nobody, Record}
}

// Runs returns how many runs the options ask for.
func (o PacketOptions) Runs() int { return o.Rounds * len(o.observers()) }

// PacketRun is a number of packets with one observer.
type PacketRun struct {
	Observer  Observer `json:"observer"`
	Seconds   float64  `json:"seconds"` // that sending took
	Sent      uint64   `json:"sent"`
	Machine            // Packets: that came in; a receive queue that is full drops the rest before anybody sees it
	Observed  uint64   `json:"observed"`             // of them, stored
	Lost      uint64   `json:"lost"`                 // as the observer itself says
	OwnCPU    float64  `json:"observer_cpu_seconds"` // of its process; the rest of its cost falls on those who send and receive
	AnonBytes uint64   `json:"rss_anon_bytes"`
}

// PacketCost is what an observer adds.
type PacketCost struct {
	Observer  Observer `json:"observer"`
	PerPacket float64  `json:"ns_per_packet"` // CPU time of the whole host; of Nobody, without any observer; of others, what is added to that
	Lowest    float64  `json:"lowest"`        // of the rounds
	Highest   float64  `json:"highest"`
	Own       float64  `json:"own_ns_per_packet"` // in the observer's process
	Observed  uint64   `json:"observed"`
	Lost      uint64   `json:"lost"`
	Rate      float64  `json:"packets_per_second"`
}

// PacketResult tells what observing costs.
type PacketResult struct {
	CPUs  int          `json:"cpus"`
	Costs []PacketCost `json:"costs"`
	// Ratio is what record adds over what tcpdump adds, of the medians; PairRatio the median of the
	// rounds' ratios. 0 without tcpdump.
	Ratio     float64     `json:"ratio,omitempty"`
	PairRatio float64     `json:"pair_ratio,omitempty"`
	Runs      []PacketRun `json:"runs"`
}

// sum makes Costs and ratios of Runs, in which every round has each observer once.
func (r *PacketResult) sum(observers []Observer) {
	added := map[Observer][]float64{}
	for _, o := range observers {
		c := PacketCost{Observer: o}
		var own, rate []float64
		for _, round := range slices.Collect(slices.Chunk(r.Runs, len(observers))) {
			run, nobody := ofObserver(round, o), ofObserver(round, Nobody)
			cost := run.PerPacket()
			if o != Nobody {
				cost -= nobody.PerPacket()
			}
			added[o] = append(added[o], cost)
			own = append(own, run.OwnCPU*1e9/float64(max(run.Packets, 1)))
			rate = append(rate, float64(run.Packets)/run.Seconds)
			c.Observed += run.Observed
			c.Lost += run.Lost
		}
		c.PerPacket, c.Lowest, c.Highest = median(added[o]), slices.Min(added[o]), slices.Max(added[o])
		c.Own, c.Rate = median(own), median(rate)
		r.Costs = append(r.Costs, c)
	}
	if ours, theirs := added[Record], added[TCPDump]; len(theirs) > 0 {
		c := ratios(theirs, ours)
		r.Ratio, r.PairRatio = c.Ratio, c.PairRatio
	}
}

func ofObserver(round []PacketRun, o Observer) PacketRun {
	return round[slices.IndexFunc(round, func(r PacketRun) bool { return r.Observer == o })]
}
