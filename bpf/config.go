// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Config says what is captured. Key paths in configuration files begin with "capture.".
type Config struct {
	// Interfaces are names or globs ("eth*"); one that begins with "!" excludes. Without a
	// positive pattern all interfaces are meant, lo too. Those that appear later are
	// attached when they come.
	Interfaces []string `mapstructure:"interfaces"`
	// Netns is "all" (interfaces of the own network namespace, sockets of every one), "own"
	// (both of the own one) or the path of a namespace, such as /run/netns/lab or
	// /proc/4711/ns/net (both of that one).
	Netns string `mapstructure:"netns"`

	Packets Packets `mapstructure:"packets"`
	Sockets Sockets `mapstructure:"sockets"`
	Events  Events  `mapstructure:"events"`
	Filter  Filter  `mapstructure:"filter"`

	// Inventory records the connections that are there at the start, each with a sample and
	// its process.
	Inventory bool `mapstructure:"inventory"`
	// RingBytes is the size of the ring between kernel and reader: a power of two, 0: 32 MiB
	// for each CPU, at least 64 and at most 256 MiB.
	RingBytes int `mapstructure:"ring_bytes"`
	// FlushAge is how long a record may stay in a slot of a quiet CPU, and how often the reader has its turn. The command record, where nobody
	// waits for a record, takes 500 ms unless it is set.
	FlushAge time.Duration `mapstructure:"flush_age"`
	// Verbose puts the verifier's log into the error of a program that does not load.
	Verbose bool `mapstructure:"verbose"`

	noTCX bool // as on a kernel before 6.6, for tests
}

// Packets configures the group that records every TCP header on the interfaces.
type Packets struct {
	Enabled  bool `mapstructure:"enabled"`  // record every TCP header on the interfaces
	XDP      bool `mapstructure:"xdp"`      // see received packets by XDP, before the host spends anything on them; native XDP on a veth turns its peer's TSO off
	Checksum bool `mapstructure:"checksum"` // record the TCP checksum: two bytes that do not compress
}

// Samples says which samples of sockets are recorded.
type Samples string

// The values of Samples.
const (
	SamplesEvery   Samples = "every"   // at each segment that the hooks see
	SamplesLimited Samples = "limited" // at each segment, but on a CPU with more than LimitAbove of them up to a rate of each socket
	SamplesChanges Samples = "changes" // only if something of congestion control, RTT or loss state changed
	SamplesOff     Samples = "off"     // only the final one, when a socket is destroyed
)

// Transmit says where the socket of a sent segment is sampled.
type Transmit string

// The values of Transmit.
const (
	TransmitAuto   Transmit = "auto"   // fentry where the kernel runs it, else egress
	TransmitFentry Transmit = "fentry" // as a segment leaves TCP (fentry/__tcp_transmit_skb), on whatever device
	TransmitEgress Transmit = "egress" // as a packet leaves by one of the interfaces
)

// Sockets configures the group that samples the state of sockets.
type Sockets struct {
	Enabled bool `mapstructure:"enabled"` // sample the state of sockets
	// Samples says at which segments a socket's state is sampled. every: at every one that the hooks see; limited: at every one too, but on a CPU that has more than
	// limit_above of them a second, and for a quarter of a second after it on any other, only as long as the socket keeps to rate and burst and all of the CPU to cpu_rate,
	// and beyond that at the next segment it sends after tcp_cong_state_set has told of a change of its congestion state; changes: where congestion window, RTT, loss state or the peer's window is not that of its last
	// sample; off: only when it is destroyed.
	Samples    Samples `mapstructure:"samples"`
	LimitAbove int     `mapstructure:"limit_above"` // with samples: limited, segments a second, sampled or not, that one CPU has to have for its sockets to be limited; 0: they always are
	Rate       int     `mapstructure:"rate"`        // with samples: limited, samples of one socket in a second
	Burst      int     `mapstructure:"burst"`       // with samples: limited, samples that a socket may take at once: its first ones, and after a rest
	CPURate    int     `mapstructure:"cpu_rate"`    // with samples: limited, samples in a second that all sockets together have on such a CPU; 0: as many as each of them may have
	// Transmit is where the sockets of sent segments are sampled: fentry takes one sample of each segment as it leaves TCP,
	// for all devices and before the socket counts it; egress one of each packet at the interfaces, for kernels that refuse
	// fentry; auto is fentry where it works, else egress.
	Transmit Transmit `mapstructure:"transmit"`
}

// limitShift is LIMIT_SHIFT of sockets.h.
const limitShift = 20

// limit is what samples: limited asks of the programs, in 2^-limitShift jiffies: what one sample takes of a socket's time, by how much the socket may be
// ahead of its rate, and what one segment and one sample take of a CPU's time. All are 0 where there is no limit, above where it always holds, and cpu where it is only a socket's.
type limit struct{ step, ahead, above, cpu uint64 }

// limit is the limit for a kernel with hz jiffies a second.
func (s Sockets) limit(hz uint32) (l limit) {
	if s.Samples != SamplesLimited {
		return l
	}
	second := uint64(hz) << limitShift
	l.step = max(second/uint64(s.Rate), 1)
	l.ahead = l.step * uint64(s.Burst-1)
	if s.LimitAbove > 0 {
		l.above = max(second/uint64(s.LimitAbove), 1)
	}
	if s.CPURate > 0 {
		l.cpu = max(second/uint64(s.CPURate), 1)
	}
	return l
}

