// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// trafficCPUs hand their records over in batches of trafficBatch, as the kernel programs do.
const (
	trafficCPUs  = 4
	trafficBatch = 64
)

// traffic makes the records of a busy host's capture without a kernel: clients and servers with short requests, long-lived
// connections, and bulk transfers in both directions with segmentation offload, loss and SACK. Connections come and go; some are reset, some
// never answered. It is the same for the same seed and the same calls of pace.
//
// The model has a time of its own, in ns, which pace ties to the time of the records.
type traffic struct {
	r     *rand.Rand
	conns []flow
	queue []timer // a heap: what each connection does next
	cpus  [trafficCPUs]struct {
		records []byte
		n       int
		seen    [event.Hooks]uint64
	}
	out []byte

	model, model0 uint64  // time of the model now, and at the last pace
	time0         uint64  // time of the records then
	scale         float64 // ns of records for one of the model
	until         uint64  // as far as the time of the records goes

	session  uint64
	start    uint64 // time of the first record
	realtime int64  // then
	nextTick uint64
	anchored uint64 // time of the last anchor
	cookie   uint64
	opened   uint64 // connections so far
	events   uint64
}

// timer is when a connection goes on.
type timer struct {
	at   uint64 // of the model
	slot uint32
}

// newTraffic begins with a session's first anchor at the time given. realtime is ns since 1970.
func newTraffic(seed uint64, connections int, start uint64, realtime int64) *traffic {
	t := &traffic{
		r: rand.New(rand.NewPCG(seed, 0x7463626565)), conns: make([]flow, connections), queue: make([]timer, 0, connections),
		time0: start, scale: 1, until: start, start: start, realtime: realtime, nextTick: start + 1e9, cookie: 4096,
	}
	t.session = t.r.Uint64() | 1
	t.anchor(event.AnchorStart)
	link := event.Link{Header: event.Header{Time: start}, Ifindex: 2, MTU: 1500, Type: 1, Flags: 0x1043}
	copy(link.Name[:], "eth0")
	t.out = event.Append(t.out, &link)
	for i := range t.conns {
		t.wait(uint32(i), t.exp(2e8))
	}
	return t
}

// longestStep is how far the records' time may go in one call of records: an hour of nothing but Ticks has 250 kB.
const longestStep = 4 * 3600e9

// pace lets the records' time go on to end, and no further, while about that much time of the model passes.
func (t *traffic) pace(end, model uint64) {
	now := t.time()
	t.time0, t.model0 = now, t.model
	t.until = min(max(end, now), now+longestStep)
	t.scale = float64(t.until-now) / float64(model+model/4+1e6)
}

// time of the records now.
func (t *traffic) time() uint64 {
	return min(t.time0+uint64(float64(t.model-t.model0)*t.scale), t.until)
}

// pass lets up to n ns of the model pass, at least half of it, and returns the time of the records after it.
func (t *traffic) pass(n uint32) uint64 {
	t.model += uint64(n/2 + t.r.Uint32N(n/2+1))
	return t.time()
}

func (t *traffic) exp(mean float64) uint64 { return uint64(t.r.ExpFloat64() * mean) }

// records appends records of about size bytes to dst.
func (t *traffic) records(dst []byte, size int) []byte {
	t.out = append(dst, t.out...)
	for want := len(dst) + size; len(t.out) < want; {
		x := t.pop()
		t.model = max(t.model, x.at)
		t.clock()
		t.conns[x.slot].step(t, x.slot)
	}
	dst, t.out = t.out, nil
	return dst
}

// end appends what is left and the session's last anchor to dst.
func (t *traffic) end(dst []byte) []byte {
	t.out = append(dst, t.out...)
	t.tick(t.time())
	t.account(t.time())
	t.anchor(event.AnchorEnd)
	dst, t.out = t.out, nil
	return dst
}

// clock makes the records that come every second, and those that come every minute: a real recorder makes these more often, but its
// clock runs no faster than its CPU.
func (t *traffic) clock() {
	for now := t.time(); t.nextTick <= now; t.nextTick += 1e9 {
		t.tick(t.nextTick)
		if t.nextTick-t.anchored >= 60e9 {
			t.account(t.nextTick)
			t.anchor(event.AnchorPeriodic)
		}
	}
}

