// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// testExec makes the test binary act as the command.
const testExec = "TCBEE_TEST_EXEC"

func TestMain(m *testing.M) {
	if os.Getenv(testExec) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// patience bounds what must end; it asserts nothing about speed.
const patience = 3 * time.Minute

// command prepares the program as a process of its own, without any setting of the environment.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "TCBEE_") || strings.HasPrefix(kv, "OTEL_")
	}), testExec+"=1")
	return cmd
}

// tcbee runs the program to its end.
func tcbee(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := command(t, args...)
	return finish(t, cmd)
}

func finish(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

const ms = uint64(time.Millisecond)

// makeSpool records two connections: one that transfers data and closes, one that is reset. The session is in three blocks.
func makeSpool(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	w, err := spool.Create(t.Context(), cfg, spool.Meta{Host: "testhost", Kernel: "6.18", Program: "test"}, nil)
	require.NoError(t, err)

	const start = uint64(5e9)
	wall := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()
	anchor := func(at uint64, phase uint32) []byte {
		return event.Append(nil, &event.Anchor{Header: event.Header{Time: at}, Session: 7, Realtime: wall + int64(at-start), Phase: phase})
	}
	local, peer := netip.MustParseAddr("192.0.2.1").As16(), netip.MustParseAddr("198.51.100.2").As16()
	header := func(at uint64, hook event.Hook, dir event.Dir, port uint16) event.Header {
		return event.Header{Time: at, Netns: 1, Cookie: uint64(port), Local: local, Peer: peer, LocalPort: port, PeerPort: 443, Family: 4, Hook: hook, Dir: dir}
	}
	var counts [event.Hooks]event.Counters
	segment := func(dst []byte, at uint64, dir event.Dir, port uint16, flags uint16, seq, ack, n uint32) []byte {
		hook := event.HookTCEgress
		if dir == event.DirIn {
			hook = event.HookTCIngress
		}
		counts[hook].Seen++
		return event.Append(dst, &event.Segment{
			Header: header(at, hook, dir, port), Seq: seq, Ack: ack, PayloadLen: n, TCPFlags: flags, GSOSegs: 1,
			VLAN: event.NoVLAN, VLANInner: event.NoVLAN, TTL: 64, IPLen: 20, TCPLen: 20, WireLen: 54 + n,
		})
	}
	tick := func(dst []byte, at uint64) []byte {
		return event.Append(dst, &event.Tick{Header: event.Header{Time: at}})
	}
	appendBlock := func(batches ...[]byte) {
		b := block.NewBuilder(block.DefaultOptions())
		for _, batch := range batches {
			require.NoError(t, event.Check(batch))
			b.Add(batch)
		}
		_, err := w.Append(b.Seal(nil))
		require.NoError(t, err)
	}

	at := start
	appendBlock(anchor(at, event.AnchorStart), tick(nil, at))
	var one []byte
	one = segment(one, at+1*ms, event.DirOut, 40001, event.SYN, 100, 0, 0)
	one = segment(one, at+2*ms, event.DirIn, 40001, event.SYN|event.ACK, 900, 101, 0)
	one = segment(one, at+3*ms, event.DirOut, 40001, event.ACK, 101, 901, 0)
	for i := range uint32(100) {
		one = segment(one, at+4*ms+uint64(i)*ms, event.DirOut, 40001, event.ACK|event.PSH, 101+1000*i, 901, 1000)
	}
	one = event.Append(one, &event.Incident{Header: header(at+110*ms, event.HookRetransmitSKB, event.DirOut, 40001), Seq: 5101, Len: 1000, Segs: 1})
	counts[event.HookRetransmitSKB].Seen++
	one = segment(one, at+200*ms, event.DirOut, 40002, event.SYN, 7, 0, 0)
	one = segment(one, at+201*ms, event.DirIn, 40002, event.RST|event.ACK, 0, 8, 0)
	one = tick(one, at+1000*ms)
	appendBlock(one)
	var two []byte
	two = segment(two, at+1200*ms, event.DirOut, 40001, event.FIN|event.ACK, 100101, 901, 0)
	two = segment(two, at+1201*ms, event.DirIn, 40001, event.FIN|event.ACK, 901, 100102, 0)
	two = segment(two, at+1202*ms, event.DirOut, 40001, event.ACK, 100102, 902, 0)
	two = event.Append(two, &event.Accounting{Header: event.Header{Time: at + 2000*ms}, Hook: counts})
	two = tick(two, at+2000*ms)
	appendBlock(two, anchor(at+2000*ms, event.AnchorEnd))
	require.NoError(t, w.Close())
	return dir
}

// edit changes a file of a spool.
func edit(t *testing.T, pattern string, change func([]byte) []byte) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, names, pattern)
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, change(b), 0o600))
	}
}

