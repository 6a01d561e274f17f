// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bpf

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// rightsTask is what a child of the tests below does, as JSON in TCBEE_TEST_RIGHTS.
type rightsTask struct {
	Probe  bool // print what Probe tells, and end
	Config Config
	NoTCX  bool
}

// rightsEnd is what a child that captured tells at its end.
type rightsEnd struct {
	Stored [event.Hooks]uint64
	Total  [event.Hooks]event.Counters
}

// asRightsChild does the task if this process is a child of the tests below.
func asRightsChild(t *testing.T) bool {
	text := os.Getenv("TCBEE_TEST_RIGHTS")
	if text == "" {
		return false
	}
	var task rightsTask
	require.NoError(t, json.Unmarshal([]byte(text), &task))
	tell := func(v any) {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		fmt.Printf("%s\n", b)
	}
	if task.Probe {
		tell(Probe(task.Config))
		return true
	}
	task.Config.noTCX = task.NoTCX
	c, err := Open(t.Context(), task.Config, quiet())
	require.NoError(t, err)
	r := &recorded{}
	done := make(chan error, 1)
	go func() {
		for {
			b, err := c.Next(context.Background())
			if err != nil {
				done <- err
				return
			}
			for h := range event.All(b) {
				if h.Kind == event.KindLink {
					fmt.Printf("link %s\n", strings.TrimRight(string(h.Link().Name[:]), "\x00"))
				}
			}
			r.add(t, b)
		}
	}()
	left, err := c.DropRights(t.Context())
	if errors.Is(err, errors.ErrUnsupported) {
		fmt.Println("unsupported")
		return true
	}
	require.NoError(t, err)
	require.Equal(t, task.Config.Sockets.Samples == SamplesLimited, c.spare != nil)
	if c.spare != nil { // which comes and goes as long as the capture lasts
		c.spare.move.Lock()
		c.spare.detach()
		c.spare.attach()
		require.NotNil(t, c.spare.at, "without its rights the recorder cannot attach the spare again")
		c.spare.move.Unlock()
	}
	fmt.Printf("dropped %s\n", strings.Join(left, ","))
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent has seen enough
	c.Stop()
	require.ErrorIs(t, <-done, io.EOF)
	tell(rightsEnd{r.stored, c.Accounting().Total})
	require.NoError(t, c.Close())
	return true
}

// rightsChild is a process with other rights than this one.
type rightsChild struct {
	cmd  *exec.Cmd
	in   io.Closer
	out  *bufio.Scanner
	errs strings.Builder
}

// startChild starts a child in a namespace, nil: the own one. nobody is another user than root, with these
// capabilities; without any, caps means nothing for root.
func startChild(t *testing.T, ns *netlab.Namespace, task rightsTask, nobody bool, caps ...uintptr) *rightsChild {
	t.Helper()
	text, err := json.Marshal(task)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	// The file itself may lie in a directory that is root's alone.
	c := &rightsChild{cmd: exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestRecorderWithDroppedRights$")}
	c.cmd.Env = append(os.Environ(), "TCBEE_TEST_RIGHTS="+string(text))
	c.cmd.Stderr = &c.errs
	if nobody {
		c.cmd.Dir = "/"
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
	}
	in, err := c.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	c.in, c.out = in, bufio.NewScanner(out)
	c.out.Buffer(nil, 1<<20)
	start := c.cmd.Start
	if ns != nil {
		start = func() error { return ns.Start(c.cmd) }
	}
	require.NoError(t, start())
	return c
}

// line waits for the next line that begins so, and returns the rest of it.
func (c *rightsChild) line(t *testing.T, prefix string) string {
	t.Helper()
	var before []string
	for c.out.Scan() {
		if rest, ok := strings.CutPrefix(c.out.Text(), prefix); ok {
			return rest
		}
		if c.out.Text() == "unsupported" {
			t.Skip("a program with cgo cannot drop its rights")
		}
		before = append(before, c.out.Text())
	}
	_ = c.cmd.Wait()
	t.Fatalf("no line %q: %s\n%s", prefix, strings.Join(before, "\n"), c.errs.String())
	return ""
}

// status returns a field of /proc/PID/task/TID/status, which must be the same for all threads.
func (c *rightsChild) status(t *testing.T, field string) string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.cmd.Process.Pid))
	require.NoError(t, err)
	require.Greater(t, len(tasks), 1)
	var value string
	for i, task := range tasks {
		b, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // that thread is gone
		}
		require.NoError(t, err)
		_, rest, found := strings.Cut(string(b), "\n"+field+":")
		require.True(t, found, field)
		rest, _, _ = strings.Cut(rest, "\n")
		if rest = strings.TrimSpace(rest); i > 0 && value != "" {
			require.Equal(t, value, rest, "%s of %s", field, task)
		}
		value = rest
	}
	return value
}

