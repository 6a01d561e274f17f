// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Bits of Entry.Seen.
const (
	SeenFINIn = 1 << iota
	SeenSYNIn
	SeenRSTIn
	SeenFINOut
	SeenSYNOut
	SeenRSTOut
	SeenLife       // a record that makes a connection: all but RSTs, lone FINs, closings and drops
	SeenSocket     // a record of its own full socket
	SeenStated     // inet_sock_set_state told of it
	SeenClient     // Local opened it
	SeenServer     // Peer opened it
	SeenOpening    // its opening: a SYN without ACK, SYN_SENT, or ESTABLISHED that came of one
	SeenSynRetry   // its SYN was sent again
	SeenResetTaken // the kernel accepted a RST (tcp_receive_reset)
	SeenElsewhere  // segments at a second interface or hook: they are not counted
	SeenSeveral    // its ends belong to more than one connection in this block
)

// Values of Entry.Over: how a connection ended as its segments show it.
const (
	OverNone          = 0
	OverClosed        = 1 // both FINs were acknowledged
	OverResetSent     = 2
	OverResetReceived = 3
)

// Entry is what a block's directory tells of one connection: who, when, how much, and a digest
// of its records in this block. Counters are of this block alone; add them over blocks. Times are ns of
// CLOCK_MONOTONIC, 0 if there was none. "Last" is by time: CPUs hand their records over apart.
//
// The digest follows the rules by which package processors counts, so that sums over blocks give the
// same: payload and wire segments of a direction count at one point, the interface and hook where
// that direction was seen first in the block.
type Entry struct {
	Netns     uint64
	Cookie    uint64 // its full socket's, or else that of a packet which left it; 0 none
	Local     netip.AddrPort
	Peer      netip.AddrPort
	Family    uint8
	Segments  uint32 // records by kind
	Samples   uint32
	Incidents uint32
	First     uint64 // time of its first record in the block
	Last      uint64

	BytesIn         uint64 // payload
	BytesOut        uint64
	SegsIn          uint64 // on the wire
	SegsOut         uint64
	Retransmits     uint64         // wire segments that the kernel counted as sent again
	RetransmitBytes uint64         // their payload
	TotalRetrans    uint64         // what the socket had counted of these since it was made, at its last sample of tcp_probe or tcp_destroy_sock
	BytesRetrans    uint64         // the same of their payload
	SRTT            uint32         // µs, of the last sample that has one; 0 none
	MinRTT          uint32         // µs, the same
	MaxCwnd         uint32         // segments, largest of the samples; 0 none
	State           event.TCPState // the last known, by inet_sock_set_state and samples; 0 unknown
	Seen            uint32         // Seen bits: flags of segments, resets by their tracepoints, and what else was there

	Opened      uint64         // first SYN without ACK, or SYN_SENT; that can be before First, when no port was chosen yet
	Established uint64         // end of the handshake, by the socket or by segments, whichever was first
	Closed      uint64         // the socket's change to CLOSE, or its last sample
	From        event.TCPState // the state that it left for CLOSE; 0: that was not seen
	AtClose     uint32         // of SeenRSTOut, SeenResetTaken and SeenSynRetry: what had been seen before Closed
	Ended       uint64         // the first RST, or the acknowledgment of the second FIN
	Over        uint8          // how that ended it: Over values
	PID         uint32         // thread group that opened it or listens, 0 unknown
	Comm        [16]byte       // that thread's name
}

// fillDirectory sets the columns of the directory.
func (b *Builder) fillDirectory() {
	for i := range b.dirs {
		b.dirs[i] = b.dirs[i][:0]
	}
	put := func(col int, x uint64) { b.dirs[col] = append(b.dirs[col], x) }
	var last [dirColumns]uint64
	diff := func(col int, x uint64) {
		put(col, zigzag(x-last[col]))
		last[col] = x
	}
	for i := range b.conns {
		c := &b.conns[i]
		d := &c.digest
		if i == 0 {
			*d = digest{first: b.first, last: b.first} // the host's is not kept
		}
		since := func(t uint64) uint64 {
			if t == 0 {
				return 0
			}
			return t - d.first + 1
		}
		diff(dirNetns, c.key[0])
		put(dirFamily, c.key[5]>>48&0xff)
		diff(dirLocalHi, bits.ReverseBytes64(c.key[1]))
		diff(dirLocalLo, bits.ReverseBytes64(c.key[2]))
		diff(dirPeerHi, bits.ReverseBytes64(c.key[3]))
		diff(dirPeerLo, bits.ReverseBytes64(c.key[4]))
		diff(dirLocalPort, c.key[5]&0xffff)
		diff(dirPeerPort, c.key[5]>>16&0xffff)
		diff(dirCookie, d.cookie)
		put(dirFirst, d.first-b.first)
		put(dirLast, d.last-d.first)
		put(dirSegments, uint64(d.kinds[0]))
		put(dirSamples, uint64(d.kinds[1]))
		put(dirIncidents, uint64(d.kinds[2]))
		put(dirBytesIn, d.bytes[0])
		put(dirBytesOut, d.bytes[1])
		put(dirSegsIn, d.segs[0])
		put(dirSegsOut, d.segs[1])
		put(dirRetransmits, d.retransmits)
		put(dirSRTT, uint64(d.srtt))
		put(dirCwnd, uint64(d.cwnd))
		put(dirState, uint64(d.state))
		put(dirSeen, uint64(d.seen))
		put(dirRetransmitBytes, d.retransmitBytes)
		put(dirTotalRetrans, d.total)
		put(dirBytesRetrans, d.totalBytes)
		put(dirMinRTT, uint64(d.minRTT))
		opened := uint64(0)
		if d.opened != 0 {
			opened = d.opened - b.first + 1
		}
		put(dirOpened, opened)
		put(dirEstablished, since(d.established))
		put(dirClosed, since(d.closed))
		put(dirEnded, since(d.ended))
		put(dirHow, uint64(d.from)&(1<<howOver-1)|uint64(d.over)<<howOver|uint64(packClose(d.atClose))<<howAtClose)
		put(dirPID, uint64(d.pid))
		put(dirCommLo, binary.LittleEndian.Uint64(d.comm[:8]))
		put(dirCommHi, binary.LittleEndian.Uint64(d.comm[8:]))
	}
	for i, v := range b.dirs {
		if zeros(v) {
			b.dirs[i] = v[:0]
		}
	}
}

