// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// requireCapture skips where this process may not capture; CI sets TCBEE_REQUIRE_BPF=1, and then it fails.
func requireCapture(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TCBEE_REQUIRE_BPF") == "1" {
		tb.Fatal("loading programs needs root, and TCBEE_REQUIRE_BPF=1")
	}
	tb.Skip("loading programs needs root")
}

func TestMeasureAccountsForEveryPacket(t *testing.T) {
	requireCapture(t)
	o := DefaultOptions()
	o.Spool.Dir = t.TempDir()
	o.Step = 300 * time.Millisecond
	s, err := Measure(context.Background(), o, 100_000, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NotZero(t, s.Sent)
	require.Equal(t, s.Sent, s.Stored+s.Dropped)
	entries, err := os.ReadDir(o.Spool.Dir)
	require.NoError(t, err)
	require.Empty(t, entries, "the spool of the measurement is left behind")
}

// BenchmarkCaptureToSpool is the whole write half with the real programs: one CPU makes varied packets as
// fast as it can, the other stores them durably. %lost must be 0 for the figure to count.
func BenchmarkCaptureToSpool(b *testing.B) {
	requireCapture(b)
	o := DefaultOptions()
	o.Spool.Dir = b.TempDir()
	o.Step = 3 * time.Second
	var sent, stored, dropped uint64
	var seconds, bytes float64
	for b.Loop() {
		s, err := Measure(context.Background(), o, 0, slog.New(slog.DiscardHandler))
		require.NoError(b, err)
		sent, stored, dropped, seconds = sent+s.Sent, stored+s.Stored, dropped+s.Dropped, seconds+s.Seconds
		bytes += s.BytesPerEvent * float64(s.Stored)
	}
	b.ReportMetric(float64(stored)/seconds, "events/s")
	b.ReportMetric(seconds*1e9/float64(stored), "ns/event")
	b.ReportMetric(bytes/float64(stored), "B/event")
	b.ReportMetric(float64(dropped)/float64(sent)*100, "%lost")
}
