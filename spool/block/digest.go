// SPDX-License-Identifier: Apache-2.0

package block

import "github.com/tcbee/tcbee-export/bpf/event"

// Parts of dirHow: the state that the socket left, then the Over value, then AtClose.
const (
	howOver    = 4
	howAtClose = 6
)

// packClose puts the bits of AtClose side by side.
func packClose(seen uint32) (b uint8) {
	for i, bit := range closeBits {
		if seen&bit != 0 {
			b |= 1 << i
		}
	}
	return b
}

func unpackClose(b uint32) (seen uint32) {
	for i, bit := range closeBits {
		if b>>i&1 != 0 {
			seen |= bit
		}
	}
	return seen
}

var closeBits = [...]uint32{SeenRSTOut, SeenResetTaken, SeenSynRetry}

// digest is what a connection's directory entry holds beyond its key. It follows the rules of package processors,
// as far as they can be followed within a block.
type digest struct {
	first, last     uint64
	kinds           [3]uint32
	seen            uint32
	bytes           [2]uint64
	segs            [2]uint64
	point           [2]uint64 // interface and hook where a side's segments count, by side; 0 none yet
	cookie          uint64
	retransmits     uint64
	retransmitBytes uint64
	sampleAt        uint64 // time of srtt
	stateAt         uint64 // time of state
	totalAt         uint64 // time of total
	total           uint64 // total_retrans of the last sample that tells it for certain
	totalBytes      uint64
	srtt, minRTT    uint32
	cwnd            uint32

	opened, established, closed, ended uint64

	isn      [2]uint32 // of the SYN of a side, if its bit in bare is set
	finEnd   [2]uint32 // sequence number behind a side's FIN, if its bit in fins is set
	atClose  uint32
	pid      uint32
	comm     [16]byte
	state    event.TCPState
	from     event.TCPState
	over     uint8
	bare     uint8 // SYNs without ACK, by side
	fins     uint8
	done     uint8 // FINs that were acknowledged
	watch    bool  // plain acknowledgments matter: of a handshake or a FIN
	answered bool  // there was a SYN-ACK
	proven   bool  // established is the socket's word
	socket   bool  // cookie is that of its own full socket
}

// connects remembers the last calls of connect whose port was not chosen yet: the SYN, with the same cookie, follows
// within microseconds.
type connects struct {
	cookie, time [64]uint64
	next         int
}

func (c *connects) reset() { c.cookie, c.next = [64]uint64{}, 0 }

func (c *connects) add(h *event.Header) {
	c.cookie[c.next%len(c.cookie)], c.time[c.next%len(c.time)] = h.Cookie, h.Time
	c.next++
}

// join gives the connection the time of its connect, if that is known.
func (c *connects) join(d *digest, cookie uint64) {
	if cookie == 0 || c.next == 0 {
		return
	}
	for i, have := range c.cookie {
		if have == cookie {
			if d.established == 0 || c.time[i] < d.established {
				d.opened = c.time[i]
				d.seen = d.seen&^SeenServer | SeenClient | SeenOpening
			}
			c.cookie[i] = 0
			return
		}
	}
}

// opens reports whether the record is the first that names both ends of what a connect began.
func opens(h *event.Header) bool {
	switch h.Kind {
	case event.KindSegment:
		return h.Dir == event.DirOut && h.Segment().TCPFlags&(event.SYN|event.ACK) == event.SYN
	case event.KindIncident:
		return h.Hook == event.HookSetState && h.LocalPort != 0 && h.PeerPort != 0 && h.Incident().OldState == event.SynSent
	}
	return false
}

// Both sides.
const both = 3

