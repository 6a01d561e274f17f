// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// workInBatches makes the scheduler treat the process as what it is: work that can wait for the
// milliseconds until a CPU is free, because the ring holds seconds of events. Then the recorder never
// interrupts the programs that it watches when it wakes up (SCHED_BATCH, sched(7)), and still
// has its fair share of the CPUs. Threads of the Go runtime that start later inherit it.
func workInBatches() error {
	done := map[int]bool{}
	for again := true; again; { // a thread that was not reached yet may have started another one
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil || done[id] {
				continue
			}
			done[id], again = true, true
			if err := batch(id); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// batch changes the policy of a thread of the usual one and leaves its niceness.
func batch(thread int) error {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return err
	}
	attr.Policy = unix.SCHED_BATCH
	return unix.SchedSetAttr(thread, attr, 0)
}
