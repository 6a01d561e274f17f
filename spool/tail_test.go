// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWriterReadsItsOwnBlocksInOpenAndClosedSegments(t *testing.T) {
	ctx := context.Background()
	cfg := DefaultConfig()
	cfg.Dir = t.TempDir()
	w, err := Create(ctx, cfg, Meta{}, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()

	require.EqualValues(t, 1, w.NextID())
	content := func(i ID) string { return fmt.Sprintf("block %d", i) }
	for i := ID(1); i <= 30; i++ {
		id, err := w.Append([]byte(content(i)))
		require.NoError(t, err)
		require.Equal(t, i, id)
		got, err := w.Read(ctx, i, []byte("x"))
		require.NoError(t, err)
		require.Equal(t, "x"+content(i), string(got))
		if i%10 == 0 {
			require.NoError(t, w.Rotate(ctx))
		}
	}
	for _, i := range []ID{1, 2, 3, 30, 25, 11, 12, 9} {
		got, err := w.Read(ctx, i, nil)
		require.NoError(t, err, "block %d", i)
		require.Equal(t, content(i), string(got))
	}
}
