// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/exporter"
	"github.com/tcbee/tcbee-export/processors"
	"github.com/tcbee/tcbee-export/spool"
)

// script is a Source of prepared batches.
type script struct {
	batches [][]byte
	err     error // after them, io.EOF if nil
}

func (s *script) Next(context.Context) ([]byte, error) {
	if len(s.batches) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		return nil, io.EOF
	}
	b := s.batches[0]
	s.batches = s.batches[1:]
	return b, nil
}

func (s *script) Close() error { return nil }

// lines is a Sink that keeps each collection as JSON.
type lines struct {
	got  []string
	fail error
}

func (l *lines) ConsumeMetrics(_ context.Context, md pmetric.Metrics) error {
	if l.fail != nil {
		return l.fail
	}
	b, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(md)
	l.got = append(l.got, string(b))
	return err
}

const ms = uint64(1e6)

// traffic is one session of the given seconds: connections that send data in both directions, seen on
// two CPUs, with a tick every 100 ms.
func traffic(session uint64, start uint64, seconds int, complete bool) *script {
	s := &script{}
	wall := int64(1_700_000_000_123_456_789) + int64(start)
	anchor := func(at uint64, phase uint32) []byte {
		return event.Append(nil, &event.Anchor{Header: event.Header{Time: at}, Session: session, Realtime: wall + int64(at-start), TAI: wall, Phase: phase})
	}
	s.batches = append(s.batches, anchor(start, event.AnchorStart))
	local, peer := netip.MustParseAddr("10.0.0.1").As16(), netip.MustParseAddr("10.0.0.2").As16()
	seq := make([]uint32, 20)
	var counts [event.Hooks]event.Counters
	at := start
	for range seconds * 10 {
		var cpus [2][]byte
		for i := range 200 {
			at += ms / 2
			c := i % len(seq)
			h := event.Header{Time: at, Netns: 1, Local: local, Peer: peer, LocalPort: uint16(40000 + c), PeerPort: 80, Family: 4, CPU: uint16(i / 7 % 2), Hook: event.HookTCEgress, Dir: event.DirOut, Cookie: uint64(c + 1)}
			if i%2 == 1 {
				h.Hook, h.Dir, h.Cookie = event.HookTCIngress, event.DirIn, 0
			}
			seg := event.Segment{Header: h, Seq: seq[c], Ack: 7, TCPFlags: event.ACK, GSOSegs: 1, VLAN: event.NoVLAN, VLANInner: event.NoVLAN, WireLen: 66, IPLen: 20, TCPLen: 32, OptionsLen: 12}
			if h.Dir == event.DirOut {
				seg.PayloadLen, seg.WireLen = 1000, 1066
				seq[c] += 1000
			}
			cpus[h.CPU] = event.Append(cpus[h.CPU], &seg)
			counts[h.Hook].Seen++
			if i%50 == 0 {
				h.Hook = event.HookTransmit
				cpus[h.CPU] = event.Append(cpus[h.CPU], &event.Sample{Header: h, SndCwnd: 10 + uint32(i), RTT: 20000, State: event.Established, Present: event.HasTCP})
				counts[h.Hook].Seen++
			}
		}
		tick := event.Append(nil, &event.Accounting{Header: event.Header{Time: at}, Hook: counts})
		tick = event.Append(tick, &event.Tick{Header: event.Header{Time: at}})
		s.batches = append(s.batches, cpus[1], cpus[0], tick)
	}
	if complete {
		s.batches = append(s.batches, anchor(at+1, event.AnchorEnd))
	}
	return s
}

func newSpool(t *testing.T, dir string) *spool.Writer {
	t.Helper()
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	w, err := spool.Create(context.Background(), cfg, HostMeta(), nil)
	require.NoError(t, err)
	return w
}

