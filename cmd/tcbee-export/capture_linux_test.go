// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf"
)

// needsCapture skips where nothing can be captured, unless that is demanded.
func needsCapture(t *testing.T) {
	t.Helper()
	c, err := bpf.Open(t.Context(), bpf.DefaultConfig(), nil)
	if err == nil {
		require.NoError(t, c.Close())
		return
	}
	if os.Getenv("TCBEE_REQUIRE_BPF") != "" {
		require.NoError(t, err, "TCBEE_REQUIRE_BPF is set")
	}
	t.Skipf("no capture here: %v", err)
}

// recorder is a capturing command that is ready.
type recorder struct {
	cmd       *exec.Cmd
	out, errs bytes.Buffer
}

func startRecorder(t *testing.T, args ...string) *recorder {
	t.Helper()
	return startRecorderAs(t, nil, args...)
}

// startRecorderAs starts one as a process with attributes.
func startRecorderAs(t *testing.T, attr *syscall.SysProcAttr, args ...string) *recorder {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	r := &recorder{cmd: command(t, append(args, "--interface", "lo", "--set", "capture.netns=own", "--ready-file", ready)...)}
	r.cmd.SysProcAttr = attr
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errs
	require.NoError(t, r.cmd.Start())
	require.Eventually(t, func() bool {
		pid, err := os.ReadFile(ready)
		return err == nil && strings.TrimSpace(string(pid)) == strconv.Itoa(r.cmd.Process.Pid)
	}, patience, 5*time.Millisecond, "the recorder does not get ready")
	return r
}

// talk opens a connection over lo, sends n bytes and closes it.
func talk(t *testing.T, n int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	_, err = io.CopyN(c, zeros{}, n)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, <-done)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type account struct {
	Hooks []struct {
		Hook                                    string
		Seen, Stored, Dropped, Missed, Filtered uint64
	}
}

func (a account) check(t *testing.T) {
	t.Helper()
	require.NotEmpty(t, a.Hooks)
	for _, h := range a.Hooks {
		require.Equal(t, h.Seen, h.Stored+h.Dropped+h.Missed+h.Filtered, h.Hook)
	}
}

func TestRecordEndsInOrderAtASignal(t *testing.T) {
	needsCapture(t)
	dir := filepath.Join(t.TempDir(), "spool")
	r := startRecorder(t, "record", "--spool", dir, "--json")
	talk(t, 1<<20)

	// A second recorder is refused while the first one works on, and readers are not.
	_, errs, code := tcbee(t, "record", "--spool", dir, "--duration", "1s")
	require.Equal(t, codeSpool, code, errs)
	require.Contains(t, errs, "in use")
	out, errs, code := tcbee(t, "spool", "info", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, "being recorded")

	require.NoError(t, r.cmd.Process.Signal(syscall.SIGINT))
	require.NoError(t, r.cmd.Wait(), r.errs.String())
	var acc account
	require.NoError(t, json.Unmarshal(r.out.Bytes(), &acc), r.out.String())
	acc.check(t)

	out, errs, code = tcbee(t, "spool", "info", dir, "--json")
	require.Zero(t, code, errs)
	var again account
	require.NoError(t, json.Unmarshal([]byte(out), &again))
	require.Equal(t, acc, again)
	_, errs, code = tcbee(t, "spool", "verify", dir)
	require.Zero(t, code, errs)
	out, errs, code = tcbee(t, "flows", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, "1.0 MiB")
}

func TestRecorderLeavesTheCPUToOthers(t *testing.T) {
	needsCapture(t)
	own, err := unix.SchedGetAttr(0, 0)
	require.NoError(t, err)
	if own.Policy != unix.SCHED_NORMAL {
		t.Skip("this process does not have the usual scheduling policy, its children keep theirs")
	}
	r := startRecorder(t, "record", "--spool", filepath.Join(t.TempDir(), "spool"))
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", r.cmd.Process.Pid))
	require.NoError(t, err)
	require.NotEmpty(t, threads)
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		require.NoError(t, err)
		attr, err := unix.SchedGetAttr(id, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended meanwhile
		}
		require.NoError(t, err)
		if attr.Policy != unix.SCHED_IDLE { // the reader may yield
			require.EqualValues(t, unix.SCHED_BATCH, attr.Policy)
		}
	}
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGINT))
	require.NoError(t, r.cmd.Wait(), r.errs.String())
}

