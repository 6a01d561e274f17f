// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"golang.org/x/term"
)

// Terminal shows the connections of each collection as a table, the busiest first. On a
// terminal the table is redrawn in place and fits the window; elsewhere one table follows the
// other. It knows nothing but the metrics that it is given.
type Terminal struct {
	mu     sync.Mutex
	w      io.Writer
	size   func() (width, height int, tty bool)
	totals map[string]totals // of the collection before, by connection
	parts  gathered          // of a collection that is not complete
	drawn  int               // lines on the screen that the next drawing replaces
	width  int               // of the window that they were drawn for
}

var _ Sink = (*Terminal)(nil)

// NewTerminal returns a sink that draws on w. w is a terminal if it is an *os.File that is one.
func NewTerminal(w io.Writer) *Terminal {
	return &Terminal{w: w, totals: make(map[string]totals), size: func() (int, int, bool) {
		f, ok := w.(*os.File)
		if !ok || !term.IsTerminal(int(f.Fd())) {
			return 0, 0, false
		}
		width, height, err := term.GetSize(int(f.Fd()))
		if err != nil || width < 1 || height < 1 {
			return 80, 24, true
		}
		return width, height, true
	}}
}

// Sizes where there is no terminal to ask.
const (
	plainWidth = 132
	plainRows  = 25
	minRows    = 3
)

// totals are the counters of a connection at a time.
type totals struct {
	start, at     pcommon.Timestamp
	in, out, sent float64 // bytes received, bytes sent, segments retransmitted
}

// row is a connection in the table.
type row struct {
	key            string
	local, peer    string
	netns          string
	state          string
	ended          bool
	cwnd, ssthresh string
	srtt, rto      string
	retrans        float64 // in total, or of this collection if counters are deltas
	in, out        float64 // bytes/s
	total          float64 // bytes, for connections that stand still
	now            totals
	delta          bool
}

// gathered are the rows of a collection so far.
type gathered struct {
	at    pcommon.Timestamp
	rows  []*row
	byKey map[string]*row
}

// Start implements Sink.
func (t *Terminal) Start(context.Context) error { return nil }

// ConsumeMetrics draws md when the collection is complete.
func (t *Terminal) ConsumeMetrics(ctx context.Context, md pmetric.Metrics) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parts.add(md)
	if More(ctx) {
		return nil
	}
	at, rows := t.parts.at, t.finish(t.parts.rows)
	t.parts = gathered{}
	if at == 0 {
		return nil
	}
	width, height, tty := t.size()
	limit := plainRows
	if tty {
		limit = max(height-4, minRows) // the two lines above the table, its head, and "more"
	} else {
		width = plainWidth
	}
	var out bytes.Buffer
	if tty && t.drawn > 0 {
		lines := t.drawn
		if width < t.width { // lines that were wrapped when the window shrank
			lines *= (t.width + width - 1) / width
		}
		fmt.Fprintf(&out, "\x1b[%dA\r\x1b[J", min(lines, height-1))
	}
	body := draw(at, rows, width, limit)
	out.Write(body)
	if !tty {
		out.WriteByte('\n')
	}
	t.drawn, t.width = bytes.Count(body, []byte("\n")), width
	if _, err := t.w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	return nil
}

// Shutdown leaves the last table where it is.
func (t *Terminal) Shutdown(context.Context) error { return nil }

// add turns data points into rows, by connection.
func (g *gathered) add(md pmetric.Metrics) {
	if g.byKey == nil {
		g.byKey = make(map[string]*row)
	}
	for _, rm := range md.ResourceMetrics().All() {
		for _, sm := range rm.ScopeMetrics().All() {
			for _, m := range sm.Metrics().All() {
				// The prefix of the names is a setting; what comes after it is not.
				_, name, ok := strings.Cut(m.Name(), ".tcp.")
				var points pmetric.NumberDataPointSlice
				delta := false
				switch m.Type() {
				case pmetric.MetricTypeGauge:
					points = m.Gauge().DataPoints()
				case pmetric.MetricTypeSum:
					points = m.Sum().DataPoints()
					delta = m.Sum().AggregationTemporality() == pmetric.AggregationTemporalityDelta
				default:
					continue
				}
				for _, p := range points.All() {
					g.at = max(g.at, p.Timestamp())
					key, local, peer, netns := ends(p.Attributes())
					if !ok || key == "" {
						continue
					}
					// A connection that took over the ends of one that ended starts later.
					r := g.byKey[key]
					if r == nil {
						r = &row{key: key, local: local, peer: peer, netns: netns}
						g.byKey[key] = r
						g.rows = append(g.rows, r)
					}
					r.put(name, p, delta)
				}
			}
		}
	}
}

