// SPDX-License-Identifier: Apache-2.0

// Package processors is the read half's brain: it follows every connection through the
// stream of events and derives its metrics, one file per family. It has no clock but the
// events' own, no logger, no goroutine and no OpenTelemetry types, so that the same events
// always give the same numbers.
//
// A [Table] observes every record of a stream in order, finds out to which connection it
// belongs and hands it to the families ([Processor], bound: [Family]) that want its kind;
// each keeps one [State] for each connection. Collect tells an [Emitter] what they know.
//
// A new metric is a file with a Processor, a line in [All], and a golden, which
// "go test ./processors -update" writes, docs/metrics.md with it. The file declares its
// [Metric] values (name, unit, kind, what it means and where it comes from), its series in
// Bind, and a plain struct that observes and tells; integrity.go and window.go are short
// examples. What several families need of the packets (direction, which sighting counts, new
// and acknowledged bytes) is in [Event]; what becomes of the connection is in [Connection].
//
// Observing an event takes 50 to 100 ns with all families and allocates nothing
// (BenchmarkObserve); a connection takes about 1.3 KB (TestConnectionNeedsLittleMemory).
package processors

// Kind of a metric, as OpenTelemetry's data model knows it.
type Kind uint8

// Kinds.
const (
	// Gauge is the last value.
	Gauge Kind = iota
	// Counter is a monotonic sum since the connection was first seen (Connection.StartWall) or,
	// for metrics of the host, since the session began (Host.StartWall).
	Counter
	// UpDown is a sum that may fall: how many there are now. It never becomes a delta.
	UpDown
	// Distribution is an exponential histogram over the same time as a Counter.
	Distribution
)

// String returns the kind as docs/metrics.md names it.
func (k Kind) String() string {
	switch k {
	case Gauge:
		return "gauge"
	case Counter:
		return "counter"
	case UpDown:
		return "up-down counter"
	case Distribution:
		return "exponential histogram"
	}
	return "unknown"
}

// Metric describes an instrument. docs/metrics.md is made from these.
type Metric struct {
	Name        string
	Unit        string // UCUM, as the semantic conventions ask
	Description string // one sentence
	Kind        Kind
	Float       bool // values are float64, else int64; a Distribution is always float64
	Host        bool // of the whole host: told after Emitter.Host, not of a connection
	Once        bool // a Gauge that is known once and then stays as it is
	// Attributes lists the keys that a series can have beyond those of its connection.
	Attributes []string
	// Source says from which records the value comes and, where tools disagree, its definition.
	Source string
}

// Attr is an attribute of a series beyond those of its connection.
type Attr struct{ Key, Value string }

// Series is one instrument with its own attributes, declared once per family. ID is dense
// from 0 and unique among all series of a Table (those of the host included), so that an
// Emitter can keep state in a slice.
type Series struct {
	ID     int
	Metric *Metric
	Attrs  []Attr // none, one or two, in a fixed order; read only
}

// Host is the whole host as this stream tells it: what Emitter.Host introduces.
type Host struct {
	Session   uint64 // Anchor.Session of the recording
	Start     uint64 // time of its first record, ns of CLOCK_MONOTONIC: host counters are since then
	StartWall int64  // Start as wall clock, ns since 1970
}

// Emitter takes what the processors have to tell at one moment. Calls come in a fixed order:
// first Host and the values of the host's series, then, in the order of Connection.ID, each
// Connection and its values. Values come in the order of Table.Series; a series that has no
// value (unknown, or not measured yet) is left out.
type Emitter interface {
	// Host says that values of the host's series (Metric.Host) follow. h belongs to the
	// Table and is valid until the collection ends.
	Host(h *Host)
	// Connection says whose values follow. c belongs to the Table and is valid until the
	// collection ends. c.Ended says that these are the connection's last values: its ID is
	// never told again.
	Connection(c *Connection)
	// Int gives the value of s now: for a Counter the total since the connection was first
	// seen, or of the host since Host.Start.
	Int(s *Series, v int64)
	// Float is Int for series with Metric.Float.
	Float(s *Series, v float64)
	// Histogram is Int for series whose Kind is Distribution: the totals, not what is new. h
	// belongs to the Table and is valid until the collection ends.
	Histogram(s *Series, h *Histogram)
}
