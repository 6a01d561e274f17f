// SPDX-License-Identifier: Apache-2.0

package block

import (
	"container/heap"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// traffic makes records as a host with many connections would: bulk transfers both ways with
// GSO, delayed acknowledgments, loss and SACK, and requests with responses, over four CPUs that hand
// over batches of 64 records. It is the same for the same seed.
type traffic struct {
	r       *rand.Rand
	samples bool
	now     uint64
	queue   timers
	cpus    [4][]byte
	counts  [4]int
	out     []byte
	events  int
	serial  int
}

type timer struct {
	at  uint64
	seq int
	do  func()
}

type timers []timer

func (t timers) Len() int { return len(t) }
func (t timers) Less(i, j int) bool {
	return t[i].at < t[j].at || t[i].at == t[j].at && t[i].seq < t[j].seq
}
func (t timers) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)   { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	x := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return x
}

// flow is one simulated connection.
type flow struct {
	t              *traffic
	head           event.Header
	cpuIn, cpuOut  uint16
	mss            uint32
	rtt            uint64 // ns
	sndNxt, sndUna uint32
	rcvNxt         uint32
	cwnd           uint32 // segments
	window         [2]uint32
	ipid           [2]uint32
	tsOff          [2]uint64
	tsSeen         [2]uint32 // last TSval by direction
	sockSeq        uint32
	kind           int
	gap            uint64 // bulk: time between bursts
	s              event.Sample
	sacked         uint32 // peer's SACK right edge above sndUna, 0 none
	sackLeft       uint32
	known          [2]uint32 // sndUna and rcvNxt after the last segment
}

// after runs do after d ns with jitter.
func (t *traffic) after(d uint64, do func()) {
	t.serial++
	jit := uint64(t.r.ExpFloat64() * float64(d) / 16)
	heap.Push(&t.queue, timer{t.now + d + jit, t.serial, do})
}

func newTraffic(seed uint64, flows int, samples bool) *traffic {
	t := &traffic{r: rand.New(rand.NewPCG(seed, 1)), samples: samples, now: 12345678901234}
	a := event.Anchor{Session: 0xfeedfacecafe, Realtime: 1795000000123456789, TAI: 1795000037123456789, Uncertainty: 120, Phase: event.AnchorStart}
	a.Time = t.now
	t.emit(0, event.Append(nil, &a))
	for i := range flows {
		t.flow(i)
	}
	t.tick()
	return t
}

func (t *traffic) tick() {
	x := event.Tick{Header: event.Header{Time: t.now}}
	t.emit(0, event.Append(nil, &x))
	acc := event.Accounting{Header: event.Header{Time: t.now, CPU: 1}}
	for h := event.HookTCIngress; h <= event.HookTransmit; h++ {
		acc.Hook[h].Seen = uint64(t.events * int(h))
		acc.Hook[h].Filtered = uint64(t.events / 50)
	}
	t.emit(1, event.Append(nil, &acc))
	t.after(1e8, t.tick)
}

func (t *traffic) emit(cpu int, rec []byte) {
	t.events++
	t.cpus[cpu] = append(t.cpus[cpu], rec...)
	t.counts[cpu]++
	if t.counts[cpu] == 64 {
		t.flush(cpu)
	}
}

func (t *traffic) flush(cpu int) {
	t.out = append(t.out, t.cpus[cpu]...)
	t.cpus[cpu] = t.cpus[cpu][:0]
	t.counts[cpu] = 0
}

// records returns at least n records more.
func (t *traffic) records(n int) []byte {
	t.out = nil
	for want := t.events + n; t.events < want; {
		x := heap.Pop(&t.queue).(timer)
		t.now = max(t.now, x.at)
		x.do()
	}
	for cpu := range t.cpus {
		t.flush(cpu)
	}
	return t.out
}

