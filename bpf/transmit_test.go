// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// inKernelTest tells whether this is a guest of make test-kernel: all of its kernels run fentry programs.
var inKernelTest = os.Getenv("TCBEE_KERNELTEST") == "1"

// requireTransmit skips, saying why, where the kernel does not sample sent segments in that way.
func requireTransmit(t *testing.T, way Transmit) {
	t.Helper()
	requireBPF(t)
	if way != TransmitFentry {
		return
	}
	cfg := benchConfig()
	cfg.Inventory, cfg.Sockets.Enabled, cfg.Sockets.Transmit = false, true, way
	c, err := Open(t.Context(), cfg, quiet())
	if err == nil {
		require.NoError(t, c.Close())
		return
	}
	require.False(t, inKernelTest, "fentry is refused: %v", err)
	t.Skipf("no fentry here (make test-kernel has it): %v", err)
}

// Each segment that a socket sends gives one sample of it, in whichever way: of the same segment, next to it in the order
// of the socket's events, and with the counters of that moment.
func TestEachSentSegmentIsSampled(t *testing.T) {
	for _, way := range []Transmit{TransmitFentry, TransmitEgress} {
		for name, options := range map[string]netlab.Options{
			"offload":    {},
			"no offload": {NoOffload: true},
			"losses":     {LossToB: netlab.Loss{OneIn: 100}, LossToA: netlab.Loss{OneIn: 100}},
		} {
			t.Run(string(way)+"/"+name, func(t *testing.T) {
				requireTransmit(t, way)
				l := lab(t, options)
				cfg := in(l.A)
				cfg.Sockets.Transmit = way
				r, a := during(t, cfg, func(*Capture) {
					for i := range 4 {
						tr := netlab.Transfer{From: l.A, To: l.B, Bytes: 2 << 20, IPv6: i%2 == 1}
						if i >= 2 {
							tr.From, tr.To = l.B, l.A
						}
						_, err := l.Transfer(t.Context(), tr)
						require.NoError(t, err)
					}
					_, err := l.Exchange(t.Context(), netlab.Exchange{Connections: 20, Requests: 5, Reset: true})
					require.NoError(t, err)
					require.NoError(t, l.A.Quiet(t.Context()))
				})
				r.identity(t, a)
				whole(t, r, a)
				require.Equal(t, "stop", stop(r.raw))
				require.Zero(t, a.Total[event.HookTCEgress].Missed)
				// The kernel does not run a tracing program inside itself; what interrupts the second one, too, is counted.
				// Egress has no such bar.
				unsampled := unpaired(t, r, way)
				require.LessOrEqual(t, unsampled, a.Total[event.HookTransmit].Missed)
				t.Logf("%d samples, %d missed, here %d", r.stored[event.HookTransmit], a.Total[event.HookTransmit].Missed, unsampled)
			})
		}
	}
}

// unpaired requires that each sample of a sent segment stands beside its segment, and returns the number of segments that have
// none.
func unpaired(t *testing.T, r *recorded, way Transmit) (unsampled uint64) {
	t.Helper()
	events := map[uint64][]*event.Header{}
	samples := 0
	for h := range event.All(r.raw) {
		if (h.Hook == event.HookTCEgress || h.Hook == event.HookTransmit) && h.SockSeq != 0 {
			events[h.Cookie] = append(events[h.Cookie], h)
		}
	}
	require.NotEmpty(t, events)
	for cookie, all := range events {
		slices.SortFunc(all, func(a, b *event.Header) int { return cmp.Compare(a.SockSeq, b.SockSeq) })
		sent := uint32(0) // segments before this one
		for i, h := range all {
			if h.Kind != event.KindSegment {
				continue
			}
			s := h.Segment()
			before := sent
			sent += uint32(s.GSOSegs)
			at, counted := i-1, before
			if way == TransmitEgress {
				at, counted = i+1, sent
			}
			if at < 0 || at == len(all) || all[at].Kind != event.KindSample {
				unsampled++
				continue
			}
			samples++
			m := all[at].Sample()
			place := func() string { return fmt.Sprintf("socket %d, event %d of %s", cookie, h.SockSeq, told(all)) }
			require.EqualValues(t, h.SockSeq, int(m.SockSeq)+i-at, "something happened in between: %s", place())
			require.Equal(t, event.DirOut, m.Dir)
			require.Equal(t, s.Seq, m.TriggerSeq, place())
			require.Equal(t, s.Ack, m.TriggerAck, place())
			require.Equal(t, s.PayloadLen, m.TriggerLen, place())
			require.Equal(t, s.LocalAddr(), m.LocalAddr(), place())
			require.Equal(t, s.PeerAddr(), m.PeerAddr(), place())
			require.Equal(t, counted, m.SegsOut, place())
		}
	}
	require.EqualValues(t, r.stored[event.HookTransmit], samples, "samples without a segment, or two of one")
	return unsampled
}

