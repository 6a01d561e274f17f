// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// The wall clock is set while three connections begin: before, a moment before but handed over after, and after that.
// Each has the wall time that the clock showed then, by the table and by the heads of blocks alone.
func TestWallTimesAcrossASetClock(t *testing.T) {
	for name, by := range map[string]time.Duration{"forth": time.Hour, "back": -time.Hour, "a little": 3 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			const start = uint64(5e9)
			begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			anchor := func(at uint64, phase uint32, by time.Duration) []byte {
				wall := begin.Add(time.Duration(at-start) + by).UnixNano()
				return event.Append(nil, &event.Anchor{Header: event.Header{Time: at}, Session: 7, Realtime: wall, TAI: wall + 37e9, Phase: phase})
			}
			tick := func(at uint64) []byte { return event.Append(nil, &event.Tick{Header: event.Header{Time: at}}) }
			syn := func(at uint64, port uint16) []byte {
				return event.Append(nil, &event.Segment{
					Header: event.Header{Time: at, Netns: 1, Local: netip.MustParseAddr("192.0.2.1").As16(), Peer: netip.MustParseAddr("198.51.100.2").As16(),
						LocalPort: port, PeerPort: 443, Family: 4, Hook: event.HookTCEgress, Dir: event.DirOut},
					Seq: 1, TCPFlags: event.SYN, GSOSegs: 1, VLAN: event.NoVLAN, VLANInner: event.NoVLAN, WireLen: 54, IPLen: 20, TCPLen: 20,
				})
			}
			set := start + 2000*ms
			s := &script{batches: [][]byte{
				anchor(start, event.AnchorStart, 0), syn(start+1000*ms, 1001), tick(start + 1500*ms),
				anchor(set, event.AnchorPeriodic, by), syn(set-ms, 1002), syn(set+1000*ms, 1003),
				tick(set + 1500*ms), anchor(set+2000*ms, event.AnchorEnd, by),
			}}
			dir := filepath.Join(t.TempDir(), "spool")
			w := newSpool(t, dir)
			_, err := Record(t.Context(), s, w, discard)
			require.NoError(t, err)
			require.NoError(t, w.Close())
			fast, exact := bothWays(t, dir, Selection{})
			for _, flows := range [][]time.Time{
				{fast[0].Start, fast[1].Start, fast[2].Start}, {exact[0].Start, exact[1].Start, exact[2].Start},
			} {
				require.Equal(t, []time.Time{
					begin.Add(time.Second), begin.Add(2*time.Second - time.Millisecond), begin.Add(3*time.Second + by),
				}, flows)
			}
			require.Len(t, fast, 3)
			require.Len(t, exact, 3)
		})
	}
}