func (t *traffic) flow(i int) {
	r := t.r
	f := &flow{t: t, mss: 1448, kind: i % 5}
	f.cpuIn, f.cpuOut = uint16(r.IntN(4)), uint16(r.IntN(4))
	f.head = event.Header{Cookie: uint64(4096 + i), Netns: 1, LocalPort: uint16(32768 + r.IntN(28000)), PeerPort: []uint16{443, 80, 5201, 6379, 9092}[i%5], Family: 4}
	f.head.Local = netip.MustParseAddr("10.0.0.5").As16()
	f.head.Peer = netip.AddrFrom4([4]byte{10, 1, byte(r.IntN(4)), byte(r.IntN(250))}).As16()
	if i%7 == 3 {
		f.head.Family = 6
		f.mss = 1428
		p := netip.MustParseAddr("2001:db8::1").As16()
		p[15] = byte(r.IntN(250))
		f.head.Local, f.head.Peer = netip.MustParseAddr("2001:db8::5").As16(), p
	}
	f.rtt = uint64(2e5 + r.ExpFloat64()*5e6)
	f.sndNxt, f.rcvNxt = r.Uint32(), r.Uint32()
	f.sndUna = f.sndNxt
	f.cwnd = 10
	f.window = [2]uint32{500, 600}
	f.tsOff = [2]uint64{r.Uint64N(4e15), r.Uint64N(4e15)}
	f.ipid = [2]uint32{r.Uint32() & 0xffff, r.Uint32() & 0xffff}
	f.gap = uint64(1e5 + r.ExpFloat64()*1e6)
	f.s.SndMSS, f.s.RcvMSS, f.s.PMTU, f.s.AdvMSS = f.mss, f.mss, 1500, f.mss
	f.s.State = event.Established
	f.s.MinRTT, f.s.RTT, f.s.RTTVar = uint32(f.rtt/1000), uint32(f.rtt/1000), uint32(f.rtt/8000)
	f.s.Present = event.HasRcvWnd | event.HasTCP | event.HasRehash | event.HasTotalRTO | event.HasCAPriv
	f.s.SndBuf, f.s.RcvBuf = 2626560, 131072
	f.s.MaxPacingRate = ^uint64(0)
	f.s.SndSsthresh = event.UnsetSsthresh
	copy(f.s.CAName[:], "cubic")
	t.after(uint64(r.IntN(1e7)), f.open)
}

func (f *flow) open() {
	f.state(event.Closed, event.SynSent)
	f.segment(event.DirOut, event.SYN, 0, 0)
	f.t.after(f.rtt, func() {
		f.segment(event.DirIn, event.SYN|event.ACK, 0, 0)
		f.state(event.SynSent, event.Established)
		f.segment(event.DirOut, event.ACK, 0, 0)
		f.run()
	})
}

func (f *flow) run() {
	switch f.kind {
	case 0, 1:
		f.sendBurst()
	case 2:
		f.receiveBurst()
	default:
		f.request()
	}
}

// sendBurst sends a GSO packet and gets acknowledgments for it.
func (f *flow) sendBurst() {
	t, r := f.t, f.t.r
	n := uint32(1 + r.IntN(int(min(f.cwnd, 44))))
	flags := uint16(event.ACK)
	if r.IntN(3) == 0 {
		flags |= event.PSH
	}
	f.segment(event.DirOut, flags, n*f.mss, 0)
	end := f.sndNxt
	lost := r.IntN(100) == 0
	t.after(f.rtt, func() {
		if lost {
			f.lose(end, n)
			return
		}
		acked := f.sndUna
		for int32(end-acked) > 0 {
			step := min(end-acked, 2*f.mss*uint32(1+r.IntN(8)))
			acked += step
			if int32(acked-f.sndUna) <= 0 {
				continue
			}
			f.sndUna = acked
			f.cwnd = min(f.cwnd+1, 400)
			f.window[0] = uint32(int(f.window[0])+r.IntN(5)-2) & 0x7fff
			f.segment(event.DirIn, event.ACK, 0, 0)
			t.now += uint64(r.IntN(3000))
		}
	})
	t.after(f.gap, f.sendBurst)
}

// lose gives duplicate acknowledgments with SACK, then a retransmission.
func (f *flow) lose(end, n uint32) {
	t, r := f.t, f.t.r
	f.sackLeft, f.sacked = f.sndUna+f.mss, f.sndUna+2*f.mss
	for range 3 + r.IntN(10) {
		f.segment(event.DirIn, event.ACK, 0, 1)
		f.sacked += f.mss
		t.now += uint64(r.IntN(20000))
	}
	f.cwnd = max(f.cwnd*7/10, 2)
	x := event.Incident{Header: f.head, Seq: f.sndUna, Len: f.mss, Segs: 1, TCPFlags: event.ACK, CAState: event.CARecovery}
	f.incident(&x, event.HookRetransmitSKB)
	keep := f.sndNxt
	f.sndNxt = f.sndUna
	f.segment(event.DirOut, event.ACK, f.mss, 0)
	f.sndNxt = keep
	t.after(f.rtt, func() {
		f.sackLeft, f.sacked = 0, 0
		f.sndUna = f.sndNxt
		f.segment(event.DirIn, event.ACK, 0, 0)
	})
	_, _ = end, n
}