func openSpool(t *testing.T, dir string) *spool.Reader {
	t.Helper()
	r, err := spool.Open(context.Background(), dir, spool.ReadOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func options() ReadOptions {
	o := ReadOptions{Process: processors.DefaultConfig(), Export: exporter.DefaultConfig()}
	o.Export.Interval = 1e9
	return o
}

var discard = slog.New(slog.DiscardHandler)

func TestReplayGivesWhatRunGave(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	var live lines
	for session := range uint64(2) { // two runs into one spool
		w := newSpool(t, dir)
		res, err := Run(ctx, traffic(session+1, session*1e12+5*ms, 3, true), w, HostMeta(), options(), &live, discard)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		for _, h := range res.Hooks {
			require.True(t, h.Balanced(), "%+v", h)
		}
		require.Len(t, res.Hooks, 3)
	}
	require.Greater(t, len(live.got), 6)

	var again lines
	res, err := Replay(ctx, openSpool(t, dir), options(), &again, nil)
	require.NoError(t, err)
	require.Empty(t, res.Damaged)
	require.Equal(t, live.got, again.got)
}

func TestRecordThenReplayEqualsRun(t *testing.T) {
	ctx := context.Background()
	one, two := t.TempDir(), t.TempDir()
	w := newSpool(t, one)
	var live lines
	_, err := Run(ctx, traffic(9, 5*ms, 2, true), w, HostMeta(), options(), &live, discard)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	w = newSpool(t, two)
	_, err = Record(ctx, traffic(9, 5*ms, 2, true), w, discard)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	var again lines
	_, err = Replay(ctx, openSpool(t, two), options(), &again, nil)
	require.NoError(t, err)
	require.Equal(t, live.got, again.got)
}

func TestInspectTellsSessionsAndTheAccount(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	_, err := Record(ctx, traffic(1, 5*ms, 2, false), w, discard) // killed
	require.NoError(t, err)
	_, err = Record(ctx, traffic(2, 1e12, 2, true), w, discard)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	for name, look := range map[string]func(context.Context, *spool.Reader, Progress) (Summary, error){"inspect": Inspect, "verify": Verify} {
		t.Run(name, func(t *testing.T) {
			sum, err := look(ctx, openSpool(t, dir), nil)
			require.NoError(t, err)
			require.Empty(t, sum.Damaged)
			require.Len(t, sum.Sessions, 2)
			require.False(t, sum.Sessions[0].Complete)
			require.True(t, sum.Sessions[1].Complete)
			require.Equal(t, "0000000000000001", sum.Sessions[0].ID)
			require.Len(t, sum.Hooks, 3)
			for _, h := range sum.Hooks {
				require.True(t, h.Balanced(), "%+v", h)
				require.NotZero(t, h.Seen)
			}
			require.EqualValues(t, 2*2*10*204, sum.Events)
			require.Zero(t, sum.Late)
		})
	}
}

func TestFlowsListsEveryConnectionOnce(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	_, err := Record(ctx, traffic(1, 5*ms, 2, true), w, discard)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	flows, damaged, err := Flows(ctx, openSpool(t, dir), FlowOptions{Process: processors.DefaultConfig()}, nil)
	require.NoError(t, err)
	require.Empty(t, damaged)
	require.Len(t, flows, 20)
	var out uint64
	ids := map[uint64]bool{}
	for _, f := range flows {
		require.False(t, ids[f.ID], "connection %d is listed twice", f.ID)
		ids[f.ID] = true
		out += f.BytesOut
		require.Equal(t, "10.0.0.2:80", f.Peer.String())
	}
	require.EqualValues(t, 2*10*100*1000, out)
}

func TestSinkFailureEndsReplayButNotRun(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	broken := errors.New("connection refused")
	res, err := Run(ctx, traffic(1, 5*ms, 2, true), w, HostMeta(), options(), &lines{fail: broken}, discard)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NotZero(t, res.SinkErrors)
	require.ErrorIs(t, res.SinkErr, broken)

	_, err = Replay(ctx, openSpool(t, dir), options(), &lines{fail: broken}, nil)
	var sink *SinkError
	require.ErrorAs(t, err, &sink)
	require.ErrorIs(t, err, broken)
}

func TestSourceFailureKeepsWhatWasRead(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	src := traffic(1, 5*ms, 1, false)
	src.err = errors.New("ring is gone")
	_, err := Record(ctx, src, w, discard)
	require.ErrorContains(t, err, "ring is gone")
	require.NoError(t, w.Close())
	sum, err := Inspect(ctx, openSpool(t, dir), nil)
	require.NoError(t, err)
	require.EqualValues(t, 10*204, sum.Events)
}

func TestDamagedBlockIsPassedOverAndReported(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	for session := range uint64(3) {
		_, err := Record(ctx, traffic(session, 5*ms+session*1e12, 3, true), w, discard)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	before, err := Verify(ctx, openSpool(t, dir), nil)
	require.NoError(t, err)
	require.Empty(t, before.Damaged)
	require.Greater(t, before.Blocks, 2)

	logs, err := filepath.Glob(filepath.Join(dir, "segments", "*", "*.vlog"))
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	raw, err := os.ReadFile(logs[0])
	require.NoError(t, err)
	raw[len(raw)/2] ^= 0x10
	require.NoError(t, os.WriteFile(logs[0], raw, 0o600))

	after, err := Verify(ctx, openSpool(t, dir), nil)
	require.NoError(t, err)
	require.Len(t, after.Damaged, 1)
	require.Equal(t, before.Blocks-1, after.Blocks)

	var got lines
	res, err := Replay(ctx, openSpool(t, dir), options(), &got, nil)
	require.NoError(t, err)
	require.Len(t, res.Damaged, 1)
	require.NotEmpty(t, got.got)
}

func TestReplayStartsInTheMiddleOfASession(t *testing.T) {
	ctx := context.Background()
	src := traffic(1, 5*ms, 4, true)
	// An Anchor at the head of a batch seals the block before it.
	middle := event.Append(nil, &event.Anchor{Header: event.Header{Time: 2000 * ms}, Session: 1, Realtime: 1_700_000_000_123_456_789 + int64(2000*ms), Phase: event.AnchorStart})
	src.batches = append(src.batches[:60:60], append([][]byte{middle}, src.batches[60:]...)...)
	var blocks [][]byte
	require.NoError(t, Encode(ctx, src, func(sealed []byte) error {
		blocks = append(blocks, append([]byte(nil), sealed...))
		return nil
	}))
	require.Greater(t, len(blocks), 3)

	dir := t.TempDir()
	w := newSpool(t, dir)
	for _, b := range blocks[len(blocks)-2:] { // retention took the others, and the session's first anchor with them
		_, err := w.Append(b)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())

	var got lines
	_, err := Replay(ctx, openSpool(t, dir), options(), &got, nil)
	require.NoError(t, err)
	require.NotEmpty(t, got.got)
	sum, err := Inspect(ctx, openSpool(t, dir), nil)
	require.NoError(t, err)
	require.Len(t, sum.Sessions, 1)
	require.True(t, sum.Sessions[0].Complete)
}

func TestInspectOfAKilledRecorderTellsLowerBounds(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := newSpool(t, dir)
	src := traffic(1, 5*ms, 2, false)
	// The last Tick, and the account beside it, never reached the spool.
	src.batches = src.batches[:len(src.batches)-1]
	_, err := Record(ctx, src, w, discard)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	sum, err := Inspect(ctx, openSpool(t, dir), nil)
	require.NoError(t, err)
	require.False(t, sum.Sessions[0].Complete)
	for _, h := range sum.Hooks {
		require.True(t, h.AtLeast, "%+v", h)
		require.Equal(t, h.Stored, h.Seen)
	}
}
