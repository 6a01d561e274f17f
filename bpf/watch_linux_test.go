// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWatchSeesWhatTheReaderCannot(t *testing.T) {
	requireBPF(t)
	cfg := benchConfig()
	cfg.RingBytes = 1 << 20
	c, err := Open(t.Context(), cfg, quiet())
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	late, fills, inTime := make(chan bool, 1), make(chan bool, 1), make(chan bool, 1)
	tell := func(to chan bool) {
		select {
		case to <- true:
		default:
		}
	}
	require.NoError(t, c.Watch(func(ringFills bool) {
		if ringFills {
			tell(fills)
		} else {
			tell(late)
		}
	}, func() { tell(inTime) }))
	g, err := NewGenerator(c, 16)
	require.NoError(t, err)
	defer g.Close()

	wait := func(told chan bool, what string, meanwhile func()) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			select {
			case <-told:
				return
			default:
				require.True(t, time.Now().Before(deadline), what)
				meanwhile()
			}
		}
	}
	forget := func() {
		for _, c := range []chan bool{late, fills, inTime} {
			select {
			case <-c:
			default:
			}
		}
	}
	read := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := c.Next(ctx)
		if ctx.Err() == nil {
			require.NoError(t, err)
		}
	}
	wait(inTime, "a reader that reads is not seen", read)
	wait(late, "a reader that does not is not seen", func() { time.Sleep(time.Millisecond) })
	require.Empty(t, fills, "nothing has been recorded yet")

	for range 3 {
		wait(inTime, "the reader is back and is not seen", read)
		forget()
		// The reader looks, but not often enough for what comes.
		wait(fills, "the ring fills up and nobody is told", func() {
			c.looks.Add(1)
			if c.ring.used() <= uint64(cfg.RingBytes)/4 {
				_, err := g.cost(1000)
				require.NoError(t, err)
			}
		})
		require.Greater(t, c.ring.used(), uint64(cfg.RingBytes)/4)
	}
}