// tick hands over what the CPUs have gathered, and promises that nothing older comes.
func (t *traffic) tick(now uint64) {
	for i := range t.cpus {
		t.flush(i)
	}
	t.out = event.Append(t.out, &event.Tick{Header: event.Header{Time: now}})
}

// account tells what each CPU's hooks have seen.
func (t *traffic) account(now uint64) {
	for i := range t.cpus {
		a := event.Accounting{Header: event.Header{Time: now, CPU: uint16(i)}}
		for h, n := range t.cpus[i].seen {
			a.Hook[h].Seen = n
		}
		t.out = event.Append(t.out, &a)
	}
}

func (t *traffic) anchor(phase uint32) {
	now := t.time()
	wall := t.realtime + int64(now-t.start)
	a := event.Anchor{Header: event.Header{Time: now}, Session: t.session, Realtime: wall, TAI: wall + 37e9, Uncertainty: 60 + t.r.Uint32N(200), Phase: phase}
	t.out = event.Append(t.out, &a)
	t.anchored = now
}

func (t *traffic) flush(cpu int) {
	c := &t.cpus[cpu]
	t.out = append(t.out, c.records...)
	c.records, c.n = c.records[:0], 0
}

// emit hands a record to its CPU.
func emit[R event.Segment | event.Sample | event.Incident](t *traffic, h *event.Header, rec *R) {
	c := &t.cpus[h.CPU]
	c.records = event.Append(c.records, rec)
	c.seen[h.Hook]++
	t.events++
	if c.n++; c.n == trafficBatch {
		t.flush(int(h.CPU))
	}
}

// wait lets the connection in a slot go on after d ns of the model.
func (t *traffic) wait(slot uint32, d uint64) {
	q := append(t.queue, timer{t.model + d + 1, slot})
	i := len(q) - 1
	for x := q[i]; i > 0; {
		up := (i - 1) / 2
		if q[up].at <= x.at {
			break
		}
		q[i], q[up] = q[up], x
		i = up
	}
	t.queue = q
}

func (t *traffic) pop() timer {
	q := t.queue
	first, x := q[0], q[len(q)-1]
	q = q[:len(q)-1]
	for i := 0; ; {
		c := 2*i + 1
		if c >= len(q) {
			if len(q) > 0 {
				q[i] = x
			}
			break
		}
		if c+1 < len(q) && q[c+1].at < q[c].at {
			c++
		}
		if x.at <= q[c].at {
			q[i] = x
			break
		}
		q[i] = q[c]
		i = c
	}
	t.queue = q
	return first
}

// What a connection is used for.
const (
	useRequests = iota // a few requests, then it ends
	useRPC             // requests as long as the process lives
	useUpload
	useDownload
)

// Stages of a connection.
const (
	stageIdle = iota // there is none
	stageLost        // its SYN was not answered
	stageAsked
	stageOpen
	stageClosing
)

// flow is one connection, or the place for one.
type flow struct {
	head           event.Header
	use, stage     uint8
	client         bool // this host opened it
	lossy          bool
	cpuIn, cpuOut  uint16
	mss            uint32
	rtt            uint64 // ns of the model
	left           int    // rounds until it ends
	sndNxt, sndUna uint32
	rcvNxt         uint32
	cwnd           uint32 // segments
	sackLeft, sack uint32 // the block that is acknowledged selectively, while there is one
	window         [2]uint16
	ipid           [2]uint32
	clock          [2]uint64 // offsets of the timestamps, ns
	tsval          [2]uint32 // last one of each side
	sockSeq        uint32
	known          [2]uint32 // sndUna and rcvNxt at the last sample
	s              event.Sample
}

