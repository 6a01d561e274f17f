// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// processCPU and threadCPU are the CPU time of this process and of the calling thread so far, in seconds.
func processCPU() float64 { return cpuOf(unix.RUSAGE_SELF) }
func threadCPU() float64  { return cpuOf(unix.RUSAGE_THREAD) }

func cpuOf(who int) float64 {
	var u unix.Rusage
	if unix.Getrusage(who, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// rssAnon is the anonymous memory of this process, in bytes: its heap and stacks, not the page cache of the mapped
// spool.
func rssAnon() uint64 { return counter("/proc/self/status", "RssAnon") << 10 }

// deviceWritten is how many bytes this process has made the kernel write to devices so far.
func deviceWritten() uint64 { return counter("/proc/self/io", "write_bytes") }

// counter reads a number from a file of lines "name: number"; 0 if there is none.
func counter(path, name string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n
		}
	}
	return 0
}

// openFiles counts the descriptors of this process.
func openFiles() int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	return max(len(names)-1, 0) // without d
}

// allocatedBytes is what a file takes of the device.
func allocatedBytes(fi os.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
