// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// What the first program of a CPU says of itself to the second (transport.h).
const (
	never = iota
	begun
	takenBack
)

// firstSlots returns the first slot of each CPU, to be written, too.
func firstSlots(t *testing.T, c *Capture) (all []*programsSlot) {
	t.Helper()
	mem, err := unix.Mmap(c.obj.coll.Maps[programsMapSlots].FD(), 0, len(c.slots.mem), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(mem)) })
	for cpu := range c.obj.cpus {
		all = append(all, (*programsSlot)(unsafe.Pointer(&mem[cpu*slotLevels*len(mem)/len(c.slots.all)])))
	}
	return all
}

// An event that interrupts the program of its own tracepoint is told by the second one. The interruption cannot be had at will:
// here all first programs are gone and seem to be interrupted.
func TestTracepointsThatInterruptTheirProgramAreTold(t *testing.T) {
	l := lab(t, netlab.Options{})
	ctx := bounded(t)
	hooks := []event.Hook{event.HookTCPProbe, event.HookSetState, event.HookDestroySock, event.HookReceiveReset}
	traffic := func() {
		_, err := l.Exchange(ctx, netlab.Exchange{Connections: 30, Requests: 4, Reset: true})
		require.NoError(t, err)
		require.NoError(t, l.A.Quiet(ctx))
		require.NoError(t, l.B.Quiet(ctx))
	}
	var fired firings
	var again [event.Hooks]uint64
	r, a := during(t, in(l.A), func(c *Capture) {
		for _, p := range c.programs {
			if i := slices.Index(c.links, p.at); p.at != nil && i >= 0 {
				require.NoError(t, p.at.Close())
				c.links = slices.Delete(c.links, i, i+1)
			}
		}
		traffic()
		quiet := c.Accounting()
		for _, h := range hooks {
			require.Zero(t, quiet.Total[h].Seen, "%v: the second program tells what the first is there for", h)
		}

		running := firstSlots(t, c)
		fired = fire(t, l, l.A, hooks...)
		for _, h := range hooks {
			for _, cpu := range running {
				cpu.Inside[h] = 1
			}
		}
		traffic()
		again = c.slots.again()
	})
	r.identity(t, a)
	fired.told(t, r, a)
	for _, h := range hooks {
		require.NotZero(t, a.Total[h].Seen, "%v", h)
		require.Zero(t, a.Total[h].Missed, "%v", h)
		require.Equal(t, a.Total[h].Seen, again[h], "%v: all of them by the second program", h)
	}
}

// What the second program goes by: the first one tells while it runs, and only then.
func TestTracepointsTellWhileTheyRun(t *testing.T) {
	l := lab(t, netlab.Options{})
	r, a := during(t, in(l.A), func(c *Capture) {
		running := firstSlots(t, c)
		var seen, stop atomic.Bool
		var look sync.WaitGroup
		look.Go(func() {
			for !seen.Load() && !stop.Load() {
				for _, cpu := range running {
					if *(*uint8)(unsafe.Pointer(&cpu.Inside[event.HookTCPProbe])) != 0 {
						seen.Store(true)
					}
				}
			}
		})
		defer look.Wait()
		defer stop.Store(true)
		for deadline := time.Now().Add(20 * time.Second); !seen.Load() && time.Now().Before(deadline); {
			_, err := l.Transfer(bounded(t), netlab.Transfer{Bytes: 32 << 20})
			require.NoError(t, err)
		}
		require.True(t, seen.Load(), "tcp_probe")
		require.NoError(t, l.A.Quiet(bounded(t)))
		require.NoError(t, l.B.Quiet(bounded(t)))
		for i, cpu := range running {
			require.Zero(t, cpu.Inside, "CPU %d", i)
		}
	})
	r.identity(t, a)
}

// The second program may not run before the first, for which it would take itself to be interrupting: with both, nothing is
// told twice, even where the first seems to run already.
func TestTheFirstProgramRunsFirst(t *testing.T) {
	for _, way := range []Transmit{TransmitFentry, TransmitEgress} {
		t.Run(string(way), func(t *testing.T) {
			requireTransmit(t, way)
			l := lab(t, netlab.Options{})
			cfg := in(l.A)
			cfg.Sockets.Transmit = way
			fired := fire(t, l, l.A, event.HookTCPProbe, event.HookSetState, event.HookDestroySock)
			const rounds = 60
			r, a := during(t, cfg, func(c *Capture) {
				running := firstSlots(t, c)
				said := uint8(never)
				pretend := func() {
					said = (said + 1) % (takenBack + 1)
					for _, cpu := range running {
						for h := range cpu.Inside {
							cpu.Inside[h] = 1
						}
						for h := range cpu.Begun {
							cpu.Begun[h] = said
						}
					}
				}
				pretend()
				conn, peer := connect(t, l.A, l.B, l.B.IPv4, "")
				b := make([]byte, 100)
				for range rounds {
					pretend()
					_, err := conn.Write(b)
					require.NoError(t, err)
					_, err = io.ReadFull(peer, b)
					require.NoError(t, err)
					pretend()
					_, err = peer.Write(b)
					require.NoError(t, err)
					_, err = io.ReadFull(conn, b)
					require.NoError(t, err)
				}
				pretend()
				require.NoError(t, conn.Close())
				require.NoError(t, peer.Close())
				require.NoError(t, l.A.Quiet(bounded(t)))
			})
			r.identity(t, a)
			fired.told(t, r, a)
			require.GreaterOrEqual(t, r.stored[event.HookTransmit], uint64(rounds))
			require.LessOrEqual(t, r.stored[event.HookTransmit], r.stored[event.HookTCEgress])
		})
	}
}

