// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// Table follows all connections of one stream of events. It is not safe for concurrent use.
//
// # Which connection a record belongs to
//
// A connection is (network namespace, local end, peer) from the time when it is first seen.
// A record whose namespace is unknown belongs to the connection with these ends that was
// seen last. On loopback both ends are local: two connections, each from its own side; and
// so are the two ends of a veth pair, whose namespaces differ.
//
// The ends are used again: a SYN with another initial sequence number, after the connection
// ended or where no socket tells that it is open, and a socket with another cookie begin a
// new connection and end the old one (EndUnknown, if its end was not seen).
//
// Records without a peer's port are of listeners: they make no connection, but tell whose
// process accepts. A connect that has no local port yet is remembered by its cookie until
// the port is known.
//
// A first packet that is a RST, or a FIN or an ACK of a connection that was already
// forgotten and carries FIN, makes no connection.
//
// # Forwarders
//
// A packet that comes in and then goes out of another interface is seen with its ends
// exchanged. Where no socket is known, both sightings are one connection with
// VantageForwarder, in which Local is the sender of the SYN or, where none was seen, the
// lower address and port. The orientation of a connection that was already told stays.
// A forwarder that is captured on one interface only looks like the host behind it.
//
// # Which sighting counts
//
// A packet can pass several interfaces of a host (a VLAN or bond and the device below it; a
// forwarder's two sides). Each direction of a connection counts at one point, interface and
// hook, where that direction was seen first. If sequence numbers that were never seen before
// appear at another point, the direction has moved: it counts there from then on.
//
// # Ends
//
// Where sockets tell their states (inet_sock_set_state), they say when a connection ends; else
// its packets do (RST, or both FINs acknowledged). A closed connection lingers for
// Config.Linger, so that late segments are counted in it and make no ghost. A connection
// without events ends after Config.IdleTimeout.
type Table struct {
	cfg      Config
	reg      Registry
	families []Family
	hosts    []HostFamily
	watchers []IncidentWatcher
	wants    [event.KindIncident + 1][]int // indexes of families by kind of record

	idx   index
	conns []*conn // by slot
	free  []int32 // slots
	order []*conn // all that are held, by ID: live ones and those whose end is yet to be told
	last  *conn   // the last one found

	lingering []*conn // by the time of their end
	lingered  int     // of lingering: already gone
	hand      int     // of order: where evict looked last
	evicted   uint64
	idleCheck uint64 // when to look for idle connections again

	now     uint64
	anchor  event.Anchor
	stated  bool // this session has inet_sock_set_state
	host    Host
	ids     uint64
	live    int
	holes   [64]hole // losses since the last Collect, by CPU modulo 64
	anyHole bool
	procs   processes
	ev      Event
}

// hole is what was lost on one CPU.
type hole struct {
	first, last, events uint64
}

// NewTable returns an empty Table, or what Config.Validate says.
func NewTable(cfg Config) (*Table, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &Table{cfg: cfg, idx: newIndex(), procs: newProcesses()}
	t.reg.now = &t.now
	off := slices.Clone(cfg.Off)
	t.cfg.Off = off
	if len(off) > 0 {
		t.reg.off = func(name string) bool {
			return slices.ContainsFunc(off, func(entry string) bool { return matches(entry, name) })
		}
	}
	for _, p := range All() {
		t.reg.kinds = [event.KindIncident + 1]bool{}
		n := len(t.reg.series)
		f := p.Bind(&t.reg)
		if len(t.reg.series) == n {
			continue // all of it is switched off
		}
		i := len(t.families)
		t.families = append(t.families, f)
		for k, want := range t.reg.kinds {
			if want {
				t.wants[k] = append(t.wants[k], i)
			}
		}
		if hf, ok := f.(HostFamily); ok {
			t.hosts = append(t.hosts, hf)
		}
		if w, ok := f.(IncidentWatcher); ok {
			t.watchers = append(t.watchers, w)
		}
	}
	return t, nil
}

// Series returns all series of the Table; Series()[i].ID is i.
func (t *Table) Series() []*Series { return t.reg.series }

// Metrics returns the metrics that are not switched off, in the order of docs/metrics.md.
func (t *Table) Metrics() []*Metric { return t.reg.metrics }

