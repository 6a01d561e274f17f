// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// slotLevels is LEVELS of transport.h: slots of one CPU.
const slotLevels = 4

// slots are the kernel's gathering slots, mapped read-only.
type slots struct {
	mem   []byte
	all   []*programsSlot
	cpus  int
	flush *ebpf.Program

	free []uint64              // by slot: the last time at which it was seen free
	over [][event.Hooks]uint64 // by CPU: what of Over was told
	last uint64                // time of the last round
}

func newSlots(m *ebpf.Map, flush *ebpf.Program, cpus int) (*slots, error) {
	// Once now: what the library finds out at its first run takes rights that the process may give up soon.
	if _, err := flush.Run(&ebpf.RunOptions{Flags: unix.BPF_F_TEST_RUN_ON_CPU}); err != nil {
		return nil, explain("send the records of quiet CPUs", err, false)
	}
	stride := int(unsafe.Sizeof(programsSlot{})+7) &^ 7
	mem, err := unix.Mmap(m.FD(), 0, stride*cpus*slotLevels, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the slots: %w", err)
	}
	s := &slots{mem: mem, cpus: cpus, flush: flush,
		free: make([]uint64, cpus*slotLevels), over: make([][event.Hooks]uint64, cpus)}
	for i := range cpus * slotLevels {
		s.all = append(s.all, (*programsSlot)(unsafe.Pointer(&mem[i*stride])))
	}
	return s, nil
}

func (s *slots) close() error { return unix.Munmap(s.mem) }

// oldest returns a time such that no record that slot i holds or will get is older, given
// that it is now. The order of the loads matters: a hook takes busy before it reads
// the clock, sets First before it lets go, and a failed send sets LostFirst before it clears First.
func (s *slots) oldest(i int, now uint64) uint64 {
	slot := s.all[i]
	if atomic.LoadUint32(&slot.Busy) == 0 {
		defer func() { s.free[i] = now }()
	} else {
		now = s.free[i]
	}
	if t := atomic.LoadUint64(&slot.First); t != 0 {
		now = min(now, t)
	}
	if t := atomic.LoadUint64(&slot.Batch.LostFirst); t != 0 {
		now = min(now, t)
	}
	return now
}

// sweep has every CPU send what it gathered before the time until, and returns a time such
// that all records older than it are in the ring by then.
func (s *slots) sweep(now, until uint64) (uint64, error) {
	oldest := now
	for cpu := range s.cpus {
		at := uint64(math.MaxUint64)
		for try := 0; ; try++ {
			at = math.MaxUint64
			for i := cpu * slotLevels; i < (cpu+1)*slotLevels; i++ {
				at = min(at, s.oldest(i, now))
			}
			if at >= until || try == 3 {
				break
			}
			_, err := s.flush.Run(&ebpf.RunOptions{Flags: unix.BPF_F_TEST_RUN_ON_CPU, CPU: uint32(cpu)})
			if errors.Is(err, unix.ENXIO) {
				at = now // offline: nobody writes there; the rest is read at the end
				break
			}
			if err != nil {
				return 0, fmt.Errorf("flush CPU %d: %w", cpu, err)
			}
		}
		oldest = min(oldest, at)
	}
	return oldest, nil
}

// overs appends a Lost for each CPU on which no slot was free for an event since the last call.
func (s *slots) overs(dst []byte, now uint64) []byte {
	for cpu := range s.cpus {
		slot, told := s.all[cpu*slotLevels], &s.over[cpu]
		var lost event.Lost
		any := false
		for h := range told {
			n := atomic.LoadUint64(&slot.Apart[h].Over)
			if n != told[h] {
				lost.Count[h] = uint32(n - told[h])
				told[h] = n
				any = true
			}
		}
		if any {
			lost.Time, lost.CPU = now, uint16(cpu)
			lost.First, lost.Last = s.last, now
			dst = event.Append(dst, &lost)
		}
	}
	s.last = now
	return dst
}

// counters returns the hooks' counters of a CPU, without what the kernel missed.
func (s *slots) counters(cpu int) (c [event.Hooks]event.Counters) {
	for level := range slotLevels {
		slot := s.all[cpu*slotLevels+level]
		for h := range c {
			tally, apart := &slot.Tally[h], &slot.Apart[h]
			over := atomic.LoadUint64(&apart.Over)
			passed := atomic.LoadUint64(&apart.Filtered) + atomic.LoadUint64(&apart.Limited)
			c[h].Seen += atomic.LoadUint64(&tally.Seen) + over + passed
			c[h].Dropped += atomic.LoadUint64(&slot.Dropped[h]) + over
			c[h].Filtered += atomic.LoadUint64(&tally.Filtered) + atomic.LoadUint64(&tally.Limited) + passed
		}
	}
	return c
}

// again is how many events of each hook its second program told of.
func (s *slots) again() (n [event.Hooks]uint64) {
	for cpu := range s.cpus {
		slot := s.all[cpu*slotLevels]
		for h := range n {
			n[h] += atomic.LoadUint64(&slot.Apart[h].Again)
		}
	}
	return n
}

// limited is the number of samples that the limit left out (limited in sockets.h).
func (s *slots) limited() (n uint64) {
	for _, slot := range s.all {
		for h := range slot.Tally {
			n += atomic.LoadUint64(&slot.Tally[h].Limited) + atomic.LoadUint64(&slot.Apart[h].Limited)
		}
	}
	return n
}

// rest appends what could not be sent: records left in slots and losses not told. Only for
// the end, when no program runs any more.
func (s *slots) rest(dst []byte) []byte {
	for _, slot := range s.all {
		dst = appendLost(dst, slot.Batch.LostFirst, slot.Batch.LostLast, slot.Batch.Lost, slot.Batch.Cpu)
		dst = append(dst, slot.Data[:slot.Len]...)
	}
	return dst
}

// appendLost appends a Lost if there was a loss.
func appendLost(dst []byte, first, last uint64, count [event.Hooks]uint32, cpu uint16) []byte {
	if first == 0 {
		return dst
	}
	l := event.Lost{First: first, Last: last, Count: count}
	l.Time, l.CPU = last, cpu
	return event.Append(dst, &l)
}
