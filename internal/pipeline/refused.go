// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool/block"
)

// refusals remembers what a spool did not take (a full disk, a mount that is gone), so that the recording tells of the hole when it goes on: by a
// Lost record for each CPU, and by Accounting records that count it as dropped.
type refusals struct {
	dec   *block.Decoder
	raw   []byte
	cpus  []refusal
	links []byte // Link records, which come only once
	open  bool   // there is something that is not told yet
	batch []byte
}

// refusal is what was refused of one CPU's records.
type refusal struct {
	hole event.Lost          // not told yet, if anything is counted in it
	sum  [event.Hooks]uint64 // of the session
	told [event.Hooks]uint64 // of that, what an Accounting record has told
}

func (r *refusals) cpu(n uint16) *refusal {
	for int(n) >= len(r.cpus) {
		r.cpus = append(r.cpus, refusal{})
	}
	return &r.cpus[n]
}

// add takes note of a block that was refused.
func (r *refusals) add(sealed []byte) {
	if r.dec == nil {
		r.dec = block.NewDecoder()
	}
	var err error
	if r.raw, err = r.dec.Decode(r.raw[:0], sealed); err != nil {
		panic("BUG: sealed block: " + err.Error())
	}
	for h := range event.All(r.raw) {
		switch {
		case h.Kind == event.KindLost: // ours, or the capture's
			l := h.Lost()
			for hook, n := range l.Count {
				r.lose(h.CPU, event.Hook(hook), l.First, l.Last, n)
			}
		case h.Kind == event.KindLink:
			r.links, r.open = append(r.links, h.Bytes()...), true
		case h.Kind < event.KindTick && h.Hook < event.Hooks:
			r.lose(h.CPU, h.Hook, h.Time, h.Time, 1)
			r.cpu(h.CPU).sum[h.Hook]++
		}
	}
}

func (r *refusals) lose(cpu uint16, hook event.Hook, first, last uint64, n uint32) {
	if n == 0 {
		return
	}
	l := &r.cpu(cpu).hole
	if l.Last == 0 || first < l.First {
		l.First = first
	}
	l.Last = max(l.Last, last)
	l.Count[hook] += min(n, math.MaxUint32-l.Count[hook])
	r.open = true
}

// pending returns what is to be told, and takes it for told: should the block that it gets into be refused as well, add finds it there.
func (r *refusals) pending() []byte {
	if !r.open {
		return nil
	}
	r.batch = append(r.batch[:0], r.links...)
	for cpu := range r.cpus {
		if l := &r.cpus[cpu].hole; l.Last != 0 {
			l.Time, l.CPU = l.Last, uint16(cpu)
			r.batch = event.Append(r.batch, l)
			*l = event.Lost{}
		}
	}
	r.links, r.open = r.links[:0], false
	return r.batch
}

// account counts what was refused as dropped in a batch of the capture's own records. It returns the batch, or a copy of it.
func (r *refusals) account(batch []byte) []byte {
	if len(r.cpus) == 0 {
		return batch
	}
	r.batch = append(r.batch[:0], batch...)
	for h := range event.All(r.batch) {
		if h.Kind != event.KindAccounting || int(h.CPU) >= len(r.cpus) {
			continue
		}
		c := &r.cpus[h.CPU]
		for hook := range c.sum {
			h.Accounting().Hook[hook].Dropped += c.sum[hook]
		}
		c.told = c.sum
	}
	return r.batch
}

// rest tells what no Accounting record has told of the hook.
func (r *refusals) rest(hook event.Hook) (n uint64) {
	for i := range r.cpus {
		n += r.cpus[i].sum[hook] - r.cpus[i].told[hook]
	}
	return n
}
