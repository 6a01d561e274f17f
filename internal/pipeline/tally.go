// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/json"

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

	// Unaccounted says that the capture's counters of this hook are not there, at least of one session: it was cut out of
	// a longer recording, or its recorder was killed before it could tell. Only Stored is known then, and the JSON has no other.
	Unaccounted bool `json:"-"`

	// AtLeast says that Seen is a lower bound: a recorder was killed after its last account, and what it had stored since
	// is counted as seen.
	AtLeast bool `json:"at_least,omitempty"`
}

// MarshalJSON leaves out what is not known.
func (c HookCount) MarshalJSON() ([]byte, error) {
	if c.Unaccounted {
		return json.Marshal(struct {
			Hook   string `json:"hook"`
			Stored uint64 `json:"stored"`
		}{c.Hook, c.Stored})
	}
	type plain HookCount
	return json.Marshal(plain(c))
}

// UnmarshalJSON is the reverse.
func (c *HookCount) UnmarshalJSON(text []byte) error {
	type plain HookCount
	aux := struct {
		*plain
		Seen *uint64 `json:"seen"`
	}{plain: (*plain)(c)}
	if err := json.Unmarshal(text, &aux); err != nil {
		return err
	}
	if c.Unaccounted = aux.Seen == nil; !c.Unaccounted {
		c.Seen = *aux.Seen
	}
	return nil
}

// Balanced says whether every event that was seen is accounted for, as far as that is known.
func (c HookCount) Balanced() bool {
	return c.Unaccounted || c.Seen == c.Stored+c.Dropped+c.Missed+c.Filtered
}

// Tally adds up what the blocks hold and what the capture said of it.
type Tally struct {
	stored [event.Hooks]uint64           // of all sessions
	fresh  [event.Hooks]bool             // the present session has some
	blind  [event.Hooks]bool             // a session that is over has some, and its capture did not count them
	ended  [event.Hooks]event.Counters   // of sessions that are over
	cpus   [][event.Hooks]event.Counters // of the present session, the last known
	killed bool                          // a session has no end: its last account is older than its last blocks
}

// Block counts the records of a block.
func (t *Tally) Block(info *block.Info) {
	for h, n := range info.Hooks {
		t.stored[h] += n
		t.fresh[h] = t.fresh[h] || n > 0
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
	t.blind = t.unaccounted()
	t.ended = t.counters()
	t.cpus, t.fresh = t.cpus[:0], [event.Hooks]bool{}
}

// unaccounted tells the hooks whose counters are not all there.
func (t *Tally) unaccounted() [event.Hooks]bool {
	blind := t.blind
	if len(t.cpus) == 0 {
		for h := range blind {
			blind[h] = blind[h] || t.fresh[h]
		}
	}
	return blind
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
	counters, blind := t.counters(), t.unaccounted()
	list := []HookCount{}
	for h := event.HookNone + 1; h < event.Hooks; h++ {
		c := counters[h]
		if c == (event.Counters{}) && t.stored[h] == 0 {
			continue
		}
		if blind[h] {
			list = append(list, HookCount{Hook: h.String(), Stored: t.stored[h], Unaccounted: true})
			continue
		}
		count := HookCount{
			Hook: h.String(), Seen: c.Seen, Stored: t.stored[h],
			Dropped: c.Dropped, Missed: c.Missed, Filtered: c.Filtered,
		}
		if least := count.Stored + count.Dropped + count.Missed + count.Filtered; t.killed && least > count.Seen {
			count.Seen, count.AtLeast = least, true
		}
		list = append(list, count)
	}
	return list
}
