// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf"
)

// unit returns the settings of the systemd unit: the values of each key, in order.
func unit(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "tcbee-export.service"))
	require.NoError(t, err)
	keys := map[string][]string{}
	for _, line := range strings.Split(string(b), "\n") {
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "[") {
			continue
		}
		key, value, found := strings.Cut(line, "=")
		require.True(t, found, line)
		keys[key] = append(keys[key], value)
	}
	return keys
}

// words returns those of a key that occurs once.
func words(t *testing.T, unit map[string][]string, key string) []string {
	t.Helper()
	require.Len(t, unit[key], 1, key)
	return strings.Fields(unit[key][0])
}

// The unit gives the program what it needs, no more, and names what exists.
func TestUnitFitsTheProgram(t *testing.T) {
	u := unit(t)
	var need []string
	for _, c := range bpf.Capabilities() {
		if c.Required {
			need = append(need, c.Name)
		}
	}
	require.ElementsMatch(t, need, words(t, u, "AmbientCapabilities"))
	require.ElementsMatch(t, need, words(t, u, "CapabilityBoundingSet"))

	// The command line is one, and writes where the unit lets it.
	require.Equal(t, []string{"notify"}, u["Type"]) // notifyReady
	line := words(t, u, "ExecStart")
	a := &app{}
	cmd, args, err := a.rootCommand().Find(line[1:])
	require.NoError(t, err)
	require.NoError(t, cmd.ParseFlags(args))
	require.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()))
	dir, err := cmd.Flags().GetString("spool")
	require.NoError(t, err)
	require.Equal(t, "%S/"+u["StateDirectory"][0], filepath.Dir(dir))
	require.Equal(t, []string{"strict"}, u["ProtectSystem"])

	// What cannot mend itself is not tried again, and an end in order has its time.
	require.Equal(t, []string{strconv.Itoa(codeUsage), strconv.Itoa(codeKernel)}, words(t, u, "RestartPreventExitStatus"))
	stop, err := strconv.Atoi(u["TimeoutStopSec"][0])
	require.NoError(t, err)
	require.Greater(t, time.Duration(stop)*time.Second, shutdownGrace)
	require.NotContains(t, u, "KillSignal") // SIGTERM

	require.ElementsMatch(t, []string{"AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"}, words(t, u, "RestrictAddressFamilies"))
	require.Equal(t, []string{"@system-service", "bpf"}, strings.Fields(u["SystemCallFilter"][0]))
}

// testSandbox is the directory that a child process may write to, as under the unit.
const testSandbox = "TCBEE_TEST_SANDBOX"

func init() { // before the test binary does anything else
	if dir := os.Getenv(testSandbox); dir != "" {
		fmt.Fprintln(os.Stderr, sandbox(dir))
		os.Exit(codeFailure)
	}
}

// sandbox makes this process what the unit makes of the program, as far as that goes without systemd, and
// becomes it: another user with three capabilities and no way to more, for whom everything but one directory is
// read-only. It is in a mount namespace of its own.
func sandbox(dir string) error {
	runtime.LockOSThread()
	const nobody = 65534
	step := func(what string, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	var errs []error
	errs = append(errs, step("private mounts", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")),
		step("the writable directory", unix.Mount(dir, dir, "", unix.MS_BIND, "")),
		// ProtectKernelTunables hides it.
		step("/proc/kallsyms", unix.Mount("/dev/null", "/proc/kallsyms", "", unix.MS_BIND, "")),
		step("read-only", unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})),
		step("writable", unix.MountSetattr(unix.AT_FDCWD, dir, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})))
	if _, err := os.Create("/tcbee-must-not-exist"); !errors.Is(err, unix.EROFS) {
		errs = append(errs, fmt.Errorf("the root directory is not read-only: %v", err))
	}
	var caps uint64
	for _, c := range bpf.Capabilities() {
		if c.Required {
			caps |= 1 << c.Bit
		}
	}
	for bit := uintptr(0); ; bit++ {
		if caps>>bit&1 == 1 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0); err != nil {
			break // EINVAL: no more
		}
	}
	errs = append(errs, step("keep capabilities", unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)))
	for _, call := range []struct {
		name       string
		trap, a, b uintptr
		c          uintptr
	}{
		{"setgroups", unix.SYS_SETGROUPS, 0, 0, 0},
		{"setresgid", unix.SYS_SETRESGID, nobody, nobody, nobody},
		{"setresuid", unix.SYS_SETRESUID, nobody, nobody, nobody},
	} {
		if _, _, errno := unix.RawSyscall(call.trap, call.a, call.b, call.c); errno != 0 { // of this thread alone
			errs = append(errs, step(call.name, errno))
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		bits := uint32(caps >> (32 * i))
		data[i] = unix.CapUserData{Effective: bits, Permitted: bits, Inheritable: bits}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		errs = append(errs, step("capset", errno))
	}
	for _, c := range bpf.Capabilities() {
		if c.Required {
			errs = append(errs, step(c.Name, unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c.Bit), 0, 0)))
		}
	}
	errs = append(errs, step("no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
	// MemoryDenyWriteExecute; kernels before 6.3 do not know it.
	if err := unix.Prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, step("write or execute", err))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, testSandbox) })
	return step("execute", unix.Exec("/proc/self/exe", os.Args, append(env, testExec+"=1")))
}

// With the unit's user, capabilities and file system the program says that it is ready, records, and ends in order.
func TestRecorderUnderTheUnitsRestrictions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make the restrictions")
	}
	needsCapture(t)
	state, err := os.MkdirTemp("", "tcbee-unit-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	require.NoError(t, os.Chown(state, 65534, 65534))
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(state, "notify"), Net: "unixgram"})
	require.NoError(t, err)
	defer manager.Close()
	require.NoError(t, os.Chmod(filepath.Join(state, "notify"), 0o777))

	dir := filepath.Join(state, "spool")
	r := &recorder{cmd: command(t, "run", "--spool", dir, "--output", "file:"+filepath.Join(state, "metrics.jsonl"), "--interface", "lo", "--set", "capture.netns=own", "--json")}
	r.cmd.Env = append(slices.DeleteFunc(r.cmd.Env, func(kv string) bool { return strings.HasPrefix(kv, testExec) }),
		testSandbox+"="+state, "NOTIFY_SOCKET="+filepath.Join(state, "notify"))
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errs
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	require.NoError(t, r.cmd.Start())
	exited := make(chan error, 1)
	go func() {
		exited <- r.cmd.Wait()
		_ = manager.SetReadDeadline(time.Unix(1, 0)) // nothing more will come
	}()
	var buf [64]byte
	n, err := manager.Read(buf[:])
	if err != nil {
		require.NoError(t, <-exited, r.errs.String())
	}
	require.NoError(t, err)
	require.Equal(t, "READY=1", string(buf[:n]))

	pid := r.cmd.Process.Pid
	require.Equal(t, "1", statusOf(t, pid, "NoNewPrivs"))
	require.Equal(t, "65534\t65534\t65534\t65534", statusOf(t, pid, "Uid"))
	talk(t, 1<<20)
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, <-exited, r.errs.String())
	var acc account
	require.NoError(t, json.Unmarshal(r.out.Bytes(), &acc), r.out.String())
	acc.check(t)
	out, errs, code := tcbee(t, "flows", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, "1.0 MiB")
	metrics, err := os.ReadFile(filepath.Join(state, "metrics.jsonl"))
	require.NoError(t, err)
	require.Contains(t, string(metrics), "network.flow.")
}