func TestFlows(t *testing.T) {
	dir := makeSpool(t)
	out, errs, code := tcbee(t, "flows", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, "192.0.2.1:40001")
	require.Contains(t, out, "2 connections, 97.7 KiB out, 0 B in, 1 segments retransmitted")

	var flows []struct {
		Local       string `json:"local"`
		BytesOut    uint64 `json:"bytes_out"`
		Retransmits uint64 `json:"retransmits"`
		End         string `json:"end"`
	}
	out, errs, code = tcbee(t, "flows", dir, "--json", "--sort", "bytes")
	require.Zero(t, code, errs)
	require.NoError(t, json.Unmarshal([]byte(out), &flows))
	require.Len(t, flows, 2)
	require.Equal(t, "192.0.2.1:40001", flows[0].Local)
	require.EqualValues(t, 100_000, flows[0].BytesOut)
	require.EqualValues(t, 1, flows[0].Retransmits)
	require.Equal(t, "closed", flows[0].End)
	require.Equal(t, "reset_received", flows[1].End)

	out, _, code = tcbee(t, "flows", dir, "--limit", "1")
	require.Zero(t, code)
	require.Contains(t, out, "1 of 2 connections")
}

func TestSpoolInfoAndVerify(t *testing.T) {
	dir := makeSpool(t)
	out, errs, code := tcbee(t, "spool", "info", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, "testhost")
	require.Contains(t, out, "in order")
	require.Contains(t, out, "connections 2\n")
	require.Contains(t, out, "no holes: nothing was lost")

	var info struct {
		Meta   spool.Meta
		Events uint64
		Hooks  []struct {
			Hook                                    string
			Seen, Stored, Dropped, Missed, Filtered uint64
		}
	}
	out, errs, code = tcbee(t, "spool", "info", dir, "--json")
	require.Zero(t, code, errs)
	require.NoError(t, json.Unmarshal([]byte(out), &info))
	require.Equal(t, "testhost", info.Meta.Host)
	require.Len(t, info.Hooks, 3)
	for _, h := range info.Hooks {
		require.Equal(t, h.Seen, h.Stored, h.Hook)
		require.NotZero(t, h.Seen, h.Hook)
	}
	out, errs, code = tcbee(t, "spool", "verify", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, ": ok: 3 blocks, 109 events")
}

func TestReplayIsRepeatable(t *testing.T) {
	dir := makeSpool(t)
	var first []byte
	for range 2 {
		name := filepath.Join(t.TempDir(), "metrics.jsonl")
		_, errs, code := tcbee(t, "replay", dir, "--output", "file:"+name, "--interval", "1s")
		require.Zero(t, code, errs)
		require.Contains(t, errs, "3 blocks replayed")
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Contains(t, string(got), "network.flow.tcp.retransmits")
		if first == nil {
			first = got
		}
		require.Equal(t, string(first), string(got))
	}
	out, errs, code := tcbee(t, "replay", dir)
	require.Zero(t, code, errs)
	require.Contains(t, out, "192.0.2.1:40001")
}

