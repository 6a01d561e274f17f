// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func f(v float64) *float64 { return &v }

func TestParse(t *testing.T) {
	got := parse(`goos: linux
goarch: amd64
pkg: github.com/tcbee/tcbee-export/spool/block
cpu: something
BenchmarkSeal/segments-2   	     100	  1000000 ns/op	         4.2 B/event	 10000000 events/s	     200 allocs/op
BenchmarkSeal/segments-2   	     100	  3000000 ns/op	         4.2 B/event	 30000000 events/s	     200 allocs/op
BenchmarkDecode-2          	     100	   500000 ns/op	        50.0 ns/event	       0 allocs/op
PASS
ok  	github.com/tcbee/tcbee-export/spool/block	1.0s
pkg: github.com/tcbee/tcbee-export/bpf/event
BenchmarkDecode-2          	     100	       7.0 ns/op
BenchmarkBroken-2          	 something
--- BENCH: BenchmarkDecode-2
    x_test.go:1: 5 words that say nothing
`)
	require.Empty(t, cmp.Diff(map[string]Result{
		"BenchmarkSeal/segments": {EventsPerSecond: f(2e7), NsPerEvent: f(50), BytesPerEvent: f(4.2), AllocsPerEvent: f(200 * 50 / 2e6), NsPerOp: f(2e6)},
		"spool/block.BenchmarkDecode": {
			EventsPerSecond: f(2e7), NsPerEvent: f(50), AllocsPerEvent: f(0), NsPerOp: f(5e5),
		},
		"bpf/event.BenchmarkDecode": {NsPerOp: f(7)},
	}, got))
}

func TestNamesThatEndInNumbersStayOnOneProcessor(t *testing.T) {
	got := parse("BenchmarkA/size-64 1 2 ns/op\nBenchmarkB 1 2 ns/op\n")
	require.Contains(t, got, "BenchmarkA/size-64")
	require.Contains(t, got, "BenchmarkB")
}

func TestRunPassesTheStatusOn(t *testing.T) {
	out := filepath.Join(t.TempDir(), "bench.json")
	code, err := run(out, []string{"sh", "-c", "echo 'BenchmarkA-2 1 2 ns/op 3 events/s'; exit 7"})
	require.NoError(t, err)
	require.Equal(t, 7, code)
	js, err := os.ReadFile(out)
	require.NoError(t, err)
	require.JSONEq(t, `{"BenchmarkA": {"events_per_second": 3, "ns_per_event": 333333333.3333333, "ns_per_op": 2}}`, string(js))

	_, err = run(out, []string{"true"})
	require.ErrorContains(t, err, "no benchmark result")
	_, err = run(out, []string{"/nowhere/command"})
	require.Error(t, err)
}
