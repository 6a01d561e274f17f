// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/processors"
)

// endStep is the distance between a connection's last values and the points that end its
// gauges: the least that a backend with milliseconds tells apart.
const endStep = int64(time.Millisecond)

// partPoints is the size from which a collection is handed on in parts: a point with its
// attributes takes about 1 KB until it is sent, and a host may have a million connections.
const partPoints = 16 << 10

// Builder makes pmetric.Metrics of what the processors tell: it is their Emitter. One
// collection is Begin, the calls of Table.Collect, End. The same calls give the same bytes. A
// collection of many connections comes in parts, all points of a connection in one of them.
//
// All points have the time of the collection, but for the last ones of a connection that
// ended: those have the time of its last event, and each of its gauges is ended 1 ms later by
// a point flagged NoRecordedValue. So a connection that takes over the addresses of one that
// ended never has a point at the same time in the same series.
//
// A Builder is not safe for concurrent use.
type Builder struct {
	attributes []string
	home       uint64 // network namespace whose connections have no AttrNetns
	delta      bool
	resource   pmetric.ResourceMetrics // made once, copied into each collection
	scope      pcommon.InstrumentationScope

	slots    []*slot // of metrics, in order of the smallest ID of their series
	bySeries []*slot // by Series.ID
	byMetric map[*processors.Metric]*slot
	series   []*processors.Series // by ID

	host    track  // of the session's host
	session uint64 // that host is of

	wall   int64 // of this collection, ns since 1970
	prev   int64 // of the one before, 0 if none
	points int   // gathered for the next part
	full   bool  // the part ends before the next point
	part   func(pmetric.Metrics)
	conn   map[uint64]*track
	free   []*track
	over   map[tuple]int64 // when connections ended in this collection, ns since 1970

	// The connection, or the host, whose values come.
	cur      *track
	curID    uint64
	curEnded bool
	start    pcommon.Timestamp
	ts       pcommon.Timestamp
	attrs    pcommon.Map // its attributes, copied into each point
}

// tuple is what tells the series of one connection from those of another.
type tuple struct {
	local, peer netip.AddrPort
	netns       uint64
}

// noAttributes are those of the host's series.
var noAttributes = pcommon.NewMap()

// slot gathers the points of one metric.
type slot struct {
	metric *processors.Metric
	order  int // smallest Series.ID
	points pmetric.NumberDataPointSlice
	histos pmetric.ExponentialHistogramDataPointSlice // of a Distribution, instead of points
	last   int                                        // points of the collection before: what to expect
}

// track is what is kept of a connection between collections.
type track struct {
	attrs  pcommon.Map                   // as they were when it was first told: a series keeps its identity
	gauges []uint64                      // bit set by Series.ID: what must be ended
	prev   []uint64                      // delta only: the last totals by Series.ID, float64 as bits
	histos map[int]*processors.Histogram // delta only: the last totals by Series.ID
	ts     int64                         // delta only: time of the last points
}

// NewBuilder returns a Builder. cfg must be valid; of it Points is used. res.ServiceVersion is the instrumentation scope's version too.
func NewBuilder(cfg Config, res Resource) *Builder {
	b := &Builder{
		attributes: slices.Clone(cfg.Attributes),
		home:       cmp.Or(res.Netns, initialNetns),
		delta:      cfg.Temporality == Delta,
		resource:   pmetric.NewResourceMetrics(),
		scope:      pcommon.NewInstrumentationScope(),
		byMetric:   make(map[*processors.Metric]*slot),
		conn:       make(map[uint64]*track),
		over:       make(map[tuple]int64),
	}
	b.resource.SetSchemaUrl(SchemaURL)
	res.write(b.resource.Resource().Attributes(), cfg.Resource)
	b.scope.SetName(ScopeName)
	b.scope.SetVersion(res.ServiceVersion)
	return b
}

// Begin starts a collection at the given wall time, ns since 1970. part is called with each part but
// the last, which then is the callee's.
func (b *Builder) Begin(wall int64, part func(pmetric.Metrics)) {
	b.wall, b.part = wall, part
	clear(b.over)
	if wall <= b.prev {
		b.prev = 0 // the clock was set back: nothing can be in order with what came before
	}
}

// End returns the last part of the collection, which then is the caller's. It is empty (DataPointCount
// is 0 and there is no resource) if there was nothing to tell.
func (b *Builder) End() pmetric.Metrics {
	b.endConnection()
	b.prev, b.part = b.wall, nil
	return b.cut()
}

// endPart hands on what was gathered if that is enough. There always is a point to come, so that the
// last part is not empty.
func (b *Builder) endPart() {
	if b.full {
		b.part(b.cut())
	}
}

