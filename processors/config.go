// SPDX-License-Identifier: Apache-2.0

package processors

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Config says which metrics a Table derives and how long it remembers connections. All
// durations are in the time of the events, not of the machine that reads them.
type Config struct {
	// Off lists metrics that are not told, by name. A name that ends in * stands for all
	// metrics that begin so.
	Off []string `mapstructure:"off"`
	// IdleTimeout ends a connection that had no event for so long: it ends as idle.
	IdleTimeout time.Duration `mapstructure:"idle_timeout"`
	// HandshakeTimeout is IdleTimeout for connections that were never established.
	HandshakeTimeout time.Duration `mapstructure:"handshake_timeout"`
	// Linger keeps a closed connection for so long, so that late segments are counted in it.
	Linger time.Duration `mapstructure:"linger"`
	// MaxConnections bounds the connections that are followed at a time, each about 1.3 KB.
	// One more evicts another: of a few, one whose handshake is not complete, or
	// else the one that was quiet for the longest time.
	MaxConnections int `mapstructure:"max_connections"`
}

// DefaultConfig returns the settings used where none are given: all metrics on; idle
// connections are forgotten after 2 h 15 min, a little more than the two hours after which
// TCP keep-alive would have spoken, and unanswered SYNs after three minutes, a little more
// than the kernel's 127 s; a million connections at most.
func DefaultConfig() Config {
	return Config{
		IdleTimeout:      135 * time.Minute,
		HandshakeTimeout: 3 * time.Minute,
		Linger:           3 * time.Second,
		MaxConnections:   1_000_000,
	}
}

// Limits of Linger.
const (
	minLinger = 100 * time.Millisecond
	maxLinger = 2 * time.Minute
)

// Limits of MaxConnections: a slot is an int32.
const (
	minConnections = 100
	maxConnections = 100_000_000
)

// Validate reports all faults, each with its key.
func (c Config) Validate() error {
	var errs []error
	if c.IdleTimeout < time.Second {
		errs = append(errs, fmt.Errorf("process.idle_timeout: %s is below the minimum 1s", c.IdleTimeout))
	}
	if c.HandshakeTimeout < time.Second {
		errs = append(errs, fmt.Errorf("process.handshake_timeout: %s is below the minimum 1s", c.HandshakeTimeout))
	}
	if c.Linger < minLinger || c.Linger > maxLinger {
		errs = append(errs, fmt.Errorf("process.linger: %s is outside of %s to %s", c.Linger, minLinger, maxLinger))
	}
	if c.MaxConnections < minConnections || c.MaxConnections > maxConnections {
		errs = append(errs, fmt.Errorf("process.max_connections: %d is outside of %d to %d", c.MaxConnections, minConnections, maxConnections))
	}
	metrics := Metrics()
	for i, name := range c.Off {
		if !slices.ContainsFunc(metrics, func(m *Metric) bool { return matches(name, m.Name) }) {
			errs = append(errs, fmt.Errorf("process.off[%d]: no metric is named %q; docs/metrics.md lists them", i, name))
		}
	}
	return errors.Join(errs...)
}

// matches reports whether the entry of Config.Off means the metric of this name.
func matches(entry, name string) bool {
	if prefix, ok := strings.CutSuffix(entry, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return entry == name
}
