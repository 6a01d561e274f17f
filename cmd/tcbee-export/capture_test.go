// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// The account says why samples were left out, if they were.
func TestTheLimitOfSamplesIsTold(t *testing.T) {
	hooks := []pipeline.HookCount{{Hook: "tcp_probe", Seen: 9000, Stored: 2000, Filtered: 7000}}
	for name, tt := range map[string]struct {
		limited uint64
		want    string
	}{
		"by the limit": {6500, `
6,500 samples among the filtered were left out: on a CPU with more than 10,000 segments a second (capture.sockets.limit_above)
a socket is sampled up to 50 times a second, and when its congestion state changes; --samples every takes all
`},
		"by filters": {0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			a := &app{stderr: &out}
			require.NoError(t, a.printResult(captured{pipeline.Result{Hooks: hooks}, tt.limited}, bpf.DefaultConfig().Sockets))
			require.Contains(t, out.String(), "7,000")
			if tt.want == "" {
				require.NotContains(t, out.String(), "samples")
			}
			require.Contains(t, out.String(), tt.want)

			out.Reset()
			a = &app{stdout: &out, json: true}
			require.NoError(t, a.printResult(captured{pipeline.Result{Hooks: hooks}, tt.limited}, bpf.DefaultConfig().Sockets))
			require.Contains(t, out.String(), fmt.Sprintf(`"limited": %d`, tt.limited))
			require.Contains(t, out.String(), `"hooks": [`)
		})
	}
}
