// SPDX-License-Identifier: Apache-2.0

package processors

import "github.com/tcbee/tcbee-export/bpf/event"

// Integrity is how far the numbers, and the packets, can be trusted.
type Integrity struct{}

var (
	metricCompleteness = &Metric{
		Name: "network.flow.tcp.completeness", Unit: "1", Kind: Gauge, Float: true,
		Description: "Least share of the connection's events that were stored: 1 when nothing was lost.",
		Source: "stored / (stored + lost): stored are the connection's records; lost are all events that the CPUs on which it was seen lost while it lived (Lost records), " +
			"of whatever connection they were. The true share is as high or higher. " +
			"Events that the kernel showed to no program (missed, by the Accounting records) have no place in time and are not in it.",
	}
	metricChecksum = &Metric{
		Name: "system.network.tcp.checksum_errors", Unit: "{segment}", Kind: Counter, Host: true,
		Description: "Segments that the kernel dropped for a wrong TCP checksum.",
		Source:      "tcp_bad_csum; equal to nstat TcpInCsumErrors.",
	}
)

type integrity struct {
	completeness, checksum *Series
	bad                    int64
}

// Name implements Processor.
func (Integrity) Name() string { return "integrity" }

// Bind implements Processor.
func (Integrity) Bind(r *Registry) Family {
	return &integrity{completeness: r.Series(metricCompleteness), checksum: r.Series(metricChecksum)}
}

func (f *integrity) New(*Connection) State { return integrityState{f} }

// CollectHost implements HostFamily.
func (f *integrity) CollectHost(e Emitter) { e.Int(f.checksum, f.bad) }

// Incident implements IncidentWatcher.
func (f *integrity) Incident(_ *Connection, i *event.Incident) {
	if i.Hook == event.HookBadChecksum {
		f.bad++
	}
}

type integrityState struct{ f *integrity }

func (integrityState) Observe(*Event) {}

func (s integrityState) Collect(c *Connection, e Emitter) {
	share := 1.0
	if c.LostEvents != 0 {
		share = float64(c.Events) / (float64(c.Events) + float64(c.LostEvents))
	}
	e.Float(s.f.completeness, share)
}
