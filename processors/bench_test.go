// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// traffic returns a batch in which every one of n connections sends 10 segments, samples its
// socket on the way out, gets the acknowledgment and samples its socket again, interleaved.
func traffic(n int) []byte {
	raw := make([]byte, 0, n*(2*event.SegmentMaxSize+2*event.SampleSize))
	header := func(i int, hook event.Hook, dir event.Dir) event.Header {
		c := uint32(i)
		return event.Header{
			Time: uint64(time.Hour) + uint64(i), Cookie: uint64(i + 1), Netns: 1, Hook: hook, Dir: dir, Family: 4, CPU: uint16(i % 2),
			Local:     netip.AddrFrom4([4]byte{10, 0, 0, 1}).As16(),
			Peer:      netip.AddrFrom4([4]byte{10, 1, byte(c >> 14), byte(c >> 6)}).As16(),
			LocalPort: uint16(10000 + i%64), PeerPort: 443,
		}
	}
	for i := range n {
		raw = event.Append(raw, &event.Segment{Header: header(i, event.HookTCEgress, event.DirOut), TCPFlags: event.ACK,
			PayloadLen: 14480, GSOSegs: 10, Ifindex: 2, Seq: 1, Ack: 1, OptionsLen: 12})
		m := event.Sample{Header: header(i, event.HookTransmit, event.DirOut), State: event.Established, Present: event.HasTCP,
			SndCwnd: 10, RTT: 20000, RTTVar: 100, MinRTT: 19000, RTO: 220000, SndSsthresh: event.UnsetSsthresh}
		raw = event.Append(raw, &m)
		in := event.Segment{Header: header(i, event.HookTCIngress, event.DirIn), TCPFlags: event.ACK, GSOSegs: 1, Ifindex: 2, Seq: 1, Ack: 14481, OptionsLen: 12}
		in.Cookie = 0
		raw = event.Append(raw, &in)
		m.Hook = event.HookTCPProbe
		raw = event.Append(raw, &m)
	}
	return raw
}

// goOn moves the sequence numbers of the batch on by what it carries.
func goOn(raw []byte) {
	for h := range event.All(raw) {
		if h.Kind == event.KindSegment {
			s := h.Segment()
			if h.Dir == event.DirOut {
				s.Seq += s.PayloadLen
			} else {
				s.Ack += 14480
			}
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, n := range []int{64, 4000, 100000} {
		b.Run(fmt.Sprintf("connections=%d", n), func(b *testing.B) {
			tab, err := NewTable(DefaultConfig())
			require.NoError(b, err)
			raw := traffic(n)
			for h := range event.All(raw) {
				tab.Observe(h)
			}
			b.ReportAllocs()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var spent time.Duration
			events := 0
			for b.Loop() {
				// A piece at a time, which has just been written: as a decoder hands it over.
				for rest := raw; len(rest) > 0; {
					size, count := piece(rest)
					goOn(rest[:size])
					begin := time.Now()
					for h := range event.All(rest[:size]) {
						tab.Observe(h)
					}
					spent += time.Since(begin)
					events += count
					rest = rest[size:]
				}
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(events)/spent.Seconds(), "events/s")
			b.ReportMetric(float64(spent.Nanoseconds())/float64(events), "ns/event")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(events), "allocs/event")
		})
	}
}

// piece returns the size of the first records of raw, about 256 KiB, and their number.
func piece(raw []byte) (size, events int) {
	for size < len(raw) && size < 256<<10 {
		size += int(event.At(raw[size:]).Size)
		events++
	}
	return size, events
}

type null struct{}

func (null) Host(*Host)                    {}
func (null) Connection(*Connection)        {}
func (null) Int(*Series, int64)            {}
func (null) Float(*Series, float64)        {}
func (null) Histogram(*Series, *Histogram) {}

func BenchmarkCollect(b *testing.B) {
	const n = 10000
	tab, err := NewTable(DefaultConfig())
	require.NoError(b, err)
	for h := range event.All(traffic(n)) {
		tab.Observe(h)
	}
	b.ReportAllocs()
	for b.Loop() {
		tab.Collect(null{})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/connection")
}

// BenchmarkConnection measures the whole life of connections: opened, counted, closed,
// lingered, told and forgotten.
func BenchmarkConnection(b *testing.B) {
	const n = 1000
	tab, err := NewTable(DefaultConfig())
	require.NoError(b, err)
	raw := traffic(n)
	last := event.Incident{Header: event.Header{Hook: event.HookSetState}, OldState: event.LastAck, NewState: event.Closed}
	tick := event.Tick{}
	now := uint64(time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		for h := range event.All(raw) {
			tab.Observe(h)
			if h.Hook == event.HookTCPProbe {
				last.Header = *h
				last.Hook, last.Time = event.HookSetState, now
				tab.Observe(event.At(event.Append(make([]byte, 0, event.IncidentSize), &last)))
			}
		}
		now += uint64(10 * time.Second)
		tick.Time = now
		tab.Observe(event.At(event.Append(make([]byte, 0, event.TickSize), &tick)))
		tab.Collect(null{})
	}
	require.Zero(b, tab.Len())
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/connection")
}

func TestObserveAllocatesNothing(t *testing.T) {
	tab, err := NewTable(DefaultConfig())
	require.NoError(t, err)
	raw := traffic(100)
	again := event.Incident{Header: *event.At(raw), Segs: 2, Len: 2896}
	again.Hook = event.HookRetransmitSKB
	raw = event.Append(raw, &again)
	tick := event.Tick{Header: event.Header{Time: uint64(time.Hour)}}
	raw = event.Append(raw, &tick)
	for h := range event.All(raw) {
		tab.Observe(h)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		goOn(raw)
		for h := range event.All(raw) {
			tab.Observe(h)
		}
	}))
	require.Zero(t, testing.AllocsPerRun(10, func() { tab.Collect(null{}) }))
}

func TestConnectionNeedsLittleMemory(t *testing.T) {
	const n = 20000
	raw := traffic(n)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	tab, err := NewTable(DefaultConfig())
	require.NoError(t, err)
	before := heap()
	for h := range event.All(raw) {
		tab.Observe(h)
	}
	each := (heap() - before) / n
	runtime.KeepAlive(tab)
	runtime.KeepAlive(raw)
	require.Equal(t, n, tab.Len())
	t.Logf("%d bytes for each of %d connections", each, n)
	require.Less(t, each, uint64(2048))
}
