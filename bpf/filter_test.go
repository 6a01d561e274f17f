// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

func TestFilterByPortsAndPrefixes(t *testing.T) {
	requireBPF(t)
	// From 192.0.2.1:40000 to 198.51.100.2:443, and the same in IPv6.
	frame4 := tcp(event.ACK, nil, 10).ip4(6, 0, nil).in(eth(0x0800))
	frame6 := tcp(event.ACK, nil, 10).ip6(6).in(eth(0x86dd))
	tests := map[string]struct {
		filter Filter
		v4, v6 bool // recorded
	}{
		"nothing":                    {Filter{}, true, true},
		"the peer's port":            {Filter{Ports: []string{"40000"}}, true, true},
		"the local port, in a range": {Filter{Ports: []string{"1-10", "400-500"}}, true, true},
		"another port":               {Filter{Ports: []string{"442", "444"}}, false, false},
		"excluded port":              {Filter{Ports: []string{"!443"}}, false, false},
		"exclusion wins":             {Filter{Ports: []string{"1-65535", "!40000-40001"}}, false, false},
		"a prefix of the peer":       {Filter{Prefixes: []string{"192.0.2.0/24"}}, true, false},
		"a local address":            {Filter{Prefixes: []string{"198.51.100.2"}}, true, false},
		"ipv6":                       {Filter{Prefixes: []string{"2001:db8::/32"}}, false, true},
		"excluded prefix":            {Filter{Prefixes: []string{"!192.0.0.0/16"}}, false, true},
		"the longest decides":        {Filter{Prefixes: []string{"192.0.0.0/16", "!192.0.2.0/24"}}, false, false},
		"the longest decides again":  {Filter{Prefixes: []string{"!192.0.0.0/16", "192.0.2.0/24"}}, true, false},
		"all of ipv4":                {Filter{Prefixes: []string{"0.0.0.0/0"}}, true, false},
		"both must agree":            {Filter{Ports: []string{"443"}, Prefixes: []string{"203.0.113.0/24"}}, false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := benchConfig()
			cfg.Inventory = false
			cfg.Filter = tt.filter
			cfg.Filter.Sample = 1
			c, err := Open(t.Context(), cfg, quiet())
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close()) }()
			for name, hook := range map[string]event.Hook{programsProgTcIngress: event.HookTCIngress, programsProgTcEgress: event.HookTCEgress} {
				prog, err := c.obj.load(name, false)
				require.NoError(t, err)
				for _, f := range []struct {
					frame packet
					want  bool
				}{{frame4, tt.v4}, {frame6, tt.v6}} {
					before := c.Accounting().Total[hook]
					_, _, err = prog.Test(f.frame)
					require.NoError(t, err)
					after := c.Accounting().Total[hook]
					require.Equal(t, before.Seen+1, after.Seen)
					require.Equal(t, !f.want, after.Filtered == before.Filtered+1)
				}
			}
			var r recorded
			r.add(t, collect(t, c))
			r.identity(t, c.Accounting())
		})
	}
}

// With sampling a connection is recorded by all hooks or by none, and at both of its ends.
func TestSamplingTakesWholeConnections(t *testing.T) {
	l := lab(t, netlab.Options{})
	open := func(n *netlab.Namespace) *Capture {
		cfg := in(n)
		cfg.Filter.Sample = 3
		c, err := Open(t.Context(), cfg, quiet())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}
	fired := fire(t, l, l.A, event.HookDestroySock)
	a, b := open(l.A), open(l.B)
	const connections = 60
	clients, err := l.Exchange(bounded(t), netlab.Exchange{Connections: connections, Requests: 3})
	require.NoError(t, err)
	require.NoError(t, l.A.Quiet(bounded(t)))
	require.NoError(t, l.B.Quiet(bounded(t)))
	type seen [event.Hooks]int
	type ends struct{ client, server netip.AddrPort } // a client's port alone may come a second time
	taken := func(c *Capture, server bool) map[ends]*seen {
		var r recorded
		r.add(t, collect(t, c))
		r.identity(t, c.Accounting())
		m := map[ends]*seen{}
		destroyed := map[uint64]bool{}
		for h := range event.All(r.raw) {
			if h.Hook == event.HookDestroySock {
				require.False(t, destroyed[h.Cookie], "socket %d is destroyed twice", h.Cookie)
				destroyed[h.Cookie] = true
			}
			if h.Kind >= event.KindTick || h.Hook == event.HookInventory || h.PeerPort == 0 {
				continue
			}
			e := ends{h.LocalAddr(), h.PeerAddr()}
			if server {
				e = ends{h.PeerAddr(), h.LocalAddr()}
			}
			if !slices.Contains(clients, e.client) {
				continue // connect() tells of a socket that has no port yet
			}
			if m[e] == nil {
				m[e] = &seen{}
			}
			m[e][h.Hook]++
		}
		return m
	}
	fires := fired.of(t, event.HookDestroySock)
	atA, atB := taken(a, false), taken(b, true)
	require.NotEmpty(t, atA)
	require.Less(t, len(atA), connections)
	require.Len(t, atB, len(atA))
	for e, s := range atA {
		require.NotNil(t, atB[e], "%v", e)
		require.NotZero(t, s[event.HookTCIngress])
		require.NotZero(t, s[event.HookTCEgress])
		require.NotZero(t, s[event.HookTransmit])
		require.NotZero(t, s[event.HookSetState])
		require.LessOrEqual(t, s[event.HookDestroySock], 1, "%v", e)
		if fires == connections { // a kernel may run no program at a tracepoint
			require.Equal(t, 1, s[event.HookDestroySock])
		}
	}
}

