// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// The programs load in every configuration, because each is other code to the verifier, and
// hold what was asked for and nothing else.
func TestConfigurations(t *testing.T) {
	l := lab(t, netlab.Options{})
	hooks := func(h ...event.Hook) (m [event.Hooks]bool) {
		for _, h := range h {
			m[h] = true
		}
		return m
	}
	packets := []event.Hook{event.HookTCIngress, event.HookTCEgress}
	samples := []event.Hook{event.HookTCPProbe, event.HookTransmit, event.HookDestroySock}
	events := []event.Hook{event.HookSetState}
	tests := map[string]struct {
		change func(*Config)
		want   [event.Hooks]bool
	}{
		"all":     {func(*Config) {}, hooks(append(append(packets, samples...), events...)...)},
		"packets": {func(c *Config) { c.Sockets.Enabled, c.Events.Enabled = false, false }, hooks(packets...)},
		"sockets": {func(c *Config) { c.Packets.Enabled, c.Events.Enabled = false, false }, hooks(samples...)},
		"events":  {func(c *Config) { c.Packets.Enabled, c.Sockets.Enabled = false, false }, hooks(events...)},
		"one hook": {func(c *Config) {
			c.Packets.Enabled, c.Sockets.Enabled, c.Events.Hooks = false, false, []string{"inet_sock_set_state"}
		}, hooks(event.HookSetState)},
		"receive space": {func(c *Config) {
			c.Packets.Enabled, c.Sockets.Enabled, c.Events.Hooks = false, false, []string{"tcp_rcv_space_adjust"}
		}, hooks(event.HookRcvSpaceAdjust)},
		"samples at changes": {func(c *Config) { c.Packets.Enabled, c.Events.Enabled, c.Sockets.Samples = false, false, SamplesChanges },
			hooks(samples...)},
		"samples at a limited rate": {func(c *Config) {
			c.Packets.Enabled, c.Events.Enabled = false, false
			c.Sockets = limitedTo(1, 10)
		}, hooks(samples...)},
		"filters, packets, samples at a limited rate": {func(c *Config) {
			c.Sockets = limitedTo(1, 10)
			c.Filter = Filter{Ports: []string{"1-65535"}, Sample: 1}
		}, hooks(append(append(packets, samples...), events...)...)},
		"no samples": {func(c *Config) { c.Packets.Enabled, c.Events.Enabled, c.Sockets.Samples = false, false, SamplesOff },
			hooks(event.HookDestroySock)},
		"filters": {func(c *Config) {
			c.Filter = Filter{Ports: []string{"1-65535", "!1"}, Prefixes: []string{"10.0.0.0/8", "!10.0.0.0/32"}, Sample: 1}
		}, hooks(append(append(packets, samples...), events...)...)},
		"filters, sockets at changes": {func(c *Config) {
			c.Packets.Enabled, c.Sockets.Samples = false, SamplesChanges
			c.Filter = Filter{Ports: []string{"1-65535"}, Sample: 1}
		}, hooks(append(samples, events...)...)},
		"checksums, small ring": {func(c *Config) { c.Packets.Checksum, c.RingBytes = true, 1<<20 },
			hooks(append(append(packets, samples...), events...)...)},
		"xdp": {func(c *Config) { c.Packets.XDP, c.Sockets.Enabled, c.Events.Enabled = true, false, false },
			hooks(event.HookXDP, event.HookTCEgress)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := in(l.A)
			cfg.Inventory = false
			tt.change(&cfg)
			require.NoError(t, cfg.Validate())
			r, a := during(t, cfg, func(*Capture) {
				_, err := l.Exchange(bounded(t), netlab.Exchange{Connections: 2, Requests: 40})
				require.NoError(t, err)
				require.NoError(t, l.A.Quiet(bounded(t)))
			})
			r.identity(t, a)
			whole(t, r, a)
			require.Equal(t, "stop", stop(r.raw))
			for h, n := range r.stored {
				h := event.Hook(h)
				if h == event.HookKfreeSKB || h == event.HookRetransmitSKB || h == event.HookCongStateSet {
					continue // as it happens
				}
				require.Equal(t, tt.want[h], n > 0, "%v: %d records", h, n)
			}
			for h := range event.All(r.raw) {
				if h.Kind == event.KindSegment {
					require.Equal(t, cfg.Packets.Checksum, h.Segment().Checksum != 0)
				}
			}
			if cfg.Sockets.Samples == SamplesChanges || cfg.Sockets.Samples == SamplesLimited {
				left := a.Total[event.HookTransmit].Filtered + a.Total[event.HookTCPProbe].Filtered
				require.NotZero(t, left, "nothing was left out")
			}
		})
	}
}
