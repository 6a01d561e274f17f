// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// Selection says which part of a recording is meant: the zero value all of it.
//
// What is selected is read as if nothing else had been recorded. A session that begins before From
// begins at From: connections are then joined in the middle, and counters count from there. One that
// goes on after To ends at To.
type Selection struct {
	From, To    Moment    // wall clock: From <= time < To
	Connections []Pattern // a connection is selected if one of them matches; none: all
}

// All reports whether everything is selected.
func (s *Selection) All() bool {
	return s.From.IsZero() && s.To.IsZero() && len(s.Connections) == 0
}

// describe tells what was asked for, for the metadata of what comes of it.
func (s *Selection) describe() map[string]string {
	m := map[string]string{}
	if !s.From.IsZero() {
		m["from"] = s.From.String()
	}
	if !s.To.IsZero() {
		m["to"] = s.To.String()
	}
	if len(s.Connections) > 0 {
		var list []string
		for _, p := range s.Connections {
			list = append(list, p.String())
		}
		m["connections"] = strings.Join(list, " ")
	}
	return m
}

// Moment is a time of the wall clock, or one told from an end of the recording. The zero value is none.
type Moment struct {
	text   string
	wall   time.Time
	offset time.Duration // from the start, or below zero (or -0) from the end
	end    bool
}

// momentLayouts are what ParseMoment takes beside durations. Those without a zone are UTC: so does "flows" print times.
var momentLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly}