func TestFilterByCgroup(t *testing.T) {
	const root = "/sys/fs/cgroup/unified"
	base := root
	if _, err := os.Stat(base + "/cgroup.procs"); err != nil {
		base = "/sys/fs/cgroup"
	}
	_, err := Filter{Cgroup: base}.cgroupID()
	if err != nil {
		netlab.Skip(t, fmt.Errorf("no cgroup 2 here: %w", err))
	}
	dir, err := os.MkdirTemp(base, "tcbee-test-")
	if err != nil {
		netlab.Skip(t, fmt.Errorf("make a cgroup: %w", err))
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	l := lab(t, netlab.Options{})
	for name, tt := range map[string]struct {
		path string
		want bool
	}{"the root has all": {base, true}, "an empty one has none": {dir, false}} {
		t.Run(name, func(t *testing.T) {
			cfg := in(l.A)
			cfg.Filter.Cgroup = tt.path
			c, err := Open(t.Context(), cfg, quiet())
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close()) }()
			_, err = l.Exchange(bounded(t), netlab.Exchange{Connections: 2})
			require.NoError(t, err)
			require.NoError(t, l.A.Quiet(bounded(t)))
			var r recorded
			r.add(t, collect(t, c))
			r.identity(t, c.Accounting())
			for _, h := range []event.Hook{event.HookTCIngress, event.HookTCEgress, event.HookTransmit, event.HookSetState} {
				require.Equal(t, tt.want, r.stored[h] > 0, "%v: %d", h, r.stored[h])
				require.NotZero(t, c.Accounting().Total[h].Seen)
			}
		})
	}
}

func TestConfigFaultsAreToldTogether(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	cfg := DefaultConfig()
	cfg.Interfaces = []string{"eth[", "!"}
	cfg.Netns = "lab"
	cfg.Sockets = Sockets{Samples: "some", LimitAbove: -1, Burst: maxRate + 1, CPURate: -1, Transmit: "kprobe"}
	cfg.Events.Hooks = []string{"tcp_nosuch"}
	cfg.RingBytes = 3 << 20
	cfg.FlushAge = time.Hour
	cfg.Filter = Filter{Ports: []string{"70000", "9-3"}, Prefixes: []string{"10.0.0.0/40"}, Cgroup: "x"}
	err := cfg.Validate()
	for _, key := range []string{"interfaces[0]", "interfaces[1]", "netns", "sockets.samples", "sockets.limit_above", "sockets.rate", "sockets.burst", "sockets.cpu_rate", "sockets.transmit", "events.hooks[0]", "ring_bytes",
		"flush_age", "filter.ports[0]", "filter.ports[1]", "filter.prefixes[0]", "filter.cgroup", "filter.sample"} {
		require.ErrorContains(t, err, "capture."+key+": ")
	}
}

func TestInterfacePatterns(t *testing.T) {
	for name, tt := range map[string]struct {
		patterns []string
		yes, no  []string
	}{
		"all":           {nil, []string{"lo", "eth0"}, nil},
		"one":           {[]string{"eth0"}, []string{"eth0"}, []string{"eth1", "lo"}},
		"glob":          {[]string{"veth*"}, []string{"veth1", "veth"}, []string{"eth0"}},
		"all but":       {[]string{"!lo"}, []string{"eth0"}, []string{"lo"}},
		"glob but":      {[]string{"eth*", "!eth1"}, []string{"eth0", "eth10"}, []string{"eth1", "lo"}},
		"order is free": {[]string{"!eth1", "eth*"}, []string{"eth0"}, []string{"eth1"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Interfaces: tt.patterns}
			for _, n := range tt.yes {
				require.True(t, cfg.wantsInterface(n), n)
			}
			for _, n := range tt.no {
				require.False(t, cfg.wantsInterface(n), n)
			}
		})
	}
}
