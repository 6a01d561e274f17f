// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// freshProcess is set in the environment of a process that runs one test.
const freshProcess = "HEAP_TEST_FRESH_PROCESS"

func TestHeapGrowsIntoLargePages(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("this kernel has no transparent huge pages: ", err)
	}
	if os.Getenv(freshProcess) == "" {
		// The heap of a process that has run other tests has room already.
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.CommandContext(t.Context(), self, "-test.v", "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), freshProcess+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: "+t.Name())
		return
	}
	const size = 32 << 20
	before := anonymous(t)
	require.NoError(t, largePages(size))
	require.Less(t, anonymous(t)-before, size/4, "memory is taken before anybody needs it")

	// What is allocated now is put at the lower end of what is free.
	object := make([]byte, size/2)
	at := uintptr(unsafe.Pointer(unsafe.SliceData(object)))
	require.True(t, inLargePages(t, at+uintptr(len(object)/2)))
	require.NotEmpty(t, object)
}

func TestLargePagesAreRefusedWithAReason(t *testing.T) {
	require.ErrorIs(t, adviseHuge(make([]byte, os.Getpagesize()), 1), unix.EINVAL)
}

// anonymous is the process's anonymous memory in bytes.
func anonymous(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(b), "RssAnon:")
	require.True(t, found)
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	require.NoError(t, err)
	return kib << 10
}

// inLargePages tells whether large pages were asked for at an address (proc(5), smaps: VmFlags).
func inLargePages(t *testing.T, at uintptr) bool {
	f, err := os.Open("/proc/self/smaps")
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	inside := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if from, to, isRange := strings.Cut(fields[0], "-"); isRange {
			first, err := strconv.ParseUint(from, 16, 64)
			require.NoError(t, err)
			end, err := strconv.ParseUint(to, 16, 64)
			require.NoError(t, err)
			inside = uintptr(first) <= at && at < uintptr(end)
		}
		if inside && fields[0] == "VmFlags:" {
			return strings.Contains(lines.Text(), " hg")
		}
	}
	return false
}