// A service has a session of its own, whose niceness is what tells it from other sessions.
func TestSessionTakesPrecedenceWhileEventsWait(t *testing.T) {
	needsCapture(t)
	if _, err := os.Stat(autogroup); err != nil {
		t.Skip("this kernel has no groups of sessions: ", err)
	}
	own, err := os.ReadFile(autogroup)
	require.NoError(t, err)
	r := startRecorderAs(t, &syscall.SysProcAttr{Setsid: true}, "record", "--spool", filepath.Join(t.TempDir(), "spool"),
		"--set", "capture.ring_bytes=131072")
	nice := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", r.cmd.Process.Pid))
		require.NoError(t, err)
		_, nice, _ := strings.Cut(strings.TrimSpace(string(b)), " nice ")
		return nice
	}
	if nice() == "" {
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGINT))
		require.NoError(t, r.cmd.Wait(), r.errs.String())
		t.Skip("sessions have no groups here (noautogroup)")
	}
	// It has it while it starts too, and gives it up.
	require.Equal(t, strconv.Itoa(urgentNice), nice())
	require.Eventually(t, func() bool { return nice() == "0" }, patience, 50*time.Millisecond, "it keeps precedence")
	for deadline := time.Now().Add(patience); nice() != strconv.Itoa(urgentNice); {
		require.True(t, time.Now().Before(deadline), "it takes no precedence")
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGSTOP)) // the ring fills up
		talk(t, 64<<20)
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGCONT))
		talk(t, 1<<20)
	}
	require.Eventually(t, func() bool { return nice() == "0" }, patience, 50*time.Millisecond, "it keeps precedence")
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGINT))
	require.NoError(t, r.cmd.Wait(), r.errs.String())

	// In a session that began before it, it changes nothing.
	now, err := os.ReadFile(autogroup)
	require.NoError(t, err)
	require.Equal(t, string(own), string(now))
}

// From when its hooks are attached until it reads them, which takes seconds where many threads want the CPUs, the ring would fill up.
func TestRecorderTakesPrecedenceWhileItStarts(t *testing.T) {
	needsCapture(t)
	dir := t.TempDir()
	ready, spool := filepath.Join(dir, "ready"), filepath.Join(dir, "spool")
	cmd := command(t, "record", "--interface", "lo", "--set", "capture.netns=own", "--ready-file", ready, "--spool", spool)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	niceness := func() int {
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, cmd.Process.Pid)
		require.NoError(t, err)
		return 20 - nice // as the system call has it
	}
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	require.NoError(t, err)
	rushed := false
	require.Eventually(t, func() bool {
		rushed = rushed || niceness() == urgentNice
		_, err := os.Stat(ready)
		return err == nil
	}, patience, time.Millisecond, "the recorder does not get ready")
	require.True(t, rushed, "it waited for its turn with hooks attached")
	require.Eventually(t, func() bool { return niceness() == 20-own }, patience, 5*time.Millisecond, "it keeps precedence")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.NoError(t, cmd.Wait(), errs.String())
}

func TestRunWithoutSpoolLeavesNothingBehind(t *testing.T) {
	needsCapture(t)
	tmp := t.TempDir()
	cmd := command(t, "run", "--interface", "lo", "--duration", "500ms", "--set", "capture.netns=own", "--output", "file:"+filepath.Join(tmp, "metrics.jsonl"))
	require.NoError(t, os.Mkdir(filepath.Join(tmp, "tmp"), 0o700))
	cmd.Env = append(cmd.Env, "TMPDIR="+filepath.Join(tmp, "tmp"))
	_, errs, code := finish(t, cmd)
	require.Zero(t, code, errs)
	require.Contains(t, errs, "temporary")
	left, err := os.ReadDir(filepath.Join(tmp, "tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestNoSuchInterface(t *testing.T) {
	needsCapture(t)
	out, errs, code := tcbee(t, "record", "--interface", "nope9", "--spool", filepath.Join(t.TempDir(), "spool"))
	require.Equal(t, codeUsage, code, errs)
	require.Empty(t, out)
	require.Regexp(t, `^tcbee-export: record: .*no such interface: "nope9"; there are: .*lo.*\nhint: .*\n$`, errs)
}

// As nobody: what needs rights says so, a spool of somebody else is refused, and the rest works.
func TestWithoutRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become nobody")
	}
	const nobody = 65534
	// The test's directories are root's alone; nobody needs one where it can run a copy of this program.
	home, err := os.MkdirTemp("", "tcbee-nobody-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	require.NoError(t, os.Chown(home, nobody, nobody))
	self, err := os.Executable()
	require.NoError(t, err)
	program, err := os.ReadFile(self)
	require.NoError(t, err)
	copied := filepath.Join(home, "tcbee-export")
	require.NoError(t, os.WriteFile(copied, program, 0o755))
	asNobody := func(args ...string) (string, string, int) {
		cmd := command(t, args...)
		cmd.Path, cmd.Args[0], cmd.Dir = copied, copied, home
		cmd.Env = append(cmd.Env, "HOME="+home)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return finish(t, cmd)
	}
	if _, errs, code := asNobody("version"); code != 0 {
		t.Skipf("a process cannot be started as nobody here: %s", errs)
	}

	_, errs, code := asNobody("record", "--spool", filepath.Join(home, "spool"))
	require.Equal(t, codeKernel, code, errs)
	require.Regexp(t, `^tcbee-export: record: .*CAP_BPF.*operation not permitted\nhint: .*systemd unit.*setcap .*\n$`, errs)

	out, errs, code := asNobody("doctor", "--json")
	require.Equal(t, codeKernel, code, errs)
	var told struct{ Groups []groupState }
	require.NoError(t, json.Unmarshal([]byte(out), &told))
	for _, g := range told.Groups {
		require.Equal(t, usableNone, g.Usable, g.Group)
		require.NotEmpty(t, g.Missing, g.Group)
	}
	out, _, _ = asNobody("doctor")
	require.Contains(t, out, "hint: run with sudo, use the systemd unit")

	secret := makeSpool(t) // below a directory of root's alone
	for _, args := range [][]string{{"flows", secret}, {"replay", secret}, {"record", "--spool", secret}} {
		_, errs, code = asNobody(args...)
		require.Equal(t, codeSpool, code, errs)
		require.Contains(t, errs, "permission denied")
		require.Contains(t, errs, "hint: ")
	}
}

// statusOf returns a field of /proc/PID/status.
func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(b), "\n"+field+":")
	require.True(t, found, field)
	rest, _, _ = strings.Cut(rest, "\n")
	return strings.TrimSpace(rest)
}

