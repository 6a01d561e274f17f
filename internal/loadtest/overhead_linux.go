// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/bpf/netlab"
	"github.com/tcbee/tcbee-export/internal/pipeline"
)

// Of every run.
const (
	warmUp = 500 * time.Millisecond
	grace  = 30 * time.Second // for a process to start or to end
)

// trafficPort is where a load's server listens.
const trafficPort = "5201"

// overhead is a measurement.
type overhead struct {
	OverheadOptions
	log *slog.Logger
	lab *netlab.Lab
}

// Overhead measures each load in turn with empty programs at the hooks and with a recorder, on a link
// between two network namespaces, and tells each run when it is done. The network, the processes and
// the spools are gone when it returns.
func Overhead(ctx context.Context, o OverheadOptions, log *slog.Logger, each func(Run)) (_ OverheadResult, err error) {
	res := OverheadResult{CPUs: runtime.NumCPU(), Side: "one"}
	if o.BothEnds {
		res.Side = "both"
	}
	if err := o.Validate(); err != nil {
		return res, err
	}
	if o.IPerf {
		if _, err := exec.LookPath("iperf3"); err != nil {
			return res, fmt.Errorf("--iperf3: %w", err)
		}
	}
	if o.Program == "" {
		if o.Program, err = os.Executable(); err != nil {
			return res, fmt.Errorf("find this program: %w", err)
		}
	}
	lab, err := netlab.New(ctx, netlab.Options{Direct: true})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	m := &overhead{o, log, lab}
	for pair := range o.Pairs {
		for _, load := range o.loads() {
			for i := range 2 {
				// Every other pair the other way round: what wanders with time weighs on both.
				r, err := m.run(ctx, load, i != pair%2)
				if err != nil {
					return res, err
				}
				res.Runs = append(res.Runs, r)
				if each != nil {
					each(r)
				}
			}
		}
	}
	res.Comparisons = compare(res.Runs)
	return res, nil
}

// run is one load, with empty programs at the hooks or recorded.
func (m *overhead) run(ctx context.Context, load Load, recorded bool) (r Run, err error) {
	r = Run{Load: load, Recorded: recorded}
	defer func() {
		switch {
		case context.Cause(ctx) != nil:
			err = context.Cause(ctx) // the rest is a consequence
		case err != nil:
			err = fmt.Errorf("%s load of %d connections: %w", load.Kind, load.Connections, err)
		}
	}()
	limited, cancel := context.WithTimeoutCause(ctx, warmUp+m.Duration+3*grace, errors.New("a run took too long"))
	defer cancel()
	var rec *recording
	if recorded {
		if rec, err = m.record(limited); err != nil {
			return r, err
		}
		defer func() {
			if rec != nil {
				err = errors.Join(err, rec.abandon())
			}
		}()
	} else {
		empty, err := m.empty()
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, empty.Close()) }()
	}

	var before, after reading
	read := func(to *reading) func() error {
		return func() (err error) { *to, err = m.read(rec); return err }
	}
	if load.Kind == Bulk && m.IPerf {
		err = m.iperf(limited, &r, read(&before), read(&after))
	} else {
		err = m.traffic(limited, &r, read(&before), read(&after))
	}
	if err != nil {
		return r, err
	}
	r.Machine = after.machine(before)
	if rec == nil {
		return r, nil
	}
	r.Recorder.CPU = after.recorder - before.recorder
	r.AnonBytes = max(before.anon, after.anon)
	done := rec
	rec = nil
	return r, done.finish(&r.Recorder)
}

// empty attaches programs that do nothing where the recorder's would be.
func (m *overhead) empty() (c io.Closer, err error) {
	cfg := m.Capture
	cfg.Interfaces, cfg.Netns = []string{m.lab.A.Interface}, m.netns()
	err = m.lab.A.Do(func() error {
		c, err = bpf.OpenEmpty(cfg, m.log)
		return err
	})
	return c, err
}

// netns says whose sockets are recorded; the value of capture.netns.
func (m *overhead) netns() string {
	if m.BothEnds {
		return "all"
	}
	return "own"
}

