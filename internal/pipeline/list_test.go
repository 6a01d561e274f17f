// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// life is a connection that is acted out: its records come in order of time.
type life struct {
	t             *testing.T
	r             *rand.Rand
	at            uint64
	local, peer   netip.AddrPort
	netns, cookie uint64
	cpu           uint16
	seq           [2]uint32 // next of the peer (0), of Local (1)
	sockSeq       uint32
	ifindexes     []uint32 // that a packet passes, from the wire up
	socket        bool
	out           []byte
}

func (l *life) pass() uint64 {
	l.at += 1000 + l.r.Uint64N(200_000)
	return l.at
}

func (l *life) head(hook event.Hook, dir event.Dir) event.Header {
	h := event.Header{
		Time: l.at, Netns: l.netns, Local: l.local.Addr().As16(), Peer: l.peer.Addr().As16(), LocalPort: l.local.Port(), PeerPort: l.peer.Port(),
		Family: 4, Hook: hook, Dir: dir, CPU: l.cpu,
	}
	if l.socket && dir != event.DirIn || hook == event.HookTCPProbe {
		l.sockSeq++
		h.Cookie, h.SockSeq = l.cookie, l.sockSeq
	}
	return h
}

// seg sends (side 1) or receives a packet.
func (l *life) seg(side int, flags uint16, n uint32) {
	l.pass()
	list := slices.Clone(l.ifindexes)
	if side == 1 {
		slices.Reverse(list)
	}
	for _, i := range list {
		hook, dir := event.HookTCIngress, event.DirIn
		if side == 1 {
			hook, dir = event.HookTCEgress, event.DirOut
		}
		s := event.Segment{
			Header: l.head(hook, dir), Ifindex: i, Seq: l.seq[side], Ack: l.seq[1-side], TCPFlags: flags, PayloadLen: n,
			GSOSegs: uint16(max(1, n/1448)), VLAN: event.NoVLAN, VLANInner: event.NoVLAN,
		}
		if flags&event.ACK == 0 {
			s.Ack = 0
		}
		l.out = event.Append(l.out, &s)
		l.at += 500
	}
	l.seq[side] += n
	if flags&(event.SYN|event.FIN) != 0 {
		l.seq[side]++
	}
}

func (l *life) state(from, to event.TCPState) {
	if l.socket {
		l.pass()
		i := event.Incident{Header: l.head(event.HookSetState, event.DirNone), OldState: from, NewState: to}
		if to == event.SynSent || from == event.SynSent {
			i.Present, i.PID, i.Comm = event.HasProcess, uint32(1000+l.cookie), [16]byte{'a', byte('0' + l.cookie%10)}
		}
		if to == event.SynSent {
			i.LocalPort = 0
		}
		l.out = event.Append(l.out, &i)
	}
}

func (l *life) incident(hook event.Hook, i event.Incident) {
	if l.socket {
		l.pass()
		i.Header = l.head(hook, event.DirOut)
		l.out = event.Append(l.out, &i)
	}
}

func (l *life) sample(hook event.Hook, s event.Sample) {
	if l.socket {
		l.pass()
		s.Header = l.head(hook, event.DirIn)
		s.Cookie, s.Present = l.cookie, event.HasTCP
		if s.State == event.Established {
			s.RTT, s.MinRTT, s.SndCwnd = 100+uint32(l.r.IntN(5000)), 90, 10+uint32(l.r.IntN(50))
		}
		l.out = event.Append(l.out, &s)
	}
}