// cut returns what was gathered.
func (b *Builder) cut() pmetric.Metrics {
	b.points, b.full = 0, false
	md := pmetric.NewMetrics()
	n := 0
	for _, s := range b.slots {
		if s.len() > 0 {
			n++
		}
	}
	if n == 0 {
		return md
	}
	rm := md.ResourceMetrics().AppendEmpty()
	b.resource.CopyTo(rm)
	sm := rm.ScopeMetrics().AppendEmpty()
	sm.SetSchemaUrl(SchemaURL)
	b.scope.CopyTo(sm.Scope())
	sm.Metrics().EnsureCapacity(n)
	for _, s := range b.slots {
		s.last = s.len()
		if s.last == 0 {
			continue
		}
		m := sm.Metrics().AppendEmpty()
		m.SetName(s.metric.Name)
		m.SetUnit(s.metric.Unit)
		m.SetDescription(s.metric.Description)
		switch s.metric.Kind {
		case processors.Gauge:
			s.points.MoveAndAppendTo(m.SetEmptyGauge().DataPoints())
		case processors.Counter:
			sum := m.SetEmptySum()
			sum.SetIsMonotonic(true)
			sum.SetAggregationTemporality(b.temporality())
			s.points.MoveAndAppendTo(sum.DataPoints())
		case processors.UpDown:
			sum := m.SetEmptySum()
			sum.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
			s.points.MoveAndAppendTo(sum.DataPoints())
		case processors.Distribution:
			h := m.SetEmptyExponentialHistogram()
			h.SetAggregationTemporality(b.temporality())
			s.histos.MoveAndAppendTo(h.DataPoints())
		default:
			panic("BUG: metric " + s.metric.Name + " of unknown kind")
		}
	}
	return md
}

func (b *Builder) temporality() pmetric.AggregationTemporality {
	if b.delta {
		return pmetric.AggregationTemporalityDelta
	}
	return pmetric.AggregationTemporalityCumulative
}

// Host implements processors.Emitter.
func (b *Builder) Host(h *processors.Host) {
	b.endConnection()
	if h.Session != b.session {
		b.host.reset()
		b.session = h.Session
	}
	b.cur, b.curEnded = &b.host, false
	b.times(h.StartWall, b.wall)
	b.attrs = noAttributes
}

// Connection implements processors.Emitter.
func (b *Builder) Connection(c *processors.Connection) {
	b.endConnection()
	b.full = b.points >= partPoints
	t := b.conn[c.ID]
	if t == nil {
		t = b.newTrack()
		putAttributes(t.attrs, b.attributes, b.home, c)
		b.conn[c.ID] = t
	}
	b.cur, b.curID, b.curEnded = t, c.ID, c.Ended
	at := b.wall
	if c.Ended {
		// The time of the last event, but after the collection before and, with the points
		// that end the gauges, before this one.
		at = min(c.StartWall+int64(c.Last-c.First), b.wall-2*endStep)
		at = max(at, b.prev+endStep)
		id := tuple{c.Local, c.Peer, c.Netns}
		if before, ok := b.over[id]; ok {
			at = max(at, before+2*endStep)
		}
		b.over[id] = at
	}
	b.times(c.StartWall, at)
	b.attrs = t.attrs
}

// times sets the timestamps of the points of b.cur: at, and for sums the start, which for
// deltas is the time of the points before.
func (b *Builder) times(start, at int64) {
	if b.delta {
		if b.cur.ts != 0 {
			start = b.cur.ts
		}
		b.cur.ts = at
	}
	b.ts = pcommon.Timestamp(at)
	b.start = pcommon.Timestamp(min(start, at))
}

// Int implements processors.Emitter.
func (b *Builder) Int(s *processors.Series, v int64) {
	p := b.point(s)
	if s.Metric.Kind == processors.Counter && b.delta {
		prev := &b.cur.prev[s.ID]
		v, *prev = v-int64(*prev), uint64(v)
	}
	p.SetIntValue(v)
}

// Float implements processors.Emitter.
func (b *Builder) Float(s *processors.Series, v float64) {
	p := b.point(s)
	if s.Metric.Kind == processors.Counter && b.delta {
		prev := &b.cur.prev[s.ID]
		v, *prev = v-math.Float64frombits(*prev), math.Float64bits(v)
	}
	p.SetDoubleValue(v)
}

// Histogram implements processors.Emitter. A delta has no minimum and maximum: what they were
// since the collection before is not known.
func (b *Builder) Histogram(s *processors.Series, h *processors.Histogram) {
	if b.cur == nil {
		panic("BUG: a value without a connection or host")
	}
	if s.ID >= len(b.bySeries) || b.bySeries[s.ID] == nil {
		b.learn(s)
	}
	var prev *processors.Histogram
	if b.delta {
		if prev = b.cur.histos[s.ID]; prev == nil {
			prev = new(processors.Histogram)
			if b.cur.histos == nil {
				b.cur.histos = make(map[int]*processors.Histogram)
			}
			b.cur.histos[s.ID] = prev
		}
	}
	b.endPart()
	b.points++
	p := b.bySeries[s.ID].histos.AppendEmpty()
	p.SetTimestamp(b.ts)
	p.SetStartTimestamp(b.start)
	b.putAttrs(p.Attributes(), s)
	p.SetScale(processors.HistogramScale)
	p.SetZeroThreshold(processors.HistogramZero)
	if prev == nil {
		prev = &noHistogram
		if h.Count > 0 {
			p.SetMin(h.Min)
			p.SetMax(h.Max)
		}
	}
	p.SetCount(h.Count - prev.Count)
	p.SetSum(h.Sum - prev.Sum)
	p.SetZeroCount(h.Zero - prev.Zero)
	first, end := 0, len(h.Buckets)
	for first < end && h.Buckets[first] == prev.Buckets[first] {
		first++
	}
	for end > first && h.Buckets[end-1] == prev.Buckets[end-1] {
		end--
	}
	if first < end {
		p.Positive().SetOffset(int32(processors.HistogramOffset + first))
		counts := p.Positive().BucketCounts()
		counts.EnsureCapacity(end - first)
		for i := first; i < end; i++ {
			counts.Append(h.Buckets[i] - prev.Buckets[i])
		}
	}
	if b.delta {
		*prev = *h
	}
}

