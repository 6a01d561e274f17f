// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// appendPacket appends e as a packet of a pcap file with nanoseconds and a snap length of 96:
// Ethernet, IP and TCP headers with options. The payload within the snap length and the checksums, which
// would not compress, are zero, in favour of the pcap file.
func appendPacket(dst []byte, e *event.Segment) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(e.Time/1e9))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(e.Time%1e9))
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, e.WireLen)
	from, to, sport, dport := e.Local, e.Peer, e.LocalPort, e.PeerPort
	if e.Dir == event.DirIn {
		from, to, sport, dport = to, from, dport, sport
	}
	body := len(dst)
	if e.Family == 4 {
		dst = append(dst, 2, 0, 0, 0, 0, from[15], 2, 0, 0, 0, 0, to[15], 8, 0)
		dst = append(dst, 0x45, e.TOS)
		dst = binary.BigEndian.AppendUint16(dst, e.IPLen+uint16(e.TCPLen)+uint16(e.PayloadLen))
		dst = binary.BigEndian.AppendUint16(dst, uint16(e.IPID))
		dst = binary.BigEndian.AppendUint16(dst, e.IPOff)
		dst = append(dst, e.TTL, 6, 0, 0)
		dst = append(append(dst, from[12:]...), to[12:]...)
	} else {
		dst = append(dst, 2, 0, 0, 0, 0, from[15], 2, 0, 0, 0, 0, to[15], 0x86, 0xdd)
		dst = binary.BigEndian.AppendUint32(dst, 6<<28|uint32(e.TOS)<<20|e.IPID&0xfffff)
		dst = binary.BigEndian.AppendUint16(dst, uint16(e.TCPLen)+uint16(e.PayloadLen))
		dst = append(dst, 6, e.TTL)
		dst = append(append(dst, from[:]...), to[:]...)
	}
	dst = binary.BigEndian.AppendUint16(dst, sport)
	dst = binary.BigEndian.AppendUint16(dst, dport)
	dst = binary.BigEndian.AppendUint32(dst, e.Seq)
	dst = binary.BigEndian.AppendUint32(dst, e.Ack)
	dst = append(dst, e.TCPLen/4<<4|byte(e.TCPFlags>>8), byte(e.TCPFlags))
	dst = binary.BigEndian.AppendUint16(dst, e.Window)
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, e.Options[:e.OptionsLen]...)
	dst = append(dst, make([]byte, e.PayloadLen)...)
	dst = dst[:min(len(dst), body+96)]
	binary.LittleEndian.PutUint32(dst[start+8:], uint32(len(dst)-body))
	return dst
}

// TestSize holds the sizes that are promised against the generated traffic: 400 connections, each with a
// few dozen packets in a block.
func TestSize(t *testing.T) {
	b := NewBuilder(Options{})
	size := func(blocks [][]byte) (bytes, events, file int) {
		for _, in := range blocks {
			b.Add(in)
			events += b.Events()
			bytes += len(b.Seal(nil))
			file += zstd3(pcap(in))
		}
		return bytes, events, file
	}
	bytes, events, file := size(steady(event.KindSegment, 4))
	each, ratio := float64(bytes)/float64(events), float64(bytes)/float64(file)
	t.Logf("%.2f bytes a packet, %.2f as pcap through zstd -3: ratio %.3f", each, float64(file)/float64(events), ratio)
	require.LessOrEqual(t, each, 6.0)
	require.LessOrEqual(t, ratio, 0.4)

	// Samples as they are recorded, each beside its packet.
	if *costFile != "" {
		return
	}
	g := newTraffic(3, 400, true)
	g.records(100_000)
	mixed := g.records(8 * benchEvents)
	packets := only(mixed, event.KindSegment)
	all, n, _ := size(batches(mixed, 2*benchEvents))
	alone, m, _ := size(batches(packets, benchEvents))
	each = float64(all-alone) / float64(n-m)
	t.Logf("%.2f bytes a sample", each)
	require.LessOrEqual(t, each, 20.0)
}