func (f *flow) receiveBurst() {
	t, r := f.t, f.t.r
	for range 1 + r.IntN(6) {
		n := uint32(1 + r.IntN(16))
		f.segment(event.DirIn, event.ACK, n*f.mss, 0)
		t.now += uint64(2000 + r.IntN(8000))
		if r.IntN(4) != 0 {
			f.window[1] = uint32(int(f.window[1])+r.IntN(200)-90) & 0x7fff
			f.segment(event.DirOut, event.ACK, 0, 0)
		}
	}
	t.after(f.gap*2, f.receiveBurst)
}

func (f *flow) request() {
	t, r := f.t, f.t.r
	n := []uint32{31, 517, 220, 64}[r.IntN(4)]
	if r.IntN(3) == 0 {
		n = uint32(40 + r.ExpFloat64()*300)
	}
	f.segment(event.DirOut, event.ACK|event.PSH, n, 0)
	t.after(f.rtt+uint64(r.ExpFloat64()*2e5), func() {
		f.sndUna = f.sndNxt
		m := uint32(100 + r.ExpFloat64()*3000)
		for m > 0 {
			k := min(m, 4*f.mss)
			m -= k
			flags := uint16(event.ACK)
			if m == 0 {
				flags |= event.PSH
			}
			f.segment(event.DirIn, flags, k, 0)
			t.now += uint64(1000 + r.IntN(3000))
		}
		f.segment(event.DirOut, event.ACK, 0, 0)
		t.after(uint64(r.ExpFloat64()*3e6)+1e5, f.request)
	})
}

func (f *flow) state(from, to event.TCPState) {
	x := event.Incident{Header: f.head, OldState: from, NewState: to, PID: 1234, TID: 1240, UID: 1000, Present: event.HasProcess, Cgroup: 7788}
	copy(x.Comm[:], "nginx")
	f.incident(&x, event.HookSetState)
}

func (f *flow) incident(x *event.Incident, hook event.Hook) {
	f.sockSeq++
	x.Time, x.Hook, x.SockSeq, x.CPU = f.t.now, hook, f.sockSeq, f.cpuOut
	f.t.emit(int(f.cpuOut), event.Append(nil, x))
}

func (f *flow) segment(dir event.Dir, flags uint16, payload uint32, sacks int) {
	t, r := f.t, f.t.r
	t.now += 150 + uint64(r.ExpFloat64()*400)
	d := side(dir)
	e := event.Segment{Header: f.head, PayloadLen: payload, TCPFlags: flags, Ifindex: 2, Window: uint16(f.window[d^1]),
		VLAN: event.NoVLAN, VLANInner: event.NoVLAN, TTL: 64, IPOff: 0x4000, IPLen: 20, GSOSegs: 1}
	if f.head.Family == 6 {
		e.IPLen, e.IPOff = 40, 0
		e.IPID = uint32(f.head.LocalPort) * 7
	}
	e.Time, e.Dir = t.now, dir
	cpu := f.cpuIn
	if dir == event.DirOut {
		cpu = f.cpuOut
		e.Hook, e.Seq, e.Ack = event.HookTCEgress, f.sndNxt, f.rcvNxt
		f.sndNxt += payload + uint32(flags>>1&1)
		f.sockSeq++
		e.SockSeq = f.sockSeq
	} else {
		e.Hook, e.Seq, e.Ack = event.HookTCIngress, f.rcvNxt, f.sndUna
		f.rcvNxt += payload + uint32(flags>>1&1)
		e.Cookie, e.TTL = 0, 57
	}
	e.CPU = cpu
	if payload > f.mss {
		e.GSOSize = uint16(f.mss)
		e.GSOSegs = uint16((payload + f.mss - 1) / f.mss)
	}
	if f.head.Family == 4 {
		e.IPID = f.ipid[d] & 0xffff
		f.ipid[d] += uint32(e.GSOSegs)
	}
	if flags&event.ACK == 0 {
		e.Ack = 0
	}
	o := e.Options[:0]
	if flags&event.SYN != 0 {
		o = append(o, 2, 4, 5, 0xb4, 4, 2, 8, 10)
	} else {
		o = append(o, 1, 1, 8, 10)
	}
	age := uint64(0)
	if dir == event.DirIn {
		age = f.rtt / 2
	}
	tsval := uint32((t.now + f.tsOff[d] - age) / 1e6)
	o = binary.BigEndian.AppendUint32(o, tsval)
	o = binary.BigEndian.AppendUint32(o, f.tsSeen[d^1])
	if dir == event.DirIn {
		// What the peer had seen half a round trip ago.
		o = o[:len(o)-4]
		o = binary.BigEndian.AppendUint32(o, uint32((t.now+f.tsOff[1]-f.rtt)/1e6))
	}
	f.tsSeen[d] = tsval
	if flags&event.SYN != 0 {
		o = append(o, 1, 3, 3, 7)
	}
	if sacks > 0 {
		o = append(o, 1, 1, 5, 10)
		o = binary.BigEndian.AppendUint32(o, f.sackLeft)
		o = binary.BigEndian.AppendUint32(o, f.sacked)
	}
	e.OptionsLen = uint8(len(o))
	e.TCPLen = 20 + e.OptionsLen
	e.WireLen = 14 + uint32(e.IPLen) + uint32(e.TCPLen) + payload
	t.emit(int(cpu), event.Append(nil, &e))
	if t.samples && flags&event.SYN == 0 {
		f.sample(&e)
	}
}

