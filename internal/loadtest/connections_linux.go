// SPDX-License-Identifier: Apache-2.0

package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tcbee/tcbee-export/bpf/netlab"
)

// discard takes metrics, some gigabytes of JSON for very many connections, and keeps none.
const discard = "file:" + os.DevNull

// Connections opens very many connections between two network namespaces while one end is recorded, and
// works off the spool. It tells each command when it is done. Everything that it made is gone when it returns.
func Connections(ctx context.Context, o ConnectionOptions, _ *slog.Logger, each func(ConnectionStep)) (res ConnectionResult, err error) {
	res.Connections = o.Connections
	if err := errors.Join(o.Validate(), o.find()); err != nil {
		return res, err
	}
	defer func() {
		if context.Cause(ctx) != nil {
			err = context.Cause(ctx) // the rest is a consequence
		}
	}()
	tell := func(s ConnectionStep) {
		res.Steps = append(res.Steps, s)
		if each != nil {
			each(s)
		}
	}
	lab, err := netlab.New(ctx, netlab.Options{Direct: true})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	if err := lab.A.Sysctl("ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return res, err
	}
	if o.wants("record") || o.wants("flows") || o.wants("replay") {
		if err := o.recorded(ctx, lab, &res, tell); err != nil {
			return res, err
		}
	}
	if o.wants("run") {
		if err := o.live(ctx, lab, tell); err != nil {
			return res, err
		}
	}
	return res, nil
}

func (o ConnectionOptions) wants(command string) bool { return slices.Contains(o.Commands, command) }

// recorded records and works off the spool.
func (o ConnectionOptions) recorded(ctx context.Context, lab *netlab.Lab, res *ConnectionResult, tell func(ConnectionStep)) (err error) {
	rec, err := o.startRecorder(ctx, lab.A, "own", "record")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rec.abandon()) }()
	step, err := o.connected(ctx, lab, rec)
	if err != nil {
		return err
	}
	step.Command = "record"
	tell(step)
	if res.SpoolBytes, err = sizeOf(rec.spool()); err != nil {
		return err
	}
	if o.wants("flows") {
		var list bytes.Buffer
		if step, err = o.work(ctx, lab, &list, "flows", rec.spool(), "--json"); err != nil {
			return err
		}
		if step.Connections, err = tellApart(list.Bytes(), lab.A.IPv4); err != nil {
			return err
		}
		tell(step)
	}
	if o.wants("replay") {
		if step, err = o.work(ctx, lab, nil, "replay", rec.spool(), "--output", discard); err != nil {
			return err
		}
		tell(step)
	}
	return nil
}

// live records and derives metrics at once.
func (o ConnectionOptions) live(ctx context.Context, lab *netlab.Lab, tell func(ConnectionStep)) (err error) {
	rec, err := o.startRecorder(ctx, lab.A, "own", "run", "--output", discard)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rec.abandon()) }()
	step, err := o.connected(ctx, lab, rec)
	step.Command = "run"
	if err == nil {
		tell(step)
	}
	return err
}

// connected lets the connections be while a recorder is at work, and ends it.
func (o ConnectionOptions) connected(ctx context.Context, lab *netlab.Lab, rec *recording) (step ConnectionStep, err error) {
	watched := rec.watch()
	start := time.Now()
	if err := o.connect(ctx, lab); err != nil {
		return step, err
	}
	step.Seconds = time.Since(start).Seconds()
	var r Recorder
	if _, err := rec.finish(&r); err != nil {
		return step, err
	}
	step.AnonBytes, step.CPU = <-watched, rec.cpu()
	step.Events, step.Dropped, step.Missed = r.Stored, r.Dropped, r.Missed
	return step, nil
}

// connect runs pairs of processes, as many as it takes for the limit of open files, to their end.
func (o ConnectionOptions) connect(ctx context.Context, lab *netlab.Lab) (err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	const spare = 100 // files of a process that are no connection
	each := int(min(perProcess, max(limit.Max, spare+1)-spare))
	pairs := (o.Connections + each - 1) / each
	servers, clients := make([]process, pairs), make([]process, pairs)
	port, err := strconv.Atoi(trafficPort)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	for i := range pairs {
		addr := net.JoinHostPort(lab.B.IPv4.String(), strconv.Itoa(port+i))
		args := []string{"bench", "traffic", "--kind", string(Many), "--rounds", strconv.Itoa(o.Rounds),
			"--connections", strconv.Itoa(min(each, o.Connections-i*each))}
		server, client := &servers[i], &clients[i]
		if err := server.pipe(ctx, lab.B, lab.B.Command(o.Program, append(slices.Clone(args), "--listen", addr)...)); err != nil {
			return err
		}
		defer server.end(&err)
		if err := server.expect("ready"); err != nil {
			return err
		}
		if err := client.pipe(ctx, lab.A, lab.A.Command(o.Program, append(slices.Clone(args), "--connect", addr)...)); err != nil {
			return err
		}
		defer client.end(&err)
		if err := client.expect("open"); err != nil {
			return err
		}
	}
	// All are open. The pairs work in turn: it is the connections that are many, not the processes.
	for i := range clients {
		if err := clients[i].tell("go"); err != nil {
			return err
		}
		if err := clients[i].expect("done"); err != nil {
			return err
		}
	}
	return nil
}

// work runs a command to its end.
func (o ConnectionOptions) work(ctx context.Context, lab *netlab.Lab, out *bytes.Buffer, command string, args ...string) (step ConnectionStep, err error) {
	step.Command = command
	var p process
	cmd := lab.A.Command(o.Program, append(append([]string{command}, o.Args...), args...)...)
	if out != nil {
		cmd.Stdout = out
	}
	start := time.Now()
	if err := p.start(ctx, lab.A, cmd); err != nil {
		return step, err
	}
	watched := p.watch()
	<-p.ended
	step.Seconds, step.AnonBytes, step.CPU = time.Since(start).Seconds(), <-watched, p.cpu()
	return step, p.waitErr
}

// tellApart counts the connections of a local address that "flows --json" lists, by both their ends.
func tellApart(flows []byte, local netip.Addr) (uint64, error) {
	type ends struct {
		Local netip.AddrPort `json:"local"`
		Peer  netip.AddrPort `json:"peer"`
	}
	var list []ends
	if err := json.Unmarshal(flows, &list); err != nil {
		return 0, fmt.Errorf("what flows tells: %w", err)
	}
	seen := map[ends]bool{}
	for _, f := range list {
		if f.Local.Addr() == local {
			seen[f] = true
		}
	}
	return uint64(len(seen)), nil
}

// sizeOf is the size of a spool.
func sizeOf(dir string) (n uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += uint64(info.Size())
		}
		return err
	})
	return n, err
}
