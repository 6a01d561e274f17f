// SPDX-License-Identifier: Apache-2.0

// Package processors is the read half's brain: it follows every connection through the
// stream of events and derives its metrics, one file per family. It has no clock but the
// events' own, no logger, no goroutine and no OpenTelemetry types, so that the same events
// always give the same numbers.
package processors

// Kind of a metric, as OpenTelemetry's data model knows it.
type Kind uint8

// Kinds.
const (
	Gauge   Kind = iota // the last value
	Counter             // monotonic sum since the connection was first seen
)

// Metric describes an instrument. docs/metrics.md is made from these.
type Metric struct {
	Name        string
	Unit        string // UCUM, as the semantic conventions ask
	Description string // one sentence
	Kind        Kind
	Float       bool // values are float64, else int64
}

// Attr is an attribute of a series beyond those of its connection. The zero Attr is none.
type Attr struct{ Key, Value string }

// Series is one instrument with its own attribute, declared once per family. ID is dense
// and unique among all series of a Table, so that an Emitter can keep state in a slice.
type Series struct {
	ID     int
	Metric *Metric
	Attr   Attr
}

// Emitter takes what the processors have to tell at one moment. Calls come in a fixed order:
// Connection, then the values of that connection, then the next one.
type Emitter interface {
	// Connection says whose values follow. c belongs to the Table and is valid until the
	// collection ends. c.Ended says that these are the connection's last values.
	Connection(c *Connection)
	// Int gives the value of s now: for a Counter the total since the connection was first seen.
	Int(s *Series, v int64)
	// Float is Int for series with Metric.Float.
	Float(s *Series, v float64)
}
