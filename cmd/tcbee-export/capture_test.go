// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// The account says why samples were filtered, where a limit of their rate can be the reason.
func TestTheLimitOfSamplesIsTold(t *testing.T) {
	probe := func(filtered uint64) pipeline.HookCount {
		return pipeline.HookCount{Hook: "tcp_probe", Seen: 10, Stored: 10 - filtered, Filtered: filtered}
	}
	every := bpf.DefaultConfig().Sockets
	limited := every
	limited.Samples = bpf.SamplesLimited
	for name, tt := range map[string]struct {
		hook    pipeline.HookCount
		sockets bpf.Sockets
		told    bool
	}{
		"beyond the rate":    {probe(4), limited, true},
		"all taken":          {probe(0), limited, false},
		"without a limit":    {probe(4), every, false},
		"of another's hooks": {pipeline.HookCount{Hook: "kfree_skb", Seen: 4, Filtered: 4}, limited, false},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			a := &app{stderr: &out}
			require.NoError(t, a.printResult(pipeline.Result{Hooks: []pipeline.HookCount{tt.hook}}, tt.sockets))
			require.Contains(t, out.String(), tt.hook.Hook)
			if tt.told {
				require.Contains(t, out.String(), "up to 250 times a second each; for all samples: --samples every\n")
			} else {
				require.NotContains(t, out.String(), "--samples every")
			}
		})
	}
}
