// SPDX-License-Identifier: Apache-2.0

// Package netlab makes small networks on one machine for tests and for the demo, and tells
// the truth about what went over them.
//
// A [Lab] is two network namespaces, A and B, joined by a router namespace R:
//
//	A lab0 ── toa R tob ── lab0 B
//	10.77.1.2        10.77.1.1 | 10.77.2.1        10.77.2.2
//	fd77:1::2        fd77:1::1 | fd77:2::1        fd77:2::2
//
// Everything is made through netlink and bpf(2): no ip, tc, nft or compiler is needed. The
// router limits the rate (tbf) and loses packets (a tcx program of this package), because
// only there a loss leaves the counters of both ends right: what A sent and what B received
// both happened.
//
// The namespaces are anonymous: they live as long as this process holds them, so that
// nothing is left behind, not even after SIGKILL. With [Options].Name they are bind-mounted
// below /run/netns as well, for "ip netns exec"; those of dead processes are removed by the
// next lab.
//
// Oracles, none of which goes through the capture that they are meant to judge: [Counter] (an
// own tcx program), [Firings] (an own program at a tracepoint), [Namespace.SNMP] (what nstat reads),
// [Namespace.Sockets] (what ss reads) and [Info] (TCP_INFO).
//
// The package builds on Linux only, apart from this page. It needs CAP_SYS_ADMIN (to make
// namespaces), CAP_NET_ADMIN and CAP_BPF, and a kernel with tcx (6.6) or clsact.
package netlab