// Len returns the number of connections that are open or linger.
func (t *Table) Len() int { return t.live }

// Evicted returns how many connections were forgotten for lack of room (Config.MaxConnections).
func (t *Table) Evicted() uint64 { return t.evicted }

// Now returns the time that the stream has reached, ns of CLOCK_MONOTONIC.
func (t *Table) Now() uint64 { return t.now }

// Wall returns Now as wall clock, ns since 1970: that of the last Anchor and the monotonic
// time since. It is Now itself before the first Anchor.
func (t *Table) Wall() int64 { return t.wall(t.now) }

func (t *Table) wall(time uint64) int64 {
	return t.anchor.Realtime + int64(time-t.anchor.Time)
}

// Observe takes the next record of the stream: every record, in order. It copies what it
// keeps: h may be reused at once.
func (t *Table) Observe(h *event.Header) {
	switch h.Kind {
	case event.KindSegment:
		t.advance(h.Time)
		t.segment(h)
	case event.KindSample:
		t.advance(h.Time)
		t.sample(h)
	case event.KindIncident:
		t.advance(h.Time)
		t.incident(h)
	case event.KindTick:
		t.advance(h.Time)
		t.sweep()
	case event.KindLost:
		t.advance(h.Time)
		t.lost(h.Lost())
	case event.KindAnchor:
		t.anchored(h.Anchor())
	}
}

func (t *Table) advance(time uint64) {
	if time > t.now {
		t.now = time
	}
}

// Finish says that the recording ends here: what has lingered is over, and the next Collect
// tells the last values of all. Connections that are still open are told with Ended false,
// for they did not end. An Anchor(end) does the same; Finish may be called after it.
func (t *Table) Finish() {
	for _, c := range t.lingering[t.lingered:] {
		if c.Closed != 0 && !c.Ended {
			t.retire(c, c.End)
		}
	}
	clear(t.lingering)
	t.lingering, t.lingered = t.lingering[:0], 0
	for _, c := range t.order {
		if !c.Ended && c.quietEnd == EndClosed {
			t.hush(c)
		}
	}
}

// hush ends a connection of which the packets, but not the socket, said that it ended.
func (t *Table) hush(c *conn) {
	c.Closed, c.End, c.State = c.quietSince, c.quietEnd, event.Closed
	t.retire(c, c.End)
}

// anchored takes the clock. The start of a session ends all connections of the one before.
func (t *Table) anchored(a *event.Anchor) {
	if a.Phase == event.AnchorStart {
		t.Finish()
		for _, c := range t.order {
			if !c.Ended {
				t.retire(c, EndUnknown)
			}
		}
		t.now, t.stated, t.idleCheck = a.Time, false, 0
		t.procs.clear()
		t.host = Host{Session: a.Session, Start: a.Time, StartWall: a.Realtime}
	}
	t.anchor = *a
	t.advance(a.Time)
	if a.Phase == event.AnchorEnd {
		t.Finish()
	}
}

// lost remembers a hole until the next Collect.
func (t *Table) lost(l *event.Lost) {
	var n uint64
	for hook, count := range l.Count {
		if event.Hook(hook) != event.HookNone {
			n += uint64(count)
		}
	}
	if n == 0 {
		return
	}
	o := &t.holes[l.CPU%64]
	if o.events == 0 || l.First < o.first {
		o.first = l.First
	}
	o.last = max(o.last, l.Last)
	o.events += n
	t.anyHole = true
}

// charge adds to each connection the events that were lost on its CPUs while it lived. A
// connection that was seen on no CPU of a hole is not charged.
func (t *Table) charge() {
	if !t.anyHole {
		return
	}
	for _, c := range t.order {
		for cpu := range t.holes {
			o := &t.holes[cpu]
			if o.events == 0 || c.cpus>>cpu&1 == 0 || o.last < c.First || (c.Ended || c.Closed != 0) && o.first > c.Last {
				continue
			}
			c.LostEvents += o.events
		}
	}
	t.holes, t.anyHole = [64]hole{}, false
}