// noHistogram is what a cumulative histogram is told relative to.
var noHistogram processors.Histogram

// Tracked returns how many connections the Builder keeps state of.
func (b *Builder) Tracked() int { return len(b.conn) }

// point appends a point for s, with all but its value and start.
func (b *Builder) point(s *processors.Series) pmetric.NumberDataPoint {
	if b.cur == nil {
		panic("BUG: a value without a connection or host")
	}
	if s.ID >= len(b.bySeries) || b.bySeries[s.ID] == nil {
		b.learn(s)
	}
	b.endPart()
	t := b.cur
	if s.Metric.Kind != processors.Counter {
		for s.ID>>6 >= len(t.gauges) {
			t.gauges = append(t.gauges, 0)
		}
		t.gauges[s.ID>>6] |= 1 << (s.ID & 63)
	} else if b.delta && s.ID >= len(t.prev) {
		t.prev = append(t.prev, make([]uint64, len(b.bySeries)-len(t.prev))...)
	}
	p := b.add(s)
	if s.Metric.Kind != processors.Gauge {
		p.SetStartTimestamp(b.start)
	}
	return p
}

// add appends a point for s with time and attributes.
func (b *Builder) add(s *processors.Series) pmetric.NumberDataPoint {
	slot := b.bySeries[s.ID]
	if slot.points.Len() == 0 {
		slot.points.EnsureCapacity(slot.last + slot.last/8 + 1)
	}
	b.points++
	p := slot.points.AppendEmpty()
	p.SetTimestamp(b.ts)
	b.putAttrs(p.Attributes(), s)
	return p
}

// putAttrs writes the attributes of the connection and those of s to m.
func (b *Builder) putAttrs(m pcommon.Map, s *processors.Series) {
	m.EnsureCapacity(b.attrs.Len() + len(s.Attrs))
	b.attrs.CopyTo(m)
	for i := range s.Attrs {
		m.PutStr(s.Attrs[i].Key, s.Attrs[i].Value)
	}
}

// endConnection ends the gauges of the current connection if it ended, and forgets it. Sums and
// histograms need no end: nothing is added to them any more, and that is true.
func (b *Builder) endConnection() {
	t := b.cur
	b.cur = nil
	if t == nil || !b.curEnded {
		return
	}
	b.ts += pcommon.Timestamp(endStep)
	for id, s := range b.series {
		if s != nil && id>>6 < len(t.gauges) && t.gauges[id>>6]&(1<<(id&63)) != 0 {
			b.add(s).SetFlags(pmetric.DefaultDataPointFlags.WithNoRecordedValue(true))
		}
	}
	delete(b.conn, b.curID)
	b.free = append(b.free, t)
}

func (b *Builder) newTrack() *track {
	n := len(b.free)
	if n == 0 {
		t := &track{attrs: pcommon.NewMap()}
		t.attrs.EnsureCapacity(len(b.attributes))
		return t
	}
	t := b.free[n-1]
	b.free = b.free[:n-1]
	t.reset()
	t.attrs.Clear()
	return t
}

func (t *track) reset() {
	clear(t.gauges)
	clear(t.prev)
	clear(t.histos)
	t.ts = 0
}

// len returns the points of the metric in this collection.
func (s *slot) len() int { return s.points.Len() + s.histos.Len() }

// learn gives a series that was never told before its slot.
func (b *Builder) learn(s *processors.Series) {
	for s.ID >= len(b.bySeries) {
		b.bySeries = append(b.bySeries, nil)
		b.series = append(b.series, nil)
	}
	sl := b.byMetric[s.Metric]
	if sl == nil {
		sl = &slot{metric: s.Metric, order: s.ID, points: pmetric.NewNumberDataPointSlice(), histos: pmetric.NewExponentialHistogramDataPointSlice()}
		b.byMetric[s.Metric] = sl
		b.slots = append(b.slots, sl)
	}
	sl.order = min(sl.order, s.ID)
	b.bySeries[s.ID] = sl
	b.series[s.ID] = s
	slices.SortFunc(b.slots, func(x, y *slot) int { return x.order - y.order })
}