// open makes a new connection.
func (f *flow) open(t *traffic) {
	r := t.r
	t.cookie++
	t.opened++
	*f = flow{cpuIn: uint16(r.IntN(trafficCPUs)), cpuOut: uint16(r.IntN(trafficCPUs)), mss: 1448, cwnd: 10, client: r.IntN(3) == 0, lossy: r.IntN(8) == 0}
	f.head = event.Header{Cookie: t.cookie, Netns: 1 + uint64(r.IntN(8)/7), Family: 4}
	service := [...]uint16{443, 443, 443, 80, 5432, 6379, 9092, 22}[r.IntN(8)]
	ephemeral := uint16(32768 + r.IntN(28232))
	f.head.LocalPort, f.head.PeerPort = service, ephemeral
	if f.client {
		f.head.LocalPort, f.head.PeerPort = ephemeral, service
	}
	if r.IntN(5) == 0 {
		f.head.Family, f.mss = 6, 1428
		local, peer := netip.MustParseAddr("2001:db8::5").As16(), netip.MustParseAddr("2001:db8:1::").As16()
		binary.BigEndian.PutUint32(peer[8:], r.Uint32N(1<<12))
		peer[15] = byte(r.IntN(8))
		f.head.Local, f.head.Peer = local, peer
	} else {
		f.head.Local = netip.AddrFrom4([4]byte{10, 0, 0, 5}).As16()
		f.head.Peer = netip.AddrFrom4([4]byte{100, 64, byte(r.IntN(64)), byte(1 + r.IntN(250))}).As16()
	}
	f.rtt = 2e5 + t.exp(2e7)
	f.sndNxt, f.rcvNxt = r.Uint32(), r.Uint32()
	f.sndUna = f.sndNxt
	f.window = [2]uint16{uint16(400 + r.IntN(200)), uint16(400 + r.IntN(200))}
	f.clock = [2]uint64{r.Uint64N(4e15), r.Uint64N(4e15)}
	f.ipid = [2]uint32{r.Uint32N(1 << 16), r.Uint32N(1 << 16)}
	switch x := r.IntN(1000); {
	case x < 800:
		f.use, f.left = useRequests, 1+r.IntN(8)
	case x < 960:
		f.use, f.left = useRPC, 1+int(t.exp(2000))
	case x < 980:
		f.use, f.left = useUpload, 1+int(t.exp(400))
	default:
		f.use, f.left = useDownload, 1+int(t.exp(400))
	}
	s := &f.s
	us := uint32(f.rtt / 1000)
	s.SndMSS, s.RcvMSS, s.PMTU, s.AdvMSS = f.mss, f.mss, 1500, f.mss
	s.MinRTT, s.RTT, s.RTTVar, s.RTO = us, us, us/8, 200000+us
	s.State = event.Established
	s.Present = event.HasRcvWnd | event.HasTCP | event.HasRehash | event.HasTotalRTO | event.HasCAPriv
	s.SndBuf, s.RcvBuf, s.MaxPacingRate, s.SndSsthresh = 2626560, 131072, ^uint64(0), event.UnsetSsthresh
	s.SndWscale, s.RcvWscale, s.Reordering, s.RcvSpace = 7, 7, 3, 14480
	copy(s.CAName[:], "cubic")
}

// step is what a connection does when its time has come; it tells when it goes on.
func (f *flow) step(t *traffic, slot uint32) {
	r := t.r
	gap := uint64(0)
	switch f.stage {
	case stageIdle:
		f.open(t)
		f.stage = stageAsked
		if f.client {
			f.state(t, event.Closed, event.SynSent)
		}
		f.segment(t, f.asks(), event.SYN, 0, false)
		gap = f.rtt
		if r.IntN(50) == 0 {
			f.stage, gap = stageLost, 1e9
		}
	case stageLost:
		f.retry(t)
		f.stage = stageAsked
		gap = f.rtt
	case stageAsked:
		if r.IntN(200) == 0 { // nobody listens there
			f.reset(t)
			gap = t.exp(5e8)
			break
		}
		f.segment(t, f.asks()^3, event.SYN|event.ACK, 0, false)
		old := event.SynSent
		if !f.client {
			old = event.SynRecv
			f.state(t, event.Listen, event.SynRecv)
		}
		t.pass(20000)
		f.segment(t, f.asks(), event.ACK, 0, false)
		f.sndUna = f.sndNxt
		f.state(t, old, event.Established)
		f.stage = stageOpen
		gap = t.exp(1e6)
	case stageOpen:
		switch f.use {
		case useUpload:
			gap = f.upload(t)
		case useDownload:
			gap = f.download(t)
		default:
			gap = f.request(t)
		}
		if f.left--; f.left <= 0 {
			f.stage = stageClosing
		}
	case stageClosing:
		if r.IntN(20) == 0 {
			f.reset(t)
		} else {
			f.close(t)
		}
		gap = t.exp(5e8)
	}
	t.wait(slot, gap)
}

// asks is the direction of the side that opened the connection.
func (f *flow) asks() event.Dir {
	if f.client {
		return event.DirOut
	}
	return event.DirIn
}

