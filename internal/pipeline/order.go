// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"slices"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Limits of the merge. They bound what a damaged or hostile spool can make it hold, and how far
// it looks for an inversion; they are part of what replay computes, so no setting changes them.
const (
	maxHeld      = 512 << 20 // bytes of records held back while no Tick comes
	inversionNS  = 200_000   // two events of one socket are put in order if they are this close
	inversionGap = 64        // and at most so many records apart
	seenBits     = 10
)

// order brings records from the order in which CPUs handed them over into the kernel's
// order. It holds records back until a Tick says that nothing earlier can come, then releases
// them by time; records of one socket that are nearly simultaneous go by the socket's own
// counter, because clocks of different CPUs differ a little. The result depends on nothing
// but the sequence of records.
type order struct {
	held []byte // records not yet released, back to back
	cpus []run  // one queue for each CPU number seen
	late uint64 // records that came after a Tick had promised they would not
	mark uint64 // the last Tick's time

	out   []ref  // scratch of release
	spare []byte // scratch of compact
	seen  [1 << seenBits]struct {
		cookie uint64
		seq    uint32
	} // scratch of mend: the last counter of some sockets
}

// ref is a record in held.
type ref struct {
	time uint64
	off  int
}

// run is what one CPU has handed over and is not released yet.
type run struct {
	refs   []ref
	sorted bool
	pos    int // of the merge
}

// add copies one record and holds it back.
func (o *order) add(h *event.Header) {
	if h.Time < o.mark {
		o.late++
	}
	cpu := int(h.CPU)
	for cpu >= len(o.cpus) {
		o.cpus = append(o.cpus, run{sorted: true})
	}
	r := &o.cpus[cpu]
	if n := len(r.refs); n > 0 && r.refs[n-1].time > h.Time {
		r.sorted = false
	}
	r.refs = append(r.refs, ref{h.Time, len(o.held)})
	o.held = append(o.held, h.Bytes()...)
}

// full says that too much is held back, and all of it must go although no Tick came.
func (o *order) full() bool { return len(o.held) > maxHeld }

// release calls yield for the records with a time before mark, in order. Records that yield
// sees are valid during the call.
func (o *order) release(mark uint64, yield func(*event.Header) error) error {
	o.mark = max(o.mark, mark)
	o.out = o.out[:0]
	for {
		best := -1
		var bestTime uint64
		for i := range o.cpus {
			r := &o.cpus[i]
			if !r.sorted {
				slices.SortStableFunc(r.refs, func(a, b ref) int {
					switch {
					case a.time < b.time:
						return -1
					case a.time > b.time:
						return 1
					}
					return 0
				})
				r.sorted = true
			}
			if r.pos < len(r.refs) && r.refs[r.pos].time < mark && (best < 0 || r.refs[r.pos].time < bestTime) {
				best, bestTime = i, r.refs[r.pos].time
			}
		}
		if best < 0 {
			break
		}
		// Everything of this CPU up to the next CPU's head goes at once.
		limit := mark
		for i := range o.cpus {
			if r := &o.cpus[i]; i != best && r.pos < len(r.refs) && r.refs[r.pos].time < limit {
				limit = r.refs[r.pos].time
				if i > best {
					limit++ // equal times: the lower CPU number first
				}
			}
		}
		r := &o.cpus[best]
		for r.pos < len(r.refs) && r.refs[r.pos].time < limit {
			o.out = append(o.out, r.refs[r.pos])
			r.pos++
		}
	}
	o.mend()
	for _, f := range o.out {
		if err := yield(o.at(f)); err != nil {
			return err
		}
	}
	o.compact()
	return nil
}

func (o *order) at(f ref) *event.Header { return event.At(o.held[f.off:]) }

// mend moves records of a socket that were stamped out of its own order.
func (o *order) mend() {
	clear(o.seen[:])
	for i, f := range o.out {
		h := o.at(f)
		if h.SockSeq == 0 {
			continue
		}
		// Nearly always the socket's previous record is the last that its slot saw, and in order.
		slot := &o.seen[(h.Cookie*0x9e3779b97f4a7c15)>>(64-seenBits)]
		if slot.cookie == h.Cookie && int32(h.SockSeq-slot.seq) > 0 {
			slot.seq = h.SockSeq
			continue
		}
		to := i
		for j := i - 1; j >= 0 && i-j <= inversionGap && h.Time-o.out[j].time <= inversionNS; j-- {
			if p := o.at(o.out[j]); p.Cookie == h.Cookie && p.SockSeq != 0 && int32(p.SockSeq-h.SockSeq) > 0 {
				to = j
			}
		}
		if to < i {
			copy(o.out[to+1:i+1], o.out[to:i])
			o.out[to] = f
			continue
		}
		slot.cookie, slot.seq = h.Cookie, h.SockSeq
	}
}

// compact forgets what was released. What is left moves to the other buffer.
func (o *order) compact() {
	o.spare = o.spare[:0]
	for i := range o.cpus {
		r := &o.cpus[i]
		n := copy(r.refs, r.refs[r.pos:])
		r.refs, r.pos = r.refs[:n], 0
		for j := range r.refs {
			b := o.at(r.refs[j]).Bytes()
			r.refs[j].off = len(o.spare)
			o.spare = append(o.spare, b...)
		}
	}
	o.held, o.spare = o.spare, o.held
}
