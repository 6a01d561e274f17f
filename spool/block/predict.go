// SPDX-License-Identifier: Apache-2.0

package block

import (
	"unsafe"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Codes of a SACK block in colSackCode, two bits each.
const (
	sackSame  = 0 // as the block in this place last time
	sackGrown = 1 // the same left edge
	sackMoved = 2 // as the block one place before last time
	sackNew   = 3
)

// lastAck predicts the acknowledgment number of a segment with these flags.
func (l *lane) lastAck(flags uint16) uint32 {
	if flags&event.ACK == 0 {
		return 0
	}
	return l.ack
}

// lengthSlot tells which of a lane's last lengths predicts that of a segment with these flags.
func lengthSlot(flags uint16) int {
	if flags&(event.SYN|event.RST) != 0 {
		return 2
	}
	return int(flags>>3) & 1 // PSH
}

// expectGSOSize predicts GSOSize from the payload.
func (l *lane) expectGSOSize(payload uint32) uint16 {
	if payload > uint32(l.gsoSize) {
		return l.gsoSize
	}
	return 0
}

// expectGSOSegs predicts GSOSegs from the payload and GSOSize.
func expectGSOSegs(e *event.Segment) uint16 {
	if e.GSOSize == 0 {
		return 1
	}
	return uint16((e.PayloadLen + uint32(e.GSOSize) - 1) / uint32(e.GSOSize))
}

// expectIPID predicts IPID: Linux counts the wire segments of a connection.
func (l *lane) expectIPID(family uint8) uint32 {
	if !l.ipIDStep || family != 4 {
		return l.ipID
	}
	return (l.ipID + uint32(l.gsoSegs)) & 0xffff
}

// clockTS predicts a timestamp of a clock of 1 kHz.
func (l *lane) clockTS(time, phase uint64) uint32 { return uint32((time + phase) / 1e6) }

// settle moves phase so that the clock shows ts at time: no further than needed.
func settle(phase *uint64, time uint64, ts uint32) {
	at := (time + *phase) / 1e6
	if uint32(at) == ts {
		return
	}
	to := at + uint64(int64(int32(ts-uint32(at))))
	lo := to*1e6 - time
	if int32(ts-uint32(at)) > 0 {
		*phase = lo
	} else {
		*phase = lo + 999_999
	}
}

// miscOf returns IPOff, VLAN, VLANInner, TOS and TTL as they lie in memory.
func miscOf(e *event.Segment) uint64 { return *(*uint64)(unsafe.Pointer(&e.IPOff)) }

// match tells whether e's options are of this template.
func (t *template) match(e *event.Segment, w *[5]uint64) bool {
	if t.n != e.OptionsLen {
		return false
	}
	switch (t.n + 7) / 8 {
	case 5:
		if (w[4]^t.word[4])&t.mask[4] != 0 {
			return false
		}
		fallthrough
	case 4:
		if (w[3]^t.word[3])&t.mask[3] != 0 {
			return false
		}
		fallthrough
	case 3:
		if (w[2]^t.word[2])&t.mask[2] != 0 {
			return false
		}
		fallthrough
	case 2:
		if (w[1]^t.word[1])&t.mask[1] != 0 {
			return false
		}
		fallthrough
	case 1:
		return (w[0]^t.word[0])&t.mask[0] == 0
	}
	return true
}

// update takes the segment into the lane. syn and ti name its template, slot is that of
// lengthSlot.
func (l *lane) update(e *event.Segment, t *template, syn int, ti uint32, slot int, tsval, tsecr uint32) {
	end := e.Seq + e.PayloadLen + uint32(e.TCPFlags>>1&1) + uint32(e.TCPFlags&1)
	l.seq, l.plen, l.end = e.Seq, e.PayloadLen, end
	if int32(end-l.maxEnd) > 0 || e.TCPFlags&event.SYN != 0 || l.gsoSegs == 0 {
		l.maxEnd = end
	}
	if e.TCPFlags&event.ACK != 0 {
		if d := e.Ack - l.ack; d != 0 {
			l.ackStep = d
			l.ack = e.Ack
		}
	}
	l.length[slot] = e.PayloadLen
	l.window = e.Window
	if e.GSOSize != 0 {
		l.gsoSize = e.GSOSize
	}
	if e.IPID != l.ipID {
		l.ipIDStep = e.IPID == (l.ipID+uint32(l.gsoSegs))&0xffff
		l.ipID = e.IPID
	} else {
		l.ipIDStep = false
	}
	l.gsoSegs = e.GSOSegs
	l.template[syn] = ti
	if t.ts >= 0 {
		l.tsval, l.tsecr = tsval, tsecr
		settle(&l.tsPhase, e.Time, tsval)
		settle(&l.ecrPhase, e.Time, tsecr)
	}
	l.misc = miscOf(e)
	l.ipLen = e.IPLen
	l.tcpPad = e.TCPLen - e.OptionsLen
	l.urgent = e.Urgent
	l.overhead = e.WireLen - uint32(e.IPLen) - uint32(e.TCPLen) - e.PayloadLen
}

// expectSample predicts a sample from the connection's last one, or from the last one of any
// connection, and its trigger from the last segment of its side.
func (p *past) expectSample(pred *event.Sample, c *conn, h *event.Header, s int) {
	switch {
	case c.sample != 0:
		*pred = p.samples[c.sample-1]
	case p.anySample != 0:
		*pred = p.samples[p.anySample-1]
	}
	if l := c.lane[s]; l != 0 {
		x := &p.lanes[l]
		pred.TriggerSeq, pred.TriggerAck, pred.TriggerLen = x.seq, x.ack, x.plen
	} else {
		pred.TriggerSeq += pred.TriggerLen
	}
}

// deriveSample improves the prediction by fields of the sample itself that are decoded before.
func deriveSample(pred, e *event.Sample) {}

// keepSample remembers the connection's last sample.
func (p *past) keepSample(c *conn, e *event.Sample) {
	if c.sample == 0 {
		p.samples = append(p.samples, *e)
		c.sample = uint32(len(p.samples))
	} else {
		p.samples[c.sample-1] = *e
	}
	p.anySample = c.sample
}

// expectOther sets pred to what the header of a rare record lets expect and returns where its
// words are to be kept.
func (p *past) expectOther(pred []uint64, c *conn, h *event.Header) []uint64 {
	if h.Kind == event.KindAccounting {
		a := p.account(h.CPU)
		copy(pred, a)
		return a
	}
	last := p.last[h.Kind][h.Hook&31][:len(pred)]
	copy(pred, last)
	switch h.Kind {
	case event.KindIncident:
		// seq | ack<<32 of the segment: about what the peer has not acknowledged.
		if l := c.lane[0]; l != 0 {
			pred[2] = uint64(p.lanes[l].ack) | uint64(p.lanes[l].end)<<32
		}
	case event.KindLost:
		pred[0], pred[1] = h.Time, h.Time
	case event.KindAnchor:
		d := h.Time - p.anchor
		pred[1] += d
		pred[2] += d
	}
	return last
}

// anchorAt remembers the time of an anchor, from which the next is predicted.
func (p *past) anchorAt(h *event.Header) {
	if h.Kind == event.KindAnchor {
		p.anchor = h.Time
	}
}

// account returns the last Accounting of a CPU, zeros at first.
func (p *past) account(cpu uint16) []uint64 {
	for i := range p.accounts {
		if p.accounts[i].cpu == cpu {
			return p.accounts[i].words[:]
		}
	}
	if len(p.accounts) == cap(p.accounts) {
		p.accounts = append(p.accounts, account{})
	} else {
		p.accounts = p.accounts[:len(p.accounts)+1]
	}
	a := &p.accounts[len(p.accounts)-1]
	*a = account{cpu: cpu}
	return a.words[:]
}

type account struct {
	cpu   uint16
	words [maxWords]uint64
}