// needsWholeBottomHalves skips where bottom halves are preempted, so that of two events on a CPU neither need be over before the other.
func needsWholeBottomHalves(t *testing.T) {
	t.Helper()
	if b, err := os.ReadFile("/sys/kernel/realtime"); err == nil && strings.TrimSpace(string(b)) == "1" {
		t.Skip("a kernel with PREEMPT_RT")
	}
}

// The kernel leaves the first program out, too, where the one that is interrupted does not say yet, or any more, that it is inside.
// Segments that bottom halves receive are told all the same, if the last one was not left out: here the first program is gone.
func TestSegmentsThatInterruptBetweenProgramsAreTold(t *testing.T) {
	needsWholeBottomHalves(t)
	l := lab(t, netlab.Options{})
	const h = event.HookTCPProbe
	fired := fire(t, l, l.A, h)
	r, a := during(t, in(l.A), func(c *Capture) {
		cpus := firstSlots(t, c)
		traffic := func() (events, told uint64) {
			own := func() uint64 { a := c.Accounting().Total[h]; return a.Seen - a.Filtered - a.Missed }
			events, told = fired.of(t, h), own()
			_, err := l.Exchange(bounded(t), netlab.Exchange{Connections: 10, Requests: 20})
			require.NoError(t, err)
			require.NoError(t, l.A.Quiet(bounded(t)))
			require.NoError(t, l.B.Quiet(bounded(t)))
			return fired.of(t, h) - events, own() - told
		}
		say := func(inside, begun uint8) {
			for _, cpu := range cpus {
				cpu.Inside[h], cpu.Begun[0] = inside, begun
			}
		}
		_, _ = traffic()
		for _, cpu := range cpus {
			require.NotEqual(t, begun, cpu.Begun[0], "what the first program says is not taken back")
		}

		first := c.programs[slices.IndexFunc(c.programs, func(p loaded) bool { return p.hook == h })].at
		i := slices.Index(c.links, first)
		require.NoError(t, first.Close())
		c.links = slices.Delete(c.links, i, i+1)

		say(0, never)
		_, told := traffic()
		require.Zero(t, told, "there was no first program yet")
		say(0, takenBack)
		events, told := traffic()
		require.NotZero(t, told)
		require.LessOrEqual(t, told, events)
		say(1, takenBack)
		events, told = traffic()
		require.Equal(t, events, told, "those that a task receives, too")
		say(1, begun)
		events, told = traffic()
		require.LessOrEqual(t, told, events)
		require.GreaterOrEqual(t, told, events-uint64(len(cpus)), "the first one on each CPU seems to be told")
	})
	r.identity(t, a)
}

// What the second program goes by there: the first one says that it begins where a bottom half does, and takes that
// back where a task does.
func TestTheFirstProgramSaysThatItBegan(t *testing.T) {
	needsWholeBottomHalves(t)
	l := lab(t, netlab.Options{})
	r, a := during(t, in(l.A), func(c *Capture) {
		i := slices.IndexFunc(c.programs, func(p loaded) bool { return p.hook == event.HookTCPProbe })
		second := slices.Index(c.links, c.programs[i].at) + 1
		require.NoError(t, c.links[second].Close())
		c.links = slices.Delete(c.links, second, second+1)

		cpus := firstSlots(t, c)
		for _, want := range []uint8{begun, takenBack} {
			var seen, stop atomic.Bool
			var look sync.WaitGroup
			look.Go(func() {
				for !seen.Load() && !stop.Load() {
					for _, cpu := range cpus {
						if *(*uint8)(unsafe.Pointer(&cpu.Begun[0])) == want {
							seen.Store(true)
						}
					}
				}
			})
			for deadline := time.Now().Add(20 * time.Second); !seen.Load() && time.Now().Before(deadline); {
				_, err := l.Transfer(bounded(t), netlab.Transfer{From: l.B, To: l.A, Bytes: 32 << 20})
				require.NoError(t, err)
			}
			stop.Store(true)
			look.Wait()
			require.True(t, seen.Load(), "%d", want)
		}
	})
	r.identity(t, a)
}

