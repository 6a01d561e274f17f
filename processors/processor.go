// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"github.com/tcbee/tcbee-export/bpf/event"
)

// Processor is one family of metrics. A new family is one file, one line in All and one
// golden.
type Processor interface {
	// Name is the family's heading in docs/metrics.md.
	Name() string
	// Bind declares the family's series and the kinds of records it wants in r, and returns
	// the family as one Table uses it.
	Bind(r *Registry) Family
}

// Family is a Processor that is bound to a Table. A Family that has values of the whole
// host is also a HostFamily.
type Family interface {
	// New returns the state of a connection that was just seen. c is the Table's; it stays
	// at the same address while the connection lives.
	New(c *Connection) State
}

// HostFamily is a Family with series of the host.
type HostFamily interface {
	Family
	// CollectHost tells e the values of the family's host series.
	CollectHost(e Emitter)
}

// IncidentWatcher is a Family that counts incidents of the whole host, those without a
// connection included.
type IncidentWatcher interface {
	Family
	// Incident is called for every Incident of the stream, before any State observes it. c
	// is nil where it belongs to no connection.
	Incident(c *Connection, i *event.Incident)
}

// State is what a family knows of one connection. A State may also be a Watcher, a Flipper
// or a Summarizer.
type State interface {
	// Observe takes a record of the connection of a kind that the family wants. ev is valid
	// during the call only. It allocates nothing.
	Observe(ev *Event)
	// Collect tells e the present values, in the order in which the series were declared.
	Collect(c *Connection, e Emitter)
}

// Watcher is a State that follows what becomes of its connection.
type Watcher interface {
	// Changed is called after Role, Vantage, State, Opened, Established, End or Ended of c
	// changed, and before the record that changed them is observed.
	Changed(c *Connection)
}

// Flipper is a State that keeps values by direction.
type Flipper interface {
	// Flip swaps the directions: Local and Peer of the connection were exchanged.
	Flip()
}

// Summarizer is a State that adds to a Flow.
type Summarizer interface {
	Summarize(f *Flow)
}

// Event is a record as the Table understood it.
type Event struct {
	*event.Header
	Conn *Connection
	// The following are of segments only.
	Dir event.Dir // DirOut: sent by Conn.Local
	// Counted says that this sighting is the one that counts: a packet that passes several
	// interfaces of the host counts once.
	Counted bool
	// Fresh is how many payload bytes lie above the highest sequence number of this
	// direction so far: 0 for a retransmission, a second sighting or an empty segment.
	Fresh uint32
	// Acked is how many payload bytes of the other direction the segment acknowledges that
	// no earlier segment did.
	Acked uint32
	// Outstanding is how many sequence numbers of the other direction were sent and not
	// acknowledged before this segment.
	Outstanding uint32
	// SameAck says that the segment acknowledges what was the highest acknowledged already.
	SameAck bool
}

// Registry is where a family declares its series.
type Registry struct {
	off     func(name string) bool
	now     *uint64
	metrics []*Metric
	series  []*Series
	kinds   [event.KindIncident + 1]bool
}

// Want says that the family's states observe records of this kind: KindSegment, KindSample
// (of full sockets only) or KindIncident.
func (r *Registry) Want(k event.Kind) { r.kinds[k] = true }

// Now returns the time that the Table has reached, ns of CLOCK_MONOTONIC, for states that
// tell how long something has lasted.
func (r *Registry) Now() uint64 { return *r.now }

// Series declares a series of m with the given attributes. Series of one metric are declared
// one after the other. If m is switched off, the series is never told.
func (r *Registry) Series(m *Metric, attrs ...Attr) *Series {
	if r.off != nil && r.off(m.Name) {
		return &Series{ID: -1, Metric: m, Attrs: attrs}
	}
	if n := len(r.metrics); n == 0 || r.metrics[n-1] != m {
		r.metrics = append(r.metrics, m)
	}
	s := &Series{ID: len(r.series), Metric: m, Attrs: attrs}
	r.series = append(r.series, s)
	return s
}

// All returns the families in the order of docs/metrics.md.
func All() []Processor {
	return []Processor{
		Congestion{}, RTT{}, Volume{}, Retransmit{}, Lifecycle{},
		Order{}, FlowControl{}, Window{}, Rate{}, ECN{}, Integrity{},
	}
}

// Metrics returns all metrics of all families in the order of docs/metrics.md.
func Metrics() []*Metric {
	r := &Registry{}
	for _, p := range All() {
		p.Bind(r)
	}
	return r.metrics
}

// filter hands on what is not switched off.
type filter struct{ Emitter }

func (f filter) Int(s *Series, v int64) {
	if s.ID >= 0 {
		f.Emitter.Int(s, v)
	}
}

func (f filter) Float(s *Series, v float64) {
	if s.ID >= 0 {
		f.Emitter.Float(s, v)
	}
}

func (f filter) Histogram(s *Series, h *Histogram) {
	if s.ID >= 0 {
		f.Emitter.Histogram(s, h)
	}
}