func zeros(v []uint64) bool {
	for _, x := range v {
		if x != 0 {
			return false
		}
	}
	return true
}

// directory decodes the directory's columns of the block src.
func (d *Decoder) directory(h *head, src []byte) error {
	pl := place{"directory", dirName}
	n := h.Connections
	used, err := d.r.read(d.dirs, src[h.directory:h.directory+h.dirLen], h.directory, n*dirColumns, pl)
	if err != nil {
		return err
	}
	if used != h.dirLen {
		return pl.at(h.directory+used, fmt.Sprintf("%d bytes too many", h.dirLen-used))
	}
	for id, v := range d.dirs {
		if len(v) == 0 {
			// A column that is left out is zero.
			if len(d.zeros) < n {
				d.zeros = make([]uint64, n)
			}
			d.dirs[id] = d.zeros[:n]
		} else if len(v) != n {
			return pl.column(id, h.directory, fmt.Sprintf("%d values, want %d", len(v), n))
		}
	}
	return nil
}

// keys walks the keys of the directory's connections.
type keys struct {
	dirs [][]uint64
	last [dirLocalHi + 6]uint64
}

func (k *keys) at(i int) key {
	sum := func(col int) uint64 {
		k.last[col] += unzigzag(k.dirs[col][i])
		return k.last[col]
	}
	return key{
		sum(dirNetns),
		bits.ReverseBytes64(sum(dirLocalHi)), bits.ReverseBytes64(sum(dirLocalLo)),
		bits.ReverseBytes64(sum(dirPeerHi)), bits.ReverseBytes64(sum(dirPeerLo)),
		sum(dirLocalPort)&0xffff | sum(dirPeerPort)&0xffff<<16 | k.dirs[dirFamily][i]&0xff<<48,
	}
}

// addr returns the address whose two words lie in memory as hi and lo, unmapped.
func addr(hi, lo uint64) netip.Addr {
	var a [16]byte
	binary.LittleEndian.PutUint64(a[:8], hi)
	binary.LittleEndian.PutUint64(a[8:], lo)
	return netip.AddrFrom16(a).Unmap()
}

// Directory appends an entry for each connection in the block src to dst, in order of first
// appearance, and returns the result. It reads the head alone and checks its CRC; on error dst is
// returned as it was. Records without a connection (ticks, anchors, ...) have no entry.
func (d *Decoder) Directory(dst []Entry, src []byte) ([]Entry, error) {
	return d.DirectoryOf(dst, src, nil)
}