// recording is a recorder at work in a process of its own.
type recording struct {
	process
	dir string // its spool and its ready file, removed in the end
	out strings.Builder
}

// record starts a recorder at the interface of A and returns when its hooks are attached.
func (m *overhead) record(ctx context.Context) (*recording, error) {
	dir, err := os.MkdirTemp(m.Dir, "tcbee-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a spool for the measurement: %w", err)
	}
	rec := &recording{dir: dir}
	ready := filepath.Join(dir, "ready")
	args := append([]string{"record", "--json"}, m.Args...)
	for key, value := range map[string]any{
		"packets.enabled": m.Capture.Packets.Enabled, "sockets.enabled": m.Capture.Sockets.Enabled,
		"events.enabled": m.Capture.Events.Enabled, "netns": m.netns(),
	} {
		args = append(args, "--set", fmt.Sprintf("capture.%s=%v", key, value))
	}
	args = append(args, "--interface", m.lab.A.Interface, "--spool", filepath.Join(dir, "spool"), "--ready-file", ready)
	cmd := m.lab.A.Command(m.Program, args...)
	cmd.Stdout = &rec.out
	if err := rec.start(ctx, m.lab.A, cmd); err != nil {
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

// finish ends the recorder in order, adds its account to r and removes its spool.
func (rec *recording) finish(r *Recorder) error {
	rec.interrupt()
	err := rec.wait()
	if err == nil {
		var res pipeline.Result
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
	return errors.Join(err, os.RemoveAll(rec.dir))
}

// abandon ends the recorder without looking at what it did.
func (rec *recording) abandon() error {
	rec.interrupt()
	return errors.Join(rec.wait(), os.RemoveAll(rec.dir))
}

// traffic runs a load of this program's own.
func (m *overhead) traffic(ctx context.Context, r *Run, begin, end func() error) (err error) {
	addr := net.JoinHostPort(m.lab.B.IPv4.String(), trafficPort)
	args := []string{"bench", "traffic", "--kind", string(r.Kind), "--connections", strconv.Itoa(r.Connections),
		"--warm-up", warmUp.String(), "--duration", m.Duration.String(), "--congestion", m.Congestion}
	var server, client process
	serving, err := server.pipe(ctx, m.lab.B, m.lab.B.Command(m.Program, append(slices.Clone(args), "--listen", addr)...))
	if err != nil {
		return err
	}
	defer server.end(&err)
	if err := expect(serving, "ready"); err != nil {
		return err
	}
	asking, err := client.pipe(ctx, m.lab.A, m.lab.A.Command(m.Program, append(slices.Clone(args), "--connect", addr)...))
	if err != nil {
		return err
	}
	defer client.end(&err)
	lines := asking
	if r.Kind == Bulk {
		lines = serving
	}
	if err := expect(lines, "begin"); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	if !lines.Scan() {
		return fmt.Errorf("the traffic ended early: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
	}
	if err := end(); err != nil {
		return err
	}
	var got Measured
	if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
		return fmt.Errorf("the traffic's result: %w", err)
	}
	r.Seconds, r.P50, r.P99 = got.Seconds, got.P50, got.P99
	r.BitsPerSecond, r.PerSecond = float64(got.Bytes)*8/got.Seconds, float64(got.Answers)/got.Seconds
	return nil
}

// expect reads one line.
func expect(lines *bufio.Scanner, want string) error {
	if !lines.Scan() || lines.Text() != want {
		return fmt.Errorf("the traffic was to say %q, not %q", want, lines.Text())
	}
	return nil
}

// iperf runs a bulk load with iperf3.
func (m *overhead) iperf(ctx context.Context, r *Run, begin, end func() error) (err error) {
	addr := m.lab.B.IPv4.String()
	var server, client process
	serving, err := server.pipe(ctx, m.lab.B, m.lab.B.Command("iperf3", "-s", "-1", "-B", addr, "-p", trafficPort, "--forceflush"))
	if err != nil {
		return err
	}
	defer server.end(&err)
	for serving.Scan() && !strings.Contains(serving.Text(), "listening") {
		continue // its banner
	}
	go func() {
		for serving.Scan() {
			continue // the client tells the same
		}
	}()
	args := []string{"-c", addr, "-p", trafficPort, "-J", "-P", strconv.Itoa(r.Connections), "-O", "1",
		"-t", strconv.Itoa(int(max(m.Duration.Round(time.Second), time.Second) / time.Second))}
	if m.Congestion != "" {
		args = append(args, "-C", m.Congestion)
	}
	cmd := m.lab.A.Command("iperf3", args...)
	var out strings.Builder
	cmd.Stdout = &out
	if err := begin(); err != nil {
		return err
	}
	if err := client.start(ctx, m.lab.A, cmd); err != nil {
		return err
	}
	select {
	case <-client.ended:
	case <-ctx.Done():
	}
	if err := client.wait(); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	var got struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Seconds       float64 `json:"seconds"`
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		return fmt.Errorf("what iperf3 tells: %w", err)
	}
	if got.Error != "" {
		return fmt.Errorf("iperf3: %s", got.Error)
	}
	r.Seconds, r.BitsPerSecond = got.End.Received.Seconds, got.End.Received.BitsPerSecond
	return nil
}

// process is a child.
type process struct {
	cmd     *exec.Cmd
	out     *os.File // of pipe
	stderr  strings.Builder
	ended   chan struct{}
	waitErr error
}

// start starts cmd inside a namespace; it is asked to end when ctx ends. It is not in the terminal's
// process group, so that a Ctrl-C reaches it once.
func (p *process) start(ctx context.Context, n *netlab.Namespace, cmd *exec.Cmd) error {
	cmd.SysProcAttr.Setpgid = true
	cmd.Stderr = &p.stderr
	p.cmd, p.ended = cmd, make(chan struct{})
	if err := n.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	cancel := context.AfterFunc(ctx, p.interrupt)
	go func() {
		defer close(p.ended)
		if err := cmd.Wait(); err != nil {
			p.waitErr = fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), cmd.Args[1], err, strings.TrimSpace(p.stderr.String()))
		}
		cancel()
	}()
	return nil
}

