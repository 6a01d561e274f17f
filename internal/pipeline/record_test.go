// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool/block"
)

// What a recorder had in hand when it was killed is lost: a block is sealed at the tick by which its first event is old, and not before.
func TestABlockIsSealedAtTheTickByWhichItIsOld(t *testing.T) {
	at := func(ms uint64) event.Header { return event.Header{Time: 1e12 + ms*1e6} }
	segment := func(ms uint64) []byte {
		h := at(ms)
		h.Hook, h.Dir, h.Family = event.HookTCEgress, event.DirOut, 4
		return event.Append(nil, &event.Segment{Header: h, TCPFlags: event.ACK, GSOSegs: 1, VLAN: event.NoVLAN, VLANInner: event.NoVLAN})
	}
	tick := func(ms uint64) []byte { return event.Append(nil, &event.Tick{Header: at(ms)}) }
	age := uint64(maxBlockAge.Milliseconds())
	src := &script{batches: [][]byte{
		segment(0), tick(age - 1), // young
		segment(age), segment(3 * age), // old, but the round goes on
		tick(3 * age),
		segment(3*age + 1), tick(4 * age),
		segment(4*age + 1), tick(4*age + 2), // the end
	}}
	var events []uint64
	require.NoError(t, Encode(t.Context(), src, func(sealed []byte) error {
		h, err := block.ReadInfo(sealed)
		require.NoError(t, err)
		events = append(events, uint64(h.Events))
		return nil
	}))
	require.Equal(t, []uint64{5, 4}, events)
}
