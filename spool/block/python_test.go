// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPythonReadsTheSame holds docs/read_block.py, which was written from docs/format.md, against the records that blocks were made of: what
// the page says is what the code does.
func TestPythonReadsTheSame(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	const version = "import sys; sys.exit(sys.version_info < (3, 14))"
	if _, err := exec.LookPath("zstd"); err != nil && exec.Command(python, "-c", version).Run() != nil {
		t.Skip("zstd is not installed, and python3 is older than 3.14, which has it")
	}
	random := func(seed uint64) []byte {
		r := rand.New(rand.NewPCG(seed, 1))
		p := make([]byte, 3000)
		for i := range p {
			p[i] = byte(r.Uint32() & r.Uint32() & r.Uint32())
		}
		return recordsOf(p, uint8(seed))
	}
	golden, err := os.ReadFile("testdata/v1.block")
	require.NoError(t, err)
	goldenRecords, err := NewDecoder().Decode(nil, golden)
	require.NoError(t, err)
	seal := func(records []byte) []byte {
		b := NewBuilder(Options{})
		b.Add(records)
		return b.Seal(nil)
	}
	tests := map[string][]byte{
		"rare":    rareRecords(),
		"traffic": newTraffic(1, 40, true).records(3000),
		"packets": newTraffic(2, 7, false).records(500),
		"random":  random(1),
		"random2": random(2),
	}
	check := func(name string, block, records []byte) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			in, out := filepath.Join(dir, "block"), filepath.Join(dir, "records")
			require.NoError(t, os.WriteFile(in, block, 0o600))
			cmd := exec.Command(python, filepath.Join("..", "..", "docs", "read_block.py"), in, out)
			text, err := cmd.Output()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				require.NoError(t, err, string(exit.Stderr))
			}
			require.NoError(t, err)
			got, err := os.ReadFile(out)
			require.NoError(t, err)
			requireSame(t, records, got)

			var told struct {
				Events      int
				First, Last uint64
				Kinds       map[string]uint64
				Connections []struct {
					Local, Peer                                           string
					Cookie, First, Last                                   uint64
					Segments, Samples, Incidents                          uint32
					Retransmits, Opened, Established, Closed, Ended, SRTT uint64
					Seen, PID                                             uint32
					Comm                                                  string
				}
			}
			require.NoError(t, json.Unmarshal(text, &told))
			info, err := ReadInfo(block)
			require.NoError(t, err)
			require.Equal(t, []any{info.Events, info.First, info.Last}, []any{told.Events, told.First, told.Last})
			for k, n := range info.Kinds {
				require.Equal(t, n, told.Kinds[strconv.Itoa(k)])
			}
			entries, err := NewDecoder().Directory(nil, block)
			require.NoError(t, err)
			require.Len(t, told.Connections, len(entries)+1)
			for i, e := range entries {
				c := told.Connections[i+1]
				require.Equal(t, e.Local.Addr().String(), c.Local)
				require.Equal(t, e.Peer.Addr().String(), c.Peer)
				require.Equal(t, []uint64{e.Cookie, e.First, e.Last, e.Retransmits, e.Opened, e.Established, e.Closed, e.Ended, uint64(e.SRTT)},
					[]uint64{c.Cookie, c.First, c.Last, c.Retransmits, c.Opened, c.Established, c.Closed, c.Ended, c.SRTT})
				require.Equal(t, []uint32{e.Segments, e.Samples, e.Incidents, e.Seen, e.PID}, []uint32{c.Segments, c.Samples, c.Incidents, c.Seen, c.PID})
			}
		})
	}
	check("golden", golden, goldenRecords)
	for name, records := range tests {
		check(name, seal(records), records)
	}
}