// finish completes the rows of a collection by what the one before told, and sorts them.
func (t *Terminal) finish(rows []*row) []*row {
	next := make(map[string]totals, len(rows))
	for _, r := range rows {
		before := totals{at: r.now.start}
		if old, ok := t.totals[r.key]; ok && old.start == r.now.start && !r.delta {
			before = old
		}
		if d := time.Duration(r.now.at - before.at).Seconds(); d > 0 && r.now.at > before.at {
			r.in, r.out = (r.now.in-before.in)/d, (r.now.out-before.out)/d
		}
		r.total = r.now.in + r.now.out
		r.retrans = r.now.sent
		if r.now.start != 0 && !r.ended {
			next[r.key] = r.now
		}
	}
	t.totals = next
	// The namespace is told only where it tells rows apart.
	if slices.ContainsFunc(rows, func(r *row) bool { return r.netns != rows[0].netns }) {
		for _, r := range rows {
			if r.netns != "" {
				r.local += "%" + r.netns
			}
		}
	}
	slices.SortFunc(rows, func(a, b *row) int {
		return cmp.Or(
			cmp.Compare(b.in+b.out, a.in+a.out),
			cmp.Compare(b.total, a.total),
			cmp.Compare(a.key, b.key),
		)
	})
	return rows
}

// ends returns what tells the connection of a data point from others; all are empty if it is of
// none.
func ends(m pcommon.Map) (key, local, peer, netns string) {
	text := func(name string) string {
		v, ok := m.Get(name)
		if !ok {
			return ""
		}
		return v.AsString()
	}
	if text(AttrLocalAddress) == "" || text(AttrPeerAddress) == "" {
		return "", "", "", ""
	}
	local = net.JoinHostPort(text(AttrLocalAddress), text(AttrLocalPort))
	peer = net.JoinHostPort(text(AttrPeerAddress), text(AttrPeerPort))
	netns = text(AttrNetns)
	return local + " " + peer + " " + netns, local, peer, netns
}

// put takes what the table shows of a data point.
func (r *row) put(name string, p pmetric.NumberDataPoint, delta bool) {
	if p.Flags().NoRecordedValue() {
		r.ended = true
		return
	}
	v := p.DoubleValue()
	if p.ValueType() == pmetric.NumberDataPointValueTypeInt {
		v = float64(p.IntValue())
	}
	attr := func(key string) string {
		if a, ok := p.Attributes().Get(key); ok {
			return a.Str()
		}
		return ""
	}
	sum := func(dst *float64) {
		if p.StartTimestamp() > r.now.start || r.now.start == 0 {
			// The first counter, or that of a later connection between the same ends.
			r.now = totals{start: p.StartTimestamp()}
			r.ended = false
		}
		if p.StartTimestamp() < r.now.start {
			return
		}
		r.now.at = max(r.now.at, p.Timestamp())
		r.delta = delta
		*dst += v
	}
	switch name {
	case "congestion_window":
		r.cwnd = strconv.FormatFloat(v, 'f', 0, 64)
	case "slow_start_threshold":
		r.ssthresh = strconv.FormatFloat(v, 'f', 0, 64)
	case "rtt.smoothed":
		r.srtt = seconds(v)
	case "rto":
		r.rto = seconds(v)
	case "state":
		if v == 1 {
			r.state = attr("network.connection.state")
		}
	case "io":
		if attr("network.io.direction") == "receive" {
			sum(&r.now.in)
		} else {
			sum(&r.now.out)
		}
	case "retransmits":
		sum(&r.now.sent)
	}
}

// column of the table.
type column struct {
	head  string
	right bool
	keep  int // the highest goes first when the table is too wide; 0 always stays
	cell  func(*row) string
}

var columns = []column{
	{"LOCAL", false, 0, func(r *row) string { return r.local }},
	{"PEER", false, 0, func(r *row) string { return r.peer }},
	{"STATE", false, 2, func(r *row) string {
		if r.ended {
			return "ended"
		}
		return r.state
	}},
	{"CWND", true, 0, func(r *row) string { return r.cwnd }},
	{"SSTHRESH", true, 4, func(r *row) string { return r.ssthresh }},
	{"SRTT", true, 0, func(r *row) string { return r.srtt }},
	{"RTO", true, 3, func(r *row) string { return r.rto }},
	{"RETRANS", true, 0, func(r *row) string { return count(r.retrans) }},
	{"IN/s", true, 1, func(r *row) string { return size(r.in) }},
	{"OUT/s", true, 1, func(r *row) string { return size(r.out) }},
}