// ParseMoment reads a time: RFC 3339 (without a zone: UTC), a duration such as 10m or +10m after the recording's start, or
// one such as -10m before its end.
func ParseMoment(text string) (Moment, error) {
	for _, layout := range momentLayouts {
		if t, err := time.ParseInLocation(layout, text, time.UTC); err == nil {
			if y := t.UTC().Year(); y < 1970 || y > 2261 {
				return Moment{}, fmt.Errorf("%q: no recording is of the year %d", text, y)
			}
			return Moment{text: text, wall: t}, nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil {
		return Moment{text: text, offset: d, end: strings.HasPrefix(text, "-")}, nil
	}
	return Moment{}, fmt.Errorf("%q is neither a time (2026-11-22T17:00:00Z) nor a duration (10m: after the start; -10m: before the end)", text)
}

// IsZero reports whether no moment is told.
func (m Moment) IsZero() bool { return m.text == "" }

// String returns the text that was parsed.
func (m Moment) String() string { return m.text }

func (m Moment) at(start, end time.Time) time.Time {
	switch {
	case !m.wall.IsZero():
		return m.wall
	case m.end:
		return end.Add(m.offset)
	}
	return start.Add(m.offset)
}

// Pattern is a set of connections: one end or both, whichever of them is the local one.
type Pattern struct {
	text string
	a, b side
	both bool
}

// side is what a Pattern says of one end.
type side struct {
	net  netip.Prefix // not valid: any address
	port uint16       // 0: any
}

// ParsePattern reads ADDR[/BITS][:PORT] or :PORT, which match either end of a connection, or two of them
// joined by "-", which match its two ends in any order. An IPv6 address that a port follows stands in brackets.
func ParsePattern(text string) (Pattern, error) {
	p := Pattern{text: text}
	one, two, both := strings.Cut(text, "-")
	p.both = both
	var err error
	if p.a, err = parseSide(one); err == nil && both {
		p.b, err = parseSide(two)
	}
	if err != nil {
		return Pattern{}, fmt.Errorf("connection %q: %w; write ADDR[/BITS][:PORT], :PORT, or ADDR:PORT-ADDR:PORT, with IPv6 addresses in brackets", text, err)
	}
	return p, nil
}

func parseSide(text string) (side, error) {
	var s side
	if text == "" {
		return s, errors.New("an end is empty")
	}
	addr, port := text, ""
	switch at := strings.LastIndexByte(text, ':'); {
	case strings.HasPrefix(text, "["):
		inner, rest, ok := strings.Cut(text[1:], "]")
		if !ok {
			return s, errors.New("the bracket is not closed")
		}
		addr = inner
		if bits, ok := strings.CutPrefix(rest, "/"); ok {
			n, p, _ := strings.Cut(bits, ":")
			addr += "/" + n
			rest = ""
			if p != "" || strings.HasSuffix(bits, ":") {
				rest = ":" + p
			}
		}
		if rest != "" {
			if rest[0] != ':' {
				return s, fmt.Errorf("%q after the bracket", rest)
			}
			if port = rest[1:]; port == "" {
				return s, errors.New("the port is missing")
			}
		}
	case at >= 0 && strings.Count(text, ":") == 1:
		addr, port = text[:at], text[at+1:]
		if port == "" {
			return s, errors.New("the port is missing")
		}
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return s, fmt.Errorf("%q is no port", port)
		}
		s.port = uint16(n)
	}
	if addr == "" {
		return s, nil
	}
	if strings.Contains(addr, "/") {
		net, err := netip.ParsePrefix(addr)
		if err != nil {
			return s, fmt.Errorf("%q is no prefix", addr)
		}
		if a := net.Addr(); a.Is4In6() && net.Bits() >= 96 {
			net = netip.PrefixFrom(a.Unmap(), net.Bits()-96)
		}
		s.net = net.Masked()
		return s, nil
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" {
		return s, fmt.Errorf("%q is no address", addr)
	}
	a = a.Unmap()
	s.net = netip.PrefixFrom(a, a.BitLen())
	return s, nil
}

// String returns the text that was parsed.
func (p Pattern) String() string { return p.text }

// Match reports whether a connection with these ends is in the set. An end that is not known (port 0, no
// address: a listener's peer, a connect before its port is chosen) matches if nothing that is known speaks against it.
func (p *Pattern) Match(local, peer netip.AddrPort) bool {
	if p.both {
		return p.a.match(local) && p.b.match(peer) || p.a.match(peer) && p.b.match(local)
	}
	return p.a.match(local) || p.a.match(peer)
}

func (s *side) match(e netip.AddrPort) bool {
	if s.port != 0 && e.Port() != 0 && s.port != e.Port() {
		return false
	}
	return !s.net.IsValid() || e.Addr().IsUnspecified() || s.net.Contains(e.Addr())
}

// exact returns the pattern's two ends if it names a single connection.
func (p *Pattern) exact() (a, b netip.AddrPort, ok bool) {
	whole := func(s *side) bool { return s.port != 0 && s.net.IsValid() && s.net.IsSingleIP() }
	if !p.both || !whole(&p.a) || !whole(&p.b) {
		return a, b, false
	}
	return netip.AddrPortFrom(p.a.net.Addr(), p.a.port), netip.AddrPortFrom(p.b.net.Addr(), p.b.port), true
}

// selector applies a Selection to blocks and records.
type selector struct {
	from, to int64 // wall clock, ns since 1970
	patterns []Pattern
	tuples   []block.Tuple // all that can match, if every pattern names one connection
	known    map[endpoints]bool
	last     endpoints
	lastIn   bool
	dec      *block.Decoder
	entries  []block.Entry
}

// endpoints are the ends of a connection as a record has them.
type endpoints struct {
	local, peer         [16]byte
	localPort, peerPort uint16
}

// maxKnown bounds the connections whose match is remembered.
const maxKnown = 1 << 20

// filterWorth is from how many connections in a block on the Bloom filter is asked before the directory.
const filterWorth = 256

// resolve makes a selector for the recording, nil if all of it is selected. r is at its beginning afterwards.
func (s *Selection) resolve(ctx context.Context, r *spool.Reader) (*selector, error) {
	if s.All() {
		return nil, nil
	}
	sel := &selector{from: math.MinInt64, to: math.MaxInt64, patterns: s.Connections, known: map[endpoints]bool{}, dec: block.NewDecoder()}
	var start, end time.Time
	relative := func(m Moment) bool { return !m.IsZero() && m.wall.IsZero() }
	if relative(s.From) || relative(s.To) {
		var err error
		if start, end, err = Span(ctx, r); err != nil {
			return nil, err
		}
		end = end.Add(1) // -0s is behind the last record
	}
	if !s.From.IsZero() {
		sel.from = s.From.at(start, end).UnixNano()
	}
	if !s.To.IsZero() {
		sel.to = s.To.at(start, end).UnixNano()
	}
	if sel.from >= sel.to {
		return nil, &SelectionError{fmt.Sprintf("nothing is selected: %s is not before %s",
			time.Unix(0, sel.from).UTC().Format(time.RFC3339Nano), time.Unix(0, sel.to).UTC().Format(time.RFC3339Nano))}
	}
	for i := range s.Connections {
		a, b, ok := s.Connections[i].exact()
		if !ok {
			sel.tuples = nil
			break
		}
		sel.tuples = append(sel.tuples, tuplesOf(a, b)...)
		sel.tuples = append(sel.tuples, tuplesOf(b, a)...)
	}
	return sel, nil
}

// tuplesOf lists how records of the connection can name it from local's side: whole, before the port of a connect is
// chosen, and as that of whoever listens.
func tuplesOf(local, peer netip.AddrPort) []block.Tuple {
	none := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	list := []block.Tuple{
		{Local: local, Peer: peer},
		{Local: netip.AddrPortFrom(local.Addr(), 0), Peer: peer},
		{Local: local, Peer: none},
		{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), local.Port()), Peer: none},
	}
	if local.Addr().Is4() {
		none4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		list = append(list, block.Tuple{Local: local, Peer: none4},
			block.Tuple{Local: netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port()), Peer: none4})
	}
	return list
}