func (d *digest) segment(e *event.Segment, s int) {
	d.kinds[0]++
	if e.Cookie != 0 && d.cookie == 0 && e.Dir == event.DirOut {
		d.cookie = e.Cookie
	}
	point := uint64(e.Ifindex)<<8 | uint64(e.Hook)
	spoke := d.point[s&1] != 0
	if !spoke {
		d.point[s&1] = point
	}
	if d.point[s&1] == point {
		d.bytes[s&1] += uint64(e.PayloadLen)
		d.segs[s&1] += uint64(max(e.GSOSegs, 1))
	} else {
		d.seen |= SeenElsewhere
	}
	if d.watch || e.TCPFlags&(event.FIN|event.SYN|event.RST) != 0 {
		d.signal(e, s&1, spoke)
		return
	}
	d.seen |= SeenLife
}

// signal takes a segment that opens or ends something, or may do so. spoke: its side has sent others before.
func (d *digest) signal(e *event.Segment, s int, spoke bool) {
	flags := e.TCPFlags
	d.seen |= uint32(flags&7) << (3 * uint(s))
	me, out := uint8(1)<<s, s == 1
	if flags&event.RST == 0 && (flags&event.FIN == 0 || e.PayloadLen > 0) {
		d.seen |= SeenLife
	}
	role := func(client bool) {
		if d.seen&(SeenClient|SeenServer) == 0 {
			if client {
				d.seen |= SeenClient
			} else {
				d.seen |= SeenServer
			}
		}
	}
	switch {
	case flags&event.RST != 0:
		if d.ended == 0 {
			d.ended, d.over = e.Time, OverResetReceived
			if out {
				d.over = OverResetSent
			}
		}
		return
	case flags&(event.SYN|event.ACK) == event.SYN:
		if d.bare&me != 0 {
			switch {
			case d.isn[s] != e.Seq:
				d.seen |= SeenSeveral
			case d.point[s] == uint64(e.Ifindex)<<8|uint64(e.Hook):
				d.seen |= SeenSynRetry
			}
			break
		}
		if spoke || d.closed != 0 {
			d.seen |= SeenSeveral
		}
		d.bare, d.isn[s] = d.bare|me, e.Seq
		d.seen |= SeenOpening
		role(out)
		if d.opened == 0 {
			d.opened = e.Time
		}
	case flags&event.SYN != 0:
		d.answered = true
		role(!out)
		if !out && d.established == 0 {
			d.established = e.Time
		}
	case flags&event.ACK != 0 && d.answered && d.established == 0:
		d.established = e.Time
	}
	if flags&event.FIN != 0 {
		d.fins |= me
		d.finEnd[s] = e.Seq + e.PayloadLen + 1
	}
	if other := me ^ both; flags&event.ACK != 0 && d.fins&other != 0 && e.Ack == d.finEnd[1-s] {
		d.done |= other
		if d.done == both && d.ended == 0 {
			d.ended, d.over = e.Time, OverClosed
		}
	}
	d.watch = d.answered && d.established == 0 || d.fins != 0 && d.ended == 0
}

// own takes a record of the connection's full socket.
func (d *digest) own(h *event.Header) {
	d.seen |= SeenSocket
	if h.Cookie == 0 {
		return
	}
	if d.socket && d.cookie != h.Cookie {
		d.seen |= SeenSeveral
	}
	d.cookie, d.socket = h.Cookie, true
}

// listener reports whether the record has no two ends: it is of who listens, or connects without a port yet.
func listener(h *event.Header) bool { return h.PeerPort == 0 || h.LocalPort == 0 }

func (d *digest) sample(e *event.Sample) {
	d.kinds[1]++
	if e.State == event.Listen {
		d.state = e.State
	}
	if e.State == event.Listen || listener(&e.Header) {
		return
	}
	if e.Present&event.HasTCP == 0 {
		return
	}
	if e.Hook == event.HookDestroySock || e.State == event.Closed {
		if e.Hook == event.HookDestroySock && d.closed == 0 {
			d.closed = e.Time
		}
		if d.cookie == 0 {
			d.cookie = e.Cookie
		}
	} else {
		d.own(&e.Header)
		d.seen |= SeenLife
		if e.Time >= d.stateAt {
			d.state, d.stateAt = e.State, e.Time
		}
	}
	// A socket that was disconnected starts anew with 0; what it measured stays true.
	if e.RTT != 0 && e.Time >= d.sampleAt {
		d.sampleAt, d.srtt = e.Time, e.RTT
		if e.MinRTT != ^uint32(0) {
			d.minRTT = e.MinRTT
		}
	}
	d.cwnd = max(d.cwnd, e.SndCwnd)
	// Where a segment is sent, total_retrans is ahead of the tracepoint.
	if e.TotalRetrans != 0 && e.Time >= d.totalAt && (e.Hook == event.HookTCPProbe || e.Hook == event.HookDestroySock) {
		d.totalAt, d.total, d.totalBytes = e.Time, uint64(e.TotalRetrans), e.BytesRetrans
	}
}