// A recorder that has given up its rights, root's or another user's with the capabilities that it needs to begin: it
// records, ends a segment when a reader asks, and ends in order.
func TestRecorderDropsItsRights(t *testing.T) {
	if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_GETPID, 0, 0, 0); errno == syscall.ENOTSUP {
		t.Skip("a program with cgo cannot drop its rights")
	}
	needsCapture(t)
	const nobody = 65534
	var caps []uintptr
	for _, c := range bpf.Capabilities() {
		if c.Required {
			caps = append(caps, uintptr(c.Bit))
		}
	}
	// To take precedence later it raises a limit, where root may do that, and keeps CAP_SYS_NICE where not.
	own, err := strconv.ParseUint(statusOf(t, os.Getpid(), "CapEff"), 16, 64)
	require.NoError(t, err)
	var nice unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NICE, &nice))
	var precedence uint64
	if own>>unix.CAP_SYS_RESOURCE&1 == 0 && nice.Max < 20-urgentNice {
		precedence = own & (1 << unix.CAP_SYS_NICE)
	}
	for name, tt := range map[string]struct {
		uid, owner int // of the process and of the directory that its spool is in
		left       uint64
	}{
		"root":                             {left: precedence},
		"root in another user's directory": {owner: nobody, left: precedence | 1<<unix.CAP_DAC_OVERRIDE},
		"another user":                     {uid: nobody, owner: nobody},
	} {
		t.Run(name, func(t *testing.T) {
			home, err := os.MkdirTemp("", "tcbee-rights-")
			require.NoError(t, err)
			t.Cleanup(func() { _ = os.RemoveAll(home) })
			dir := filepath.Join(home, "spool")
			require.NoError(t, os.Mkdir(dir, 0o755))
			require.NoError(t, os.Chown(home, tt.owner, tt.owner))
			require.NoError(t, os.Chown(dir, tt.owner, tt.owner))
			ready, left := filepath.Join(home, "ready"), fmt.Sprintf("%016x", tt.left)
			r := &recorder{cmd: command(t, "record", "--interface", "lo", "--set", "capture.netns=own", "--ready-file", ready, "--spool", dir, "--json")}
			r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errs
			if tt.uid != 0 {
				// The file itself may lie in a directory that is root's alone.
				r.cmd.Path, r.cmd.Dir = "/proc/self/exe", "/"
				r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(tt.uid), Gid: uint32(tt.uid)}, AmbientCaps: caps}
			}
			require.NoError(t, r.cmd.Start())
			pid := r.cmd.Process.Pid
			require.Eventually(t, func() bool {
				_, err := os.Stat(ready)
				return err == nil && statusOf(t, pid, "NoNewPrivs") == "1" && statusOf(t, pid, "CapEff") == left
			}, patience, 5*time.Millisecond, "the rights are not dropped")
			require.Equal(t, left, statusOf(t, pid, "CapPrm"))
			if own>>unix.CAP_SYS_NICE&1 == 1 && tt.uid == 0 {
				var limit unix.Rlimit
				require.NoError(t, unix.Prlimit(pid, unix.RLIMIT_NICE, nil, &limit))
				require.True(t, limit.Cur >= 20-urgentNice || precedence != 0, "it may not take precedence: %+v", limit)
			}

			for range 2 {
				talk(t, 1<<20)
				_, errs, code := tcbee(t, "flows", dir) // asks the recorder to end its segment
				require.Zero(t, code, errs)
			}
			segments, err := os.ReadDir(filepath.Join(dir, "segments"))
			require.NoError(t, err)
			require.Greater(t, len(segments), 1, "it ended none")
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, r.cmd.Wait(), r.errs.String())
			var acc account
			require.NoError(t, json.Unmarshal(r.out.Bytes(), &acc), r.out.String())
			acc.check(t)
			out, errs, code := tcbee(t, "flows", dir)
			require.Zero(t, code, errs)
			require.GreaterOrEqual(t, strings.Count(out, "1.0 MiB"), 4, "two connections, from both sides: %s", out)
			_, errs, code = tcbee(t, "spool", "verify", dir)
			require.Zero(t, code, errs)
		})
	}
}
