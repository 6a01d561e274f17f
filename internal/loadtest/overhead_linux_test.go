// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

func TestCountsOfTCPDump(t *testing.T) {
	m := tcpdumpCounts.FindStringSubmatch("tcpdump: listening on lab0\n900 packets captured\n1001 packets received by filter\n101 packets dropped by kernel\n")
	require.Equal(t, []string{"900", "101"}, m[1:])
	m = tcpdumpCounts.FindStringSubmatch("1 packet captured\n1 packet received by filter\n0 packets dropped by kernel\n")
	require.Equal(t, []string{"1", "0"}, m[1:])
}

func TestConnectionsAreToldApartByTheirEnds(t *testing.T) {
	n, err := tellApart([]byte(`[
		{"local": "10.0.0.1:1", "peer": "10.0.0.2:9"}, {"local": "10.0.0.1:1", "peer": "10.0.0.2:10"},
		{"local": "10.0.0.1:1", "peer": "10.0.0.2:9"}, {"local": "10.0.0.3:1", "peer": "10.0.0.2:9"}]`), netip.MustParseAddr("10.0.0.1"))
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
}

func TestAccountIsHeldAgainstOtherCounts(t *testing.T) {
	c := Checked{PacketsIn: 5, PacketsOut: 7, SegmentsOut: 9}
	in := pipeline.HookCount{Hook: event.HookTCIngress.String(), Seen: 5}
	out := pipeline.HookCount{Hook: event.HookTCEgress.String(), Seen: 7}
	require.NoError(t, c.account([]pipeline.HookCount{in, out, {Hook: "tcp_probe", Seen: 3}}))
	require.EqualError(t, c.account([]pipeline.HookCount{in}), "the egress hook counted 0, another program at the interface 7")
	in.Seen++
	require.EqualError(t, c.account([]pipeline.HookCount{in, out}), "the ingress hook counted 6, another program at the interface 5")
}

func TestSentFramesAreRightAndVary(t *testing.T) {
	requireCapture(t)
	lab := netlab.ForTest(t, netlab.Options{Direct: true})
	wire, err := lab.Count(lab.B, lab.B.Interface)
	require.NoError(t, err)
	o := DefaultPacketOptions()
	o.Flows = 8
	s, err := newSender(lab, o)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.close()) }()
	first := make([][]byte, len(s.frames))
	for i, f := range s.frames {
		require.EqualValues(t, 0xffff, onesSum(f[frameIP:frameTCP]), "the header's checksum")
		first[i] = append(first[i], f...)
	}
	const packets = 1000
	require.NoError(t, s.send(t.Context(), packets, 100_000))
	for i, f := range s.frames {
		require.NotEqual(t, first[i], f)
	}
	in, err := wire.In()
	require.NoError(t, err)
	require.EqualValues(t, packets, in.TCP)
	require.EqualValues(t, packets*framePay, in.Payload)
	after, err := lab.B.SNMP()
	require.NoError(t, err)
	require.Zero(t, after["TcpInSegs"], "they are for somebody else")
}