// SelectionError says that a selection is meaningless for a recording.
type SelectionError struct{ what string }

func (e *SelectionError) Error() string { return e.what }

// Hint says what to do.
func (e *SelectionError) Hint() string {
	return `"tcbee-export spool info DIR" tells when the recording begins and ends`
}

// Span returns when the recording's first record was made and when its last one was, by the wall clock. It reads the
// first block and the last one of each segment, and leaves r at its beginning.
func Span(ctx context.Context, r *spool.Reader) (start, end time.Time, err error) {
	look := func(id spool.ID, last bool) error {
		if err := r.Seek(id); err != nil {
			return err
		}
		_, src, err := r.Next(ctx)
		var hurt *spool.DamageError
		for errors.As(err, &hurt) {
			_, src, err = r.Next(ctx)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := block.ReadInfo(src)
		if err != nil {
			return nil //nolint:nilerr // it is told when it is read in its turn
		}
		t := info.First
		if last {
			t = info.Last
		}
		w := wall(&info, t)
		if start.IsZero() || w.Before(start) && !last {
			start = w
		}
		if w.After(end) {
			end = w
		}
		return nil
	}
	if err := look(0, false); err != nil {
		return start, end, err
	}
	for _, s := range r.Segments() {
		if s.Blocks > 0 && s.Err == nil {
			if err := look(s.Last, true); err != nil {
				return start, end, err
			}
		}
	}
	return start.UTC(), end.UTC(), r.Seek(0)
}

// wall is Info.Wall, with the monotonic clock where the block has no anchor, as in processors.
func wall(info *block.Info, t uint64) time.Time {
	if w, ok := info.Wall(t); ok {
		return w
	}
	return time.Unix(0, int64(t))
}

// clock gives blocks that have no anchor of their own that of the block before: recorders of ours anchor each, but the format does not ask for it.
type clock struct {
	anchor block.Anchor
	ok     bool
}

func (c *clock) carry(info *block.Info) {
	if info.Anchored {
		c.anchor, c.ok = info.Anchor, true
	} else if c.ok {
		info.Anchor, info.Anchored = c.anchor, true
	}
}

// window returns the selected times of the block by its own clock: lo <= Header.Time < hi.
func (s *selector) window(info *block.Info) (lo, hi uint64) {
	mono := func(at int64) uint64 {
		d := at - info.Anchor.Realtime
		t := info.Anchor.Time + uint64(d)
		if d < 0 && t > info.Anchor.Time {
			return 0 // before the host was started
		}
		return t
	}
	hi = math.MaxUint64
	if s.from != math.MinInt64 {
		lo = mono(s.from)
	}
	if s.to != math.MaxInt64 {
		hi = mono(s.to)
	}
	return lo, hi
}

// stretchMargin is how far blocks of a session may be out of order in time: CPUs hand their records over apart, but within a second.
const stretchMargin = uint64(5 * time.Second)

// idRange is blocks that are read.
type idRange struct{ first, last spool.ID }

// ranges leaves out segments that lie outside of the window, by the heads of their first and last blocks; nil is everything. Of those
// behind the window the first block stays, so that it is known that the session goes on. r is at its beginning afterwards.
func (s *selector) ranges(ctx context.Context, r *spool.Reader) ([]idRange, error) {
	segs := r.Segments()
	if s.from == math.MinInt64 && s.to == math.MaxInt64 || len(segs) < 3 {
		return nil, nil
	}
	head := func(id spool.ID) (block.Info, bool, error) {
		if err := r.Seek(id); err != nil {
			return block.Info{}, false, err
		}
		got, src, err := r.Next(ctx)
		if ctx.Err() != nil {
			return block.Info{}, false, ctx.Err()
		}
		if err != nil || got != id {
			return block.Info{}, false, nil //nolint:nilerr // it is told when it is read in its turn
		}
		info, err := block.ReadInfo(src)
		return info, err == nil && info.Anchored, nil
	}
	var list []idRange
	for _, seg := range segs {
		if seg.Err != nil {
			return nil, r.Seek(0) // what is damaged is told where it is met
		}
		if seg.Blocks == 0 {
			continue
		}
		last, lastOK, err := head(seg.Last)
		if err != nil {
			return nil, err
		}
		first, firstOK, err := head(seg.First)
		if err != nil {
			return nil, err
		}
		use := idRange{seg.First, seg.Last}
		if firstOK && lastOK && first.Anchor.Session == last.Anchor.Session {
			lo, _ := s.window(&last)
			_, hi := s.window(&first)
			switch {
			case lo > stretchMargin && last.Last < lo-stretchMargin:
				continue
			case first.First > stretchMargin && first.First-stretchMargin > hi:
				use.last = use.first
			}
		}
		list = append(list, use)
	}
	if list == nil {
		list = []idRange{}
	}
	return list, r.Seek(0)
}

// holds reports whether the block can have records of a selected connection. True may be wrong.
func (s *selector) holds(info *block.Info, src []byte) (bool, error) {
	if len(s.patterns) == 0 {
		return true, nil
	}
	if s.tuples != nil && info.Connections > filterWorth {
		some := false
		for _, t := range s.tuples {
			ok, err := block.MayHold(src, t)
			if err != nil {
				return false, err
			}
			if ok {
				some = true
				break
			}
		}
		if !some {
			return false, nil
		}
	}
	var err error
	s.entries, err = s.dec.DirectoryOf(s.entries[:0], src, s.match)
	return len(s.entries) > 0, err
}

func (s *selector) match(local, peer netip.AddrPort) bool {
	if len(s.patterns) == 0 {
		return true
	}
	return slices.ContainsFunc(s.patterns, func(p Pattern) bool { return p.Match(local, peer) })
}

// record reports whether the record is of a selected connection.
func (s *selector) record(h *event.Header) bool {
	if len(s.patterns) == 0 {
		return true
	}
	key := endpoints{h.Local, h.Peer, h.LocalPort, h.PeerPort}
	if key == s.last {
		return s.lastIn
	}
	in, ok := s.known[key]
	if !ok {
		if len(s.known) >= maxKnown {
			clear(s.known)
		}
		in = s.match(h.LocalAddr(), h.PeerAddr())
		s.known[key] = in
	}
	s.last, s.lastIn = key, in
	return in
}

// part is the selected part of a stream of blocks: block after block goes in, batches of records come out that are
// complete sessions, each with its own start.
type part struct {
	sel       *selector
	dec       *block.Decoder
	raw, out  []byte
	keepLinks bool // Links from before the window come along; else they are left out
	links     map[[2]uint64][]byte
	names     [][2]uint64 // keys of links, in order of appearance

	clock   clock
	any     bool
	session uint64 // that of the last block
	began   bool   // its start is in the output
	ended   bool   // its end is
	more    bool   // it goes on behind the window
	end     event.Anchor
}

func newPart(sel *selector) *part {
	return &part{sel: sel, dec: block.NewDecoder(), links: map[[2]uint64][]byte{}}
}

// block returns the selected records of the next block, as a batch that is valid until the next call. On an error of the
// codec nothing has changed.
func (p *part) block(src []byte) ([]byte, error) {
	info, err := block.ReadInfo(src)
	if err != nil {
		return nil, err
	}
	p.clock.carry(&info)
	lo, hi := p.sel.window(&info)
	p.out = p.out[:0]
	if !p.any || info.Anchored && info.Anchor.Session != p.session {
		p.out = p.finish(p.out)
		p.any, p.session, p.began, p.ended, p.more = true, info.Anchor.Session, false, false, false
		clear(p.links)
		p.names = p.names[:0]
	}
	linked := p.keepLinks && info.Kinds[event.KindLink] > 0
	if info.First >= hi {
		p.more = true
		return p.out, nil
	}
	within := info.Last >= lo
	if !within && !linked {
		return p.out, nil
	}
	if within {
		// What tells of the session itself is kept wherever it is.
		hold := linked || info.Kinds[event.KindAnchor] > 0 || info.Kinds[event.KindLost] > 0
		if !hold {
			if hold, err = p.sel.holds(&info, src); err != nil {
				return p.out, err
			}
		}
		if !hold {
			p.sealEnd(&info, hi)
			return p.out, nil
		}
	}
	if p.raw, err = p.dec.Decode(p.raw[:0], src); err != nil {
		return p.out, err
	}
	if !within {
		for h := range event.All(p.raw) {
			p.link(h, lo)
		}
		return p.out, nil
	}
	if !p.began {
		p.begin(&info, lo)
	}
	for h := range event.All(p.raw) {
		switch {
		case h.Time >= hi:
			p.more = true
			continue
		case h.Kind == event.KindLink && h.Time < lo:
			if p.link(h, lo) {
				p.out = append(p.out, p.links[linkKey(h)]...)
			}
			continue
		case h.Time < lo, h.Kind == event.KindAccounting:
			continue
		case h.Kind == event.KindAnchor:
			switch h.Anchor().Phase {
			case event.AnchorStart:
				continue // begin has made one
			case event.AnchorEnd:
				p.ended = true
			}
		case h.Kind < event.KindTick && !p.sel.record(h):
			continue
		}
		p.out = append(p.out, h.Bytes()...)
	}
	p.sealEnd(&info, hi)
	return p.out, nil
}

// pass goes past a block that is dealt with elsewhere, and returns the end of the session before it, if that is due.
func (p *part) pass(info *block.Info) []byte {
	if p.any && info.Anchor.Session == p.session {
		return nil
	}
	end := p.finish(nil)
	p.any, p.session, p.began, p.ended, p.more = true, info.Anchor.Session, false, false, false
	return end
}

// begin opens the session: at its own beginning, or at the window's.
func (p *part) begin(info *block.Info, lo uint64) {
	p.began = true
	if !info.Anchored {
		return
	}
	a := anchorOf(info, max(lo, info.Anchor.Time), event.AnchorStart)
	p.out = event.Append(p.out, &a)
	for _, key := range p.names {
		p.out = append(p.out, p.links[key]...)
	}
}

// anchorOf carries the block's anchor on to another time.
func anchorOf(info *block.Info, at uint64, phase uint32) event.Anchor {
	d := int64(at - info.Anchor.Time)
	return event.Anchor{
		Header:  event.Header{Time: at},
		Session: info.Anchor.Session, Realtime: info.Anchor.Realtime + d, TAI: info.Anchor.TAI + d,
		Uncertainty: info.Anchor.Uncertainty, Phase: phase,
	}
}

// sealEnd notes where the session ends, should it go on behind the window.
func (p *part) sealEnd(info *block.Info, hi uint64) {
	if info.Anchored && hi != math.MaxUint64 {
		p.end = anchorOf(info, hi, event.AnchorEnd)
	}
}

// link notes a Link from before the window as one that is there at its beginning.
func (p *part) link(h *event.Header, lo uint64) bool {
	if h.Kind != event.KindLink || !p.keepLinks {
		return false
	}
	key := linkKey(h)
	if _, ok := p.links[key]; !ok {
		p.names = append(p.names, key)
	}
	l := *h.Link()
	l.Time = lo
	p.links[key] = event.Append(nil, &l)
	return true
}

func linkKey(h *event.Header) [2]uint64 { return [2]uint64{h.Netns, uint64(h.Link().Ifindex)} }

// finish appends the end of the session that goes on behind the window.
func (p *part) finish(dst []byte) []byte {
	if p.began && p.more && !p.ended && p.end.Session == p.session {
		p.ended = true
		dst = event.Append(dst, &p.end)
	}
	return dst
}
