// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// sample takes the state of a socket.
func (t *Table) sample(h *event.Header) {
	s := h.Sample()
	if h.PeerPort == 0 || h.LocalPort == 0 || s.State == event.Listen {
		return
	}
	full := s.Present&event.HasTCP != 0
	last := h.Hook == event.HookDestroySock || s.State == event.Closed
	c := t.socket(h, full && !last, full && !last)
	if c == nil {
		return
	}
	t.touch(c, h)
	if !full {
		return
	}
	if h.Hook == event.HookDestroySock && c.socket && c.Closed == 0 {
		// The event that told how is missing: the packets may, or the FIN.
		end := c.quietEnd
		switch {
		case end != EndNone:
		case c.finished(s):
			end = EndClosed
		default:
			end = EndUnknown
		}
		t.close(c, end)
	}
	if c.Closed == 0 && !last && s.State != c.State && s.State != 0 {
		if s.State == event.SynSent && c.Established == 0 && c.syn == 0 {
			c.Role, c.Opened, c.syn = RoleClient, true, h.Time
		}
		if c.Established == 0 && s.State == event.Established && c.half() {
			t.established(c)
		} else {
			c.State = s.State
			t.changed(c)
		}
	}
	t.deliver(c, h)
}

// finished reports whether the socket's FIN was acknowledged: by the state that it was in
// before its last sample.
func (c *conn) finished(last *event.Sample) bool {
	switch c.State {
	case event.FinWait1, event.FinWait2, event.Closing, event.LastAck, event.TimeWait:
		return last.SndUna == last.WriteSeq
	}
	return false
}

// incident takes something that happened.
func (t *Table) incident(h *event.Header) {
	i := h.Incident()
	var c *conn
	switch h.Hook {
	case event.HookSetState:
		c = t.transition(h, i)
	case event.HookInventory:
		if h.PeerPort == 0 {
			t.procs.listens(i, true)
			break
		}
		c = t.socket(h, h.LocalPort != 0, true)
		if c != nil {
			t.procs.take(&c.Connection, i)
		}
	case event.HookRetransmitSKB, event.HookCongStateSet, event.HookRcvSpaceAdjust:
		c = t.socket(h, true, true)
		if c != nil && h.Hook == event.HookRetransmitSKB && i.TCPFlags&(event.SYN|event.ACK) == event.SYN {
			c.synRetry = true
		}
	case event.HookRetransmitSynAck:
		// Its socket is the listener or a minisock: no cookie to go by.
		if h.PeerPort != 0 && h.LocalPort != 0 {
			c = t.any(h)
			if c == nil {
				key := tupleOf(h)
				c = t.create(h, &key)
			}
			if c.Role == RoleUnknown {
				c.Role = RoleServer
				t.procs.accept(&c.Connection)
			}
			if c.Vantage != VantageHost {
				c.Vantage = VantageHost
				t.changed(c)
			}
		}
	case event.HookReceiveReset:
		if c = t.socket(h, false, false); c != nil {
			c.gotReset = true
			if c.End == EndTimeout {
				c.End = EndResetReceived
			}
		}
	case event.HookSendReset:
		if c = t.any(h); c != nil {
			t.reset(c, true)
		}
	default:
		c = t.any(h)
	}
	if c == nil {
		for _, w := range t.watchers {
			w.Incident(nil, i)
		}
		return
	}
	t.touch(c, h)
	for _, w := range t.watchers {
		w.Incident(&c.Connection, i)
	}
	t.deliver(c, h)
}

// any returns the connection with these ends in this orientation, whoever told.
func (t *Table) any(h *event.Header) *conn {
	key := tupleOf(h)
	c, reversed := t.find(&key, h.Netns)
	if reversed {
		return nil
	}
	return c
}

