// SPDX-License-Identifier: Apache-2.0

// Package config gathers the configurations of all packages into one, fills it from a file, the
// environment and flags, and tells where each value came from. It is the only package that knows
// koanf.
//
// The valid keys are read from the mapstructure tags of the packages' own Config types: a field
// that is added there is a key here, with its environment variable, its line in "config show" and
// in the README's table.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// Config is everything that can be set.
type Config struct {
	// Output is where `run` and `replay` send metrics: otlp, terminal, or file:PATH for lines of OTLP/JSON.
	Output  string            `mapstructure:"output"`
	Capture bpf.Config        `mapstructure:"capture"`
	Spool   spool.Config      `mapstructure:"spool"`
	Process processors.Config `mapstructure:"process"`
	Export  exporter.Config   `mapstructure:"export"`
	Log     Log               `mapstructure:"log"`
}

// Log is about the program's own messages, which go to standard error.
type Log struct {
	// Level is the least severe level that is printed: debug, info, warn or error.
	Level string `mapstructure:"level"`
	// Format is text or json.
	Format string `mapstructure:"format"`
}

// Default returns the configuration without any file, variable or flag.
func Default() Config {
	return Config{
		Output:  "terminal",
		Capture: bpf.DefaultConfig(),
		Spool:   spool.DefaultConfig(),
		Process: processors.DefaultConfig(),
		Export:  exporter.DefaultConfig(),
		Log:     Log{Level: "info", Format: "text"},
	}
}

// Validate reports all faults of all parts, each by its key path. It changes nothing.
func (c Config) Validate() error {
	return errors.Join(
		validOutput(c.Output),
		c.Capture.Validate(),
		c.Spool.Validate(),
		c.Process.Validate(),
		c.Export.Validate(),
		c.Log.Validate(),
	)
}

func validOutput(out string) error {
	if out == "otlp" || out == "terminal" || strings.HasPrefix(out, "file:") && len(out) > len("file:") {
		return nil
	}
	return fmt.Errorf("output: %q is none of otlp, terminal, file:PATH", out)
}

// Validate reports all faults by key path.
func (l Log) Validate() error {
	var errs []error
	if _, err := l.SlogLevel(); err != nil {
		errs = append(errs, err)
	}
	if l.Format != "text" && l.Format != "json" {
		errs = append(errs, fmt.Errorf("log.format: %q is neither text nor json", l.Format))
	}
	return errors.Join(errs...)
}

// SlogLevel returns Level for log/slog.
func (l Log) SlogLevel() (slog.Level, error) {
	switch l.Level {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log.level: %q is none of debug, info, warn, error", l.Level)
}
