// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// stream makes records by hand and lets a Table observe them.
type stream struct {
	t    *testing.T
	tab  *Table
	now  uint64
	link uint32 // interface of the segments
	cpu  uint16
	edit func(*event.Segment) // changes each segment before it is told
}

const (
	ms     = uint64(time.Millisecond)
	second = uint64(time.Second)
	epoch  = int64(1_700_000_000_000_000_000)
)

func newStream(t *testing.T, cfg Config) *stream {
	t.Helper()
	tab, err := NewTable(cfg)
	require.NoError(t, err)
	s := &stream{t: t, tab: tab, now: 100 * second, link: 2}
	s.anchor(event.AnchorStart)
	return s
}

// put lets the Table observe what it would find in a spool.
func put[R event.Segment | event.Sample | event.Incident | event.Tick | event.Lost | event.Anchor](s *stream, r *R) {
	raw := event.Append(make([]byte, 0, event.MaxSize), r)
	require.NoError(s.t, event.Check(raw))
	s.tab.Observe(event.At(raw))
}

func (s *stream) wait(d uint64) { s.now += d }

func (s *stream) anchor(phase uint32) {
	put(s, &event.Anchor{Header: event.Header{Time: s.now}, Session: 7, Realtime: epoch + int64(s.now), Phase: phase})
}

// tick waits so long and ticks.
func (s *stream) tick(d uint64) {
	s.now += d
	put(s, &event.Tick{Header: event.Header{Time: s.now}})
}

// end is one side of a connection as the records of its host name it.
type end struct {
	s           *stream
	local, peer netip.AddrPort
	netns       uint64
	cookie      uint64
}

func (s *stream) end(local, peer string) *end {
	return &end{s: s, local: netip.MustParseAddrPort(local), peer: netip.MustParseAddrPort(peer), netns: 1}
}

// back is the same connection as its peer's host names it.
func (e *end) back() *end {
	return &end{s: e.s, local: e.peer, peer: e.local, netns: e.netns}
}

func (e *end) header(hook event.Hook, dir event.Dir) event.Header {
	e.s.now += 1000
	h := event.Header{
		Time: e.s.now, Netns: e.netns, Hook: hook, Dir: dir, Family: 4, CPU: e.s.cpu,
		Local: e.local.Addr().As16(), Peer: e.peer.Addr().As16(),
		LocalPort: e.local.Port(), PeerPort: e.peer.Port(),
	}
	if e.local.Addr().Is6() {
		h.Family = 6
	}
	return h
}

// flags reads tcpdump's letters.
func flags(letters string) (f uint16) {
	for _, l := range letters {
		switch l {
		case 'S':
			f |= event.SYN
		case 'F':
			f |= event.FIN
		case 'R':
			f |= event.RST
		case 'P':
			f |= event.PSH
		case '.':
			f |= event.ACK
		}
	}
	return f
}

func (e *end) segment(hook event.Hook, dir event.Dir, letters string, seq, ack, length uint32, segs uint16) {
	g := event.Segment{Header: e.header(hook, dir), Seq: seq, Ack: ack, PayloadLen: length, Ifindex: e.s.link,
		TCPFlags: flags(letters), GSOSegs: segs, Window: 502, VLAN: event.NoVLAN, VLANInner: event.NoVLAN}
	if g.TCPFlags&event.SYN != 0 { // MSS, no-operation, window scale 7
		g.Window, g.OptionsLen, g.Options = 64240, 8, [40]byte{2, 4, 5, 180, 1, 3, 3, 7}
	}
	if e.s.edit != nil {
		e.s.edit(&g)
	}
	if dir == event.DirOut {
		g.Cookie = e.cookie
	}
	put(e.s, &g)
}

// out is a packet that leaves, in one that arrives.
func (e *end) out(letters string, seq, ack, length uint32) {
	e.segment(event.HookTCEgress, event.DirOut, letters, seq, ack, length, 1)
}