// Collect tells e the values of the host and of every connection at the present time. Those
// that ended are told once more, with Ended, and forgotten.
func (t *Table) Collect(e Emitter) {
	t.charge()
	if t.reg.off != nil {
		e = filter{e}
	}
	e.Host(&t.host)
	for _, f := range t.hosts {
		f.CollectHost(e)
	}
	kept := t.order[:0]
	for _, c := range t.order {
		e.Connection(&c.Connection)
		for _, s := range c.states {
			s.Collect(&c.Connection, e)
		}
		c.told = true
		if !c.Ended {
			kept = append(kept, c)
		}
	}
	clear(t.order[len(kept):])
	t.order = kept
}

// find returns the connection with these ends, and whether they are exchanged.
func (t *Table) find(key *tuple, netns uint64) (c *conn, reversed bool) {
	if l := t.last; l != nil && l.Netns == netns && l.key.equal(key) {
		return l, false
	}
	hash := uint32(t.idx.hash(key))
	mask := uint32(len(t.idx.entries) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		e := t.idx.entries[i]
		if e.ref == 0 {
			break
		}
		if e.hash != hash {
			continue
		}
		rev := e.ref < 0
		var o *conn
		if rev {
			o = t.conns[-e.ref-1]
			if !o.key.mirrors(key) {
				continue
			}
		} else {
			o = t.conns[e.ref-1]
			if !o.key.equal(key) {
				continue
			}
		}
		switch {
		case o.Netns == netns && !rev:
			t.last = o
			return o, false
		case o.Netns == netns:
			if c == nil || c.Netns != netns {
				c, reversed = o, true
			}
		case o.Netns == 0 || netns == 0:
			if c == nil || c.Netns != netns && (o.Last > c.Last || o.Last == c.Last && o.ID > c.ID) {
				c, reversed = o, rev
			}
		}
	}
	return c, reversed
}

// create begins the connection with this record. process is what a connect without a port
// told before.
func (t *Table) create(h *event.Header, key *tuple) *conn {
	if t.live >= t.cfg.MaxConnections {
		t.evict()
	}
	c := &conn{key: *key, hash: t.idx.hash(key)}
	if n := len(t.free); n > 0 {
		c.slot = t.free[n-1]
		t.free = t.free[:n-1]
		t.conns[c.slot] = c
	} else {
		c.slot = int32(len(t.conns))
		t.conns = append(t.conns, c)
	}
	t.idx.add(c.hash, c.slot, false)
	t.ids++
	t.live++
	c.ID = t.ids
	c.Local, c.Peer, c.Netns = h.LocalAddr(), h.PeerAddr(), h.Netns
	c.First, c.Last, c.StartWall = h.Time, h.Time, t.wall(h.Time)
	c.states = make([]State, len(t.families))
	for i, f := range t.families {
		c.states[i] = f.New(&c.Connection)
	}
	t.order = append(t.order, c)
	t.last = c
	return c
}

// evict makes room for a connection: of the next few it ends the one that will be missed
// least. Which one depends on the stream alone.
func (t *Table) evict() {
	const few = 16
	var worst *conn
	for seen, steps := 0, 0; seen < few && steps < len(t.order); steps++ {
		if t.hand >= len(t.order) {
			t.hand = 0
		}
		c := t.order[t.hand]
		t.hand++
		if c.Ended {
			continue
		}
		seen++
		if worst == nil || c.rank() > worst.rank() || c.rank() == worst.rank() && c.Last < worst.Last {
			worst = c
		}
	}
	if worst != nil {
		t.evicted++
		t.retire(worst, EndEvicted)
	}
}

// rank orders connections by how little they are missed.
func (c *conn) rank() int {
	switch {
	case c.Closed != 0:
		return 2
	case c.half():
		return 1
	}
	return 0
}

// replace ends the connection and begins another with the same ends.
func (t *Table) replace(c *conn, h *event.Header, key *tuple) *conn {
	old := c.Cookie
	t.retire(c, EndUnknown)
	n := t.create(h, key)
	n.oldCookie = old
	return n
}

// close notes that the connection ended now, and lets it linger.
func (t *Table) close(c *conn, end End) {
	if c.Closed != 0 {
		return
	}
	c.Closed, c.End, c.State = t.now, end, event.Closed
	t.lingering = append(t.lingering, c)
	t.changed(c)
}

