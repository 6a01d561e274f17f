// SPDX-License-Identifier: Apache-2.0

package tcbeereceiver

import (
	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// Config is the receiver's section of a Collector configuration. Its keys are those of
// tcbee-export's own configuration; what is about sending is left to the Collector's exporters.
//
// It has no Validate of its own: the Collector calls those of the fields and names each fault
// with its place.
type Config struct {
	// Capture says what is captured.
	Capture bpf.Config `mapstructure:"capture"`
	// Spool is where events are kept. Without a dir it is a temporary directory of at most
	// 1 GiB, which is removed at shutdown.
	Spool spool.Config `mapstructure:"spool"`
	// Process says which metrics are derived.
	Process processors.Config `mapstructure:"process"`
	// Export says how the data points look: interval, temporality, attributes, resource.
	Export exporter.Points `mapstructure:"export"`
}

// DefaultConfig returns the configuration of a receiver of which the Collector's
// configuration says nothing.
func DefaultConfig() *Config {
	return &Config{
		Capture: bpf.DefaultConfig(),
		Spool:   spool.DefaultConfig(),
		Process: processors.DefaultConfig(),
		Export:  exporter.DefaultPoints(),
	}
}

// temporaryBytes bounds a spool that nobody asked for.
const temporaryBytes = 1 << 30
