// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// TestWriteRecords writes the records of a real spool, PIPELINE_SPOOL, into the file PIPELINE_RECORDS, for the measurements of package block on real
// traffic (its flag -records), and tells how large the spool is.
func TestWriteRecords(t *testing.T) {
	dir, file := os.Getenv("PIPELINE_SPOOL"), os.Getenv("PIPELINE_RECORDS")
	if dir == "" || file == "" {
		t.Skip("PIPELINE_SPOOL and PIPELINE_RECORDS name no spool and no file")
	}
	r := openSpool(t, dir)
	out, err := os.Create(file)
	require.NoError(t, err)
	dec := block.NewDecoder()
	var raw []byte
	var events, bytes uint64
	var damaged []Damage
	require.NoError(t, eachBlock(t.Context(), r, nil, &damaged, func(_ spool.ID, src []byte) error {
		info, err := block.ReadInfo(src)
		if err == nil {
			raw, err = dec.Decode(raw[:0], src)
		}
		if err == nil {
			_, err = out.Write(raw)
		}
		events += hookEvents(&info)
		bytes += uint64(len(src))
		return err
	}))
	require.NoError(t, out.Close())
	require.Empty(t, damaged)
	var device int64
	for _, s := range r.Segments() {
		device += s.Device
	}
	t.Logf("%d events, %.2f bytes each in blocks, %.2f on the device", events, float64(bytes)/float64(events), float64(device)/float64(events))
}
