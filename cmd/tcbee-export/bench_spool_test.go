// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/internal/simulate"
)

func TestBenchSpool(t *testing.T) {
	dir, svg := t.TempDir(), filepath.Join(t.TempDir(), "day.svg")
	args := []string{"bench", "spool", "--for", "1s", "--connections", "100", "--dir", dir, "--seed", "7"}
	out, errs, code := tcbee(t, append(args, "--svg", svg, "--json")...)
	require.Zero(t, code, errs)
	var res simulate.Result
	require.NoError(t, json.Unmarshal([]byte(out), &res))
	require.Equal(t, uint64(7), res.Seed)
	require.Positive(t, res.Events)
	require.Positive(t, res.Verified)
	require.Equal(t, int64(1<<30), res.MaxBytes, "not the configuration's default")
	drawn, err := os.ReadFile(svg)
	require.NoError(t, err)
	require.Equal(t, string(res.SVG()), string(drawn))

	out, errs, code = tcbee(t, args...)
	require.Zero(t, code, errs)
	require.Contains(t, out, "read back as stored")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestBenchSpoolRefusesWhatItCannotDo(t *testing.T) {
	for want, args := range map[string][]string{
		"--for: 0s is not between 1s and 24h": {"--for", "0"},
		"--quiet: 13h0m0s is not between":     {"--quiet", "13h"},
		"spool.max_age: 500ms is below":       {"--for", "1m", "--set", "spool.max_age=12m"},
	} {
		_, errs, code := tcbee(t, append([]string{"bench", "spool"}, args...)...)
		require.Equal(t, codeUsage, code, errs)
		require.Contains(t, errs, want)
	}
}