// retry is the second SYN of a client whose first was lost.
func (f *flow) retry(t *traffic) {
	if f.client {
		f.sndNxt--
		f.incident(t, event.HookRetransmitSKB, &event.Incident{Seq: f.sndNxt, Segs: 1, TCPFlags: event.SYN, CAState: event.CALoss})
	} else {
		f.rcvNxt--
	}
	f.segment(t, f.asks(), event.SYN, 0, false)
}

func (f *flow) reset(t *traffic) {
	dir := event.DirIn
	if t.r.IntN(2) == 0 {
		dir = event.DirOut
		f.incident(t, event.HookSendReset, &event.Incident{Reason: 4, TCPFlags: event.RST | event.ACK})
	}
	f.segment(t, dir, event.RST|event.ACK, 0, false)
	if dir == event.DirIn {
		f.incident(t, event.HookReceiveReset, &event.Incident{})
	}
	f.end(t, event.Established)
}

// close is the orderly end, begun by either side.
func (f *flow) close(t *traffic) {
	first, from := event.DirOut, event.FinWait2
	if t.r.IntN(2) == 0 {
		first, from = event.DirIn, event.LastAck
	}
	f.segment(t, first, event.FIN|event.ACK, 0, false)
	t.pass(40000)
	f.sndUna = f.sndNxt
	f.segment(t, first^3, event.FIN|event.ACK, 0, false)
	t.pass(40000)
	f.sndUna = f.sndNxt
	f.segment(t, first, event.ACK, 0, false)
	f.end(t, from)
}

// end is what the kernel tells of a socket that goes.
func (f *flow) end(t *traffic, from event.TCPState) {
	f.state(t, from, event.Closed)
	f.s.State = event.Closed
	f.sample(t, event.HookDestroySock, event.DirNone, 0, 0, 0, 1)
	f.stage = stageIdle
}

// upload takes the acknowledgments of what was sent a round trip ago, and sends as much as the window allows.
func (f *flow) upload(t *traffic) uint64 {
	r := t.r
	if f.lossy && r.IntN(64) == 0 && f.sndNxt-f.sndUna > 3*f.mss {
		f.lose(t)
		return f.rtt
	}
	for f.sndUna != f.sndNxt {
		f.sndUna += min(f.sndNxt-f.sndUna, 2*f.mss*(1+r.Uint32N(8)))
		f.cwnd = min(f.cwnd+1, 256)
		f.window[0] = f.window[0] + uint16(r.Uint32N(5)) - 2
		f.segment(t, event.DirIn, event.ACK, 0, false)
		t.pass(4000)
	}
	for n := f.cwnd; n > 0; {
		k := min(n, 1+r.Uint32N(44))
		n -= k
		flags := uint16(event.ACK)
		if n == 0 {
			flags |= event.PSH
		}
		f.segment(t, event.DirOut, flags, k*f.mss, false)
		t.pass(8000)
	}
	return f.rtt + t.exp(1e7)
}

// lose gives duplicate acknowledgments with SACK, and sends the hole again.
func (f *flow) lose(t *traffic) {
	r := t.r
	f.sackLeft, f.sack = f.sndUna+f.mss, f.sndUna+2*f.mss
	for range 3 + r.IntN(10) {
		f.segment(t, event.DirIn, event.ACK, 0, true)
		if int32(f.sndNxt-f.sack) > int32(f.mss) {
			f.sack += f.mss
		}
		t.pass(20000)
	}
	f.cwnd = max(f.cwnd*7/10, 2)
	f.s.SndSsthresh, f.s.CAState = f.cwnd, event.CARecovery
	f.incident(t, event.HookCongStateSet, &event.Incident{CAState: event.CARecovery, OldState: event.TCPState(event.CAOpen)})
	f.incident(t, event.HookRetransmitSKB, &event.Incident{Seq: f.sndUna, Len: f.mss, Segs: 1, TCPFlags: event.ACK, CAState: event.CARecovery})
	f.s.TotalRetrans++
	f.s.BytesRetrans += uint64(f.mss)
	next := f.sndNxt
	f.sndNxt = f.sndUna
	f.segment(t, event.DirOut, event.ACK, f.mss, false)
	f.sndNxt = next
	t.pass(200000)
	f.sndUna = f.sndNxt
	f.segment(t, event.DirIn, event.ACK, 0, false)
	f.s.CAState = event.CAOpen
	f.incident(t, event.HookCongStateSet, &event.Incident{CAState: event.CAOpen, OldState: event.TCPState(event.CARecovery)})
}

