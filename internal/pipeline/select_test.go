// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

func TestParsePattern(t *testing.T) {
	conn := func(local, peer string) [2]netip.AddrPort {
		return [2]netip.AddrPort{netip.MustParseAddrPort(local), netip.MustParseAddrPort(peer)}
	}
	v4 := conn("10.0.0.1:40000", "10.0.0.2:443")
	v6 := conn("[2001:db8::1]:40000", "[2001:db8:1::2]:443")
	connect := [2]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:0"), netip.MustParseAddrPort("10.0.0.2:443")}
	listener := [2]netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:443"), netip.MustParseAddrPort("0.0.0.0:0")}
	tests := map[string]struct {
		fits, not [][2]netip.AddrPort
	}{
		"10.0.0.1":                          {fits: [][2]netip.AddrPort{v4, connect, listener}, not: [][2]netip.AddrPort{v6}},
		"10.0.0.2":                          {fits: [][2]netip.AddrPort{v4}},
		"10.0.0.3":                          {not: [][2]netip.AddrPort{v4, v6, connect}},
		"10.0.0.0/30":                       {fits: [][2]netip.AddrPort{v4}, not: [][2]netip.AddrPort{v6}},
		"10.0.0.1/30":                       {fits: [][2]netip.AddrPort{v4}},
		"10.0.0.2:443":                      {fits: [][2]netip.AddrPort{v4, connect}},
		"10.0.0.1:443":                      {not: [][2]netip.AddrPort{v4}, fits: [][2]netip.AddrPort{connect}},
		"10.0.0.0/8:40000":                  {fits: [][2]netip.AddrPort{v4}},
		":443":                              {fits: [][2]netip.AddrPort{v4, v6, connect, listener}},
		":80":                               {not: [][2]netip.AddrPort{v4, v6}},
		"::ffff:10.0.0.1":                   {fits: [][2]netip.AddrPort{v4}},
		"2001:db8::1":                       {fits: [][2]netip.AddrPort{v6}, not: [][2]netip.AddrPort{v4}},
		"[2001:db8::1]":                     {fits: [][2]netip.AddrPort{v6}},
		"[2001:db8::1]:40000":               {fits: [][2]netip.AddrPort{v6}},
		"[2001:db8::1]:443":                 {not: [][2]netip.AddrPort{v6}},
		"2001:db8:1::/48":                   {fits: [][2]netip.AddrPort{v6}},
		"[2001:db8:1::/48]:443":             {fits: [][2]netip.AddrPort{v6}},
		"[2001:db8:1::]/48:443":             {fits: [][2]netip.AddrPort{v6}},
		"10.0.0.1:40000-10.0.0.2:443":       {fits: [][2]netip.AddrPort{v4, connect, listener}, not: [][2]netip.AddrPort{v6}},
		"10.0.0.2:443-10.0.0.1:40000":       {fits: [][2]netip.AddrPort{v4, connect}},
		"10.0.0.1:443-10.0.0.2:40000":       {not: [][2]netip.AddrPort{v4}},
		"10.0.0.1:40001-10.0.0.2:443":       {not: [][2]netip.AddrPort{v4}, fits: [][2]netip.AddrPort{connect}},
		"10.0.0.0/31-10.0.0.2/31":           {fits: [][2]netip.AddrPort{v4}},
		"[2001:db8::1]-[2001:db8:1::2]:443": {fits: [][2]netip.AddrPort{v6}},
	}
	for text, tt := range tests {
		t.Run(text, func(t *testing.T) {
			p, err := ParsePattern(text)
			require.NoError(t, err)
			require.Equal(t, text, p.String())
			for _, c := range tt.fits {
				require.True(t, p.Match(c[0], c[1]), "%v", c)
				require.True(t, p.Match(c[1], c[0]), "%v reversed", c)
			}
			for _, c := range tt.not {
				require.False(t, p.Match(c[0], c[1]), "%v", c)
				require.False(t, p.Match(c[1], c[0]), "%v reversed", c)
			}
		})
	}
	for _, text := range []string{"", "-", "10.0.0.1-", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.0/33", "10.0.0.300", "host", "[::1", "[::1]x", "[::1]:", "[::1]/129", "fe80::1%eth0", "1:2:3:443", "a-b-c"} {
		_, err := ParsePattern(text)
		require.Error(t, err, "%q", text)
		require.ErrorContains(t, err, "write ADDR")
	}
}

func FuzzParsePattern(f *testing.F) {
	f.Add("[2001:db8::1]/48:443-10.0.0.0/8:80")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePattern(text)
		if err != nil {
			return
		}
		a, b := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("[2001:db8::2]:2")
		require.Equal(t, p.Match(a, b), p.Match(b, a))
		again, err := ParsePattern(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}

func TestParseMoment(t *testing.T) {
	start := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	end := start.Add(time.Hour)
	for text, want := range map[string]time.Time{
		"2026-11-22T11:30:00+01:00": start.Add(30 * time.Minute),
		"2026-11-22T10:30:00Z":      start.Add(30 * time.Minute),
		"2026-11-22 10:30:00.250":   start.Add(30*time.Minute + 250*time.Millisecond),
		"2026-11-22 10:30":          start.Add(30 * time.Minute),
		"2026-11-22":                start.Add(-10 * time.Hour),
		"10m":                       start.Add(10 * time.Minute),
		"+10m":                      start.Add(10 * time.Minute),
		"-10m":                      end.Add(-10 * time.Minute),
		"0s":                        start,
		"-0s":                       end,
	} {
		m, err := ParseMoment(text)
		require.NoError(t, err, text)
		require.False(t, m.IsZero())
		require.True(t, want.Equal(m.at(start, end)), "%s: %s", text, m.at(start, end))
	}
	for _, text := range []string{"", "yesterday", "10", "2026-13-01", "1492-10-12", "9999-01-01T00:00:00Z"} {
		_, err := ParseMoment(text)
		require.Error(t, err, "%q", text)
	}
}

func moment(t *testing.T, text string) Moment {
	t.Helper()
	m, err := ParseMoment(text)
	require.NoError(t, err)
	return m
}

func pattern(t *testing.T, text string) Pattern {
	t.Helper()
	p, err := ParsePattern(text)
	require.NoError(t, err)
	return p
}

// recordedSpool makes a spool of one session of traffic in blocks of a second each.
func recordedSpool(t *testing.T, dir string, session, start uint64, seconds int, meta spool.Meta) {
	t.Helper()
	ctx := context.Background()
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	w, err := spool.Create(ctx, cfg, meta, nil)
	require.NoError(t, err)
	src := traffic(session, start, seconds, true)
	appendBlocks(t, w, src.batches, 30)
	require.NoError(t, w.Close())
}

func flowsOf(t *testing.T, dir string, sel Selection) []processors.Flow {
	t.Helper()
	flows, damaged, err := Flows(context.Background(), openSpool(t, dir), FlowOptions{Process: processors.DefaultConfig(), Select: sel}, nil)
	require.NoError(t, err)
	require.Empty(t, damaged)
	return flows
}

func replayOf(t *testing.T, dir string, sel Selection) []string {
	t.Helper()
	var got lines
	o := options()
	o.Select = sel
	res, err := Replay(context.Background(), openSpool(t, dir), o, &got, nil)
	require.NoError(t, err)
	require.Empty(t, res.Damaged)
	return got.got
}

func TestSelectionTakesConnections(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 4, HostMeta())
	all := flowsOf(t, dir, Selection{})
	require.Len(t, all, 20)
	some := flowsOf(t, dir, Selection{Connections: []Pattern{pattern(t, "10.0.0.2:80-10.0.0.1:40003"), pattern(t, ":40007")}})
	require.Len(t, some, 2)
	for _, f := range some {
		id := f.ID
		for _, g := range all {
			if g.Local == f.Local {
				id, g.ID = g.ID, id
				require.Equal(t, g, f)
			}
		}
	}
	require.Empty(t, flowsOf(t, dir, Selection{Connections: []Pattern{pattern(t, "10.0.0.2:80-10.0.0.1:41003")}}))
}

func TestSelectionTakesATime(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 10, HostMeta())
	events := func(sel Selection) (n uint64) {
		for _, f := range flowsOf(t, dir, sel) {
			n += f.Events
		}
		return n
	}
	all := events(Selection{})
	require.EqualValues(t, 10*10*204, all)
	require.Equal(t, all, events(Selection{From: moment(t, "0s")}))
	require.Equal(t, all, events(Selection{To: moment(t, "-0s")}))
	half := events(Selection{To: moment(t, "5s")})
	require.InDelta(t, all/2, half, 10)
	require.Equal(t, all, half+events(Selection{From: moment(t, "5s")}))
	require.InDelta(t, all/10, events(Selection{From: moment(t, "-2.5s"), To: moment(t, "-1500ms")}), 10)
	require.Zero(t, events(Selection{From: moment(t, "2030-01-01")}))

	// The parts have their own beginnings.
	for _, f := range flowsOf(t, dir, Selection{From: moment(t, "5s")}) {
		require.InDelta(t, 5, f.Duration, 0.1)
	}
	_, _, err := Flows(context.Background(), openSpool(t, dir), FlowOptions{Process: processors.DefaultConfig(), Select: Selection{From: moment(t, "2s"), To: moment(t, "1s")}}, nil)
	var sel *SelectionError
	require.ErrorAs(t, err, &sel)
}