// TestBadInput: one clear line that says what and where, a hint, and the exit status that the help promises.
func TestBadInput(t *testing.T) {
	good := makeSpool(t)
	newer := makeSpool(t)
	edit(t, filepath.Join(newer, "spool.json"), func(b []byte) []byte {
		out := regexp.MustCompile(`"version": *1`).ReplaceAll(b, []byte(`"version":99`))
		require.NotEqual(t, b, out)
		return out
	})
	locked := makeSpool(t)
	cfg := spool.DefaultConfig()
	cfg.Dir = locked
	w, err := spool.Create(t.Context(), cfg, spool.Meta{}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("log: {levl: x}\n"), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := l.Addr().String()
	require.NoError(t, l.Close())

	tests := map[string]struct {
		args []string
		code int
		want []string // in standard error
	}{
		"no command":            {[]string{"bogus"}, codeUsage, []string{`tcbee-export: unknown command "bogus"`, "hint: "}},
		"no such flag":          {[]string{"run", "--bogus"}, codeUsage, []string{"tcbee-export: run: unknown flag: --bogus", `hint: "tcbee-export run --help"`}},
		"too many arguments":    {[]string{"flows", "a", "b"}, codeUsage, []string{"tcbee-export: flows: "}},
		"no spool named":        {[]string{"flows"}, codeUsage, []string{"tcbee-export: flows: no spool is named", "hint: "}},
		"record without spool":  {[]string{"record"}, codeUsage, []string{"tcbee-export: record: spool.dir: no directory is given", "hint: say where"}},
		"missing spool":         {[]string{"replay", "/nowhere/spool"}, codeSpool, []string{"tcbee-export: replay: ", "/nowhere/spool", "hint: "}},
		"not a spool":           {[]string{"flows", filepath.Dir(file)}, codeSpool, []string{"not a spool", filepath.Dir(file), "hint: "}},
		"a file":                {[]string{"spool", "info", file}, codeSpool, []string{"tcbee-export: spool info: ", file}},
		"newer spool":           {[]string{"spool", "verify", newer}, codeSpool, []string{"newer version", newer, "hint: "}},
		"spool in use":          {[]string{"record", "--spool", locked}, codeSpool, []string{"spool in use", locked}},
		"endpoint refuses":      {[]string{"replay", good, "--output", "otlp", "--set", "export.endpoint=http://" + closed, "--set", "export.timeout=1m"}, codeExport, []string{"tcbee-export: replay: ", "grpc http://" + closed, "connection refused", "hint: nothing listens there"}},
		"bad endpoint":          {[]string{"replay", good, "--output", "otlp", "--set", "export.endpoint=ftp://x"}, codeUsage, []string{`export.endpoint: scheme "ftp" is neither http nor https (flag --set)`}},
		"output nowhere":        {[]string{"replay", good, "--output", "file:/nowhere/x"}, codeExport, []string{"/nowhere/x", "hint: "}},
		"unknown output":        {[]string{"replay", good, "--output", "paper"}, codeUsage, []string{`output: "paper" is none of otlp, terminal, file:PATH (flag --output)`}},
		"unknown key":           {[]string{"config", "check", file}, codeUsage, []string{"tcbee-export: config check: log.levl: unknown key; did you mean log.level? (file " + file + ":1)"}},
		"missing configuration": {[]string{"config", "show", "--config", "/nowhere.yaml"}, codeUsage, []string{"/nowhere.yaml: no such configuration file"}},
		"bad duration":          {[]string{"run", "--duration", "soon"}, codeUsage, []string{"--duration"}},
		"negative duration":     {[]string{"run", "--duration", "-1s"}, codeUsage, []string{"--duration: -1s is below zero"}},
		"bad order":             {[]string{"flows", good, "--sort", "colour"}, codeUsage, []string{`--sort: "colour" is none of start, `}},
		"many faults": {[]string{"config", "show", "--set", "log.level=x", "--set", "spool.segment_bytes=abc"}, codeUsage, []string{
			`tcbee-export: config show: log.level: "x" is none of`, `tcbee-export: config show: spool.segment_bytes: "abc" is not a size, e.g. 64MiB (flag --set)`,
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, errs, code := tcbee(t, tt.args...)
			require.Equal(t, tt.code, code, errs)
			require.Empty(t, out)
			for _, want := range tt.want {
				require.Contains(t, errs, want)
			}
			for line := range strings.Lines(errs) {
				require.True(t, strings.HasPrefix(line, "tcbee-export: ") || strings.HasPrefix(line, "hint: "), "line %q", line)
			}
		})
	}
}

func TestUnknownVariable(t *testing.T) {
	cmd := command(t, "config", "show")
	cmd.Env = append(cmd.Env, "TCBEE_SPOOL_MAXBYTES=1GiB", "TCBEE_REQUIRE_BPF=1")
	_, errs, code := finish(t, cmd)
	require.Equal(t, codeUsage, code)
	require.Contains(t, errs, "TCBEE_SPOOL_MAXBYTES: unknown environment variable; did you mean TCBEE_SPOOL_MAX_BYTES?")
}

func TestConfigFileFromTheEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tcbee.yaml")
	require.NoError(t, os.WriteFile(file, []byte("spool:\n  max_bytes: 2GiB\nexport:\n  headers: {authorization: Bearer hunter2}\n"), 0o600))
	cmd := command(t, "config", "show")
	cmd.Env = append(cmd.Env, "TCBEE_CONFIG="+file, "TCBEE_LOG_LEVEL=debug", "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317")
	out, errs, code := finish(t, cmd)
	require.Zero(t, code, errs)
	require.Regexp(t, `  max_bytes: 2GiB +# file `+file+`:2\n`, out)
	require.Regexp(t, `  level: debug +# environment TCBEE_LOG_LEVEL\n`, out)
	require.Regexp(t, `  endpoint: http://collector:4317 +# environment OTEL_\*\n`, out)
	require.NotContains(t, out, "hunter2")

	require.NoError(t, os.WriteFile(file, []byte(out), 0o600))
	out, errs, code = tcbee(t, "config", "check", file)
	require.Zero(t, code, errs)
	require.Equal(t, file+": ok\n", out)
}