func (f *flow) download(t *traffic) uint64 {
	r := t.r
	for range 1 + r.IntN(12) {
		f.segment(t, event.DirIn, event.ACK, (1+r.Uint32N(16))*f.mss, false)
		t.pass(8000)
		if r.IntN(4) != 0 {
			f.window[1] = f.window[1] + uint16(r.Uint32N(200)) - 90
			f.segment(t, event.DirOut, event.ACK, 0, false)
		}
		if r.IntN(64) == 0 {
			f.incident(t, event.HookRcvSpaceAdjust, &event.Incident{Value: 14480 * (1 + r.Uint32N(200))})
		}
	}
	return f.rtt + t.exp(1e7)
}

// request is one request and its response, in full: the model does not wait for the answer.
func (f *flow) request(t *traffic) uint64 {
	r := t.r
	asks := f.asks()
	n := [...]uint32{31, 517, 220, 64}[r.IntN(4)]
	if r.IntN(3) == 0 {
		n = 40 + uint32(t.exp(300))
	}
	f.segment(t, asks, event.ACK|event.PSH, n, false)
	t.pass(100000)
	f.sndUna = f.sndNxt
	for m := 100 + uint32(t.exp(3000)); m > 0; {
		k := min(m, 4*f.mss)
		m -= k
		flags := uint16(event.ACK)
		if m == 0 {
			flags |= event.PSH
		}
		f.segment(t, asks^3, flags, k, false)
		t.pass(4000)
	}
	f.sndUna = f.sndNxt
	f.segment(t, asks, event.ACK, 0, false)
	if f.use == useRPC {
		return f.rtt + t.exp(3e8)
	}
	return f.rtt + t.exp(3e7)
}

func (f *flow) state(t *traffic, from, to event.TCPState) {
	x := event.Incident{OldState: from, NewState: to, PID: 700 + uint32(f.head.LocalPort%7), TID: 700 + uint32(f.head.LocalPort%7), UID: 1000, Present: event.HasProcess, Cgroup: 7788}
	copy(x.Comm[:], "nginx")
	f.incident(t, event.HookSetState, &x)
}

func (f *flow) incident(t *traffic, hook event.Hook, x *event.Incident) {
	f.sockSeq++
	x.Header = f.head
	x.Time, x.Hook, x.SockSeq, x.CPU = t.pass(400), hook, f.sockSeq, f.cpuOut
	emit(t, &x.Header, x)
}

// sampled is one of how many segments tells the socket's state, too.
const sampled = 8

// segment sends or receives one skb.
func (f *flow) segment(t *traffic, dir event.Dir, flags uint16, payload uint32, sack bool) {
	now := t.pass(1200)
	side := int(dir >> 1)
	e := event.Segment{Header: f.head, PayloadLen: payload, TCPFlags: flags, Ifindex: 2, Window: f.window[side^1],
		VLAN: event.NoVLAN, VLANInner: event.NoVLAN, TTL: 64, IPOff: 0x4000, IPLen: 20, GSOSegs: 1}
	e.Time, e.Dir, e.CPU = now, dir, f.cpuIn
	consumed := payload + uint32(flags&event.FIN) + uint32(flags>>1&1)
	if dir == event.DirOut {
		e.CPU, e.Hook, e.Seq, e.Ack = f.cpuOut, event.HookTCEgress, f.sndNxt, f.rcvNxt
		f.sndNxt += consumed
		f.sockSeq++
		e.SockSeq = f.sockSeq
	} else {
		e.Hook, e.Seq, e.Ack = event.HookTCIngress, f.rcvNxt, f.sndUna
		f.rcvNxt += consumed
		e.Cookie, e.TTL = 0, 57
	}
	if payload > f.mss {
		e.GSOSize = uint16(f.mss)
		e.GSOSegs = uint16((payload + f.mss - 1) / f.mss)
	}
	if f.head.Family == 4 {
		e.IPID = f.ipid[side] & 0xffff
		f.ipid[side] += uint32(e.GSOSegs)
	} else {
		e.IPLen, e.IPOff, e.IPID = 40, 0, uint32(f.head.LocalPort)*7
	}
	if flags&event.ACK == 0 {
		e.Ack = 0
	}
	o := append(e.Options[:0], 1, 1, 8, 10)
	if flags&event.SYN != 0 {
		o = append(e.Options[:0], 2, 4, 5, 0xb4, 4, 2, 8, 10)
	}
	f.tsval[side] = uint32((now + f.clock[side]) / 1e6)
	o = binary.BigEndian.AppendUint32(o, f.tsval[side])
	o = binary.BigEndian.AppendUint32(o, f.tsval[side^1])
	if flags&event.SYN != 0 {
		o = append(o, 1, 3, 3, 7)
	}
	if sack {
		o = append(o, 1, 1, 5, 10)
		o = binary.BigEndian.AppendUint32(o, f.sackLeft)
		o = binary.BigEndian.AppendUint32(o, f.sack)
	}
	e.OptionsLen = uint8(len(o))
	e.TCPLen = 20 + e.OptionsLen
	e.WireLen = 14 + uint32(e.IPLen) + uint32(e.TCPLen) + payload
	emit(t, &e.Header, &e)
	if flags&(event.SYN|event.RST) == 0 && t.r.Uint32N(sampled) == 0 {
		hook := event.HookTCPProbe
		if dir == event.DirOut {
			hook = event.HookTransmit
		}
		f.sample(t, hook, dir, e.Seq, e.Ack, payload, uint32(e.GSOSegs))
	}
}

