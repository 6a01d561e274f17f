// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool/block"
)

// HookCount is the account of one hook. In an unbroken recording
// Seen = Stored + Dropped + Missed + Filtered.
type HookCount struct {
	Hook     string `json:"hook"`
	Seen     uint64 `json:"seen"`     // TCP events that the hook met, missed ones included
	Stored   uint64 `json:"stored"`   // records of it in the spool
	Dropped  uint64 `json:"dropped"`  // the ring had no room
	Missed   uint64 `json:"missed"`   // the kernel did not run the program (recursion)
	Filtered uint64 `json:"filtered"` // not wanted by the configuration
}

// Balanced says whether every event that was seen is accounted for.
func (c HookCount) Balanced() bool {
	return c.Seen == c.Stored+c.Dropped+c.Missed+c.Filtered
}

// Tally adds up what the blocks hold and what the capture said of it.
type Tally struct {
	stored [event.Hooks]uint64
	ended  [event.Hooks]event.Counters   // of sessions that are over
	cpus   [][event.Hooks]event.Counters // of the present session, the last known
}

// Block counts the records of a block.
func (t *Tally) Block(info *block.Info) {
	for h, n := range info.Hooks {
		t.stored[h] += n
	}
}

// Observe takes note of Accounting records; it needs no others.
func (t *Tally) Observe(h *event.Header) {
	if h.Kind != event.KindAccounting {
		return
	}
	for int(h.CPU) >= len(t.cpus) {
		t.cpus = append(t.cpus, [event.Hooks]event.Counters{})
	}
	t.cpus[h.CPU] = h.Accounting().Hook
}

// fold ends a session: the counters of the next one begin at zero.
func (t *Tally) fold() {
	t.ended = t.counters()
	t.cpus = t.cpus[:0]
}

func (t *Tally) counters() [event.Hooks]event.Counters {
	sum := t.ended
	for i := range t.cpus {
		for h, c := range &t.cpus[i] {
			sum[h].Seen += c.Seen
			sum[h].Dropped += c.Dropped
			sum[h].Missed += c.Missed
			sum[h].Filtered += c.Filtered
		}
	}
	return sum
}

// Hooks returns the account of every hook that met anything, in the order of their numbers.
func (t *Tally) Hooks() []HookCount {
	counters := t.counters()
	list := []HookCount{}
	for h := event.HookNone + 1; h < event.Hooks; h++ {
		c := counters[h]
		if c == (event.Counters{}) && t.stored[h] == 0 {
			continue
		}
		list = append(list, HookCount{
			Hook: h.String(), Seen: c.Seen, Stored: t.stored[h],
			Dropped: c.Dropped, Missed: c.Missed, Filtered: c.Filtered,
		})
	}
	return list
}