func TestMissedIsWhatNoProgramTold(t *testing.T) {
	c := &Capture{}
	const h = event.HookTCPProbe
	for _, tt := range []struct{ left, again, want uint64 }{
		{0, 0, 0},
		{10, 7, 3},
		{10, 8, 3}, // one more was left out after the first number was read
		{15, 11, 4},
		{15, 20, 4},
	} {
		var left, again, want [event.Hooks]uint64
		left[h], again[h], want[h] = tt.left, tt.again, tt.want
		missed, leftOut := c.untold(left, again)
		require.Equal(t, want, missed, "%+v", tt)
		require.Zero(t, leftOut)
	}
}

// While the limit leaves samples out, tcp_probe has one program; its second one comes back when the limit has rested.
func TestTheSpareIsThereUnlessSamplesAreLimited(t *testing.T) {
	l := lab(t, netlab.Options{})
	cfg := in(l.A)
	cfg.Sockets.Samples, cfg.Sockets.LimitAbove = SamplesLimited, 0 // always
	conn, peer := connect(t, l.A, l.B, l.B.IPv4, "")
	exchange := func(rounds int) {
		b := make([]byte, 100)
		for range rounds {
			_, err := conn.Write(b)
			require.NoError(t, err)
			_, err = io.ReadFull(peer, b)
			require.NoError(t, err)
			_, err = peer.Write(b)
			require.NoError(t, err)
			_, err = io.ReadFull(conn, b)
			require.NoError(t, err)
		}
	}
	r, a := during(t, cfg, func(c *Capture) {
		attached := func() bool {
			c.spare.move.Lock()
			defer c.spare.move.Unlock()
			return c.spare.at != nil
		}
		running := firstSlots(t, c)
		// The second program tells what seems to interrupt the first, which must be done for it.
		pretend := func() (told uint64) {
			before := c.slots.again()[event.HookTCPProbe]
			for _, cpu := range running {
				cpu.Inside[event.HookTCPProbe] = 1
			}
			exchange(1)
			return c.slots.again()[event.HookTCPProbe] - before
		}
		require.True(t, attached())
		first := c.programs[slices.IndexFunc(c.programs, func(p loaded) bool { return p.hook == event.HookTCPProbe })]
		for range 2 {
			for try := 0; attached(); try++ {
				require.Less(t, try, 1000, "it stays attached")
				exchange(10 * cfg.Sockets.Burst)
			}
			require.Zero(t, pretend())
			require.Eventually(t, attached, 20*time.Second, 10*time.Millisecond, "it does not come back")
		}
		i := slices.Index(c.links, first.at)
		require.NoError(t, first.at.Close())
		c.links = slices.Delete(c.links, i, i+1)
		require.NotZero(t, pretend(), "it does not work")
		require.NoError(t, conn.Close())
		require.NoError(t, peer.Close())
		require.NoError(t, l.A.Quiet(bounded(t)))
	})
	r.identity(t, a)
	require.NotZero(t, a.Limited)
	require.Zero(t, a.Total[event.HookTCPProbe].Missed)
}

// What no program tells of while there is one is left out by the limit; all else is missed.
func TestSpareTellsApartWhatIsMissed(t *testing.T) {
	const h = event.HookTCPProbe
	s := &spare{}
	c := &Capture{spare: s}
	expect := func(untold, missed, leftOut uint64) {
		t.Helper()
		var unran, again [event.Hooks]uint64
		unran[h], again[h] = untold+5, 5
		gotMissed, gotLeftOut := c.untold(unran, again)
		require.Equal(t, missed, gotMissed[h], "missed of %d", untold)
		require.Equal(t, leftOut, gotLeftOut, "left out of %d", untold)
	}
	expect(2, 2, 0)
	s.begin(3) // one more, while it was still attached
	expect(3, 3, 0)
	expect(10, 3, 7)
	expect(9, 3, 7) // read before
	s.end(12)
	expect(12, 3, 9)
	expect(14, 5, 9)
	s.begin(14)
	expect(20, 5, 15)
	s.end(20)
	expect(21, 6, 15)
}

func TestWhatWasLeftOutWithoutTheSpareIsSeenAndFiltered(t *testing.T) {
	c := &Capture{spare: &spare{out: 7}, slots: &slots{}}
	var counters [event.Hooks]event.Counters
	require.EqualValues(t, 7, c.addUntold(&counters))
	want := [event.Hooks]event.Counters{event.HookTCPProbe: {Seen: 7, Filtered: 7}}
	require.Equal(t, want, counters)
}
