// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processCPU is the CPU time of this process so far, in seconds.
func processCPU() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// rssAnon is the anonymous memory of this process, in bytes: its heap and stacks, not the page
// cache of the mapped spool. 0 if the kernel does not tell.
func rssAnon() uint64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}
