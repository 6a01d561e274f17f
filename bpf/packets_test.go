// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// packet builds a frame from the inside out.
type packet []byte

func (p packet) in(header ...[]byte) packet { return append(slices.Concat(header...), p...) }

func be(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func eth(proto uint16) []byte {
	return append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, be(proto)...)
}

func vlan(tci, proto uint16) []byte { return append(be(tci), be(proto)...) }

// tcp returns a TCP header with options (padded to 4 bytes by the caller) and payload.
func tcp(flags uint16, options []byte, payload int) packet {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h[0:], 40000)
	binary.BigEndian.PutUint16(h[2:], 443)
	binary.BigEndian.PutUint32(h[4:], 0x01020304)
	binary.BigEndian.PutUint32(h[8:], 0x0a0b0c0d)
	binary.BigEndian.PutUint16(h[12:], uint16(5+len(options)/4)<<12|flags)
	binary.BigEndian.PutUint16(h[14:], 501)
	binary.BigEndian.PutUint16(h[16:], 0xbeef)
	binary.BigEndian.PutUint16(h[18:], 7)
	return slices.Concat(h, options, make([]byte, payload))
}

func (p packet) ip4(proto byte, frag uint16, options []byte) packet {
	h := make([]byte, 20, 60)
	h[0] = 0x40 | byte(5+len(options)/4)
	h[1] = 0xb9
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(options)+len(p)))
	binary.BigEndian.PutUint16(h[4:], 0x1234)
	binary.BigEndian.PutUint16(h[6:], frag)
	h[8], h[9] = 61, proto
	copy(h[12:], []byte{192, 0, 2, 1})
	copy(h[16:], []byte{198, 51, 100, 2})
	return p.in(h, options)
}

var addr6 = [2][16]byte{netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("2001:db8::2").As16()}

func (p packet) ip6(next byte) packet {
	h := make([]byte, 40)
	binary.BigEndian.PutUint32(h, 6<<28|0xb9<<20|0xabcde)
	binary.BigEndian.PutUint16(h[4:], uint16(len(p)))
	h[6], h[7] = next, 62
	copy(h[8:], addr6[0][:])
	copy(h[24:], addr6[1][:])
	return p.in(h)
}

// A case of TestPacketsAreParsed: what one program must make of one frame.
type parsed struct {
	frame packet
	want  *event.Segment // nil: not a TCP segment, nothing is counted
}