// play acts a connection out: as client or server, with or without a socket, and with the given end.
func (l *life) play(client bool, end string) {
	est := event.Established
	if client {
		l.state(event.Closed, event.SynSent)
		l.seg(1, event.SYN, 0)
		l.sample(event.HookTransmit, event.Sample{State: event.SynSent})
		switch end {
		case "refused":
			l.seg(0, event.RST|event.ACK, 0)
			l.incident(event.HookReceiveReset, event.Incident{})
			l.state(event.SynSent, event.Closed)
			return
		case "unanswered":
			for range 3 {
				l.at += 1e9
				l.seq[1]--
				l.incident(event.HookRetransmitSKB, event.Incident{TCPFlags: event.SYN, Segs: 1})
				l.seg(1, event.SYN, 0)
			}
			l.state(event.SynSent, event.Closed)
			return
		}
		l.seg(0, event.SYN|event.ACK, 0)
		l.state(event.SynSent, est)
		l.seg(1, event.ACK, 0)
	} else {
		l.seg(0, event.SYN, 0)
		l.seg(1, event.SYN|event.ACK, 0)
		l.seg(0, event.ACK, 0)
		l.state(event.Listen, event.SynRecv)
		l.state(event.SynRecv, est)
	}
	for range 1 + l.r.IntN(30) {
		side := l.r.IntN(2)
		n := uint32(1 + l.r.IntN(20000))
		l.seg(side, event.ACK|event.PSH, n)
		if side == 0 {
			l.sample(event.HookTCPProbe, event.Sample{State: est})
		} else if l.r.IntN(10) == 0 {
			l.seq[1] -= n
			l.incident(event.HookRetransmitSKB, event.Incident{Segs: max(1, n/1448), Len: n, TCPFlags: event.ACK})
			l.seg(1, event.ACK, n)
		}
		l.seg(1-side, event.ACK, 0)
		if l.r.IntN(20) == 0 {
			l.at += 300e6
		}
	}
	switch end {
	case "open":
		return
	case "closed here":
		l.state(est, event.FinWait1)
		l.seg(1, event.FIN|event.ACK, 0)
		l.seg(0, event.FIN|event.ACK, 0)
		l.state(event.FinWait1, event.FinWait2)
		l.state(event.FinWait2, event.Closed)
		l.seg(1, event.ACK, 0)
	case "closed there":
		l.seg(0, event.FIN|event.ACK, 0)
		l.state(est, event.CloseWait)
		l.seg(1, event.ACK, 0)
		l.state(event.CloseWait, event.LastAck)
		l.seg(1, event.FIN|event.ACK, 0)
		l.seg(0, event.ACK, 0)
		l.state(event.LastAck, event.Closed)
	case "reset here":
		l.state(est, event.Closed)
		l.seg(1, event.RST|event.ACK, 0)
		l.incident(event.HookSendReset, event.Incident{})
	case "reset there":
		l.seg(0, event.RST|event.ACK, 0)
		l.incident(event.HookReceiveReset, event.Incident{})
		l.state(est, event.Closed)
	case "gave up":
		l.state(est, event.Closed)
	}
	l.sample(event.HookDestroySock, event.Sample{State: event.Closed})
}

// theatre makes a recording of many lives at once.
func theatre(t *testing.T, dir string, seed uint64, sockets bool, ends []string, per int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	start := uint64(1e12)
	wall := int64(1_700_000_000_000_000_000)
	type rec struct {
		at  uint64
		raw []byte
	}
	var list []rec
	add := func(raw []byte) {
		for h := range event.All(raw) {
			list = append(list, rec{h.Time, h.Bytes()})
		}
	}
	if sockets {
		for i := range uint64(3) {
			h := event.Header{Time: start + 1, Netns: 1 + i, Local: netip.MustParseAddr("0.0.0.0").As16(), LocalPort: 1, Family: 4, Hook: event.HookSetState}
			add(event.Append(nil, &event.Incident{Header: h, OldState: event.Closed, NewState: event.Listen, Present: event.HasProcess, PID: 7, Comm: [16]byte{'d'}}))
		}
	}
	last := start
	for i := range 300 {
		l := &life{
			t: t, r: r, at: start + 1e6 + r.Uint64N(20e9), netns: 1 + uint64(i%3), cookie: uint64(100 + i), cpu: uint16(r.IntN(4)), socket: sockets,
			local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i%3)}), uint16(20000+i)), peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 443),
			seq: [2]uint32{r.Uint32(), r.Uint32()}, ifindexes: []uint32{2},
		}
		if per > 1<<16 && i%2 == 0 { // where a block ends between two sightings they count twice
			l.ifindexes = []uint32{2, 5}
		}
		l.play(i%4 < 2, ends[i%len(ends)])
		if i%5 == 0 && ends[i%len(ends)] != "open" { // the ends are used again
			l.at += []uint64{1e6, 100e6, 1e9, 10e9}[i/5%4]
			l.cookie += 1000
			l.sockSeq = 0
			l.seq = [2]uint32{r.Uint32(), r.Uint32()}
			l.play(i%4 < 2, ends[(i+1)%len(ends)])
		}
		last = max(last, l.at)
		add(l.out)
	}
	for at := start; at < last+5e9; at += 100e6 {
		add(event.Append(nil, &event.Tick{Header: event.Header{Time: at}}))
	}
	slices.SortStableFunc(list, func(a, b rec) int { return cmp.Compare(a.at, b.at) })
	batches := [][]byte{event.Append(nil, &event.Anchor{Header: event.Header{Time: start}, Session: seed, Realtime: wall, TAI: wall, Phase: event.AnchorStart})}
	for _, x := range list {
		batches = append(batches, x.raw)
	}
	batches = append(batches, event.Append(nil, &event.Anchor{Header: event.Header{Time: last + 5e9}, Session: seed, Realtime: wall + int64(last+5e9-start), TAI: wall, Phase: event.AnchorEnd}))
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	w, err := spool.Create(context.Background(), cfg, spool.Meta{}, nil)
	require.NoError(t, err)
	appendBlocks(t, w, batches, per)
	require.NoError(t, w.Close())
}

