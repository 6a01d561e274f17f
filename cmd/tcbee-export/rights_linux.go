// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf"
)

// dropRights gives up what the process may do beyond going on with the capture, as soon as its start is complete; keep
// are capabilities that it needs all the same, and then is called after that. The function that it returns waits for it, or for ctx.
func (a *app) dropRights(ctx context.Context, capture *bpf.Capture, keep []uint, then func()) (wait func()) {
	var w sync.WaitGroup
	w.Go(func() {
		defer then()
		left, err := capture.DropRights(ctx, keep...)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			a.log.Warn("the capture goes on with all rights that it began with", "error", err)
		default:
			a.log.Info("rights dropped", "capabilities", strings.Join(left, ","))
		}
	})
	return w.Wait
}

// spoolRights are the capabilities without which a spool cannot be written: root works in other users' directories by
// one only.
func spoolRights(dir string) []uint {
	info, err := os.Stat(dir)
	if err != nil {
		return nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return []uint{unix.CAP_DAC_OVERRIDE}
	}
	return nil
}