// A recorder, root's or another user's with the three capabilities, that has dropped what it does not need: it
// records, follows new interfaces and detaches from all.
func TestRecorderWithDroppedRights(t *testing.T) {
	if asRightsChild(t) {
		return
	}
	var three []uintptr
	for _, c := range Capabilities() {
		if c.Required {
			three = append(three, uintptr(c.Bit))
		}
	}
	requireBPF(t)
	tcx := haveTCXHere()
	for name, tt := range map[string]struct {
		nobody, classic, xdp bool
		left                 string
		mask                 uint64
	}{
		"root":                    {},
		"another user":            {nobody: true},
		"root, xdp":               {xdp: true},
		"root, clsact":            {classic: true, left: "CAP_NET_ADMIN", mask: 1 << unix.CAP_NET_ADMIN},
		"another user and clsact": {nobody: true, classic: true, left: "CAP_NET_ADMIN", mask: 1 << unix.CAP_NET_ADMIN},
	} {
		t.Run(name, func(t *testing.T) {
			l := lab(t, netlab.Options{})
			task := rightsTask{Config: DefaultConfig(), NoTCX: tt.classic}
			task.Config.Packets.XDP = tt.xdp
			task.Config.Netns = "own"
			ns := l.A
			if !tt.nobody {
				task.Config, ns = in(l.A), nil // from outside, which takes CAP_SYS_ADMIN at the start
				task.Config.Packets.XDP = tt.xdp
			}
			count, err := l.Count(l.A, l.A.Interface)
			require.NoError(t, err)
			base := attachedPrograms(t, l.A, !tcx)
			c := startChild(t, ns, task, tt.nobody, three...)
			left := c.line(t, "dropped ")
			if !tcx {
				tt.left, tt.mask = "CAP_NET_ADMIN", 1<<unix.CAP_NET_ADMIN
			}
			require.Equal(t, tt.left, left)
			want := fmt.Sprintf("%016x", tt.mask)
			none := fmt.Sprintf("%016x", 0)
			require.Equal(t, want, c.status(t, "CapEff"))
			require.Equal(t, want, c.status(t, "CapPrm"))
			require.Equal(t, none, c.status(t, "CapInh"))
			require.Equal(t, none, c.status(t, "CapAmb"))
			require.Equal(t, "1", c.status(t, "NoNewPrivs"))
			if !tt.nobody {
				require.Equal(t, none, c.status(t, "CapBnd"))
			}

			require.NoError(t, l.A.Do(func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "later0"}, PeerName: "later1"})
			}))
			c.line(t, "link later")
			c.line(t, "link later")
			_, err = l.Transfer(bounded(t), netlab.Transfer{Bytes: 1 << 20})
			require.NoError(t, err)
			require.NoError(t, l.A.Quiet(bounded(t)))
			require.NoError(t, c.in.Close())
			var end rightsEnd
			require.NoError(t, json.Unmarshal([]byte(`{"Stored"`+c.line(t, `{"Stored"`)), &end))
			require.NoError(t, c.cmd.Wait(), c.errs.String())
			for h, n := range end.Total {
				require.Equal(t, n.Seen, end.Stored[h]+n.Dropped+n.Missed+n.Filtered, "%v", event.Hook(h))
			}
			out, err := count.Out()
			require.NoError(t, err)
			require.Equal(t, out.TCP, end.Total[event.HookTCEgress].Seen)
			require.NotZero(t, end.Stored[event.HookTransmit])
			require.NotZero(t, end.Stored[event.HookSetState])
			ingress := event.HookTCIngress
			if tt.xdp {
				ingress = event.HookXDP
			}
			require.NotZero(t, end.Stored[ingress])
			require.Equal(t, base, attachedPrograms(t, l.A, !tcx))
			require.NoError(t, l.A.Do(func() error {
				dev, err := netlink.LinkByName(l.A.Interface)
				if err != nil {
					return err
				}
				for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
					if ours, err := ourFilters(dev.Attrs().Index, parent); err == nil {
						require.Empty(t, ours)
					}
				}
				return nil
			}))
		})
	}
}

// What Probe tells is true: of a user without rights, with the required ones, and of root.
func TestProbeIsTrueOfOtherUsers(t *testing.T) {
	requireBPF(t)
	var three []uintptr
	for _, c := range Capabilities() {
		if c.Required {
			three = append(three, uintptr(c.Bit))
		}
	}
	probe := func(nobody bool, caps ...uintptr) map[string]Feature {
		c := startChild(t, nil, rightsTask{Probe: true, Config: DefaultConfig()}, nobody, caps...)
		var all []Feature
		require.NoError(t, json.Unmarshal([]byte("["+c.line(t, "[")), &all))
		require.NoError(t, c.cmd.Wait(), c.errs.String())
		byName := map[string]Feature{}
		for _, f := range all {
			byName[f.Name] = f
		}
		return byName
	}
	root := probe(false)
	for _, c := range Capabilities() {
		require.True(t, root[c.Name].Usable, c.Name)
	}

	with := probe(true, three...)
	require.Len(t, with, len(root))
	for name, f := range with {
		if f.Group == "rights" {
			continue
		}
		require.Equal(t, root[name].Usable, f.Usable, "%s: %s", name, f.Reason)
	}
	for _, c := range Capabilities() {
		f := with[c.Name]
		require.Equal(t, c.Required, f.Usable, c.Name)
		if !c.Required {
			require.NotEmpty(t, f.Reason)
			require.NotEmpty(t, f.Fallback)
			require.Equal(t, []string{c.For}, f.Missing)
		}
	}

	for lack := range three {
		var two []uintptr
		two = append(append(two, three[:lack]...), three[lack+1:]...)
		without := probe(true, two...)
		require.Len(t, without, len(root))
		for _, f := range without {
			if f.Group == "rights" {
				require.Equal(t, f.Name != nameOf(three[lack]) && with[f.Name].Usable, f.Usable, f.Name)
				continue
			}
			require.False(t, f.Usable, f.Name)
			require.Contains(t, f.Reason, nameOf(three[lack]), f.Name)
			require.Contains(t, f.Hint, "setcap", f.Name)
			require.NotContains(t, f.Reason, "\n")
		}
	}

	for name, f := range probe(true) {
		require.False(t, f.Usable, name)
		require.NotEmpty(t, f.Reason, name)
		if f.Group != "rights" {
			for _, c := range three {
				require.Contains(t, f.Reason, nameOf(c), name)
			}
		}
	}
}

func nameOf(bit uintptr) string { return capabilityName(uint(bit)) }
