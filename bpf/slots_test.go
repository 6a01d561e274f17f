// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// hold marks slots of a CPU as busy, as a hook that was interrupted does, or lets them go.
func hold(t *testing.T, c *Capture, cpu, levels int, busy uint32) {
	t.Helper()
	for level := range levels {
		i := uint32(cpu*slotLevels + level)
		var s programsSlot
		require.NoError(t, c.obj.coll.Maps[programsMapSlots].Lookup(i, &s))
		s.Busy = busy
		require.NoError(t, c.obj.coll.Maps[programsMapSlots].Put(i, s))
	}
}

// A hook that finds the slot of its CPU busy gathers in the next; what finds none is counted
// and told. No Tick passes a time at which a busy slot may still get records.
func TestNestedHooksLoseNothing(t *testing.T) {
	requireBPF(t)
	cfg := benchConfig()
	cfg.Inventory = false
	c, err := Open(t.Context(), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	g, err := NewGenerator(c, 8)
	require.NoError(t, err)
	defer g.Close()
	runtime.LockOSThread() // and never unlocked: the thread's affinity ends with it
	require.NoError(t, pin(0))
	var r recorded
	var ticks []uint64
	read := func() {
		for want := len(ticks) + 2; len(ticks) < want; {
			b, err := c.Next(t.Context())
			require.NoError(t, err)
			r.add(t, b)
			for h := range event.All(b) {
				if h.Kind == event.KindTick {
					ticks = append(ticks, h.Time)
				}
			}
		}
	}
	seen := func(level int) uint64 {
		s := c.slots.all[level]
		return s.Tally[event.HookTCIngress].Seen + s.Tally[event.HookTCEgress].Seen
	}
	const n = 999
	_, err = g.cost(n)
	require.NoError(t, err)
	require.EqualValues(t, n, seen(0))

	hold(t, c, 0, 1, 1)
	_, err = g.cost(n)
	require.NoError(t, err)
	require.EqualValues(t, n, seen(1), "the second slot gathers")

	hold(t, c, 0, slotLevels, 1)
	held := monotonic()
	_, err = g.cost(n)
	require.NoError(t, err)
	read()
	require.NotEmpty(t, ticks)
	require.Less(t, ticks[len(ticks)-1], held, "a Tick passed a busy slot")
	hold(t, c, 0, slotLevels, 0)
	read()
	require.Greater(t, ticks[len(ticks)-1], held, "Ticks go on")

	r.add(t, collect(t, c))
	a := c.Accounting()
	r.identity(t, a)
	in, out := a.Total[event.HookTCIngress], a.Total[event.HookTCEgress]
	require.EqualValues(t, 3*n, in.Seen+out.Seen)
	require.EqualValues(t, n, in.Dropped+out.Dropped)
	lost := uint32(0)
	for h := range event.All(r.raw) {
		if h.Kind == event.KindLost {
			require.LessOrEqual(t, h.Lost().First, held)
			require.GreaterOrEqual(t, h.Lost().Last, held)
			lost += h.Lost().Count[event.HookTCIngress] + h.Lost().Count[event.HookTCEgress]
		}
	}
	require.EqualValues(t, n, lost)
	require.Equal(t, "stop", stop(r.raw))
}