// bothWays lists a recording by directories and by events.
func bothWays(t testing.TB, dir string, sel Selection) (fast, exact []processors.Flow) {
	t.Helper()
	get := func(all bool) []processors.Flow {
		r, err := spool.Open(context.Background(), dir, spool.ReadOptions{})
		require.NoError(t, err)
		defer func() { require.NoError(t, r.Close()) }()
		flows, damaged, err := Flows(context.Background(), r, FlowOptions{Process: processors.DefaultConfig(), Select: sel, Exact: all}, nil)
		require.NoError(t, err)
		require.Empty(t, damaged)
		return flows
	}
	return get(false), get(true)
}

// sameFlow ignores what directories do not know.
var sameFlow = gocmp.Options{
	cmpopts.EquateComparable(netip.AddrPort{}),
	cmpopts.IgnoreFields(processors.Flow{}, "GoodputIn", "GoodputOut"),
	cmpopts.EquateApprox(0, 1e-9),
}

func TestFlowsOfDirectoriesAreThoseOfTheTable(t *testing.T) {
	all := []string{"closed here", "closed there", "reset here", "reset there", "gave up", "refused", "unanswered", "open"}
	for name, tt := range map[string]struct {
		sockets bool
		ends    []string
		per     int
		but     gocmp.Option // what differs, as the documentation of Flows says
	}{
		"sockets":                 {true, all, 5000, nil},
		"sockets, all in a block": {true, all, 1 << 20, nil},
		"sockets, small blocks":   {true, all, 700, nil},
		"packets":                 {false, []string{"closed here", "closed there", "reset here", "reset there", "refused"}, 5000, gocmp.Options{cmpopts.IgnoreFields(processors.Flow{}, "Handshake"), cmpopts.EquateApprox(0, 1e-3)}},
		"packets, all in a block": {false, []string{"closed here", "closed there", "reset here", "reset there", "refused"}, 1 << 20, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(5) {
				dir := t.TempDir()
				theatre(t, dir, seed+1, tt.sockets, tt.ends, tt.per)
				fast, exact := bothWays(t, dir, Selection{})
				require.Greater(t, len(exact), 300)
				require.Equal(t, len(exact), len(fast), "seed %d\n%s", seed, rowsOf(exact, fast))
				same := sameFlow
				if tt.but != nil {
					same = gocmp.Options{sameFlow[0], sameFlow[1], tt.but}
				}
				for i := range exact {
					require.Empty(t, gocmp.Diff(exact[i], fast[i], same), "seed %d, connection %d, %v", seed, exact[i].ID, exact[i])
				}
			}
		})
	}
}

// rowsOf tells which connections are not in both lists.
func rowsOf(exact, fast []processors.Flow) (s string) {
	n := map[string]int{}
	for _, f := range exact {
		n[fmt.Sprint(f.Netns, f.Local, f.Cookie, f.Start)]++
	}
	for _, f := range fast {
		n[fmt.Sprint(f.Netns, f.Local, f.Cookie, f.Start)]--
	}
	for k, v := range n {
		if v != 0 {
			s += fmt.Sprintln(k, v)
		}
	}
	return s
}

