// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"net/netip"
	"time"
)

// Flow is one connection in a line: what `flows` lists.
type Flow struct {
	ID              uint64         `json:"id"`
	Local           netip.AddrPort `json:"local"`
	Peer            netip.AddrPort `json:"peer"`
	Netns           uint64         `json:"netns,omitempty"`
	Cookie          uint64         `json:"cookie,omitempty"`
	Role            Role           `json:"role"`
	Vantage         Vantage        `json:"vantage"`
	State           string         `json:"state"`
	End             End            `json:"end"`      // "open" while it has not ended
	Opened          bool           `json:"opened"`   // the counts are since its beginning
	Start           time.Time      `json:"start"`    // wall clock of its first event, UTC
	Duration        float64        `json:"duration"` // s, to its end or its last event
	Handshake       float64        `json:"handshake,omitempty"`
	BytesOut        uint64         `json:"bytes_out"` // payload on the wire, retransmissions included
	BytesIn         uint64         `json:"bytes_in"`
	GoodputOut      uint64         `json:"goodput_out"` // payload acknowledged by the peer
	GoodputIn       uint64         `json:"goodput_in"`  // payload received in order
	SegmentsOut     uint64         `json:"segments_out"`
	SegmentsIn      uint64         `json:"segments_in"`
	Retransmits     uint64         `json:"retransmits"` // segments
	RetransmitBytes uint64         `json:"retransmit_bytes"`
	SRTT            float64        `json:"srtt,omitempty"` // s, the last; 0 not measured
	MinRTT          float64        `json:"min_rtt,omitempty"`
	MaxCwnd         uint32         `json:"max_cwnd,omitempty"` // segments
	PID             uint32         `json:"pid,omitempty"`
	Comm            string         `json:"comm,omitempty"`
	Events          uint64         `json:"events"`
	LostEvents      uint64         `json:"lost_events,omitempty"` // at most so many of its own were lost
}

// Flows returns a summary of every connection that the Table holds, by ID: all since the
// beginning if neither Collect nor TakeEnded was called.
func (t *Table) Flows() []Flow {
	t.charge()
	flows := make([]Flow, 0, len(t.order))
	for _, c := range t.order {
		flows = append(flows, c.flow())
	}
	return flows
}

// TakeEnded appends the summaries of the connections that ended to dst, by ID, and forgets
// them: for long recordings, in place of Collect.
func (t *Table) TakeEnded(dst []Flow) []Flow {
	t.charge()
	kept := t.order[:0]
	for _, c := range t.order {
		if c.Ended {
			dst = append(dst, c.flow())
		} else {
			kept = append(kept, c)
		}
	}
	clear(t.order[len(kept):])
	t.order = kept
	return dst
}

func (c *conn) flow() Flow {
	f := Flow{
		ID: c.ID, Local: c.Local, Peer: c.Peer, Netns: c.Netns, Cookie: c.Cookie,
		Role: c.Role, Vantage: c.Vantage, State: stateName(c.State), End: c.End, Opened: c.Opened,
		Start: time.Unix(0, c.StartWall).UTC(), Duration: float64(c.duration()) / 1e9, Handshake: float64(c.Handshake) / 1e9,
		PID: c.PID, Comm: c.Comm, Events: c.Events, LostEvents: c.LostEvents,
	}
	for _, s := range c.states {
		if s, ok := s.(Summarizer); ok {
			s.Summarize(&f)
		}
	}
	return f
}

// duration is the time from the first event to the end, or to the last event if the end was
// not seen, in ns.
func (c *Connection) duration() uint64 {
	end := c.Last
	if c.Closed != 0 {
		end = c.Closed
	}
	if end < c.First {
		return 0
	}
	return end - c.First
}
