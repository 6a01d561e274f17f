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

// Up to maxUnits units are written as their number, other lengths with maxUnits added.
const maxUnits = 63

// inUnits writes a length as a small number of units if it is one.
func inUnits(n, unit uint32) uint64 {
	if unit != 0 && n <= maxUnits*unit && n%unit == 0 {
		return uint64(n / unit)
	}
	return uint64(n) + maxUnits + 1
}

// fromUnits inverts inUnits.
func fromUnits(x uint64, unit uint32) uint32 {
	if x <= maxUnits {
		return uint32(x) * unit
	}
	return uint32(x - maxUnits - 1)
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

// clockTS predicts a timestamp by a clock of 1 kHz.
func clockTS(time, phase uint64) uint32 { return uint32((time + phase) / 1e6) }

// settleTS sets the clock of TSval right after it was wrong, settleEcr that of TSecr.
func (l *lane) settleTS(time uint64, ts uint32) {
	l.tsPhase = settle(l.tsPhase, time, ts, !l.tsSet)
	l.tsSet = true
}

func (l *lane) settleEcr(time uint64, ts uint32) {
	l.ecrPhase = settle(l.ecrPhase, time, ts, !l.ecrSet)
	l.ecrSet = true
}

// settle returns the phase with which the clock shows ts at time: no further than needed from the
// present one, or, if that means nothing yet, the middle of what is possible.
func settle(phase, time uint64, ts uint32, fresh bool) uint64 {
	at := (time + phase) / 1e6
	d := int32(ts - uint32(at))
	to := int64(at) + int64(d)
	if to < 0 {
		to += 1 << 32
	}
	low := uint64(to)*1e6 - time
	switch {
	case fresh:
		return low + 500_000
	case d > 0:
		return low
	}
	return low + 999_999
}

// miscOf returns IPOff, VLAN, VLANInner, TOS and TTL as they lie in memory.
func miscOf(e *event.Segment) uint64 { return *(*uint64)(unsafe.Pointer(&e.IPOff)) }

// optionWord returns the eight option bytes from 8*i on, which the record must have.
func optionWord(e *event.Segment, i int) uint64 {
	return *(*uint64)(unsafe.Add(unsafe.Pointer(&e.Options), 8*i))
}

// match tells whether e's options are of this template.
func (t *template) match(e *event.Segment) bool {
	if t.n != e.OptionsLen {
		return false
	}
	for i := range int(t.n+7) / 8 {
		if (optionWord(e, i)^t.word[i])&t.mask[i] != 0 {
			return false
		}
	}
	return true
}

// update takes all of the segment but its timestamps and SACK blocks into the lane. syn and ti name
// its template, slot is that of lengthSlot.
func (l *lane) update(e *event.Segment, syn int, ti uint32, slot int) {
	end := e.Seq + e.PayloadLen + uint32(e.TCPFlags>>1&1) + uint32(e.TCPFlags&1)
	l.seq, l.plen, l.end = e.Seq, e.PayloadLen, end
	if int32(end-l.maxEnd) > 0 || e.TCPFlags&event.SYN != 0 || l.fresh {
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
	if l.fresh {
		l.ipIDStep = e.IPID != 0
	} else {
		l.ipIDStep = e.IPID != l.ipID && e.IPID == (l.ipID+uint32(l.gsoSegs))&0xffff
	}
	l.ipID = e.IPID
	l.gsoSegs = e.GSOSegs
	l.template[syn] = ti
	l.misc = miscOf(e)
	l.ipLen = e.IPLen
	l.tcpPad = e.TCPLen - e.OptionsLen
	l.urgent = e.Urgent
	l.fresh = false
	l.overhead = e.WireLen - uint32(e.IPLen) - uint32(e.TCPLen) - e.PayloadLen
}

// A sample is predicted in two steps. First the fields of sampleFirst, from the connection's last
// sample and segments; then the others, from the last sample and the true values of the first
// ones. Sources of the rules: net/ipv4/tcp_output.c (__tcp_transmit_skb counts before the packet
// leaves, snd_nxt moves after), tcp_input.c (tcp_probe comes before the segment is processed, but after
// tcp_segs_in has counted it).

// expectSample sets pred to the connection's last sample, or to the last one of any connection,
// with the fields of the first step predicted. s is the side of h.
func (p *past) expectSample(pred *event.Sample, c *conn, s int) {
	own := c.sample != 0
	switch {
	case own:
		*pred = p.samples[c.sample-1]
	case p.anySample != 0:
		*pred = p.samples[p.anySample-1]
	default:
		*pred = event.Sample{}
	}
	// The last sample's segment has been processed since.
	end := pred.TriggerSeq + pred.TriggerLen
	if own && pred.Dir == event.DirIn {
		pred.SndUna = later(pred.SndUna, pred.TriggerAck)
		pred.RcvNxt = later(pred.RcvNxt, end)
	} else if own && pred.Dir == event.DirOut {
		pred.SndNxt = later(pred.SndNxt, end)
	}
	if l := c.lane[s]; l != 0 {
		x := &p.lanes[l]
		pred.TriggerSeq, pred.TriggerAck, pred.TriggerLen = x.seq, x.ack, x.plen
	} else if s == 1 {
		pred.TriggerSeq, pred.TriggerAck = pred.SndNxt, pred.RcvNxt
	} else {
		pred.TriggerSeq, pred.TriggerAck = pred.RcvNxt, pred.SndUna
	}
	if s == 1 {
		pred.SndNxt = later(pred.SndNxt, pred.TriggerSeq)
		pred.RcvNxt = pred.TriggerAck
		pred.WriteSeq = later(pred.WriteSeq, pred.TriggerSeq+pred.TriggerLen)
	} else {
		pred.RcvNxt = pred.TriggerSeq
	}
}

// later returns the further one of two sequence numbers.
func later(a, b uint32) uint32 {
	if int32(b-a) > 0 {
		return b
	}
	return a
}

// deriveSample predicts the fields of the second step in pred from those of the first step in e,
// which has true values there.
func (p *past) deriveSample(pred, e *event.Sample, c *conn, s int, time uint64) {
	if c.sample == 0 {
		return
	}
	last := &p.samples[c.sample-1]
	segs := uint32(1)
	if l := c.lane[s]; l != 0 {
		segs = uint32(p.lanes[l].gsoSegs)
	}
	data := uint32(0)
	if e.TriggerLen != 0 {
		data = segs
	}
	una, nxt, rcv := e.SndUna-last.SndUna, e.SndNxt-last.SndNxt, e.RcvNxt-last.RcvNxt
	mss := max(last.SndMSS, 1)
	acked := (una + mss - 1) / mss
	pred.BytesAcked += uint64(una)
	pred.BytesReceived += uint64(rcv)
	pred.Delivered += acked
	pred.Unacked += (nxt+mss-1)/mss - acked
	pred.CopiedSeq += rcv
	pred.NotsentBytes = 0
	if n := e.WriteSeq - e.SndNxt; int32(n) > 0 {
		pred.NotsentBytes = n
	}
	pred.WmemQueued += e.WriteSeq - last.WriteSeq - una
	ms := uint32(time/1e6 - last.Time/1e6)
	if last.Dir == event.DirIn {
		pred.LastAckRecv = 0
		if last.TriggerLen != 0 {
			pred.LastDataRecv = 0
		}
	} else if last.TriggerLen != 0 {
		pred.LastDataSent = 0
	}
	pred.LastAckRecv += ms
	pred.LastDataRecv += ms
	pred.LastDataSent += ms
	if s == 1 {
		pred.BytesSent += uint64(e.TriggerLen)
		pred.SegsOut += segs
		pred.DataSegsOut += data
		pred.RcvWup = e.RcvNxt
		if data != 0 {
			pred.LastDataSent = 0
		}
	} else {
		pred.SegsIn += segs
		pred.DataSegsIn += data
	}
	if (e.SndCwnd != last.SndCwnd || e.RTT != last.RTT) && last.CAName[0] != 'b' {
		pred.PacingRate = pacing(pred, e)
	}
}

// pacing is tcp_update_pacing_rate of the kernel, with the settings it comes with, and without the
// three lowest bits of the smoothed round-trip time, which a sample does not hold.
func pacing(pred, e *event.Sample) uint64 {
	ratio := uint64(120)
	if e.SndCwnd < pred.SndSsthresh/2 {
		ratio = 200
	}
	return uint64(pred.SndMSS) * 80000 * ratio * uint64(max(e.SndCwnd, pred.Unacked)) / (uint64(e.RTT)*8 + 4)
}

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
	if int(cpu) >= len(p.accountOf) {
		p.accountOf = append(p.accountOf, make([]uint32, int(cpu)+1-len(p.accountOf))...)
	}
	i := p.accountOf[cpu]
	if i == 0 {
		p.accounts = append(p.accounts, [maxWords]uint64{})
		i = uint32(len(p.accounts))
		p.accountOf[cpu] = i
	}
	return p.accounts[i-1][:]
}
