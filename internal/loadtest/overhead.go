// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/tcbee/tcbee-export/bpf"
)

// Tested is the program that is measured.
type Tested struct {
	Program string     // the tcbee-export that records and makes traffic; "": this executable
	Args    []string   // for its commands, before those that the measurement needs
	Capture bpf.Config // hooks and groups
	Dir     string     // parent of the spools that are made and removed; "": the system's for temporary files
}

func (t *Tested) find() (err error) {
	if t.Program != "" {
		return nil
	}
	if t.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return nil
}

// OverheadOptions say how the cost of recording is measured.
type OverheadOptions struct {
	Tested
	Pairs      int           // runs with empty programs, and with a recorder, of each load
	Duration   time.Duration // of each run, after WarmUp
	Flows      []int         // bulk loads: connections of each; 0: none
	Requests   []int         // request/response loads: connections of each; 0: none
	BothEnds   bool          // record the sockets of both ends, not only of the sending one
	Congestion string        // control of the senders; "": the host's default
	IPerf      bool          // bulk loads by iperf3
	Check      bool          // hold the recorder's account against other counters
	NoOffload  bool          // each segment crosses the interface by itself: no segmentation offload
}

// DefaultOverheadOptions measures five pairs of 5 s of each load: 1 and 64 bulk flows, 1 and 16
// connections with requests.
func DefaultOverheadOptions() OverheadOptions {
	return OverheadOptions{Tested: Tested{Capture: bpf.DefaultConfig()}, Pairs: 5, Duration: 5 * time.Second, Flows: []int{1, 64}, Requests: []int{1, 16}}
}

// Validate reports the first fault by the name of its flag.
func (o OverheadOptions) Validate() error {
	const most = 4096
	if o.Pairs < 1 || o.Pairs > 1000 {
		return fmt.Errorf("--pairs: %d is not between 1 and 1000", o.Pairs)
	}
	if o.Duration < 100*time.Millisecond || o.Duration > time.Hour {
		return fmt.Errorf("--duration: %v is not between 100ms and 1h", o.Duration)
	}
	for flag, list := range map[string][]int{"flows": o.Flows, "requests": o.Requests} {
		for _, n := range list {
			if n < 0 || n > most {
				return fmt.Errorf("--%s: %d is not between 0 and %d", flag, n, most)
			}
		}
	}
	if o.Check && !o.Capture.Packets.Enabled {
		return fmt.Errorf("--check: packets are counted, and the group packets is off")
	}
	if len(o.loads()) == 0 {
		return fmt.Errorf("--flows and --requests: there is no load")
	}
	return nil
}

// A Kind of load.
type Kind string

// Kinds of load.
const (
	Bulk     Kind = "bulk"     // each connection sends as fast as it can
	Requests Kind = "requests" // each connection asks when the last answer has come
	Many     Kind = "many"     // all connections are opened, one after the other, and ask a few times each
)

// RequestBytes is the size of a request, and of its response.
const RequestBytes = 200

// Load is traffic between two namespaces.
type Load struct {
	Kind        Kind `json:"kind"`
	Connections int  `json:"connections"`
}

func (o OverheadOptions) loads() []Load {
	var out []Load
	for _, n := range o.Flows {
		if n > 0 {
			out = append(out, Load{Bulk, n})
		}
	}
	for _, n := range o.Requests {
		if n > 0 {
			out = append(out, Load{Requests, n})
		}
	}
	return out
}

// Runs returns how many runs the options ask for.
func (o OverheadOptions) Runs() int { return 2 * o.Pairs * len(o.loads()) }

// Run is one load, with empty programs at the hooks or with a recorder.
type Run struct {
	Load
	Recorded      bool    `json:"recorded"`
	Seconds       float64 `json:"seconds"`
	BitsPerSecond float64 `json:"bits_per_second,omitempty"`     // bulk: payload received
	PerSecond     float64 `json:"requests_per_second,omitempty"` // requests: answered ones
	P50           float64 `json:"p50_seconds,omitempty"`         // requests: from the request's write to the whole answer
	P99           float64 `json:"p99_seconds,omitempty"`
	Machine
	Recorder
	Checked *Checked `json:"checked,omitempty"`
}

// Checked is what counted beside a recorder, which has seen the same.
type Checked struct {
	PacketsIn   uint64 `json:"packets_in"`   // TCP packets, super-packets as one
	PacketsOut  uint64 `json:"packets_out"`  // ... that left
	SegmentsOut uint64 `json:"segments_out"` // as they are on the wire
}

// Machine is what a whole host did during a run.
type Machine struct {
	Packets uint64  `json:"packets"`        // through one end's interface, both ways; a super-packet is one
	CPU     float64 `json:"cpu_seconds"`    // of all CPUs, neither idle nor stolen by the hypervisor
	Stolen  float64 `json:"stolen_seconds"` // that the hypervisor gave to others
}

