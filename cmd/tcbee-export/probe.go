// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"

	"github.com/tcbee/tcbee-export/bpf"
)

// probe tries a capture with the configuration.
func probe(cfg bpf.Config) []bpf.Feature {
	f := bpf.Feature{Group: "transport", Name: "capture", Enabled: true}
	c, err := bpf.Open(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Reason = err.Error()
	} else {
		f.Usable = c.Close() == nil
	}
	return []bpf.Feature{f}
}