func (d *digest) incident(e *event.Incident) {
	d.kinds[2]++
	if e.Present&event.HasProcess != 0 && e.PID != 0 && d.pid == 0 && (e.Hook == event.HookSetState || e.Hook == event.HookInventory) {
		d.pid, d.comm = e.PID, e.Comm
	}
	switch e.Hook {
	case event.HookSetState:
		d.transition(e)
	case event.HookInventory:
		switch {
		case e.PeerPort == 0:
			d.state = event.Listen
		case e.LocalPort != 0:
			d.own(&e.Header)
			d.seen |= SeenLife
		}
	case event.HookRetransmitSKB:
		if listener(&e.Header) {
			return
		}
		d.own(&e.Header)
		d.seen |= SeenLife
		if e.TCPFlags&(event.SYN|event.ACK) == event.SYN {
			d.seen |= SeenSynRetry
		}
		if e.Retransmitted() {
			d.retransmits += uint64(max(e.Segs, 1))
			d.retransmitBytes += uint64(e.Len)
		}
	case event.HookRetransmitSynAck:
		d.seen |= SeenLife
		if d.seen&SeenClient == 0 {
			d.seen |= SeenServer
		}
		d.retransmits += uint64(max(e.Segs, 1))
	case event.HookCongStateSet, event.HookRcvSpaceAdjust:
		if listener(&e.Header) {
			return // it was disconnected
		}
		d.own(&e.Header)
		d.seen |= SeenLife
	case event.HookSendReset:
		d.seen |= SeenRSTOut
	case event.HookReceiveReset:
		d.seen |= SeenRSTIn | SeenResetTaken
	}
}

// transition takes a change of the socket's state.
func (d *digest) transition(e *event.Incident) {
	if listener(&e.Header) {
		switch {
		case e.NewState == event.Listen:
			d.state = event.Listen
		case e.OldState == event.Listen && e.PeerPort == 0:
			d.state = event.Closed
		}
		if d.cookie == 0 {
			d.cookie = e.Cookie
		}
		return
	}
	again := d.closed != 0 && (e.NewState == event.SynSent || e.NewState == event.Established)
	d.own(&e.Header)
	d.seen |= SeenStated
	if again {
		d.seen |= SeenSeveral
	}
	if e.Time >= d.stateAt {
		d.state, d.stateAt = e.NewState, e.Time
	}
	if e.NewState != event.Closed {
		d.seen |= SeenLife
	}
	switch e.NewState {
	case event.SynSent:
		d.seen = d.seen&^SeenServer | SeenClient | SeenOpening
		if d.opened == 0 {
			d.opened = e.Time
		}
	case event.Established:
		switch e.OldState {
		case event.SynSent:
			d.seen |= SeenOpening
			if d.seen&SeenServer == 0 {
				d.seen |= SeenClient
			}
		case event.SynRecv:
			d.seen |= SeenOpening
			if d.seen&SeenClient == 0 {
				d.seen |= SeenServer
			}
		}
		// A server's packets do not tell: a full accept queue drops the handshake's last ACK.
		if d.established == 0 || d.seen&SeenServer != 0 && !d.proven {
			d.established = e.Time
		}
		d.proven = true
	case event.Closed:
		d.closed, d.from = e.Time, e.OldState
		d.atClose = d.seen & (SeenRSTOut | SeenResetTaken | SeenSynRetry)
	}
}