// socket returns the connection of a socket that a record tells of, or nil. create: make
// one if there is none. evident: the record's cookie is that of the connection's own full
// socket, so that another cookie means another connection.
func (t *Table) socket(h *event.Header, create, evident bool) *conn {
	if h.PeerPort == 0 || h.LocalPort == 0 {
		return nil
	}
	key := tupleOf(h)
	c := t.any(h)
	switch {
	case c == nil:
		if !create {
			return nil
		}
		c = t.create(h, &key)
	case h.Cookie == 0 || c.Cookie == h.Cookie || c.Cookie == 0:
	case h.Cookie == c.oldCookie || !evident:
		return nil // late news of the one before
	default:
		if !create {
			return nil
		}
		c = t.replace(c, h, &key)
	}
	t.adopt(c, h, evident)
	return c
}

// adopt makes the connection one of a local socket.
func (t *Table) adopt(c *conn, h *event.Header, evident bool) {
	if c.socket && (c.Cookie != 0 || h.Cookie == 0) {
		return
	}
	c.Vantage = VantageHost
	if evident {
		c.socket = true
		if c.Cookie == 0 && h.Cookie != 0 {
			c.Cookie = h.Cookie
			t.procs.join(&c.Connection, &c.syn, t.wall)
		}
		if c.Role == RoleUnknown && t.procs.listening(&c.Connection) {
			c.Role = RoleServer
			t.procs.accept(&c.Connection)
		}
	}
	t.changed(c)
}

// transition takes a change of a socket's state.
func (t *Table) transition(h *event.Header, i *event.Incident) *conn {
	t.stated = true
	if i.NewState == event.Listen || i.OldState == event.Listen && h.PeerPort == 0 {
		t.procs.listens(i, i.NewState == event.Listen)
		return nil
	}
	if h.PeerPort == 0 {
		return nil
	}
	if h.LocalPort == 0 {
		if i.NewState == event.SynSent {
			t.procs.connects(i)
		}
		return nil
	}
	key := tupleOf(h)
	c := t.any(h)
	if c != nil && h.Cookie != 0 && h.Cookie == c.oldCookie && c.Cookie != h.Cookie {
		return nil
	}
	// A socket that connects anew, or an opening after the end, is another connection.
	again := i.NewState == event.SynSent && c != nil && (c.stated || c.Closed != 0 || c.sides[1].seen)
	again = again || i.NewState == event.Established && c != nil && c.Closed != 0
	if again {
		c = t.replace(c, h, &key)
		t.adopt(c, h, true)
	} else {
		c = t.socket(h, i.NewState != event.Closed, true)
	}
	if c == nil {
		return nil
	}
	c.stated = true
	switch i.NewState {
	case event.SynSent:
		c.Role, c.Opened = RoleClient, true
		if c.syn == 0 {
			c.syn = h.Time
		}
		t.procs.take(&c.Connection, i)
	case event.Established:
		if i.OldState == event.SynSent && c.Role == RoleUnknown {
			c.Role = RoleClient
		}
		if i.OldState == event.SynRecv && c.Role == RoleUnknown {
			c.Role = RoleServer
		}
		if c.PID == 0 {
			t.procs.take(&c.Connection, i)
		}
		if c.Role == RoleServer {
			t.procs.accept(&c.Connection)
		}
		c.Opened = c.Opened || i.OldState == event.SynSent || i.OldState == event.SynRecv
		t.established(c)
		return c
	case event.Closed:
		t.close(c, c.ending(i.OldState))
		return c
	}
	if c.Closed == 0 {
		c.State = i.NewState
		t.changed(c)
	}
	return c
}

// ending tells how a socket ended that left this state for CLOSE.
func (c *conn) ending(from event.TCPState) End {
	switch {
	case c.gotReset:
		return EndResetReceived
	case c.sentReset:
		return EndResetSent
	}
	switch from {
	case event.SynSent, event.SynRecv, event.NewSynRecv:
		if c.synRetry {
			return EndTimeout
		}
		return EndClosed // by the application, before there was an answer
	case event.Established, event.CloseWait, event.FinWait1:
		// Without FIN from here, or without its acknowledgment, only a reset or giving up ends it.
		return EndTimeout
	}
	return EndClosed
}