// Events configures the group of incidents.
type Events struct {
	Enabled bool `mapstructure:"enabled"` // record what happens to connections
	// Hooks are the names of the tracepoints. tcp_rcv_space_adjust, which is called at every read of a receiver, can be added.
	Hooks []string `mapstructure:"hooks"`
}

// EventHooks are the hooks of the group events.
func EventHooks() []event.Hook {
	return []event.Hook{
		event.HookSetState, event.HookRetransmitSKB, event.HookRetransmitSynAck,
		event.HookSendReset, event.HookReceiveReset, event.HookCongStateSet,
		event.HookBadChecksum, event.HookKfreeSKB, event.HookRcvSpaceAdjust,
	}
}

// DefaultConfig returns the defaults: everything on, but tcp_rcv_space_adjust, which fires
// at every read of an application.
func DefaultConfig() Config {
	var hooks []string
	for _, h := range EventHooks() {
		if h != event.HookRcvSpaceAdjust {
			hooks = append(hooks, h.String())
		}
	}
	return Config{
		Netns:     "all",
		Packets:   Packets{Enabled: true},
		Sockets:   Sockets{Enabled: true, Samples: SamplesLimited, LimitAbove: 10_000, Rate: 50, Burst: 100, CPURate: 5_000, Transmit: TransmitAuto},
		Events:    Events{Enabled: true, Hooks: hooks},
		Filter:    Filter{Sample: 1},
		Inventory: true,
		FlushAge:  100 * time.Millisecond,
	}
}

// Bounds of the configuration.
const (
	minRing     = 1 << 17 // three batches
	maxRing     = 1 << 30
	maxRate     = 1_000_000
	minFlushAge = time.Millisecond
	maxFlushAge = time.Second
)

// Validate reports all faults by their key paths and changes nothing.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf("capture."+format, args...)) }

	for i, p := range c.Interfaces {
		if _, err := path.Match(strings.TrimPrefix(p, "!"), ""); err != nil {
			fault("interfaces[%d]: %q is not a pattern: %v", i, p, err)
		} else if strings.TrimPrefix(p, "!") == "" {
			fault("interfaces[%d]: is empty", i)
		}
	}
	if c.Netns != "all" && c.Netns != "own" && !filepath.IsAbs(c.Netns) {
		fault("netns: %q is neither all, own nor an absolute path such as /run/netns/NAME", c.Netns)
	}
	switch c.Sockets.Samples {
	case SamplesEvery, SamplesLimited, SamplesChanges, SamplesOff:
	default:
		fault("sockets.samples: %q is none of every, limited, changes, off", c.Sockets.Samples)
	}
	if n := c.Sockets.LimitAbove; n < 0 || n > maxRate {
		fault("sockets.limit_above: %d is not from 0 to %d; samples: every has no limit", n, maxRate)
	}
	if n := c.Sockets.Rate; n < 1 || n > maxRate {
		fault("sockets.rate: %d is not from 1 to %d; samples: every has no limit", n, maxRate)
	}
	if n := c.Sockets.Burst; n < 1 || n > maxRate {
		fault("sockets.burst: %d is not from 1 to %d", n, maxRate)
	}
	if n := c.Sockets.CPURate; n < 0 || n > maxRate {
		fault("sockets.cpu_rate: %d is not from 0 to %d; samples: every has no limit", n, maxRate)
	}
	switch c.Sockets.Transmit {
	case TransmitAuto, TransmitFentry, TransmitEgress:
	default:
		fault("sockets.transmit: %q is none of auto, fentry, egress", c.Sockets.Transmit)
	}
	var names []string
	for _, h := range EventHooks() {
		names = append(names, h.String())
	}
	for i, name := range c.Events.Hooks {
		if !slices.Contains(names, name) {
			fault("events.hooks[%d]: %q is none of %s", i, name, strings.Join(names, ", "))
		}
	}
	if !c.Packets.Enabled && !c.Sockets.Enabled && !c.Events.Enabled {
		fault("packets.enabled: all groups are off, nothing would be captured")
	}
	if n := c.RingBytes; n != 0 && (n < minRing || n > maxRing || bits.OnesCount(uint(n)) != 1) {
		fault("ring_bytes: %d is not a power of two from %d to %d", n, minRing, maxRing)
	}
	if c.FlushAge < minFlushAge || c.FlushAge > maxFlushAge {
		fault("flush_age: %v is not between %v and %v", c.FlushAge, minFlushAge, maxFlushAge)
	}
	return errors.Join(append(errs, c.Filter.validate())...)
}

// ringBytes is the size of the ring for a number of CPUs.
func (c Config) ringBytes(cpus int) int {
	if c.RingBytes != 0 {
		return c.RingBytes
	}
	n := min(max(cpus*32<<20, 64<<20), 256<<20)
	return 1 << bits.Len(uint(n-1))
}

// wantsInterface tells whether an interface of that name is meant.
func (c Config) wantsInterface(name string) bool {
	any, match := false, false
	for _, p := range c.Interfaces {
		if not, ok := strings.CutPrefix(p, "!"); ok {
			if hit, _ := path.Match(not, name); hit {
				return false
			}
			continue
		}
		any = true
		if hit, _ := path.Match(p, name); hit {
			match = true
		}
	}
	return match || !any
}

// wantsHook tells whether a hook of the group events is switched on.
func (c Config) wantsHook(h event.Hook) bool {
	return c.Events.Enabled && slices.Contains(c.Events.Hooks, h.String())
}