// draw lays the table out for the given width. At most limit connections are shown.
func draw(at pcommon.Timestamp, rows []*row, width, limit int) []byte {
	var in, out, retrans float64
	ended := 0
	for _, r := range rows {
		in, out, retrans = in+r.in, out+r.out, retrans+r.retrans
		if r.ended {
			ended++
		}
	}
	var b bytes.Buffer
	line := func(s string) {
		b.WriteString(strings.TrimRight(clip(s, width), " "))
		b.WriteByte('\n')
	}
	noun := "connections"
	if len(rows) == 1 {
		noun = "connection"
	}
	line(fmt.Sprintf("%s  %d %s, %d ended  in %s/s  out %s/s  resent %s",
		at.AsTime().UTC().Format(time.RFC3339), len(rows), noun, ended, size(in), size(out), count(retrans)))
	more := 0
	if len(rows) > limit {
		more = len(rows) - limit
		rows = rows[:limit]
	}
	if len(rows) == 0 {
		return b.Bytes()
	}

	cols := slices.Clone(columns)
	cells := func() ([][]string, []int) {
		table := make([][]string, 0, len(rows)+1)
		widths := make([]int, len(cols))
		head := make([]string, len(cols))
		for i, c := range cols {
			head[i] = c.head
		}
		table = append(table, head)
		for _, r := range rows {
			line := make([]string, len(cols))
			for i, c := range cols {
				if line[i] = c.cell(r); line[i] == "" {
					line[i] = "-"
				}
			}
			table = append(table, line)
		}
		for _, line := range table {
			for i, cell := range line {
				widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			}
		}
		return table, widths
	}
	table, widths := cells()
	need := func() int {
		n := 2 * (len(widths) - 1)
		for _, w := range widths {
			n += w
		}
		return n
	}
	// Too wide: the ends are shortened down to what an IPv4 address and port take, then columns go.
	const endMin = 21
	for need() > width {
		over := need() - width
		wide := 0
		if widths[1] > widths[0] {
			wide = 1
		}
		if widths[wide] > endMin {
			widths[wide] -= min(over, widths[wide]-endMin, max(widths[wide]-widths[1-wide], 1))
			continue
		}
		drop := 0
		for i, c := range cols {
			if c.keep > 0 && (drop == 0 || c.keep > cols[drop].keep) {
				drop = i
			}
		}
		if drop == 0 {
			break // the lines are clipped
		}
		cols = slices.Delete(cols, drop, drop+1)
		table, widths = cells()
	}
	for _, cells := range table {
		var s strings.Builder
		for i, cell := range cells {
			if i > 0 {
				s.WriteString("  ")
			}
			cell = shorten(cell, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if cols[i].right {
				s.WriteString(pad + cell)
			} else {
				s.WriteString(cell + pad)
			}
		}
		line(s.String())
	}
	if more > 0 {
		line(fmt.Sprintf("… and %d more", more))
	}
	return b.Bytes()
}

// clip cuts s to n characters.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n])
}

// shorten takes characters out of the middle of s until it has n: both ends of an address with
// its port say more than its middle.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	if n < 3 {
		return string(r[:n])
	}
	tail := (n - 1) * 2 / 3
	head := n - 1 - tail
	return string(r[:head]) + "…" + string(r[len(r)-tail:])
}

// seconds prints a duration with three digits and its unit.
func seconds(s float64) string {
	switch {
	case s <= 0:
		return "0"
	case s < 1e-3:
		return digits(s*1e6) + "µs"
	case s < 1:
		return digits(s*1e3) + "ms"
	}
	return digits(s) + "s"
}

// size prints bytes with three digits and a decimal prefix.
func size(n float64) string {
	for _, p := range []struct {
		unit string
		at   float64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= p.at {
			return digits(n/p.at) + p.unit
		}
	}
	return strconv.FormatFloat(n, 'f', 0, 64) + "B"
}

func count(n float64) string { return strconv.FormatFloat(n, 'f', 0, 64) }

func digits(v float64) string {
	switch {
	case v >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