func (e *end) in(letters string, seq, ack, length uint32) {
	e.segment(event.HookTCIngress, event.DirIn, letters, seq, ack, length, 1)
}

// state is inet_sock_set_state.
func (e *end) state(from, to event.TCPState, edit ...func(*event.Incident)) {
	i := event.Incident{Header: e.header(event.HookSetState, event.DirNone), OldState: from, NewState: to}
	i.Cookie = e.cookie
	for _, f := range edit {
		f(&i)
	}
	put(e.s, &i)
}

func (e *end) incident(hook event.Hook, edit ...func(*event.Incident)) {
	i := event.Incident{Header: e.header(hook, event.DirNone)}
	i.Cookie = e.cookie
	for _, f := range edit {
		f(&i)
	}
	put(e.s, &i)
}

func (e *end) sample(hook event.Hook, edit ...func(*event.Sample)) {
	m := event.Sample{Header: e.header(hook, event.DirIn), State: event.Established, Present: event.HasTCP | event.HasRcvWnd,
		SndWnd: 64256, RcvWnd: 65280, Reordering: 3, PacingRate: 1_500_000, DeliveryRate: 700_000, BusyTime: 40_000,
		SndCwnd: 10, SndSsthresh: event.UnsetSsthresh, RTT: 20_000, RTTVar: 5_000, MinRTT: 19_000, RTO: 220_000}
	m.Cookie = e.cookie
	for _, f := range edit {
		f(&m)
	}
	put(e.s, &m)
}

// connect opens a connection from this end, as the hooks of its host see it.
func (e *end) connect(isn, peerISN uint32) {
	e.state(event.Closed, event.SynSent)
	e.out("S", isn, 0, 0)
	e.s.wait(20 * ms)
	e.in("S.", peerISN, isn+1, 0)
	e.state(event.SynSent, event.Established)
	e.out(".", isn+1, peerISN+1, 0)
}

// accept opens a connection to this end.
func (e *end) accept(peerISN, isn uint32) {
	e.in("S", peerISN, 0, 0)
	e.out("S.", isn, peerISN+1, 0)
	e.s.wait(20 * ms)
	e.in(".", peerISN+1, isn+1, 0)
	e.state(event.SynRecv, event.Established)
}

// text is an Emitter that writes what it is told.
type text struct{ strings.Builder }

func (w *text) Host(h *Host) {
	fmt.Fprintf(w, "host since %s\n", time.Unix(0, h.StartWall).UTC().Format("15:04:05.000000"))
}

func (w *text) Connection(c *Connection) {
	fmt.Fprintf(w, "connection %d %s > %s role=%s vantage=%s end=%s", c.ID, c.Local, c.Peer, c.Role, c.Vantage, c.End)
	if c.Ended {
		w.WriteString(" ended")
	}
	w.WriteByte('\n')
}

func (w *text) name(s *Series) {
	fmt.Fprintf(w, "  %s", s.Metric.Name)
	for _, a := range s.Attrs {
		fmt.Fprintf(w, " %s=%s", a.Key, a.Value)
	}
}

func (w *text) Int(s *Series, v int64) {
	w.name(s)
	fmt.Fprintf(w, " %d %s\n", v, s.Metric.Unit)
}

func (w *text) Float(s *Series, v float64) {
	w.name(s)
	fmt.Fprintf(w, " %s %s\n", strconv.FormatFloat(v, 'g', -1, 64), s.Metric.Unit)
}

func (w *text) Histogram(s *Series, h *Histogram) {
	w.name(s)
	fmt.Fprintf(w, " count=%d sum=%g min=%g max=%g %s\n", h.Count, h.Sum, h.Min, h.Max, s.Metric.Unit)
}

// collect returns all that the Table tells now.
func (s *stream) collect() string {
	var w text
	s.tab.Collect(&w)
	return w.String()
}

// flow returns the only connection.
func (s *stream) flow() Flow {
	s.t.Helper()
	flows := s.tab.Flows()
	require.Len(s.t, flows, 1)
	return flows[0]
}
