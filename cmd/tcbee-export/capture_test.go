// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/config"
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
6,500 samples among the filtered were left out: on a CPU with more than 10,000 segments a second (capture.sockets.limit_above),
and for a quarter of a second after it on any other, a socket is sampled up to 50 times a second (all of such a CPU up to 5,000), and when its congestion state changes; --samples every takes all
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

// Metrics wait for events, a recording does not; what is set holds for both.
func TestTurnsAreLongerWhereNobodyWaits(t *testing.T) {
	for set, want := range map[string][2]time.Duration{
		"export.interval=1s":       {100 * time.Millisecond, recordFlushAge},
		"capture.flush_age=100ms":  {100 * time.Millisecond, 100 * time.Millisecond},
		"capture.flush_age=1000ms": {time.Second, time.Second},
	} {
		cfg, origins, err := config.Load(config.Sources{Set: []string{set}})
		require.NoError(t, err)
		a := &app{cfg: cfg, origins: origins}
		require.Equal(t, want, [2]time.Duration{a.flushAge(true), a.flushAge(false)}, set)
	}
}
