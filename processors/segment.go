// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// loopback is the interface index that lo has in every network namespace.
const loopback = 1

// segment takes a packet.
func (t *Table) segment(h *event.Header) {
	s := h.Segment()
	key := tupleOf(h)
	syn, ack := s.TCPFlags&event.SYN != 0, s.TCPFlags&event.ACK != 0

	c, reversed := t.find(&key, h.Netns)
	if c == nil && s.Ifindex != loopback {
		r := key.reversed()
		o, twice := t.find(&r, h.Netns)
		if o != nil && !twice && o.Netns == h.Netns && o.Vantage == VantageUnknown && !o.socket && o.Cookie == 0 {
			t.forward(o)
			c, reversed = t.find(&key, h.Netns)
		}
	}
	if c == nil {
		if s.TCPFlags&event.RST != 0 || s.TCPFlags&event.FIN != 0 && s.PayloadLen == 0 {
			return
		}
		c = t.create(h, &key)
	}
	out := (h.Dir != event.DirIn) != reversed
	if syn && t.reused(c, s, out, ack) {
		c = t.replace(c, h, &key)
		reversed = false
		out = h.Dir != event.DirIn
	}
	t.touch(c, h)
	t.cookie(c, s, syn, reversed)

	d, dir := direction(out)
	t.ev.Dir = dir
	c.track(d, s, &t.ev)
	if syn {
		t.greeted(c, d, s, ack)
	}
	if s.TCPFlags&event.RST != 0 {
		t.reset(c, out)
	}
	if t.ev.Fresh > 0 {
		c.quietEnd = EndNone // it goes on
	}
	t.derive(c, d, s)
	t.deliver(c, h)
}

// reused reports whether the SYN begins another connection with the ends of c.
func (t *Table) reused(c *conn, s *event.Segment, out, ack bool) bool {
	d, _ := direction(out)
	own, other := &c.sides[d], &c.sides[1-d]
	if own.syn && own.isn == s.Seq {
		return false // sent again, or seen again
	}
	if ack {
		return own.syn && c.Closed != 0
	}
	if out && s.Cookie != 0 && c.Cookie != 0 && s.Dir == event.DirOut && s.Cookie != c.Cookie && c.Vantage == VantageHost {
		return s.Cookie != c.oldCookie
	}
	if c.Closed != 0 {
		return true
	}
	if !own.syn && !own.seen && c.Established == 0 && (!other.seen || other.syn) {
		return false // its first SYN, or the other one of a simultaneous open
	}
	return !c.stated || c.quietEnd != EndNone
}

// cookie takes the socket's cookie from a packet that left it: that of a SYN-ACK's minisock
// goes over to the socket it becomes. Replies which the kernel sends without the
// connection's socket (RST, ACKs of TIME_WAIT) could bear another cookie.
func (t *Table) cookie(c *conn, s *event.Segment, syn, reversed bool) {
	if s.Cookie == 0 || s.Dir != event.DirOut || reversed || c.Vantage == VantageForwarder {
		return
	}
	fresh := c.Vantage != VantageHost
	c.Vantage = VantageHost
	if c.Cookie == 0 && (syn || s.PayloadLen > 0) {
		c.Cookie = s.Cookie
		fresh = t.procs.join(&c.Connection, &c.syn, t.wall) || fresh
	}
	if fresh {
		t.changed(c)
	}
}

// greeted takes a SYN or SYN-ACK of side d.
func (t *Table) greeted(c *conn, d int, s *event.Segment, ack bool) {
	own := &c.sides[d]
	if own.syn {
		switch {
		case own.isn == s.Seq && t.ev.Counted && !ack:
			c.synRetry = true
		case own.isn != s.Seq && ack && c.Established == 0:
			// SYN cookies: a SYN-ACK that is sent again can have another number.
			own.isn, own.nxt = s.Seq, s.Seq+1+s.PayloadLen
		}
		return
	}
	own.syn, own.isn = true, s.Seq
	role := RoleServer
	if (d == 0) != ack {
		role = RoleClient
	}
	change := false
	if c.Role == RoleUnknown {
		c.Role, change = role, true
		if role == RoleServer {
			t.procs.accept(&c.Connection)
		}
	}
	if !ack && c.syn == 0 && c.Established == 0 {
		c.syn = s.Time
		if !c.Opened {
			c.Opened, change = true, true
		}
	}
	if change {
		t.changed(c)
	}
}

// reset notes a RST on the wire. An end that looked like a timeout, because the kernel
// closes the socket before it sends the RST, is corrected while the connection lingers.
func (t *Table) reset(c *conn, out bool) {
	if out {
		c.sentReset = true
		if c.Closed != 0 && c.End == EndTimeout {
			c.End = EndResetSent
			t.changed(c)
		}
	}
}