func TestDamagedSpoolIsReadAroundTheDamage(t *testing.T) {
	dir := makeSpool(t)
	edit(t, filepath.Join(dir, "segments", "*", "*.vlog"), func(b []byte) []byte {
		b[len(b)/2] ^= 0x40
		return b
	})
	out, errs, code := tcbee(t, "spool", "verify", dir)
	require.Equal(t, codeSpool, code, out)
	require.Contains(t, errs, "tcbee-export: spool verify: ")
	require.Contains(t, errs, "block")
	out, errs, code = tcbee(t, "flows", dir, "--json", "--exact")
	require.Equal(t, codeSpool, code, errs)
	require.True(t, json.Valid([]byte(out)), out)
}

func TestVersionAndHelp(t *testing.T) {
	out, errs, code := tcbee(t, "version", "--json")
	require.Zero(t, code, errs)
	var v map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.EqualValues(t, spool.Version, v["spool_version"])
	out, _, code = tcbee(t, "--help")
	require.Zero(t, code)
	for _, c := range exitCodes {
		require.Contains(t, out, c.meaning)
	}
	// Every command has an example and a line of its own in the list.
	a := &app{stdout: io.Discard, stderr: io.Discard}
	for _, cmd := range a.rootCommand().Commands() {
		require.NotEmpty(t, cmd.Short, cmd.Name())
		if cmd.RunE != nil && !cmd.HasSubCommands() && cmd.Name() != "version" {
			require.NotEmpty(t, cmd.Example, cmd.Name())
		}
	}
	out, _, code = tcbee(t, "__complete", "flows", "--sort", "")
	require.Zero(t, code)
	require.Contains(t, out, "retransmits")
}

func TestTableFits(t *testing.T) {
	tab := &table{columns: []column{{title: "name"}, {title: "n", right: true}, {title: "extra", rank: 1}, {title: "more", rank: 2}}}
	tab.add("a", "1", "xxxx", "yyyy")
	tab.add("longer", "100", "x", "µ")
	var b bytes.Buffer
	require.Zero(t, tab.print(&b, 0))
	require.Equal(t, "NAME      N  EXTRA  MORE\na         1  xxxx   yyyy\nlonger  100  x      µ\n", b.String())
	b.Reset()
	require.Equal(t, 1, tab.print(&b, 20))
	require.Equal(t, "NAME      N  EXTRA\na         1  xxxx\nlonger  100  x\n", b.String())
	b.Reset()
	require.Equal(t, 2, tab.print(&b, 9))
	require.Equal(t, "NAME    …\na       …\nlonger  …\n", b.String())
}

func TestTexts(t *testing.T) {
	require.Equal(t, "1,234,567", count(1234567))
	require.Equal(t, "999", count(999))
	require.Equal(t, "1.5 KiB", bytesText(1536))
	require.Equal(t, "512 B", bytesText(512))
	require.Equal(t, "1.23s", durationText(1234*time.Millisecond))
	require.Equal(t, "12.35ms", durationText(12345678))
}

func TestReportTakesJoinedErrorsApart(t *testing.T) {
	var b bytes.Buffer
	report(&b, "run", errors.Join(
		withCode(codeSpool, withHint(errors.New("one"), "do this")),
		withHint(errors.New("run: two"), "do this"),
	))
	require.Equal(t, "tcbee-export: run: one\ntcbee-export: run: two\nhint: do this\n", b.String())
	require.Equal(t, codeSpool, exitCode(errors.Join(errors.New("x"), withCode(codeSpool, errors.New("y")))))
	require.Equal(t, codeInterrupted, exitCode(context.Canceled))
	require.Equal(t, codeFailure, exitCode(errors.New("x")))
}

// TestReadmeExplainsExitStatuses holds the README's table to the one of the help.
func TestReadmeExplainsExitStatuses(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	for _, c := range exitCodes {
		require.Contains(t, string(text), fmt.Sprintf("| %d | %s |\n", c.code, c.meaning))
	}
}