func TestForwardedFlowsAreOneConnection(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	client, server := netip.MustParseAddrPort("10.0.1.1:1234"), netip.MustParseAddrPort("10.0.2.2:80")
	var raw []byte
	at := uint64(1e12)
	seq := [2]uint32{r.Uint32(), r.Uint32()}
	send := func(from int, flags uint16, n uint32) {
		src, dst := client, server
		in, out := uint32(2), uint32(3)
		if from == 1 {
			src, dst, in, out = server, client, out, in
		}
		at += 1e6
		s := event.Segment{Seq: seq[from], Ack: seq[1-from], TCPFlags: flags, PayloadLen: n, GSOSegs: 1, VLAN: event.NoVLAN, VLANInner: event.NoVLAN}
		s.Header = event.Header{Time: at, Netns: 1, Local: dst.Addr().As16(), Peer: src.Addr().As16(), LocalPort: dst.Port(), PeerPort: src.Port(), Family: 4, Hook: event.HookTCIngress, Dir: event.DirIn}
		s.Ifindex = in
		raw = event.Append(raw, &s)
		s.Local, s.Peer, s.LocalPort, s.PeerPort = s.Peer, s.Local, s.PeerPort, s.LocalPort
		s.Hook, s.Dir, s.Ifindex = event.HookTCEgress, event.DirOut, out
		s.Time += 1000
		raw = event.Append(raw, &s)
		seq[from] += n
		if flags&(event.SYN|event.FIN) != 0 {
			seq[from]++
		}
	}
	send(0, event.SYN, 0)
	send(1, event.SYN|event.ACK, 0)
	send(0, event.ACK, 0)
	send(0, event.ACK, 500)
	send(1, event.ACK, 900)
	send(0, event.FIN|event.ACK, 0)
	send(1, event.FIN|event.ACK, 0)
	send(0, event.ACK, 0)
	raw = event.Append(raw, &event.Tick{Header: event.Header{Time: at + 1e9}})
	dir := t.TempDir()
	w := newSpool(t, dir)
	appendBlocks(t, w, [][]byte{event.Append(nil, &event.Anchor{Header: event.Header{Time: 1e12}, Session: 1, Phase: event.AnchorStart}), raw}, 100)
	require.NoError(t, w.Close())
	fast, exact := bothWays(t, dir, Selection{})
	require.Len(t, exact, 1)
	require.Equal(t, processors.VantageForwarder, exact[0].Vantage)
	require.Empty(t, gocmp.Diff(exact, fast, sameFlow, cmpopts.IgnoreFields(processors.Flow{}, "Duration", "Handshake")))
}

// TestFlowsOfEarlyDirectories: a block of the lab from before directories told how connections open and end (columns 23 and up).
func TestFlowsOfEarlyDirectories(t *testing.T) {
	src, err := os.ReadFile("testdata/early.block")
	require.NoError(t, err)
	dir := t.TempDir()
	w := newSpool(t, dir)
	_, err = w.Append(src)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	fast, exact := bothWays(t, dir, Selection{})
	require.NotEmpty(t, exact)
	require.Empty(t, gocmp.Diff(exact, fast, sameFlow))
}

func TestFlowsOfAWindowAreThoseOfTheTable(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 10, HostMeta())
	for _, sel := range []Selection{
		{From: moment(t, "2100ms"), To: moment(t, "7300ms")},
		{To: moment(t, "500ms")},
		{From: moment(t, "-1s"), Connections: []Pattern{pattern(t, ":40005"), pattern(t, ":40006")}},
		{Connections: []Pattern{pattern(t, "10.0.0.2:80-10.0.0.1:40003")}},
	} {
		fast, exact := bothWays(t, dir, sel)
		require.NotEmpty(t, exact)
		require.Empty(t, gocmp.Diff(exact, fast, sameFlow))
	}
}

// BenchmarkFlows lists a spool of a million events; what a recording of a hundred million costs is a hundred times that, less what is done once.
func BenchmarkFlows(b *testing.B) {
	ctx := context.Background()
	blocks, events := recorded(b, 500)
	cfg := spool.DefaultConfig()
	cfg.Dir = b.TempDir()
	w, err := spool.Create(ctx, cfg, spool.Meta{}, nil)
	require.NoError(b, err)
	for _, src := range blocks {
		_, err := w.Append(src)
		require.NoError(b, err)
	}
	require.NoError(b, w.Close())
	one, err := ParsePattern("10.0.0.1:40003-10.0.0.2:80")
	require.NoError(b, err)
	for name, opts := range map[string]FlowOptions{
		"all": {}, "one": {Select: Selection{Connections: []Pattern{one}}}, "exact": {Exact: true},
	} {
		opts.Process = processors.DefaultConfig()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := spool.Open(ctx, cfg.Dir, spool.ReadOptions{})
				require.NoError(b, err)
				flows, _, err := Flows(ctx, r, opts, nil)
				require.NoError(b, err)
				require.NotEmpty(b, flows)
				require.NoError(b, r.Close())
			}
			report(b, events)
		})
	}
}
