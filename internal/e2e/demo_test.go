// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// demoFlows returns the connections in the spool that a demo has left below TMPDIR.
func demoFlows(t *testing.T) []map[string]any {
	t.Helper()
	spools, err := filepath.Glob(filepath.Join(os.TempDir(), "tcbee-demo-*", "spool"))
	require.NoError(t, err)
	require.Len(t, spools, 1)
	must(t, "spool", "verify", spools[0])
	var flows []map[string]any
	require.NoError(t, json.Unmarshal([]byte(must(t, "flows", "--json", spools[0])), &flows))
	return flows
}

// requireLively wants connections whose congestion window, smoothed round-trip time and retransmissions are not zero.
func requireLively(t *testing.T, flows []map[string]any) {
	t.Helper()
	lively, seen := 0, []string{}
	for _, f := range flows {
		cwnd, _ := f["max_cwnd"].(float64)
		srtt, _ := f["srtt"].(float64)
		again, _ := f["retransmits"].(float64)
		if cwnd > 0 && srtt > 0 && again > 0 {
			lively++
		}
		seen = append(seen, fmt.Sprintf("cwnd %v, srtt %v, retransmits %v", cwnd, srtt, again))
	}
	require.Positive(t, lively, "%q", seen)
}

func TestDemoShowsALiveNetwork(t *testing.T) {
	lab := netlab.ForTest(t, netlab.Options{}) // skips where there can be none
	require.NoError(t, lab.Close())
	bin(t)
	t.Setenv("TMPDIR", t.TempDir())
	before, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	out := must(t, "demo", "--duration", "3s")
	require.Regexp(t, `(?s)established.*closed`, out)
	requireLively(t, demoFlows(t))
	after, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestDemoEndsInOrderWhenInterrupted(t *testing.T) {
	lab := netlab.ForTest(t, netlab.Options{})
	bin(t)
	t.Setenv("TMPDIR", t.TempDir())
	// It runs in a namespace only so that start can be used, and makes its own within.
	cmd := lab.A.Command(bin(t), "demo", "--duration", "1h")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, lab.A.Start(cmd))
	defer context.AfterFunc(bounded(t), func() { _ = cmd.Process.Kill() })()
	// When it shows the first connections some have been recorded.
	lines := bufio.NewScanner(out)
	for shown := false; !shown; shown = strings.Contains(lines.Text(), "established") {
		require.True(t, lines.Scan(), "it ended before it showed a connection: %v", lines.Err())
	}
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	_, err = io.Copy(io.Discard, out)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.NotEmpty(t, demoFlows(t))
	s := spoolInfo(t, filepath.Join(must1(t, "tcbee-demo-*"), "spool"))
	requireBalanced(t, s)
	require.Equal(t, []bool{true}, complete(s))
}

func must1(t *testing.T, pattern string) string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(os.TempDir(), pattern))
	require.NoError(t, err)
	require.Len(t, m, 1)
	return m[0]
}

func complete(s pipeline.Summary) (c []bool) {
	for _, session := range s.Sessions {
		c = append(c, session.Complete)
	}
	return c
}

func TestBundledDemoNeedsNoRights(t *testing.T) {
	bin(t)
	t.Setenv("TMPDIR", t.TempDir())
	out := must(t, "demo", "--bundled")
	require.Regexp(t, `(?s)established.*closed`, out)
	requireLively(t, demoFlows(t))
}
