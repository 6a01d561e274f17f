// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// The wall clock that the records give is the host's.
func TestAnchorsTellTheWallClock(t *testing.T) {
	a, err := newAnchors()
	require.NoError(t, err)
	b := a.append(nil, event.AnchorStart)
	anchor := event.At(b).Anchor()
	seen := look()
	require.LessOrEqual(t, seen.error(anchor), int64(1e6))
	ahead := anchor.TAI - anchor.Realtime
	require.InDelta(t, (ahead+5e8)/1e9*1e9, ahead, 1e6, "TAI is whole seconds ahead")

	// The thread may be interrupted between two clocks: what most of many looks say.
	due := func() bool {
		n := 0
		for range 101 {
			if a.due(monotonic()) {
				n++
			}
		}
		return n > 50
	}
	require.False(t, due())
	a.last.Realtime += 400_000 // as if the clock had been set back by 0.4 ms
	require.True(t, due())
	a.last.Realtime -= 400_000
	a.last.Time -= anchorEvery
	a.last.Realtime -= anchorEvery
	require.True(t, due())
}

// sighting is what the wall clock showed at a time of the monotonic one, known to within doubt.
type sighting struct {
	mono  uint64
	wall  int64
	doubt int64
}

func look() sighting {
	t0 := monotonic()
	wall := clock(unix.CLOCK_REALTIME)
	t1 := monotonic()
	return sighting{t0 + (t1-t0)/2, wall, int64(t1 - t0)}
}

// error tells how far the wall time by an anchor is from the one seen, beyond the doubt.
func (s sighting) error(a *event.Anchor) int64 {
	d := a.Realtime + int64(s.mono-a.Time) - s.wall
	return max(d, -d) - s.doubt
}

// The clock is really set, forth and back, by a lot and by little, with records under way. Wall times by the
// anchors are right to a millisecond on both sides. It runs in a guest, where nobody else needs the clock.
func TestWallClockThatIsSet(t *testing.T) {
	if os.Getenv("TCBEE_KERNELTEST") != "1" {
		t.Skip("sets the clock: in guests of make test-kernel only (TCBEE_KERNELTEST=1)")
	}
	l := lab(t, netlab.Options{})
	var seen []sighting
	var set []uint64 // when
	looks := func() {
		for range 100 {
			seen = append(seen, look())
			time.Sleep(2 * time.Millisecond)
		}
	}
	r, a := during(t, in(l.A), func(*Capture) {
		done := make(chan error, 1)
		go func() {
			_, err := l.Exchange(bounded(t), netlab.Exchange{Connections: 20, Requests: 50})
			done <- err
		}()
		looks()
		for _, step := range []time.Duration{90 * time.Minute, -30 * time.Second, 3 * time.Millisecond, -2 * time.Millisecond, -89 * time.Minute} {
			set = append(set, monotonic())
			to := unix.NsecToTimespec(clock(unix.CLOCK_REALTIME) + int64(step))
			require.NoError(t, unix.ClockSettime(unix.CLOCK_REALTIME, &to))
			looks()
		}
		require.NoError(t, <-done)
	})
	r.identity(t, a)
	require.Equal(t, "stop", stop(r.raw))
	var anchors []*event.Anchor
	for h := range event.All(r.raw) {
		if h.Kind == event.KindAnchor {
			anchors = append(anchors, h.Anchor())
			require.InDelta(t, anchors[0].TAI-anchors[0].Realtime, h.Anchor().TAI-h.Anchor().Realtime, 1e6, "both clocks are set")
		}
	}
	// Between the setting and the anchor that tells it nobody can know better.
	unknown := func(at uint64) bool {
		for _, begin := range set {
			end := ^uint64(0)
			for _, a := range anchors {
				if a.Time >= begin {
					end = min(end, a.Time)
				}
			}
			if at >= begin && at <= end {
				return true
			}
		}
		return false
	}
	skipped := 0
	for _, s := range seen {
		last := anchors[0]
		for _, a := range anchors {
			if a.Time <= s.mono && a.Time >= last.Time {
				last = a
			}
		}
		if unknown(s.mono) {
			skipped++
			continue
		}
		require.LessOrEqual(t, s.error(last), int64(1e6), "ns, at %d by the anchor of %d", s.mono, last.Time)
	}
	require.Less(t, skipped, len(seen)/10)
	for _, begin := range set {
		for _, a := range anchors {
			if a.Time >= begin {
				t.Logf("set at %d, told after %v", begin, time.Duration(a.Time-begin))
				break
			}
		}
	}
}

func TestReadersClockIsNeverAheadOfTheKernels(t *testing.T) {
	for range 1000 {
		before := monotonic()
		require.LessOrEqual(t, before, uint64(clock(unix.CLOCK_MONOTONIC)))
		require.LessOrEqual(t, before, monotonic())
	}
}
