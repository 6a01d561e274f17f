// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

func TestProbeTellsOfEveryHook(t *testing.T) {
	requireBPF(t)
	cfg := DefaultConfig()
	found := map[string]Feature{}
	for _, f := range Probe(cfg) {
		require.NotContains(t, found, f.Name)
		found[f.Name] = f
		require.True(t, f.Usable || f.Reason != "", f.Name)
		require.NotContains(t, f.Reason, "\n")
	}
	for h := event.HookTCIngress; h <= event.HookInventory; h++ {
		f, ok := found[h.String()]
		require.True(t, ok, "%v", h)
		require.Equal(t, f.Enabled, h != event.HookXDP && h != event.HookRcvSpaceAdjust, "%v", h)
	}
	// Sent segments are sampled by one program or the other, which is told with the reason.
	sampled := found[event.HookTransmit.String()]
	require.True(t, sampled.Usable)
	require.NotEqual(t, sampled.Through != "", sampled.Fallback != "")
	require.Equal(t, sampled.Fallback != "", sampled.Reason != "")
	if inKernelTest {
		require.Equal(t, "fentry/__tcp_transmit_skb", sampled.Through)
	}
	cfg.Sockets.Transmit = TransmitEgress
	for _, f := range Probe(cfg) {
		if f.Name == event.HookTransmit.String() {
			require.Equal(t, "capture.sockets.transmit is egress", f.Reason)
			require.NotEmpty(t, f.Fallback)
		}
	}
	b, err := json.Marshal(found["xdp"])
	require.NoError(t, err)
	require.JSONEq(t, `{"group":"packets","name":"xdp","enabled":false,"usable":true}`, string(b))
}

func TestExplainedErrorsAreOneLineWithAHint(t *testing.T) {
	requireBPF(t)
	cfg := DefaultConfig()
	cfg.Netns = "/run/netns/no-such-namespace"
	_, err := Open(t.Context(), cfg, nil)
	require.ErrorContains(t, err, "capture.netns: open /run/netns/no-such-namespace: ")
	require.NotContains(t, err.Error(), "\n")
	var h interface{ Hint() string }
	require.ErrorAs(t, err, &h)
	require.NotEmpty(t, h.Hint())
}
