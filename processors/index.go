// SPDX-License-Identifier: Apache-2.0

package processors

import "hash/maphash"

// index finds connections by their addresses: open addressing with linear probing and
// deletion by moving back, so that it never grows old. Nothing that the Table tells depends
// on the order in it, and so the seed of its hash may be random, which keeps strangers from
// choosing addresses that collide.
type index struct {
	seed    maphash.Seed
	entries []entry // len is a power of two
	used    int
}

// entry is 0 while free. ref is the slot + 1, negative if the connection is stored under
// the reverse of its key.
type entry struct {
	hash uint32
	ref  int32
}

const minIndex = 64

func newIndex() index {
	return index{seed: maphash.MakeSeed(), entries: make([]entry, minIndex)}
}

func (x *index) hash(t *tuple) uint64 { return maphash.Comparable(x.seed, *t) }

// add stores the slot under the hash.
func (x *index) add(hash uint64, slot int32, reversed bool) {
	if x.used*8 >= len(x.entries)*5 {
		x.grow()
	}
	e := entry{hash: uint32(hash), ref: slot + 1}
	if reversed {
		e.ref = -e.ref
	}
	x.put(e)
	x.used++
}

func (x *index) put(e entry) {
	mask := uint32(len(x.entries) - 1)
	i := e.hash & mask
	for x.entries[i].ref != 0 {
		i = (i + 1) & mask
	}
	x.entries[i] = e
}

func (x *index) grow() {
	old := x.entries
	x.entries = make([]entry, 2*len(old))
	for _, e := range old {
		if e.ref != 0 {
			x.put(e)
		}
	}
}

// remove takes the slot's entry with this hash out.
func (x *index) remove(hash uint64, slot int32, reversed bool) {
	ref := slot + 1
	if reversed {
		ref = -ref
	}
	mask := uint32(len(x.entries) - 1)
	i := uint32(hash) & mask
	for x.entries[i].ref != ref {
		if x.entries[i].ref == 0 {
			panic("BUG: connection is not in the index")
		}
		i = (i + 1) & mask
	}
	for j := i; ; {
		j = (j + 1) & mask
		e := x.entries[j]
		if e.ref == 0 {
			break
		}
		// e may move to i if its home does not lie between i and j.
		if home := e.hash & mask; (j-home)&mask >= (j-i)&mask {
			x.entries[i] = e
			i = j
		}
	}
	x.entries[i] = entry{}
	x.used--
}
