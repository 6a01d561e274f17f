// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// calm is for how long all must be read in time until the session gives its precedence up: it may not change often.
const calm = time.Second

// session is the group in which the kernel schedules all processes of a session, as one among others (autogroup, sched(7)). Where it does
// so, which is where processes have no cgroups for the CPU, niceness tells apart only those of the same session. A service has a session of
// its own, which ends with it; one that began before this process is left alone.
type session struct {
	was, nice int
	grouped   bool
	late      time.Time // when it was last in need of precedence
}

const autogroup = "/proc/self/autogroup"

// findSession looks for the process's group, if it is its own.
func findSession() (g session) {
	if id, err := unix.Getsid(0); err != nil || id != os.Getpid() {
		return g
	}
	b, err := os.ReadFile(autogroup)
	if err != nil {
		return g
	}
	_, nice, found := strings.Cut(string(b), " nice ")
	n, err := strconv.Atoi(strings.TrimSpace(nice))
	if !found || err != nil {
		return g
	}
	return session{was: n, nice: n, grouped: true}
}

// set changes the niceness of the group. The kernel allows that every 100 ms: what it refuses is to be tried again.
func (g *session) set(nice int) error {
	if !g.grouped || g.nice == nice {
		return nil
	}
	err := os.WriteFile(autogroup, strconv.AppendInt(nil, int64(nice), 10), 0)
	if err == nil {
		g.nice = nice
	}
	return err
}
