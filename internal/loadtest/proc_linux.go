// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"bytes"
	"fmt"
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
func rssAnon() uint64 { return rssAnonOf(os.Getpid()) }

func rssAnonOf(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
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

// userHZ is the unit of times in /proc: USER_HZ, 100 on every architecture that Go supports.
const userHZ = 100

// hostTimes are seconds since boot, summed over all CPUs.
type hostTimes struct {
	busy, stolen float64
}

// readHostTimes takes what is busy as what is neither idle nor stolen: the kernel knows idle time
// exactly, while it may attribute the rest by sampling.
func readHostTimes() (t hostTimes, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return t, os.NewSyscallError("clock_gettime", err)
	}
	cpus := 0
	var idle float64
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		// user nice system idle iowait irq softirq steal
		var v [8]float64
		for i := range v {
			if v[i], err = strconv.ParseFloat(f[1+i], 64); err != nil {
				return t, fmt.Errorf("/proc/stat: %w", err)
			}
		}
		idle, t.stolen = (v[3]+v[4])/userHZ, v[7]/userHZ
	}
	t.busy = float64(cpus)*float64(now.Nano())/1e9 - idle - t.stolen
	return t, nil
}

// cpuOf is the CPU time of a process so far, in seconds; 0 if it is gone.
func cpuOf(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the name, which is in parentheses and may hold anything, comes field 3.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / userHZ
}