func TestSelectionLeavesSegmentsOutUnread(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	src := traffic(1, 5*ms, 60, true)
	b := block.NewBuilder(block.Options{})
	for i, batch := range src.batches {
		b.Add(batch)
		if i%30 == 29 || i == len(src.batches)-1 {
			_, err := w.Append(b.Seal(nil))
			require.NoError(t, err)
		}
		if i%180 == 179 { // ten segments of six seconds
			require.NoError(t, w.Rotate(ctx))
		}
	}
	require.NoError(t, w.Close())
	for name, sel := range map[string]Selection{
		"middle": {From: moment(t, "29s"), To: moment(t, "31500ms")},
		"begin":  {To: moment(t, "1s")},
		"end":    {From: moment(t, "-1s")},
		"all":    {From: moment(t, "0s"), To: moment(t, "-0s")},
		"none":   {From: moment(t, "2031-01-01")},
	} {
		t.Run(name, func(t *testing.T) {
			r := openSpool(t, dir)
			s, err := sel.resolve(ctx, r)
			require.NoError(t, err)
			ranges, err := s.ranges(ctx, r)
			require.NoError(t, err)
			var some, every, least []Damage
			read := 0
			p := newPart(s)
			var got []byte
			require.NoError(t, eachSelected(ctx, r, ranges, nil, &some, func(_ spool.ID, src []byte) error {
				read++
				batch, err := p.block(src)
				got = append(got, batch...)
				return err
			}))
			got = p.finish(got)
			require.NoError(t, r.Seek(0))
			all := 0
			p = newPart(s)
			var want []byte
			require.NoError(t, eachBlock(ctx, r, nil, &every, func(_ spool.ID, src []byte) error {
				all++
				batch, err := p.block(src)
				want = append(want, batch...)
				return err
			}))
			want = p.finish(want)
			require.True(t, bytes.Equal(want, got), "what is left out makes no difference")
			require.Equal(t, least, some)
			require.Equal(t, least, every)
			if name == "all" {
				require.Equal(t, all, read)
			} else {
				require.Less(t, read, all/2)
			}
			fast, exact := bothWays(t, dir, sel)
			require.Empty(t, gocmp.Diff(exact, fast, sameFlow))
		})
	}
}