// With fentry a socket is sampled whatever way its segments take, and no program is attached to interfaces for it.
func TestSamplesWithoutInterfaces(t *testing.T) {
	requireTransmit(t, TransmitFentry)
	l := lab(t, netlab.Options{})
	for name, change := range map[string]func(*Config){
		"no packets":             func(c *Config) { c.Packets.Enabled = false },
		"none of the interfaces": func(c *Config) { c.Interfaces = []string{"none-*"} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := in(l.A)
			cfg.Sockets.Transmit = TransmitFentry
			change(&cfg)
			var sent uint64
			before, err := l.A.SNMP()
			require.NoError(t, err)
			r, a := during(t, cfg, func(c *Capture) {
				require.Equal(t, cfg.Packets.Enabled, c.ifaces != nil)
				_, err := l.Exchange(t.Context(), netlab.Exchange{Connections: 2, Requests: 40})
				require.NoError(t, err)
				require.NoError(t, l.A.Quiet(t.Context()))
			})
			after, err := l.A.SNMP()
			require.NoError(t, err)
			r.identity(t, a)
			whole(t, r, a)
			for h := range event.All(r.raw) {
				if h.Hook == event.HookTransmit {
					sent++
				}
			}
			// What the kernel sends without a socket (resets, SYN-ACKs) is not among them; there is none here.
			out := uint64(after.Sub(before)["TcpOutSegs"])
			require.LessOrEqual(t, sent, out)
			require.GreaterOrEqual(t, sent+a.Total[event.HookTransmit].Missed, out)
		})
	}
}

// A packet that leaves by one device over another (here a VLAN) is met at both. With fentry its socket is sampled once, else at
// each of them.
func TestSamplesOverStackedDevices(t *testing.T) {
	for way, each := range map[Transmit]int{TransmitFentry: 1, TransmitEgress: 2} {
		t.Run(string(way), func(t *testing.T) {
			requireTransmit(t, way)
			l := lab(t, netlab.Options{})
			vlan := func(n *netlab.Namespace, parent, ip string) error {
				return n.Do(func() error {
					dev, err := netlink.LinkByName(parent)
					if err != nil {
						return err
					}
					top := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "vlan7", ParentIndex: dev.Attrs().Index}, VlanId: 7,
						VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
					if err := netlink.LinkAdd(top); err != nil {
						return err
					}
					a, err := netlink.ParseAddr(ip)
					if err != nil {
						return err
					}
					if err := netlink.AddrAdd(top, a); err != nil {
						return err
					}
					return netlink.LinkSetUp(top)
				})
			}
			if err := vlan(l.A, l.A.Interface, "10.9.0.1/24"); err != nil {
				skipDevice(t, "VLAN", err)
			}
			require.NoError(t, vlan(l.R, "toa", "10.9.0.2/24"))
			cfg := in(l.A)
			cfg.Sockets.Transmit = way
			r, a := during(t, cfg, func(*Capture) { exchangeOver(t, l.A, l.R, "10.9.0.2") })
			r.identity(t, a)
			whole(t, r, a)
			devices, samples := map[uint32]int{}, 0
			for h := range event.All(r.raw) {
				if h.PeerAddr().Addr().String() != "10.9.0.2" {
					continue
				}
				switch h.Hook {
				case event.HookTCEgress:
					devices[h.Segment().Ifindex]++
				case event.HookTransmit:
					samples++
				}
			}
			require.Len(t, devices, 2)
			for _, n := range devices {
				require.LessOrEqual(t, samples, each*n)
				require.GreaterOrEqual(t, samples+int(a.Total[event.HookTransmit].Missed), each*n)
			}
		})
	}
}