func TestPacketsAreParsed(t *testing.T) {
	requireBPF(t)
	stamps := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	full := slices.Concat([]byte{1, 1, 5, 34}, make([]byte, 32), []byte{1, 1, 1, 0})
	base := func(change func(*event.Segment)) *event.Segment {
		s := &event.Segment{Seq: 0x01020304, Ack: 0x0a0b0c0d, TCPFlags: event.ACK | event.PSH, Window: 501, Urgent: 7,
			Checksum: 0xbeef, GSOSegs: 1, IPID: 0x1234, IPOff: 0x4000, VLAN: event.NoVLAN, VLANInner: event.NoVLAN,
			TOS: 0xb9, TTL: 61, IPLen: 20, TCPLen: 20, PayloadLen: 100}
		s.Local, s.Peer = v4(198, 51, 100, 2), v4(192, 0, 2, 1)
		s.LocalPort, s.PeerPort, s.Family = 443, 40000, 4
		if change != nil {
			change(s)
		}
		return s
	}
	base6 := func(change func(*event.Segment)) *event.Segment {
		return base(func(s *event.Segment) {
			s.Local, s.Peer, s.Family = addr6[1], addr6[0], 6
			s.IPID, s.IPOff, s.TTL, s.IPLen = 0xabcde, 0, 62, 40
			if change != nil {
				change(s)
			}
		})
	}
	options := func(o []byte) func(*event.Segment) {
		return func(s *event.Segment) {
			s.OptionsLen, s.TCPLen = uint8(len(o)), uint8(20+len(o))
			copy(s.Options[:], o)
		}
	}
	const ack = event.ACK | event.PSH
	plain := tcp(ack, nil, 100)
	hop := []byte{6, 0, 5, 2, 0, 0, 1, 0} // next header, router alert
	tests := map[string]parsed{
		"ipv4":                       {frame: plain.ip4(6, 0x4000, nil).in(eth(0x0800)), want: base(nil)},
		"ipv4 with timestamps":       {frame: tcp(ack, stamps, 100).ip4(6, 0x4000, nil).in(eth(0x0800)), want: base(options(stamps))},
		"ipv4 with 40 option bytes":  {frame: tcp(ack, full, 100).ip4(6, 0x4000, nil).in(eth(0x0800)), want: base(options(full))},
		"ipv4 with 4 option bytes":   {frame: tcp(ack, []byte{2, 4, 5, 0xb4}, 100).ip4(6, 0x4000, nil).in(eth(0x0800)), want: base(options([]byte{2, 4, 5, 0xb4}))},
		"all flags":                  {frame: tcp(0x1ff, nil, 100).ip4(6, 0x4000, nil).in(eth(0x0800)), want: base(func(s *event.Segment) { s.TCPFlags = 0x1ff })},
		"no payload":                 {frame: tcp(ack, nil, 0).ip4(6, 0x4000, nil).in(eth(0x0800)), want: base(func(s *event.Segment) { s.PayloadLen = 0 })},
		"ethernet padding":           {frame: append(tcp(ack, nil, 0).ip4(6, 0x4000, nil).in(eth(0x0800)), 0, 0, 0, 0, 0, 0), want: base(func(s *event.Segment) { s.PayloadLen = 0 })},
		"ipv4 options":               {frame: plain.ip4(6, 0x4000, []byte{0x94, 4, 0, 0}).in(eth(0x0800)), want: base(func(s *event.Segment) { s.IPLen = 24 })},
		"ipv4 first fragment":        {frame: plain.ip4(6, 0x2000, nil).in(eth(0x0800)), want: base(func(s *event.Segment) { s.IPOff = 0x2000 })},
		"ipv4 later fragment":        {frame: plain.ip4(6, 0x2001, nil).in(eth(0x0800))},
		"ipv4 udp":                   {frame: plain.ip4(17, 0, nil).in(eth(0x0800))},
		"ipv4 cut in the tcp header": {frame: plain.ip4(6, 0, nil).in(eth(0x0800))[:14+20+12]},
		"arp":                        {frame: plain.in(eth(0x0806))},
		"vlan": {frame: plain.ip4(6, 0x4000, nil).in(eth(0x8100), vlan(0x6007, 0x0800)),
			want: base(func(s *event.Segment) { s.VLAN = 0x6007 })},
		"qinq": {frame: plain.ip4(6, 0x4000, nil).in(eth(0x88a8), vlan(0x0064, 0x8100), vlan(0x00c8, 0x0800)),
			want: base(func(s *event.Segment) { s.VLAN, s.VLANInner = 0x64, 0xc8 })},
		"ipv6":            {frame: plain.ip6(6).in(eth(0x86dd)), want: base6(nil)},
		"ipv6 in a vlan":  {frame: plain.ip6(6).in(eth(0x8100), vlan(5, 0x86dd)), want: base6(func(s *event.Segment) { s.VLAN = 5 })},
		"ipv6 hop-by-hop": {frame: plain.in(hop).ip6(0).in(eth(0x86dd)), want: base6(func(s *event.Segment) { s.IPLen = 48 })},
		"ipv6 routing, destination": {frame: plain.in([]byte{60, 2, 4, 0, 0, 0, 0, 0}, make([]byte, 16), []byte{6, 0, 1, 4, 0, 0, 0, 0}).ip6(43).in(eth(0x86dd)),
			want: base6(func(s *event.Segment) { s.IPLen = 40 + 24 + 8 })},
		"ipv6 authentication": {frame: plain.in([]byte{6, 4, 0, 0}, make([]byte, 20)).ip6(51).in(eth(0x86dd)),
			want: base6(func(s *event.Segment) { s.IPLen = 40 + 24 })},
		"ipv6 first fragment": {frame: plain.in([]byte{6, 0, 0, 1, 0, 0, 0, 9}).ip6(44).in(eth(0x86dd)),
			want: base6(func(s *event.Segment) { s.IPLen, s.IPOff = 48, 1 })},
		"ipv6 later fragment": {frame: plain.in([]byte{6, 0, 0, 9, 0, 0, 0, 9}).ip6(44).in(eth(0x86dd))},
		"ipv6 no tcp":         {frame: plain.ip6(58).in(eth(0x86dd))},
		"data offset too small": {frame: func() packet {
			p := tcp(ack, nil, 100)
			p[12] = 0x40
			return p.ip4(6, 0x4000, nil).in(eth(0x0800))
		}(), want: base(func(s *event.Segment) { s.TCPLen, s.PayloadLen = 16, 104 })},
	}
	cfg := benchConfig()
	cfg.Packets.Checksum = true
	cfg.FlushAge = time.Millisecond
	c, err := Open(t.Context(), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	in, err := c.obj.load(programsProgTcIngress, false)
	require.NoError(t, err)
	out, err := c.obj.load(programsProgTcEgress, false)
	require.NoError(t, err)
	xdp, err := c.obj.load(programsProgXdpIngress, false)
	require.NoError(t, err)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, hook := range []event.Hook{event.HookTCIngress, event.HookTCEgress, event.HookXDP} {
				p, dir, next := in, event.DirIn, int32(-1) // TCX_NEXT
				switch hook {
				case event.HookTCEgress:
					p, dir = out, event.DirOut
				case event.HookXDP:
					p, next = xdp, 2 // XDP_PASS
				}
				before := c.Accounting().Total[hook]
				ret, _, err := p.Test(tt.frame)
				require.NoError(t, err)
				require.EqualValues(t, next, int32(ret), "the packet goes on")
				after := c.Accounting().Total[hook]
				if tt.want == nil {
					require.Equal(t, before, after)
					continue
				}
				require.Equal(t, before.Seen+1, after.Seen)
				got := *nextSegment(t, c)
				want := *tt.want
				if dir == event.DirOut {
					want.Local, want.Peer = want.Peer, want.Local
					want.LocalPort, want.PeerPort = want.PeerPort, want.LocalPort
				}
				want.Dir, want.Hook, want.Kind = dir, hook, event.KindSegment
				want.WireLen = uint32(len(tt.frame))
				want.Size = uint16(event.SegmentSize(int(want.OptionsLen)))
				require.NotZero(t, got.Time)
				require.NotZero(t, got.Netns)
				clear(got.Options[got.OptionsLen:])
				if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(event.Header{}, "Time", "Netns", "CPU"), cmpopts.IgnoreFields(event.Segment{}, "Ifindex")); diff != "" {
					t.Fatalf("segment differs (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func v4(a, b, c, d byte) [16]byte { return netip.AddrFrom4([4]byte{a, b, c, d}).As16() }

// nextSegment returns a copy of the next segment that the capture gives.
func nextSegment(t *testing.T, c *Capture) *event.Segment {
	t.Helper()
	for {
		b, err := c.Next(t.Context())
		require.NoError(t, err)
		for h := range event.All(b) {
			if h.Kind == event.KindSegment {
				var s event.Segment
				copy(unsafeBytes(&s), h.Bytes())
				return &s
			}
		}
	}
}

// collect stops the capture and returns all that it still gives.
func collect(t testing.TB, c *Capture) []byte {
	t.Helper()
	c.Stop()
	var all []byte
	for {
		b, err := c.Next(context.Background())
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all = append(all, b...)
	}
}