// pipe starts cmd and returns the lines that it prints.
func (p *process) pipe(ctx context.Context, n *netlab.Namespace, cmd *exec.Cmd) (*bufio.Scanner, error) {
	// Not StdoutPipe: Wait closes that while there is still something to read.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, p.out = w, r
	if err := errors.Join(p.start(ctx, n, cmd), w.Close()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return bufio.NewScanner(r), nil
}

// interrupt asks the process to end.
func (p *process) interrupt() {
	_ = p.cmd.Process.Signal(unix.SIGINT) // fails only if it has ended
}

// wait waits for the end, for a while; then it insists.
func (p *process) wait() error {
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.ended:
	case <-t.C:
		_ = p.cmd.Process.Kill() // fails only if it has ended
		<-p.ended
	}
	if p.out != nil {
		_ = p.out.Close()
	}
	return p.waitErr
}

// end waits for a process that ends by itself, unless something has gone wrong before: then it is ended.
func (p *process) end(err *error) {
	if *err != nil {
		p.interrupt()
		_ = p.wait() // how it ends is a consequence
		return
	}
	*err = p.wait()
}

// reading is what is read at the beginning and at the end of a run.
type reading struct {
	host     hostTimes
	packets  uint64
	recorder float64 // CPU seconds
	anon     uint64
}

func (m *overhead) read(rec *recording) (r reading, err error) {
	if rec != nil {
		r.recorder, r.anon = cpuOf(rec.cmd.Process.Pid), rssAnonOf(rec.cmd.Process.Pid)
	}
	err = m.lab.A.Do(func() error {
		link, err := netlink.LinkByName(m.lab.A.Interface)
		if err != nil {
			return fmt.Errorf("%s: %w", m.lab.A.Interface, err)
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