// PerPacket is the CPU time of the whole host for each packet, in ns.
func (m Machine) PerPacket() float64 { return m.CPU * 1e9 / float64(max(m.Packets, 1)) }

// Recorder is what a recorder did.
type Recorder struct {
	CPU       float64 `json:"recorder_cpu_seconds,omitempty"` // of its process, while the load ran
	AnonBytes uint64  `json:"rss_anon_bytes,omitempty"`       // the most that was seen
	Seen      uint64  `json:"seen,omitempty"`                 // by all hooks
	Stored    uint64  `json:"stored,omitempty"`
	Dropped   uint64  `json:"dropped,omitempty"`
	Missed    uint64  `json:"missed,omitempty"`
	Filtered  uint64  `json:"filtered,omitempty"` // of sockets of the other namespace
}

// Comparison is one figure of a load, with empty programs and recorded.
type Comparison struct {
	Load
	Figure   string  `json:"figure"`
	Unit     string  `json:"unit"`
	Empty    float64 `json:"empty"`    // median
	Recorded float64 `json:"recorded"` // median
	// Ratio is that of the medians.
	Ratio float64 `json:"ratio"`
	// PairRatio is the median of the ratios of neighbouring runs, which a host whose speed wanders
	// disturbs less; Lowest and Highest are their range.
	PairRatio float64 `json:"pair_ratio"`
	Lowest    float64 `json:"lowest"`
	Highest   float64 `json:"highest"`
}

// Figures of a Comparison.
const (
	Throughput  = "throughput"
	RequestRate = "requests"
	LatencyP50  = "latency p50"
	LatencyP99  = "latency p99"
	SystemCPU   = "system cpu per packet"
)

// OverheadResult is what recording costs.
type OverheadResult struct {
	CPUs        int          `json:"cpus"`
	Side        string       `json:"side"`
	NoOffload   bool         `json:"no_offload"`
	Comparisons []Comparison `json:"comparisons"`
	Runs        []Run        `json:"runs"`
}

// Recorders sums up what the recorders of all runs did; AnonBytes is the highest.
func (r OverheadResult) Recorders() (sum Recorder, seconds float64) {
	for _, run := range r.Runs {
		if !run.Recorded {
			continue
		}
		seconds += run.Seconds
		sum.CPU += run.Recorder.CPU
		sum.Seen += run.Seen
		sum.Stored += run.Stored
		sum.Dropped += run.Dropped
		sum.Missed += run.Missed
		sum.Filtered += run.Filtered
		sum.AnonBytes = max(sum.AnonBytes, run.AnonBytes)
	}
	return sum, seconds
}

// figure is one that a run has.
type figure struct {
	name, unit string
	of         func(Run) float64
}

// compare makes the comparisons of all loads. Runs of a load come in pairs.
func compare(runs []Run) []Comparison {
	var loads []Load
	for _, r := range runs {
		if !slices.Contains(loads, r.Load) {
			loads = append(loads, r.Load)
		}
	}
	var out []Comparison
	for _, l := range loads {
		figures := []figure{{Throughput, "bit/s", func(r Run) float64 { return r.BitsPerSecond }}}
		if l.Kind == Requests {
			figures = []figure{
				{RequestRate, "1/s", func(r Run) float64 { return r.PerSecond }},
				{LatencyP50, "s", func(r Run) float64 { return r.P50 }},
				{LatencyP99, "s", func(r Run) float64 { return r.P99 }},
			}
		}
		figures = append(figures, figure{SystemCPU, "ns", func(r Run) float64 { return r.PerPacket() }})
		for _, f := range figures {
			var empty, recorded []float64
			for _, r := range runs {
				switch {
				case r.Load != l:
				case r.Recorded:
					recorded = append(recorded, f.of(r))
				default:
					empty = append(empty, f.of(r))
				}
			}
			c := ratios(empty, recorded)
			c.Load, c.Figure, c.Unit = l, f.name, f.unit
			out = append(out, c)
		}
	}
	return out
}

// ratios compares the figures of pairs.
func ratios(empty, recorded []float64) Comparison {
	n := min(len(empty), len(recorded))
	if n == 0 {
		return Comparison{}
	}
	pairs := make([]float64, n)
	for i := range pairs {
		pairs[i] = recorded[i] / empty[i]
	}
	c := Comparison{Empty: median(empty), Recorded: median(recorded), PairRatio: median(pairs), Lowest: slices.Min(pairs), Highest: slices.Max(pairs)}
	c.Ratio = c.Recorded / c.Empty
	return c
}

// median of at least one value.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
