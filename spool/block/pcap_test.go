// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"testing"

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

// TestSize holds the sizes that the issue asks for against the generated traffic.
func TestSize(t *testing.T) {
	segments := steady(event.KindSegment, 8)
	b := NewBuilder(Options{})
	size, events, file := 0, 0, 0
	for _, in := range segments {
		b.Add(in)
		events += b.Events()
		size += len(b.Seal(nil))
		file += zstd3(pcap(in))
	}
	each := float64(size) / float64(events)
	t.Logf("%.2f bytes a packet, %.2f as pcap through zstd -3: ratio %.3f", each, float64(file)/float64(events), float64(size)/float64(file))

	size, events = 0, 0
	for _, in := range steady(event.KindSample, 8) {
		b.Add(in)
		events += b.Events()
		size += len(b.Seal(nil))
	}
	each = float64(size) / float64(events)
	t.Logf("%.2f bytes a sample", each)
}
