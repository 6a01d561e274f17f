// SPDX-License-Identifier: Apache-2.0

//go:build linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// The test binary stands in for the program where this is set; see fake.
const fakeEnv = "TCBEE_DEMO_FAKE"

func TestMain(m *testing.M) {
	if mode := os.Getenv(fakeEnv); mode != "" {
		os.Exit(fake(mode, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// fake plays tcbee-export: it says what it was asked for and makes a spool of one file.
func fake(mode string, args []string) int {
	fmt.Println("fake", args[0])
	value := func(flag string) string { return args[slices.Index(args, flag)+1] }
	if args[0] != "run" {
		return 0
	}
	if mode == "refuse" {
		return 1
	}
	if _, err := net.InterfaceByName(value("--interface")); err != nil {
		return 2
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, os.Interrupt)
	host, _ := os.Hostname()
	machine, _ := os.ReadFile("/etc/machine-id")
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	identity := append(append([]byte(host+"\n"), machine...), boot...)
	if os.MkdirAll(value("--spool"), 0o755) != nil || os.WriteFile(filepath.Join(value("--spool"), "x"), identity, 0o644) != nil ||
		os.WriteFile(value("--ready-file"), nil, 0o644) != nil {
		return 3
	}
	d, err := time.ParseDuration(value("--duration"))
	if err != nil {
		return 4
	}
	select {
	case <-sigs:
		fmt.Println("fake interrupted")
	case <-time.After(d):
	}
	return 0
}

// needLab skips where no network can be made.
func needLab(t *testing.T) {
	l, err := netlab.New(t.Context(), netlab.Options{})
	if err != nil {
		netlab.Skip(t, err)
	}
	require.NoError(t, l.Close())
}

func options(t *testing.T, mode string) (Options, *strings.Builder) {
	t.Setenv(fakeEnv, mode)
	t.Setenv("TMPDIR", t.TempDir())
	var out strings.Builder
	return Options{Stdout: &out, Stderr: &out, Duration: time.Second}, &out
}

func TestDemoRunsThenShowsTheConnections(t *testing.T) {
	needLab(t)
	o, out := options(t, "run")
	require.NoError(t, Run(t.Context(), o))
	require.Regexp(t, `(?s)namespaces.*\$ \S+demo.test run --interface lab0 .*fake run.*fake flows.*The spool is kept in `, out.String())
	require.NotContains(t, out.String(), "demo traffic:")
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "tcbee-demo-*", "*"))
	require.NoError(t, err)
	require.Len(t, left, 1, "the spool and nothing else")
	require.Equal(t, "spool", filepath.Base(left[0]))
}

func TestDemoShowsWhatItHasWhenInterrupted(t *testing.T) {
	needLab(t)
	o, out := options(t, "run")
	o.Duration = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	// The capture is ready when its spool is there.
	require.Eventually(t, func() bool {
		m, _ := filepath.Glob(filepath.Join(os.TempDir(), "tcbee-demo-*", "ready"))
		return len(m) == 1
	}, 2*time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	require.Regexp(t, `(?s)fake run.*fake interrupted.*fake flows`, out.String())
}

func TestDemoReplaysTheBundleWhereCaptureIsRefused(t *testing.T) {
	needLab(t)
	o, out := options(t, "refuse")
	err := Run(t.Context(), o)
	require.Regexp(t, `(?s)fake run.*No live demo: run: exit status 1.*part of the program`, out.String())
	if _, missing := bundle.Open("bundle/spool.tar.gz"); missing != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
		return
	}
	require.NoError(t, err)
	require.Regexp(t, `(?s)fake replay.*fake flows`, out.String())
}

func TestRebundleWritesOneFile(t *testing.T) {
	needLab(t)
	o, _ := options(t, "run")
	o.Rebundle = filepath.Join(t.TempDir(), "new.tar.gz")
	require.NoError(t, Run(t.Context(), o))
	f, err := os.Open(o.Rebundle)
	require.NoError(t, err)
	defer f.Close()
	dir := t.TempDir()
	require.NoError(t, unpack(dir, f))
	identity, err := os.ReadFile(filepath.Join(dir, "x"))
	require.NoError(t, err)
	require.Regexp(t, `^demo\n(0{32}\n)?[0-]+\n$`, string(identity), "nothing tells where it was recorded")
	host, err := os.Hostname()
	require.NoError(t, err)
	require.NotEqual(t, "demo", host, "our own is what it was")
}

func TestHintOfTheCauseIsPassedOn(t *testing.T) {
	require.Empty(t, cannotCapture{errors.New("x")}.Hint())
	require.Contains(t, cannotCapture{&netlab.SetupError{Err: unix.EPERM}}.Hint(), "root")
}