// DirectoryOf is Directory of the connections alone that keep accepts by their two ends; nil accepts all.
func (d *Decoder) DirectoryOf(dst []Entry, src []byte, keep func(local, peer netip.AddrPort) bool) ([]Entry, error) {
	var h head
	if err := h.read(src); err != nil {
		return dst, err
	}
	if err := d.directory(&h, src); err != nil {
		return dst, err
	}
	ks := keys{dirs: d.dirs}
	ks.at(0)
	var cookie uint64
	c := d.dirs
	cookie += unzigzag(c[dirCookie][0])
	if keep == nil {
		dst = slices.Grow(dst, h.Connections-1)
	}
	for i := 1; i < h.Connections; i++ {
		k := ks.at(i)
		cookie += unzigzag(c[dirCookie][i])
		local := netip.AddrPortFrom(addr(k[1], k[2]), uint16(k[5]))
		peer := netip.AddrPortFrom(addr(k[3], k[4]), uint16(k[5]>>16))
		if keep != nil && !keep(local, peer) {
			continue
		}
		first := h.First + c[dirFirst][i]
		at := func(col int) uint64 {
			if c[col][i] == 0 {
				return 0
			}
			return first + c[col][i] - 1
		}
		opened := c[dirOpened][i]
		if opened != 0 {
			opened += h.First - 1
		}
		var comm [16]byte
		binary.LittleEndian.PutUint64(comm[:8], c[dirCommLo][i])
		binary.LittleEndian.PutUint64(comm[8:], c[dirCommHi][i])
		dst = append(dst, Entry{
			Netns:       k[0],
			Cookie:      cookie,
			Local:       local,
			Peer:        peer,
			Family:      uint8(k[5] >> 48),
			Segments:    uint32(c[dirSegments][i]),
			Samples:     uint32(c[dirSamples][i]),
			Incidents:   uint32(c[dirIncidents][i]),
			First:       first,
			Last:        first + c[dirLast][i],
			BytesIn:     c[dirBytesIn][i],
			BytesOut:    c[dirBytesOut][i],
			SegsIn:      c[dirSegsIn][i],
			SegsOut:     c[dirSegsOut][i],
			Retransmits: c[dirRetransmits][i],
			SRTT:        uint32(c[dirSRTT][i]),
			MaxCwnd:     uint32(c[dirCwnd][i]),
			State:       event.TCPState(c[dirState][i]),
			Seen:        uint32(c[dirSeen][i]),

			RetransmitBytes: c[dirRetransmitBytes][i],
			TotalRetrans:    c[dirTotalRetrans][i],
			BytesRetrans:    c[dirBytesRetrans][i],
			MinRTT:          uint32(c[dirMinRTT][i]),
			Opened:          opened,
			Established:     at(dirEstablished),
			Closed:          at(dirClosed),
			Ended:           at(dirEnded),
			From:            event.TCPState(c[dirHow][i] & (1<<howOver - 1)),
			Over:            uint8(c[dirHow][i] >> howOver & (1<<(howAtClose-howOver) - 1)),
			AtClose:         unpackClose(uint32(c[dirHow][i] >> howAtClose)),
			PID:             uint32(c[dirPID][i]),
			Comm:            comm,
		})
	}
	return dst, nil
}

// The Bloom filter of the tuples in a block: filterBits for each connection at least, the
// whole a power of two bytes, filterProbes bits set for each.
const (
	filterBits   = 10
	filterProbes = 5
	filterFrom   = 8 // connections; a smaller directory needs no filter
)

// mix64 is the finalizer of SplitMix64.
func mix64(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// tupleHash hashes addresses as big-endian numbers, and local port<<16 | peer port.
func tupleHash(lhi, llo, phi, plo, ports uint64) uint64 {
	var h uint64
	for _, x := range [...]uint64{lhi, llo, phi, plo, ports} {
		h = mix64(h ^ x + 0x9e3779b97f4a7c15)
	}
	return h
}

func (b *Builder) fillFilter() {
	b.filter = b.filter[:0]
	n := len(b.conns) - 1
	if n < filterFrom {
		return
	}
	size := 1 << bits.Len(uint(n*filterBits/8-1))
	if cap(b.filter) < size {
		b.filter = make([]byte, size)
	}
	b.filter = b.filter[:size]
	clear(b.filter)
	mask := uint32(8*size - 1)
	for i := range b.conns[1:] {
		k := &b.conns[i+1].key
		h := tupleHash(bits.ReverseBytes64(k[1]), bits.ReverseBytes64(k[2]), bits.ReverseBytes64(k[3]), bits.ReverseBytes64(k[4]),
			k[5]&0xffff<<16|k[5]>>16&0xffff)
		at, step := uint32(h), uint32(h>>32)|1
		for range filterProbes {
			b.filter[at&mask>>3] |= 1 << (at & 7)
			at += step
		}
	}
}

// Tuple names a connection as one side sees it.
type Tuple struct{ Local, Peer netip.AddrPort }

// MayHold tells whether the block src can have records of the connection, in any network
// namespace. False is certain; true is wrong for about one block in a hundred. It reads the head
// alone, in well under a microsecond for each 10 KB of it.
func MayHold(src []byte, t Tuple) (bool, error) {
	var h head
	if err := h.read(src); err != nil {
		return false, err
	}
	if len(h.filter) == 0 {
		return h.Connections > 1, nil
	}
	l, p := t.Local.Addr().As16(), t.Peer.Addr().As16()
	x := tupleHash(binary.BigEndian.Uint64(l[:8]), binary.BigEndian.Uint64(l[8:]), binary.BigEndian.Uint64(p[:8]), binary.BigEndian.Uint64(p[8:]),
		uint64(t.Local.Port())<<16|uint64(t.Peer.Port()))
	mask := uint32(8*len(h.filter) - 1)
	at, step := uint32(x), uint32(x>>32)|1
	for range filterProbes {
		if h.filter[at&mask>>3]&(1<<(at&7)) == 0 {
			return false, nil
		}
		at += step
	}
	return true, nil
}
