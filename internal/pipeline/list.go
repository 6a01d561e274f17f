// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// digests is what a block tells of its connections.
type digests struct {
	id      spool.ID
	src     []byte // a copy of the block
	info    block.Info
	entries []block.Entry
	keys    []uint64 // of entries, by index: the hash of their ends
	fresh   []bool   // of entries, by index: begins another connection; may be shorter
	holes   []event.Lost
	err     error
	ready   chan struct{}
}

// digester makes digests of blocks. Each worker has its own.
type digester struct {
	sel   *selector // nil: everything
	dec   *block.Decoder
	build *block.Builder
	raw   []byte
	part  []byte
	enc   []byte
	seed  [2]uint64 // of the hash, the same for all workers
}

// wanted tells, from the head alone, whether the block may hold something that is selected.
func wanted(sel *selector, info *block.Info, src []byte) (bool, error) {
	if sel == nil {
		return true, nil
	}
	lo, hi := sel.window(info)
	if info.Last < lo || info.First >= hi {
		return false, nil
	}
	if sel.tuples == nil || info.Kinds[event.KindLost] > 0 {
		return true, nil
	}
	for _, t := range sel.tuples {
		if ok, err := block.MayHold(src, t); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// work fills in what the block's directory tells, or its records where the directory cannot.
func (d *digester) work(j *digests) error {
	if err := d.digest(j); err != nil {
		return err
	}
	j.keys = j.keys[:0]
	for i := range j.entries {
		e := &j.entries[i]
		j.keys = append(j.keys, endsHash(&d.seed, e.Local, e.Peer))
	}
	return nil
}

// endsHash makes a key of a connection's two ends.
func endsHash(seed *[2]uint64, local, peer netip.AddrPort) uint64 {
	h := seed[0]
	for _, end := range [...]netip.AddrPort{local, peer} {
		a := end.Addr().As16()
		for _, x := range [...]uint64{binary.LittleEndian.Uint64(a[:8]), binary.LittleEndian.Uint64(a[8:]) + uint64(end.Port())<<17} {
			hi, lo := bits.Mul64(h^x, seed[1])
			h = hi ^ lo + x
		}
	}
	return h
}

func (d *digester) digest(j *digests) error {
	j.entries, j.fresh, j.holes = j.entries[:0], j.fresh[:0], j.holes[:0]
	lo, hi := uint64(0), uint64(math.MaxUint64)
	if d.sel != nil {
		lo, hi = d.sel.window(&j.info)
	}
	d.raw = d.raw[:0]
	decode := func() (err error) {
		if len(d.raw) == 0 {
			d.raw, err = d.dec.Decode(d.raw, j.src)
		}
		return err
	}
	if j.info.Kinds[event.KindLost] > 0 {
		if err := decode(); err != nil {
			return err
		}
		for h := range event.All(d.raw) {
			if h.Kind == event.KindLost && h.Time >= lo && h.Time < hi {
				j.holes = append(j.holes, *h.Lost())
			}
		}
	}
	var err error
	var keep func(local, peer netip.AddrPort) bool
	if d.sel != nil && len(d.sel.patterns) > 0 {
		keep = d.sel.match
	}
	edge := j.info.First < lo || j.info.Last >= hi
	if !edge {
		if j.entries, err = d.dec.DirectoryOf(j.entries, j.src, keep); err != nil {
			return err
		}
	}
	if edge || early(j.entries) {
		if err := decode(); err != nil {
			return err
		}
		d.part = d.part[:0]
		for h := range event.All(d.raw) {
			if h.Kind < event.KindTick && h.Time >= lo && h.Time < hi {
				d.part = append(d.part, h.Bytes()...)
			}
		}
		if j.entries = j.entries[:0]; len(d.part) == 0 {
			return nil
		}
		d.build.Add(d.part)
		d.enc = d.build.Seal(d.enc[:0])
		if j.entries, err = d.dec.DirectoryOf(j.entries, d.enc, keep); err != nil {
			return err
		}
	}
	for i := len(j.entries) - 1; i >= 0; i-- {
		if j.entries[i].Seen&block.SeenSeveral == 0 {
			continue
		}
		if err := decode(); err != nil {
			return err
		}
		if err := d.split(j, i, lo, hi); err != nil {
			return err
		}
	}
	return nil
}

// early reports whether the directory is, or may be, one of early programs, which did not tell yet how connections open and end: it says
// nothing of any connection beyond the flags of its segments. If entries are of some connections alone, a later program's may look like that; their
// records tell the same.
func early(entries []block.Entry) bool {
	for i := range entries {
		if entries[i].Seen >= block.SeenLife {
			return false
		}
	}
	return len(entries) > 0
}

// split replaces an entry of several connections by one for each.
func (d *digester) split(j *digests, i int, lo, hi uint64) error {
	e := &j.entries[i]
	local, peer := e.Local.Addr().As16(), e.Peer.Addr().As16()
	var own []*event.Header
	connects := map[uint64]*event.Header{} // by cookie, whose port was not chosen yet
	for h := range event.All(d.raw) {
		if h.Kind < event.KindTick && h.Netns == e.Netns && h.Family == e.Family && h.Local == local && h.Peer == peer &&
			h.LocalPort == e.Local.Port() && h.PeerPort == e.Peer.Port() && h.Time >= lo && h.Time < hi {
			own = append(own, h)
		}
		if h.LocalPort == 0 && h.PeerPort == e.Peer.Port() && h.Hook == event.HookSetState && h.Time >= lo && h.Time < hi {
			connects[h.Cookie] = h
		}
	}
	slices.SortStableFunc(own, func(a, b *event.Header) int { return cmp.Compare(a.Time, b.Time) })

	var parts []block.Entry
	var cookie, old uint64
	var isn [2]uint32
	var syn, spoke [2]bool
	closed := false
	d.part = d.part[:0]
	seal := func() error {
		if len(d.part) == 0 {
			return nil
		}
		for h := range event.All(d.part) {
			if c := connects[h.Cookie]; c != nil && h.Cookie != 0 {
				d.build.Add(c.Bytes())
				break
			}
		}
		d.build.Add(d.part)
		d.enc = d.build.Seal(d.enc[:0])
		d.part = d.part[:0]
		list, err := d.dec.Directory(nil, d.enc)
		for _, x := range list {
			if x.Local == e.Local {
				parts = append(parts, x)
			}
		}
		return err
	}
	for _, h := range own {
		another := false
		side := int(h.Dir>>1) & 1
		bare := h.Kind == event.KindSegment && h.Segment().TCPFlags&(event.SYN|event.ACK|event.RST) == event.SYN
		opens := false
		switch {
		case bare:
			another = syn[side] && isn[side] != h.Segment().Seq || spoke[side] && !syn[side] || closed
		case ownRecord(h) && h.Cookie != 0 && h.Cookie != old:
			another = cookie != 0 && h.Cookie != cookie
		}
		if h.Kind == event.KindIncident && h.Hook == event.HookSetState {
			to := h.Incident().NewState
			opens = to == event.SynSent || to == event.Established
			another = another || opens && closed
		}
		if another {
			if err := seal(); err != nil {
				return err
			}
			old, cookie, syn, spoke, closed = cookie, 0, [2]bool{}, [2]bool{}, false
		}
		spoke[side] = spoke[side] || h.Kind == event.KindSegment
		if bare {
			syn[side], isn[side] = true, h.Segment().Seq
		}
		if ownRecord(h) && h.Cookie != 0 && h.Cookie != old {
			cookie = h.Cookie
		}
		switch {
		case h.Kind == event.KindIncident && h.Hook == event.HookSetState && h.Incident().NewState == event.Closed && h.Cookie != old,
			h.Kind == event.KindSample && h.Hook == event.HookDestroySock && h.Cookie != old:
			closed = true
		}
		d.part = append(d.part, h.Bytes()...)
	}
	if err := seal(); err != nil {
		return err
	}
	for len(j.fresh) < len(j.entries) {
		j.fresh = append(j.fresh, false)
	}
	fresh := make([]bool, len(parts))
	for k := range fresh {
		fresh[k] = k > 0
	}
	j.entries = slices.Replace(j.entries, i, i+1, parts...)
	j.fresh = slices.Replace(j.fresh, i, i+1, fresh...)
	return nil
}

// ownRecord reports whether the record's cookie is that of the connection's own full socket.
func ownRecord(h *event.Header) bool {
	switch h.Kind {
	case event.KindSample:
		s := h.Sample()
		return s.Present&event.HasTCP != 0 && h.Hook != event.HookDestroySock && s.State != event.Closed
	case event.KindIncident:
		switch h.Hook {
		case event.HookSetState, event.HookRetransmitSKB, event.HookCongStateSet, event.HookRcvSpaceAdjust, event.HookInventory:
			return true
		}
	}
	return false
}

// maxAhead is how many blocks may be read before the one that is added up.
const maxAhead = 32

// list adds the directories of all blocks up: one goroutine reads, others decode, and the caller's adds up in order.
func list(ctx context.Context, r *spool.Reader, cfg processors.Config, sel *selector, progress Progress) ([]processors.Flow, []Damage, error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	var ranges []idRange
	if sel != nil {
		var err error
		if ranges, err = sel.ranges(ctx, r); err != nil {
			return nil, nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg      sync.WaitGroup
		damaged = []Damage{}
		readErr error
		free    = make(chan *digests, maxAhead)
		work    = make(chan *digests, maxAhead)
		order   = make(chan *digests, maxAhead)
	)
	for range maxAhead {
		free <- &digests{}
	}
	seed := [2]uint64{rand.Uint64(), rand.Uint64() | 1} // who is recorded may not choose what collides
	for range max(1, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			d := digester{dec: block.NewDecoder(), build: block.NewBuilder(block.Options{}), seed: seed}
			if sel != nil {
				own := *sel
				own.known, own.dec, own.entries = map[endpoints]bool{}, nil, nil
				d.sel = &own
			}
			for j := range work {
				j.err = d.work(j)
				close(j.ready)
			}
		})
	}
	wg.Go(func() {
		defer close(order)
		defer close(work)
		var last clock
		pass := func(id spool.ID, info *block.Info, src []byte) error {
			var j *digests
			select {
			case j = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			j.id, j.info, j.err, j.ready = id, *info, nil, make(chan struct{})
			j.src = append(j.src[:0], src...)
			if len(src) > 0 {
				work <- j
			} else {
				j.entries, j.keys, j.fresh, j.holes = j.entries[:0], j.keys[:0], j.fresh[:0], j.holes[:0]
				close(j.ready)
			}
			order <- j
			return nil
		}
		var look func(spool.ID, []byte) (bool, error)
		if sel != nil {
			look = func(id spool.ID, head []byte) (bool, error) {
				info, err := block.ReadInfo(head)
				if err != nil {
					return false, err
				}
				last.carry(&info)
				in, err := wanted(sel, &info, head)
				if err == nil && !in {
					return false, pass(id, &info, nil) // it tells that time goes on
				}
				return in, err
			}
		}
		readErr = walk(ctx, r, ranges, progress, &damaged, look, func(id spool.ID, src []byte) error {
			info, err := block.ReadInfo(src)
			if err != nil {
				return err
			}
			last.carry(&info)
			return pass(id, &info, src)
		})
	})
	l := newLister(cfg, sel, seed)
	var bad []Damage
	for j := range order {
		<-j.ready
		switch {
		case j.err == nil:
			l.block(j)
		case errors.Is(j.err, block.ErrCorrupt) || errors.Is(j.err, block.ErrVersion):
			bad = append(bad, Damage{Block: j.id, Err: j.err, Text: fmt.Sprintf("block %d: %v", j.id, j.err)})
		}
		free <- j
	}
	cancel()
	wg.Wait()
	l.end()
	damaged = append(damaged, bad...)
	slices.SortStableFunc(damaged, func(a, b Damage) int { return cmp.Compare(a.Block, b.Block) })
	return l.flows, damaged, readErr
}

// row is a connection that is added up.
type row struct {
	processors.Flow
	first, last uint64
	opened      uint64
	established uint64
	closed      uint64
	ended       uint64
	oldCookie   uint64
	total       uint64 // segments that the socket says it has sent again
	totalBytes  uint64
	seen        uint32
	atClose     uint32
	state, from event.TCPState
	over        uint8
	sampled     uint64 // end of the block that SRTT is of
	stated      uint64 // end of the block that state is of
	proven      bool   // established is the socket's word
	idle        bool   // forgotten: no events for too long
	replaced    bool   // another connection has its ends
	socket      bool
	both        bool // part of a forwarded one
	key         uint64
	other       *row // with the same key: in another network namespace, seldom with other ends
}

type listening struct {
	netns uint64
	at    netip.AddrPort
}

type process struct {
	pid  uint32
	comm [16]byte
	at   uint64
}

// lister adds up the digests of one session after the other.
type lister struct {
	cfg   processors.Config
	sel   *selector
	flows []processors.Flow

	any       bool
	session   uint64
	stated    bool // it has inet_sock_set_state
	last      uint64
	anchors   []block.Anchor // of the session, in order
	rows      []*row
	seed      [2]uint64
	live      map[uint64]*row // by the hash of their ends; other leads to more of the same hash
	listeners map[listening]process
	connects  map[uint64]process // by cookie
	holes     []event.Lost
	names     map[[16]byte]string
	spare     []row
}

func newLister(cfg processors.Config, sel *selector, seed [2]uint64) *lister {
	l := &lister{cfg: cfg, sel: sel, seed: seed, flows: []processors.Flow{}, names: map[[16]byte]string{}}
	l.reset()
	return l
}

func (l *lister) reset() {
	l.stated, l.last, l.rows, l.holes, l.anchors = false, 0, l.rows[:0], l.holes[:0], l.anchors[:0]
	l.live, l.listeners, l.connects = map[uint64]*row{}, map[listening]process{}, map[uint64]process{}
}

// block adds a block.
func (l *lister) block(j *digests) {
	if !l.any || j.info.Anchored && j.info.Anchor.Session != l.session {
		l.end()
		l.any, l.session = true, j.info.Anchor.Session
	}
	if n := len(l.anchors); j.info.Anchored && (n == 0 || l.anchors[n-1].Time < j.info.Anchor.Time) {
		l.anchors = append(l.anchors, j.info.Anchor)
	}
	last := j.info.Last
	if l.sel != nil {
		_, hi := l.sel.window(&j.info)
		last = min(last, hi)
	}
	l.last = max(l.last, last)
	l.holes = append(l.holes, j.holes...)
	for i := range j.entries {
		if e := &j.entries[i]; e.Local.Port() == 0 || e.Peer.Port() == 0 {
			l.incomplete(e)
		}
	}
	for i := range j.entries {
		if e := &j.entries[i]; e.Local.Port() != 0 && e.Peer.Port() != 0 {
			l.add(e, j.keys[i], &j.info, i < len(j.fresh) && j.fresh[i])
		}
	}
}

// incomplete takes what listeners tell, and connects that have no port yet.
func (l *lister) incomplete(e *block.Entry) {
	if e.Peer.Port() == 0 {
		key := listening{e.Netns, e.Local}
		switch {
		case e.State == event.Listen:
			l.listeners[key] = process{pid: e.PID, comm: e.Comm}
		case e.State == event.Closed && e.Peer.Addr().IsUnspecified():
			delete(l.listeners, key)
		}
		return
	}
	if e.Cookie != 0 && e.Incidents == 1 { // of several it would not be known whose the time is
		if len(l.connects) > 1<<16 {
			clear(l.connects) // their ports come within microseconds
		}
		l.connects[e.Cookie] = process{pid: e.PID, comm: e.Comm, at: e.First}
	}
}

// listens returns who listens at the local end.
func (l *lister) listens(e *block.Entry) (process, bool) {
	for _, a := range [...]netip.Addr{e.Local.Addr(), netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if a == netip.IPv4Unspecified() && !e.Local.Addr().Is4() {
			continue
		}
		if p, ok := l.listeners[listening{e.Netns, netip.AddrPortFrom(a, e.Local.Port())}]; ok {
			return p, true
		}
	}
	return process{}, false
}

// find returns the connection with these ends. Records whose network namespace is not known belong to the one that was seen last.
func (l *lister) find(e *block.Entry, key uint64) *row {
	var best *row
	for r := l.live[key]; r != nil; r = r.other {
		if r.Local != e.Local || r.Peer != e.Peer {
			continue
		}
		if r.Netns == e.Netns {
			return r
		}
		if (r.Netns == 0 || e.Netns == 0) && (best == nil || r.last > best.last) {
			best = r
		}
	}
	return best
}

func (l *lister) drop(r *row) {
	if l.live[r.key] == r {
		if r.other == nil {
			delete(l.live, r.key)
		} else {
			l.live[r.key] = r.other
		}
		return
	}
	for p := l.live[r.key]; p != nil; p = p.other {
		if p.other == r {
			p.other = r.other
			return
		}
	}
}

// over tells when the connection ended, as far as that is known for certain; 0 while it is open.
func (l *lister) over(r *row) uint64 {
	if r.closed != 0 {
		return r.closed
	}
	if r.socket && l.stated {
		return 0 // its socket will tell
	}
	return r.ended
}

// another reports whether the entry is of another connection than the row with its ends.
func (l *lister) another(r *row, e *block.Entry) bool {
	if r.socket && e.Seen&block.SeenSocket != 0 && r.Cookie != 0 && e.Cookie != 0 && e.Cookie != r.Cookie {
		return e.Cookie != r.oldCookie
	}
	if at := l.over(r); at != 0 {
		if e.Seen&block.SeenOpening != 0 && max(e.Opened, e.Established) > at || e.First > at+uint64(l.cfg.Linger) {
			return true
		}
	}
	limit := uint64(l.cfg.IdleTimeout)
	if half(r) {
		limit = min(limit, uint64(l.cfg.HandshakeTimeout))
	}
	if e.First > r.last && e.First-r.last >= limit {
		r.idle = l.over(r) == 0
		return true
	}
	// Without the sockets' word, a SYN after the handshake begins anew.
	return r.seen&block.SeenStated == 0 && e.Seen&block.SeenStated == 0 && r.established != 0 && e.Opened > r.established
}

// half reports whether the handshake is not complete.
func half(r *row) bool {
	switch r.state {
	case event.SynSent, event.SynRecv, event.NewSynRecv:
		return true
	case 0:
		return r.seen&block.SeenOpening != 0 && r.established == 0
	}
	return false
}

func (l *lister) add(e *block.Entry, key uint64, info *block.Info, fresh bool) {
	r := l.find(e, key)
	if r != nil && (fresh || l.another(r, e)) {
		r.replaced = true
		l.drop(r)
		old := r.Cookie
		r = l.create(e, key, info)
		r.oldCookie = old
	} else if r == nil {
		r = l.create(e, key, info)
	}
	l.merge(r, e, info)
}

// create makes a row, also for what makes no connection: the records that do may come in the next block, if another CPU made them.
// Rows that stay without are dropped at the end.
func (l *lister) create(e *block.Entry, key uint64, info *block.Info) *row {
	if len(l.spare) == 0 {
		l.spare = make([]row, 256)
	}
	r := &l.spare[0]
	l.spare = l.spare[1:]
	r.Local, r.Peer, r.Netns, r.first, r.key = e.Local, e.Peer, e.Netns, e.First, key
	r.other = l.live[key]
	l.live[key] = r
	l.rows = append(l.rows, r)
	return r
}

// merge adds a block's digest of the connection.
func (l *lister) merge(r *row, e *block.Entry, info *block.Info) {
	l.stated = l.stated || e.Seen&block.SeenStated != 0
	if r.Netns == 0 {
		r.Netns = e.Netns
	}
	first := e.First
	if e.Opened != 0 && e.Opened < first {
		first = e.Opened
	}
	if first < r.first {
		r.first = first
	}
	r.last = max(r.last, e.Last)
	r.BytesIn += e.BytesIn
	r.BytesOut += e.BytesOut
	r.SegmentsIn += e.SegsIn
	r.SegmentsOut += e.SegsOut
	r.Retransmits += e.Retransmits
	r.RetransmitBytes += e.RetransmitBytes
	r.Events += uint64(e.Segments) + uint64(e.Samples) + uint64(e.Incidents)
	r.total, r.totalBytes = max(r.total, e.TotalRetrans), max(r.totalBytes, e.BytesRetrans)
	r.MaxCwnd = max(r.MaxCwnd, e.MaxCwnd)
	// Blocks come in the order in which CPUs hand over: what is newest is told by time.
	if e.SRTT != 0 && e.Last >= r.sampled {
		r.sampled = e.Last
		r.SRTT = float64(e.SRTT) / 1e6
		if e.MinRTT != 0 {
			r.MinRTT = float64(e.MinRTT) / 1e6
		}
	}
	if e.State != 0 && e.Last >= r.stated {
		r.state, r.stated = e.State, e.Last
	}

	if e.Cookie != 0 && (r.Cookie == 0 || e.Seen&block.SeenSocket != 0) {
		r.Cookie = e.Cookie
	}
	if r.Role == processors.RoleUnknown {
		switch {
		case e.Seen&block.SeenClient != 0:
			r.Role = processors.RoleClient
		case e.Seen&block.SeenServer != 0:
			r.Role = processors.RoleServer
		}
	}
	r.Opened = r.Opened || e.Seen&block.SeenOpening != 0
	r.opened = least(r.opened, e.Opened)
	if proven := e.Established != 0 && e.Seen&block.SeenStated != 0; r.Role == processors.RoleServer && proven && !r.proven {
		r.established, r.proven = e.Established, true // a server's socket knows better than its packets
	} else if r.Role != processors.RoleServer || !r.proven {
		r.established = least(r.established, e.Established)
	}
	if c, ok := l.connects[r.Cookie]; ok && r.Cookie != 0 {
		delete(l.connects, r.Cookie)
		if r.PID == 0 {
			r.PID, r.Comm = c.pid, l.name(c.comm)
		}
		if r.established == 0 || c.at < r.established {
			r.Role, r.Opened, r.opened = processors.RoleClient, true, c.at
			if c.at < r.first {
				r.first = c.at
			}
		}
	}
	if r.PID == 0 && e.PID != 0 {
		r.PID, r.Comm = e.PID, l.name(e.Comm)
	}
	r.socket = r.socket || e.Seen&block.SeenSocket != 0
	if r.Role != processors.RoleClient && (r.PID == 0 || r.Role == processors.RoleUnknown) && (r.socket || r.Role == processors.RoleServer) {
		if p, ok := l.listens(e); ok {
			r.Role = processors.RoleServer
			if r.PID == 0 {
				r.PID, r.Comm = p.pid, l.name(p.comm)
			}
		}
	}

	const before = block.SeenRSTOut | block.SeenResetTaken | block.SeenSynRetry
	if r.closed != 0 && e.Last < r.closed {
		r.atClose |= e.Seen & before
	}
	if e.Closed != 0 && (r.closed == 0 || r.from == 0) {
		r.closed, r.from = e.Closed, e.From
		r.atClose = e.AtClose | r.seen&before
	}
	if e.Ended != 0 && r.ended == 0 {
		r.ended, r.over = e.Ended, e.Over
	}
	const fins = block.SeenFINIn | block.SeenFINOut
	seen := r.seen | e.Seen
	if r.ended == 0 && r.seen&fins != fins && seen&fins == fins && r.seen&fins != 0 {
		// The FINs are in two blocks: that both were acknowledged can only be guessed.
		r.ended, r.over = e.Last, block.OverClosed
	}
	r.seen = seen
}

func (l *lister) name(comm [16]byte) string {
	name, ok := l.names[comm]
	if !ok {
		name = string(comm[:])
		if i := bytes.IndexByte(comm[:], 0); i >= 0 {
			name = name[:i]
		}
		l.names[comm] = name
	}
	return name
}

// end closes the session: its connections are told.
func (l *lister) end() {
	for _, r := range l.rows {
		if r.seen&block.SeenLife != 0 {
			l.forwarded(r)
		}
	}
	rows := slices.DeleteFunc(l.rows, func(r *row) bool { return r.both || r.seen&block.SeenLife == 0 })
	slices.SortStableFunc(rows, func(a, b *row) int { return cmp.Compare(a.first, b.first) })
	l.flows = slices.Grow(l.flows, len(rows))
	for i, r := range rows {
		r.ID, r.Start = uint64(i+1), l.wall(r.first)
		l.finish(r)
		l.flows = append(l.flows, r.Flow)
	}
	l.reset()
	l.spare = nil // the flows have all that is kept
}

// wall returns the wall time of a time of the session, as the table does: by the last anchor before it, which is not that of
// the block in which it was met if the clock was set meanwhile.
func (l *lister) wall(t uint64) time.Time {
	if len(l.anchors) == 0 {
		return time.Unix(0, int64(t)).UTC()
	}
	i, exact := slices.BinarySearchFunc(l.anchors, t, func(a block.Anchor, t uint64) int { return cmp.Compare(a.Time, t) })
	if !exact {
		i = max(i-1, 0)
	}
	a := &l.anchors[i]
	return time.Unix(0, a.Realtime+int64(t-a.Time)).UTC()
}

// forwarded makes one of the two rows of a connection that only passes through: it came in by one interface and left by another,
// and no socket here has to do with it.
func (l *lister) forwarded(r *row) {
	foreign := func(r *row) bool { return !r.both && !r.socket && r.Cookie == 0 && !r.replaced }
	if !foreign(r) || r.Vantage == processors.VantageForwarder {
		return
	}
	for o := l.live[endsHash(&l.seed, r.Peer, r.Local)]; o != nil; o = o.other {
		if o == r || o.Local != r.Peer || o.Peer != r.Local || !foreign(o) || o.Netns != r.Netns || o.first > r.last || r.first > o.last {
			continue
		}
		// Local is who sent the SYN, or else the lower of the two.
		if r.Role == processors.RoleServer || r.Role == processors.RoleUnknown && cmp.Or(r.Local.Addr().Compare(r.Peer.Addr()), cmp.Compare(r.Local.Port(), r.Peer.Port())) > 0 {
			r, o = o, r
		}
		o.both = true
		// Each direction counts where it came in, if it did so in both.
		r.Vantage = processors.VantageForwarder
		if r.first > o.first {
			r.first = o.first
		}
		r.BytesOut, r.SegmentsOut = o.BytesIn, o.SegmentsIn
		r.last = max(r.last, o.last)
		r.Events += o.Events
		r.opened, r.established = least(r.opened, o.opened), least(r.established, o.established)
		r.Opened = r.Opened || o.Opened
		if at := least(r.ended, o.ended); at != r.ended {
			r.ended = at
			r.over = o.over
			switch o.over {
			case block.OverResetReceived:
				r.over = block.OverResetSent
			case block.OverResetSent:
				r.over = block.OverResetReceived
			}
		}
		return
	}
}

// least returns the earlier of two times, of which 0 is none.
func least(a, b uint64) uint64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// flowStates are the names of states that processors gives.
var flowStates = [...]string{
	event.Established: "established", event.SynSent: "syn_sent", event.SynRecv: "syn_received",
	event.FinWait1: "fin_wait_1", event.FinWait2: "fin_wait_2", event.TimeWait: "time_wait",
	event.Closed: "closed", event.CloseWait: "close_wait", event.LastAck: "last_ack",
	event.Listen: "listen", event.Closing: "closing", event.NewSynRecv: "syn_received",
}

// finish draws the conclusions.
func (l *lister) finish(r *row) {
	if r.Vantage == processors.VantageUnknown && (r.socket || r.Cookie != 0) {
		r.Vantage = processors.VantageHost
	}
	if l.stated && r.Role == processors.RoleServer && r.Vantage == processors.VantageHost && r.seen&block.SeenStated == 0 {
		r.established = 0 // its socket never told
	}
	if r.Opened && r.opened != 0 && r.established > r.opened {
		r.Handshake = float64(r.established-r.opened) / 1e9
	}
	if r.Opened { // else the socket counted before
		r.Retransmits, r.RetransmitBytes = max(r.Retransmits, r.total), max(r.RetransmitBytes, r.totalBytes)
	}
	closed := uint64(0)
	switch {
	case r.closed != 0 && (r.from != 0 || r.ended == 0):
		closed = r.closed
		r.End = ending(r)
	case r.ended != 0 && (!r.socket || !l.stated || r.over == block.OverClosed || r.replaced || l.last-min(l.last, r.last) >= uint64(l.cfg.Linger)):
		closed = r.ended
		r.End = [...]processors.End{
			block.OverClosed: processors.EndClosed, block.OverResetSent: processors.EndResetSent, block.OverResetReceived: processors.EndResetReceived,
		}[r.over]
	case r.idle:
		r.End = processors.EndIdle
	case r.replaced:
		r.End = processors.EndUnknown
	default:
		limit := uint64(l.cfg.IdleTimeout)
		if half(r) {
			limit = min(limit, uint64(l.cfg.HandshakeTimeout))
		}
		if l.last > r.last && l.last-r.last >= limit {
			r.End = processors.EndIdle
		}
	}
	state := r.state
	if closed != 0 {
		state = event.Closed
	} else if !r.socket || state == 0 {
		state = guess(r)
	}
	r.State = "unknown"
	if int(state) < len(flowStates) && state != 0 {
		r.State = flowStates[state]
	}
	end := r.last
	if closed != 0 {
		end = closed
	}
	if end > r.first {
		r.Duration = float64(end-r.first) / 1e9
	}
	for i := range l.holes {
		if h := &l.holes[i]; h.Last >= r.first && h.First <= r.last {
			for hook, n := range h.Count {
				if event.Hook(hook) != event.HookNone {
					r.LostEvents += uint64(n)
				}
			}
		}
	}
}

// ending tells how a socket ended that changed to CLOSE, by the rules of processors.
func ending(r *row) processors.End {
	if r.from == 0 {
		return processors.EndUnknown
	}
	reset := func(seen uint32, other processors.End) processors.End {
		switch {
		case seen&block.SeenResetTaken != 0:
			return processors.EndResetReceived
		case seen&block.SeenRSTOut != 0:
			return processors.EndResetSent
		}
		return other
	}
	switch r.from {
	case event.SynSent, event.SynRecv, event.NewSynRecv:
		if r.atClose&block.SeenSynRetry != 0 {
			return reset(r.seen, processors.EndTimeout)
		}
		return reset(r.atClose, processors.EndClosed)
	case event.Established, event.CloseWait, event.FinWait1:
		// What looks like giving up can be a reset that is told a moment later.
		return reset(r.seen, processors.EndTimeout)
	}
	return reset(r.atClose, processors.EndClosed)
}

// guess tells the state by the flags of packets.
func guess(r *row) event.TCPState {
	in, out := r.seen&block.SeenFINIn != 0, r.seen&block.SeenFINOut != 0
	switch {
	case in && out:
		return event.LastAck
	case out:
		return event.FinWait2
	case in:
		return event.CloseWait
	case r.established != 0 || r.seen&block.SeenOpening == 0:
		return event.Established
	case r.Role == processors.RoleServer:
		return event.SynRecv
	}
	return event.SynSent
}
