// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// asNobody runs fn with the rights of a user who owns nothing, as far as files are concerned.
func asNobody(_ *testing.T, fn func()) {
	if os.Geteuid() == 0 {
		const nobody = 65534
		runtime.LockOSThread() // the file system's user is the thread's
		defer runtime.UnlockOSThread()
		_ = unix.Setfsuid(nobody)
		defer func() { _ = unix.Setfsuid(0) }()
	}
	fn()
}