// track follows the sequence numbers of side d, and tells ev whether this sighting counts,
// and what is new in it.
func (c *conn) track(d int, s *event.Segment, ev *Event) {
	own, other := &c.sides[d], &c.sides[1-d]
	flags := s.TCPFlags
	begin, length := s.Seq, s.PayloadLen
	if flags&event.SYN != 0 {
		begin++
	}
	end := begin + length
	if flags&event.FIN != 0 {
		end++
	}
	ahead := false
	ev.Fresh, ev.Acked, ev.Outstanding, ev.SameAck = 0, 0, 0, false
	if flags&event.RST == 0 {
		switch {
		case !own.seen:
			own.seen, own.nxt = true, end
			ev.Fresh, ahead = length, true
		case int32(end-own.nxt) > 0:
			if n := int32(begin + length - own.nxt); n > 0 {
				ev.Fresh = min(uint32(n), length)
			}
			own.nxt, ahead = end, end != s.Seq
		}
		if flags&event.FIN != 0 && (!own.finned || own.fin != end-1) && own.nxt == end {
			own.finned, own.fin, own.done = true, end-1, false
			if !other.finned {
				c.firstFin = d
			}
		}
	}
	point := uint64(s.Ifindex)<<8 | uint64(s.Hook)
	if own.point == 0 || own.point != point && ahead {
		own.point = point
	}
	ev.Counted = own.point == point

	if flags&(event.ACK|event.RST) == event.ACK && other.seen && int32(s.Ack-other.nxt) <= 0 {
		acked := uint32(0)
		if own.acked {
			ev.SameAck, ev.Outstanding = s.Ack == own.ack, other.nxt-own.ack
		}
		switch {
		case !own.acked:
			own.acked, own.ack = true, s.Ack
			if other.syn && int32(s.Ack-other.isn-1) > 0 {
				acked = s.Ack - other.isn - 1
			}
		case int32(s.Ack-own.ack) > 0:
			acked = s.Ack - own.ack
			if other.syn && own.ack == other.isn {
				acked--
			}
			own.ack = s.Ack
		}
		if other.finned && !other.done && s.Ack == other.fin+1 {
			other.done = true
			if acked > 0 {
				acked--
			}
		}
		ev.Acked = acked
	}
}

// derive tells by the packets when the connection ended, and, where no socket tells it, its
// state: from the side of Local, by RFC 9293, as far as packets show it.
func (t *Table) derive(c *conn, d int, s *event.Segment) {
	if c.Closed != 0 {
		return
	}
	flags := s.TCPFlags
	local, peer := &c.sides[0], &c.sides[1]
	if flags&event.RST != 0 {
		end := EndResetReceived
		if d == 0 {
			end = EndResetSent
		}
		t.over(c, end)
		return
	}
	if local.done && peer.done {
		t.over(c, EndClosed)
		return
	}
	if c.stated {
		return
	}
	was := c.State
	switch {
	case local.finned && peer.finned:
		switch {
		case c.firstFin == 1:
			c.State = event.LastAck
		case local.done:
			c.State = event.TimeWait
		default:
			c.State = event.Closing
		}
	case local.finned:
		c.State = event.FinWait1
		if local.done {
			c.State = event.FinWait2
		}
	case peer.finned:
		c.State = event.CloseWait
	case was == 0 && !local.syn && !peer.syn:
		c.State = event.Established // joined in the middle
	case c.Established != 0 || was == event.Established:
	case t.stated && c.Vantage == VantageHost && c.Role == RoleServer && local.syn && peer.syn:
		// Its socket will tell: a full accept queue drops the handshake's last ACK.
		c.State = event.SynRecv
	case local.syn && peer.syn && (c.Role == RoleClient && d == 1 && c.Vantage != VantageForwarder ||
		flags&event.SYN == 0 && flags&event.ACK != 0):
		t.established(c)
		return
	case local.syn && c.Role != RoleServer:
		c.State = event.SynSent
	case flags&event.SYN != 0:
		c.State = event.SynRecv
	}
	if c.State != was {
		t.changed(c)
	}
}

// over closes the connection whose packets say that it ended. If its socket is known and
// sockets tell their states, it waits for the socket's word, and ends only if it stays quiet.
func (t *Table) over(c *conn, end End) {
	if c.socket && t.stated {
		if c.quietEnd == EndNone {
			c.quietEnd, c.quietSince = end, t.now
		}
		return
	}
	t.close(c, end)
}

// established notes the end of the handshake.
func (t *Table) established(c *conn) {
	c.State = event.Established
	if c.Established == 0 {
		c.Established = t.now
		if c.syn != 0 && c.Opened {
			c.Handshake = t.now - c.syn
		}
	}
	t.changed(c)
}
