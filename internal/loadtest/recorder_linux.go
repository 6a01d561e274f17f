// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// recording is a recorder at work in a process of its own.
type recording struct {
	process
	dir string // its spool and its ready file, removed in the end
	out strings.Builder
}

// startRecorder starts "record", or "run", at the interface of a namespace and returns when its hooks are attached.
// netns is the value of capture.netns.
func (t Tested) startRecorder(ctx context.Context, n *netlab.Namespace, netns string, command ...string) (*recording, error) {
	dir, err := os.MkdirTemp(t.Dir, "tcbee-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a spool for the measurement: %w", err)
	}
	rec := &recording{dir: dir}
	ready := filepath.Join(dir, "ready")
	args := append(append(command, "--json"), t.Args...)
	for key, value := range map[string]any{
		"packets.enabled": t.Capture.Packets.Enabled, "sockets.enabled": t.Capture.Sockets.Enabled,
		"events.enabled": t.Capture.Events.Enabled, "netns": netns,
	} {
		args = append(args, "--set", fmt.Sprintf("capture.%s=%v", key, value))
	}
	args = append(args, "--interface", n.Interface, "--spool", rec.spool(), "--ready-file", ready)
	cmd := n.Command(t.Program, args...)
	cmd.Stdout = &rec.out
	if err := rec.start(ctx, n, cmd); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return rec, nil
		}
		select {
		case <-tick.C:
		case <-rec.ended:
			return nil, errors.Join(errors.New("the recorder ended before it was ready"), rec.abandon())
		}
	}
}

// spool is the directory that it records to.
func (rec *recording) spool() string { return filepath.Join(rec.dir, "spool") }

// finish ends the recorder in order, adds its account to r and returns it. The spool stays until remove.
func (rec *recording) finish(r *Recorder) ([]pipeline.HookCount, error) {
	rec.interrupt()
	err := rec.waitFor(longGrace)
	var res pipeline.Result
	if err == nil {
		if err = json.Unmarshal([]byte(rec.out.String()), &res); err != nil {
			err = fmt.Errorf("the recorder's account: %w", err)
		}
		for _, h := range res.Hooks {
			r.Seen += h.Seen
			r.Stored += h.Stored
			r.Dropped += h.Dropped
			r.Missed += h.Missed
			r.Filtered += h.Filtered
			if !h.Balanced() {
				err = errors.Join(err, fmt.Errorf("the account of %s does not add up: %+v", h.Hook, h))
			}
		}
	}
	return res.Hooks, err
}

// abandon ends the recorder, if it has not ended, and removes its spool.
func (rec *recording) abandon() error {
	rec.interrupt()
	return errors.Join(rec.wait(), os.RemoveAll(rec.dir))
}

// reading is what is read at the beginning and at the end of a run.
type reading struct {
	host     hostTimes
	packets  uint64
	recorder float64 // CPU seconds
	anon     uint64
}

// read reads the host's and a recorder's times, and the counters of a namespace's interface. pid 0: no recorder.
func read(n *netlab.Namespace, pid int) (r reading, err error) {
	if pid != 0 {
		r.recorder, r.anon = cpuOf(pid), rssAnonOf(pid)
	}
	err = n.Do(func() error {
		link, err := netlink.LinkByName(n.Interface)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Interface, err)
		}
		s := link.Attrs().Statistics
		r.packets = s.RxPackets + s.TxPackets
		r.host, err = readHostTimes()
		return err
	})
	return r, err
}

func (r reading) machine(before reading) Machine {
	return Machine{Packets: r.packets - before.packets, CPU: r.host.busy - before.host.busy, Stolen: r.host.stolen - before.host.stolen}
}