// sample tells the socket's state at a segment.
func (f *flow) sample(t *traffic, hook event.Hook, dir event.Dir, seq, ack, payload, segs uint32) {
	r, s := t.r, &f.s
	s.Header = f.head
	s.Time, s.Dir, s.Hook = t.pass(300), dir, hook
	f.sockSeq++
	s.SockSeq = f.sockSeq
	s.TriggerSeq, s.TriggerAck, s.TriggerLen = seq, ack, payload
	data := segs
	if payload == 0 {
		data = 0
	}
	s.CPU = f.cpuIn
	if dir == event.DirOut {
		s.CPU = f.cpuOut
		s.BytesSent += uint64(payload)
		s.SegsOut += segs
		s.DataSegsOut += data
		s.LastDataSent = 0
		if r.IntN(4) == 0 {
			s.NotsentBytes = r.Uint32N(100) * f.mss
		}
		s.WriteSeq = f.sndNxt + s.NotsentBytes
		s.WmemQueued = f.sndNxt - f.sndUna + s.NotsentBytes
	} else {
		s.SegsIn += segs
		s.DataSegsIn += data
		if payload == 0 {
			us := uint32(f.rtt / 1000)
			us += uint32(t.exp(float64(us) / 10))
			s.RTT = (s.RTT*7 + us) / 8
			s.RTTVar = (s.RTTVar*3 + max(us, s.RTT) - min(us, s.RTT)) / 4
			s.MinRTT = min(s.MinRTT, us)
			s.RTO = (200000 + s.RTT + 4000) / 4000 * 4000
			s.DeliveryRate = uint64(f.mss) * uint64(f.cwnd) * 1_000_000 / uint64(us)
			s.PacingRate = uint64(f.mss) * 80000 * 120 * uint64(f.cwnd) / (8*uint64(s.RTT) + 4)
			s.BusyTime = (s.Time - t.start) / 1000
		}
	}
	s.BytesAcked += uint64(f.sndUna - f.known[0])
	s.BytesReceived += uint64(f.rcvNxt - f.known[1])
	if f.known == [2]uint32{} {
		s.BytesAcked, s.BytesReceived = 0, 0
	}
	s.Delivered += (f.sndUna - s.SndUna + f.mss - 1) / f.mss % (1 << 16)
	f.known = [2]uint32{f.sndUna, f.rcvNxt}
	s.SndUna, s.SndNxt, s.RcvNxt, s.CopiedSeq, s.RcvWup = f.sndUna, f.sndNxt, f.rcvNxt, f.rcvNxt, f.rcvNxt
	s.SndCwnd = f.cwnd
	s.Unacked = (f.sndNxt - f.sndUna + f.mss - 1) / f.mss
	s.SndWnd, s.RcvWnd = uint32(f.window[0])*128, uint32(f.window[1])*128
	s.LastAckRecv = uint32(s.Time/1e6) % 16
	s.CAPriv[0], s.CAPriv[1], s.CAPriv[3], s.CAPriv[8] = f.cwnd/2, 3*f.cwnd, uint32(s.Time/4e6), s.RTT
	emit(t, &s.Header, s)
}