// retire takes the connection out of the index. end counts only if its end was not seen.
func (t *Table) retire(c *conn, end End) {
	if c.End == EndNone {
		c.End = end
	}
	t.idx.remove(c.hash, c.slot, false)
	if c.both {
		r := c.key.reversed()
		t.idx.remove(t.idx.hash(&r), c.slot, true)
	}
	t.conns[c.slot] = nil
	t.free = append(t.free, c.slot)
	if t.last == c {
		t.last = nil
	}
	t.live--
	c.Ended = true
	t.changed(c)
}

func (t *Table) changed(c *conn) {
	for _, s := range c.states {
		if w, ok := s.(Watcher); ok {
			w.Changed(&c.Connection)
		}
	}
}

// sweep forgets what has lingered or was idle long enough.
func (t *Table) sweep() {
	linger := uint64(t.cfg.Linger)
	for t.lingered < len(t.lingering) {
		c := t.lingering[t.lingered]
		if !c.Ended && c.Closed+linger > t.now {
			break
		}
		if !c.Ended {
			t.retire(c, c.End)
		}
		t.lingering[t.lingered] = nil
		t.lingered++
	}
	if t.lingered > 64 && t.lingered*2 > len(t.lingering) {
		n := copy(t.lingering, t.lingering[t.lingered:])
		clear(t.lingering[n:])
		t.lingering, t.lingered = t.lingering[:n], 0
	}
	if t.now < t.idleCheck {
		return
	}
	idle, handshake := uint64(t.cfg.IdleTimeout), uint64(t.cfg.HandshakeTimeout)
	for _, c := range t.order {
		if c.Ended || c.Closed != 0 {
			continue
		}
		quiet := t.now - c.Last
		switch {
		case c.quietEnd != EndNone && quiet >= linger:
			t.hush(c)
		case quiet >= idle, quiet >= handshake && c.half():
			t.retire(c, EndIdle)
		}
	}
	t.idleCheck = t.now + min(idle, handshake, 8*linger)/8
}

// half reports whether the handshake is not complete.
func (c *conn) half() bool {
	return c.State == event.SynSent || c.State == event.SynRecv || c.State == event.NewSynRecv
}

// touch counts a record of the connection.
func (t *Table) touch(c *conn, h *event.Header) {
	c.Events++
	c.Last = max(c.Last, h.Time)
	c.cpus |= 1 << (h.CPU % 64)
	if c.Netns == 0 {
		c.Netns = h.Netns
	}
}

// deliver hands the record to the families that want its kind.
func (t *Table) deliver(c *conn, h *event.Header) {
	t.ev.Header, t.ev.Conn = h, &c.Connection
	for _, i := range t.wants[h.Kind] {
		c.states[i].Observe(&t.ev)
	}
}

// forward makes the connection one that passes through, orients it and indexes it both ways.
func (t *Table) forward(c *conn) {
	c.Vantage, c.both = VantageForwarder, true
	flip := c.Role == RoleServer || c.Role == RoleUnknown && compare(c.Local, c.Peer) > 0
	if flip && !c.told {
		t.idx.remove(c.hash, c.slot, false)
		c.key = c.key.reversed()
		c.hash = t.idx.hash(&c.key)
		t.idx.add(c.hash, c.slot, false)
		c.Local, c.Peer = c.Peer, c.Local
		c.sides[0], c.sides[1] = c.sides[1], c.sides[0]
		switch c.Role {
		case RoleServer:
			c.Role = RoleClient
		case RoleClient:
			c.Role = RoleServer
		}
		switch c.State {
		case event.SynRecv:
			c.State = event.SynSent
		case event.SynSent:
			c.State = event.SynRecv
		}
		for _, s := range c.states {
			if f, ok := s.(Flipper); ok {
				f.Flip()
			}
		}
	}
	r := c.key.reversed()
	t.idx.add(t.idx.hash(&r), c.slot, true)
	t.changed(c)
}

func compare(a, b netip.AddrPort) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
}

// comm cuts the zero padding off.
func comm(raw *[16]byte) []byte {
	if i := bytes.IndexByte(raw[:], 0); i >= 0 {
		return raw[:i]
	}
	return raw[:]
}