// sample emits the socket's state at a segment.
func (f *flow) sample(e *event.Segment) {
	t, r := f.t, f.t.r
	t.now += 60 + uint64(r.IntN(200))
	s := &f.s
	s.Header = f.head
	s.Time, s.Dir, s.CPU = t.now, e.Dir, e.CPU
	f.sockSeq++
	s.SockSeq = f.sockSeq
	s.TriggerSeq, s.TriggerAck, s.TriggerLen = e.Seq, e.Ack, e.PayloadLen
	if e.Dir == event.DirOut {
		s.Hook = event.HookTransmit
		s.BytesSent += uint64(e.PayloadLen)
		s.SegsOut += uint32(e.GSOSegs)
		if e.PayloadLen > 0 {
			s.DataSegsOut += uint32(e.GSOSegs)
		}
		s.LastDataSent = 0
		if r.IntN(4) == 0 {
			s.NotsentBytes = uint32(r.IntN(100)) * f.mss
		}
		s.WriteSeq = f.sndNxt + s.NotsentBytes
		s.SndNxt = e.Seq
		s.WmemQueued = (f.sndNxt - f.sndUna) + s.NotsentBytes + uint32(r.IntN(16)/15*2304)
	} else {
		s.Hook = event.HookTCPProbe
		s.SegsIn++
		s.SndNxt = f.sndNxt
		if e.PayloadLen > 0 {
			s.DataSegsIn += uint32(e.GSOSegs)
		} else {
			rtt := uint32(f.rtt/1000) + uint32(r.ExpFloat64()*float64(f.rtt/1000)/10)
			s.RTT = (s.RTT*7 + rtt) / 8
			s.RTTVar = (s.RTTVar*3 + max(rtt, s.RTT) - min(rtt, s.RTT)) / 4
			s.MinRTT = min(s.MinRTT, rtt)
			s.RTO = (200000 + s.RTT + 4000) / 4000 * 4000
			s.DeliveryRate = uint64(f.mss) * uint64(f.cwnd) * 1000000 / uint64(rtt) * uint64(90+r.IntN(20)) / 100
			s.PacingRate = uint64(f.mss) * 80000 * 200 * uint64(max(f.cwnd, s.Unacked)) / (8*uint64(s.RTT) + uint64(r.IntN(8)))
			s.BusyTime = t.now / 1000
		}
	}
	// A received segment is sampled before it is processed.
	una, rcv := f.sndUna, f.rcvNxt
	if e.Dir == event.DirIn {
		una, rcv = f.known[0], e.Seq
	}
	f.known = [2]uint32{f.sndUna, f.rcvNxt}
	if s.SndUna != 0 {
		s.BytesAcked += uint64(una - s.SndUna)
		s.Delivered += (una - s.SndUna + f.mss - 1) / f.mss
		s.BytesReceived += uint64(rcv - s.RcvNxt)
	}
	s.SndUna, s.RcvNxt = una, rcv
	s.CopiedSeq, s.RcvWup = rcv, rcv
	s.SndCwnd = f.cwnd
	s.Unacked = (f.sndNxt - f.sndUna + f.mss - 1) / f.mss
	s.SndWnd = f.window[0] * 128
	s.RcvWnd = f.window[1] * 128
	s.LastAckRecv = uint32(t.now/1e6) % 16
	s.CAPriv[0] = f.cwnd / 2
	s.CAPriv[1] = s.SndCwnd * 3
	s.CAPriv[3] = uint32(t.now / 4e6)
	s.CAPriv[8] = s.RTT
	t.emit(int(e.CPU), event.Append(nil, s))
}
