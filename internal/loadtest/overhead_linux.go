// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tcbee/tcbee-export/bpf"
	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// warmUp is how long a load runs before it is measured.
const warmUp = 500 * time.Millisecond

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
	res := OverheadResult{CPUs: runtime.NumCPU(), Side: "one", NoOffload: o.NoOffload}
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
	if err := o.find(); err != nil {
		return res, err
	}
	lab, err := netlab.New(ctx, netlab.Options{Direct: true, NoOffload: o.NoOffload})
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
	var beside *counts
	pid := 0
	if recorded {
		if rec, err = m.startRecorder(limited, m.lab.A, m.netns(), "record"); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, rec.abandon()) }()
		pid = rec.cmd.Process.Pid
		if m.Check {
			if beside, err = count(limited, m.lab); err != nil {
				return r, err
			}
			defer func() { err = errors.Join(err, beside.wire.Close()) }()
		}
	} else {
		empty, err := m.empty()
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, empty.Close()) }()
	}

	var before, after reading
	begin := func() (err error) { before, err = read(m.lab.A, pid); return err }
	end := func() (err error) { after, err = read(m.lab.A, pid); return err }
	if load.Kind == Bulk && m.IPerf {
		err = m.iperf(limited, &r, begin, end)
	} else {
		err = m.traffic(limited, &r, begin, end)
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
	if beside == nil {
		_, err = rec.finish(&r.Recorder)
		return r, err
	}
	checked, err := beside.check(limited)
	if err != nil {
		return r, err
	}
	hooks, err := rec.finish(&r.Recorder)
	if err != nil {
		return r, err
	}
	r.Checked = &checked
	return r, checked.account(hooks)
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

// traffic runs a load of this program's own.
func (m *overhead) traffic(ctx context.Context, r *Run, begin, end func() error) (err error) {
	addr := net.JoinHostPort(m.lab.B.IPv4.String(), trafficPort)
	args := []string{"bench", "traffic", "--kind", string(r.Kind), "--connections", strconv.Itoa(r.Connections),
		"--warm-up", warmUp.String(), "--duration", m.Duration.String(), "--congestion", m.Congestion}
	var server, client process
	if err := server.pipe(ctx, m.lab.B, m.lab.B.Command(m.Program, append(slices.Clone(args), "--listen", addr)...)); err != nil {
		return err
	}
	defer server.end(&err)
	if err := server.expect("ready"); err != nil {
		return err
	}
	if err := client.pipe(ctx, m.lab.A, m.lab.A.Command(m.Program, append(slices.Clone(args), "--connect", addr)...)); err != nil {
		return err
	}
	defer client.end(&err)
	measuring := &client
	if r.Kind == Bulk {
		measuring = &server
	}
	if err := measuring.expect("begin"); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	line, err := measuring.line()
	if err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	var got Measured
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		return fmt.Errorf("the traffic's result: %w", err)
	}
	r.Seconds, r.P50, r.P99 = got.Seconds, got.P50, got.P99
	r.BitsPerSecond, r.PerSecond = float64(got.Bytes)*8/got.Seconds, float64(got.Answers)/got.Seconds
	return nil
}

// iperf runs a bulk load with iperf3.
func (m *overhead) iperf(ctx context.Context, r *Run, begin, end func() error) (err error) {
	addr := m.lab.B.IPv4.String()
	var server, client process
	if err := server.pipe(ctx, m.lab.B, m.lab.B.Command("iperf3", "-s", "-1", "-B", addr, "-p", trafficPort, "--forceflush")); err != nil {
		return err
	}
	defer server.end(&err)
	for banner := ""; !strings.Contains(banner, "listening"); {
		if banner, err = server.line(); err != nil {
			return err
		}
	}
	go func() {
		for server.lines.Scan() {
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
