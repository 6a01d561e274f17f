// SPDX-License-Identifier: Apache-2.0

//go:build unix

package block

import (
	"syscall"
	"time"
)

// cpuTime returns the processor time that this process has used: on a busy machine it says more than the
// clock on the wall.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
