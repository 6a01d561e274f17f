// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setcapHint is what a person can do about capabilities that are missing.
const setcapHint = "run with sudo, use the systemd unit of deploy/, or grant them: setcap cap_bpf,cap_perfmon,cap_net_admin+ep on the binary"

// capabilities are those that a capture can use.
var capabilities = []Capability{
	{Name: "CAP_NET_ADMIN", Bit: unix.CAP_NET_ADMIN, Required: true, For: "programs of packets"},
	{Name: "CAP_PERFMON", Bit: unix.CAP_PERFMON, Required: true, For: "programs of tracepoints"},
	{Name: "CAP_BPF", Bit: unix.CAP_BPF, Required: true, For: "maps and programs"},
	{Name: "CAP_SYS_ADMIN", Bit: unix.CAP_SYS_ADMIN, For: "connections in other network namespaces that existed before, and capture.netns: PATH"},
	{Name: "CAP_SYS_PTRACE", Bit: unix.CAP_SYS_PTRACE, For: "other users' processes of connections that existed before"},
	{Name: "CAP_DAC_READ_SEARCH", Bit: unix.CAP_DAC_READ_SEARCH, For: "other users' processes of connections that existed before"},
}

// Capabilities returns the capabilities (capabilities(7)) that a capture can use, those that it must have first.
func Capabilities() []Capability { return slices.Clone(capabilities) }

// effective returns the capabilities that the calling thread has, as a bit mask; ok is false if they cannot be read.
func effective() (mask uint64, ok bool) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, false
	}
	_, rest, _ := strings.Cut(string(status), "\nCapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err = strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return mask, err == nil
}

// missingCapabilities names the capabilities that the process must have and lacks. CAP_SYS_ADMIN stands for
// all but CAP_NET_ADMIN.
func missingCapabilities() []string {
	have, ok := effective()
	if !ok {
		return nil
	}
	var lack []string
	for _, c := range capabilities {
		admin := c.Bit != unix.CAP_NET_ADMIN && have>>unix.CAP_SYS_ADMIN&1 == 1
		if c.Required && have>>c.Bit&1 == 0 && !admin {
			lack = append(lack, c.Name)
		}
	}
	return lack
}

// checkRights names the capabilities that are missing.
func checkRights() error {
	lack := missingCapabilities()
	if len(lack) == 0 {
		return nil
	}
	return hint(fmt.Errorf("the process lacks %s: %w", strings.Join(lack, ", "), unix.EPERM), setcapHint)
}

// keeps names the capabilities that a running capture cannot do without. With tcx there is none: the programs are
// loaded, the thread that attaches them to new interfaces is in their namespace, and links end with their file descriptors. Filters
// of clsact are attached and removed over netlink, which takes CAP_NET_ADMIN each time.
func (c *Capture) keeps() []uint {
	if c.ifaces != nil && c.ifaces.classic {
		return []uint{unix.CAP_NET_ADMIN}
	}
	return nil
}

// DropRights waits until the capture has begun, its inventory included, and then gives up for good, on all
// threads of the process, what the process may do beyond: every capability but what the capture needs
// to go on and what extra names by its bit, the ambient and inheritable sets, the bounding set
// where the process may change it, and gaining rights by execve (no_new_privs). It returns
// the names of what is left. It is for programs whose only task is this capture.
//
// Programs with cgo cannot do this (errors.ErrUnsupported).
func (c *Capture) DropRights(ctx context.Context, extra ...uint) ([]string, error) {
	select {
	case <-c.inventory.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return dropRights(append(c.keeps(), extra...))
}

func dropRights(keep []uint) ([]string, error) {
	failed := func(what string, errno syscall.Errno) error {
		if errno == unix.ENOTSUP {
			return fmt.Errorf("%s: this program is built with cgo: %w", what, errors.ErrUnsupported)
		}
		return fmt.Errorf("%s: %w", what, errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return nil, failed("set no_new_privs", errno)
	}
	have, ok := effective()
	if !ok {
		return nil, errors.New("read the own capabilities from /proc/thread-self/status")
	}
	for bit := uintptr(0); have>>unix.CAP_SETPCAP&1 == 1; bit++ {
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0)
		if errno == unix.EINVAL {
			break // this kernel has no more
		}
		if errno != 0 {
			return nil, failed("shrink the bounding set", errno)
		}
	}
	var left []string
	var data [2]unix.CapUserData
	for _, bit := range keep {
		if have>>bit&1 == 1 {
			data[bit/32].Effective |= 1 << (bit % 32)
			data[bit/32].Permitted |= 1 << (bit % 32)
			left = append(left, capabilityName(bit))
		}
	}
	// The ambient set, a part of the inheritable one, ends with it.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return nil, failed("drop capabilities", errno)
	}
	slices.Sort(left)
	return left, nil
}

func capabilityName(bit uint) string {
	for _, c := range capabilities {
		if c.Bit == bit {
			return c.Name
		}
	}
	switch bit {
	case unix.CAP_DAC_OVERRIDE:
		return "CAP_DAC_OVERRIDE"
	case unix.CAP_SYS_NICE:
		return "CAP_SYS_NICE"
	}
	return fmt.Sprintf("capability %d", bit)
}
