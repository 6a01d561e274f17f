// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
	"github.com/tcbee/tcbee-export/spool/block"
)

// appendBlocks stores the batches, per of them to a block.
func appendBlocks(t testing.TB, w *spool.Writer, batches [][]byte, per int) {
	t.Helper()
	b := block.NewBuilder(block.Options{})
	seal := func() {
		if b.Events() > 0 {
			_, err := w.Append(b.Seal(nil))
			require.NoError(t, err)
		}
	}
	for i, batch := range batches {
		b.Add(batch)
		if i%per == per-1 {
			seal()
		}
	}
	seal()
}

// recordsOf returns all records of a spool.
func recordsOf(t *testing.T, dir string) (list [][]byte) {
	t.Helper()
	dec := block.NewDecoder()
	var damaged []Damage
	require.NoError(t, eachBlock(context.Background(), openSpool(t, dir), nil, &damaged, func(_ spool.ID, src []byte) error {
		raw, err := dec.Decode(nil, src)
		require.NoError(t, err)
		require.NoError(t, event.Check(raw))
		for h := range event.All(raw) {
			list = append(list, append([]byte(nil), h.Bytes()...))
		}
		return nil
	}))
	require.Empty(t, damaged)
	return list
}

func kindsOf(t *testing.T, dir string) map[event.Kind]int {
	t.Helper()
	kinds := map[event.Kind]int{}
	for _, r := range recordsOf(t, dir) {
		kinds[event.At(r).Kind]++
	}
	return kinds
}

func cut(t *testing.T, from string, sel Selection) (string, Derived) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "cut")
	res, err := Cut(context.Background(), openSpool(t, from), to, spool.Encryption{}, sel, nil)
	require.NoError(t, err)
	require.Empty(t, res.Damaged)
	_, err = os.Stat(to + unfinished)
	require.ErrorIs(t, err, os.ErrNotExist)
	return to, res
}

func TestCutReplaysAsTheSelectionDoes(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 10, HostMeta())
	for name, sel := range map[string]Selection{
		"beginning":  {To: moment(t, "3100ms")},
		"middle":     {From: moment(t, "3100ms"), To: moment(t, "7s")},
		"end":        {From: moment(t, "-4500ms")},
		"connection": {Connections: []Pattern{pattern(t, "10.0.0.1:40003-10.0.0.2:80")}},
		"both":       {From: moment(t, "3100ms"), Connections: []Pattern{pattern(t, "10.0.0.1:40003")}},
	} {
		t.Run(name, func(t *testing.T) {
			to, res := cut(t, dir, sel)
			want := replayOf(t, dir, sel)
			require.NotEmpty(t, want)
			require.Equal(t, want, replayOf(t, to, Selection{}))
			require.Equal(t, flowsOf(t, dir, sel), flowsOf(t, to, Selection{}))
			require.Equal(t, 1, res.Sessions)
			require.NotZero(t, res.Events)
			require.Less(t, res.Events, res.Source.Events)

			kinds := kindsOf(t, to)
			require.Zero(t, kinds[event.KindAccounting])
			require.NotZero(t, kinds[event.KindTick])
			sum, err := Verify(context.Background(), openSpool(t, to), nil)
			require.NoError(t, err)
			require.Empty(t, sum.Damaged)
			require.Zero(t, sum.Late)
			require.Len(t, sum.Sessions, 1)
			require.True(t, sum.Sessions[0].Complete)
			require.Equal(t, "0000000000000001", sum.Sessions[0].ID)
			require.Equal(t, res.Events, sum.Events)
			for _, h := range sum.Hooks {
				require.True(t, h.Unaccounted)
				require.True(t, h.Balanced())
				text, err := json.Marshal(h)
				require.NoError(t, err)
				require.NotContains(t, string(text), "seen")
				var back HookCount
				require.NoError(t, json.Unmarshal(text, &back))
				require.Equal(t, h, back)
			}
			meta := openSpool(t, to).Segments()[0].Meta
			require.Equal(t, sel.describe()["from"], meta.Extra["cut.from"])
			require.Equal(t, sel.describe()["connections"], meta.Extra["cut.connections"])
			require.Equal(t, HostMeta().Host, meta.Host)
		})
	}
}

func TestCutCopiesWholeSessionsAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 3, HostMeta())
	recordedSpool(t, dir, 2, 1e12, 3, HostMeta())
	to, res := cut(t, dir, Selection{From: moment(t, "5m")})
	require.Equal(t, 1, res.Sessions)
	sum, err := Inspect(context.Background(), openSpool(t, to), nil)
	require.NoError(t, err)
	require.Len(t, sum.Sessions, 1)
	require.Equal(t, "0000000000000002", sum.Sessions[0].ID)
	for _, h := range sum.Hooks {
		require.False(t, h.Unaccounted)
		require.True(t, h.Balanced())
	}

	to, res = cut(t, dir, Selection{From: moment(t, "1s")})
	require.Equal(t, 2, res.Sessions)
	sum, err = Inspect(context.Background(), openSpool(t, to), nil)
	require.NoError(t, err)
	require.Len(t, sum.Sessions, 2)
	for _, h := range sum.Hooks {
		require.True(t, h.Unaccounted, "one session of two is counted")
	}
}

func TestCutKeepsInterfacesAndHoles(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	src := traffic(1, 5*ms, 4, true)
	link := event.Append(nil, &event.Link{Header: event.Header{Time: 5*ms + 1, Netns: 1}, Ifindex: 7, MTU: 1500, Name: [16]byte{'e', 't', 'h', '0'}})
	later := event.Append(nil, &event.Link{Header: event.Header{Time: 500 * ms, Netns: 1}, Ifindex: 7, MTU: 9000, Name: [16]byte{'e', 't', 'h', '0'}})
	lost := func(at uint64) []byte {
		return event.Append(nil, &event.Lost{Header: event.Header{Time: at, CPU: 1}, First: at - ms, Last: at, Count: [event.Hooks]uint32{event.HookTCIngress: 3}})
	}
	batches := append([][]byte{src.batches[0], link}, src.batches[1:18]...)
	batches = append(batches, later, lost(600*ms))
	batches = append(batches, src.batches[18:90]...)
	batches = append(batches, lost(3000*ms))
	batches = append(batches, src.batches[90:]...)
	w := newSpool(t, dir)
	appendBlocks(t, w, batches, 15)
	require.NoError(t, w.Close())

	for name, sel := range map[string]Selection{
		"time":       {From: moment(t, "1500ms")},
		"connection": {From: moment(t, "1500ms"), Connections: []Pattern{pattern(t, ":40001")}},
	} {
		t.Run(name, func(t *testing.T) {
			to, _ := cut(t, dir, sel)
			var links []event.Link
			list := recordsOf(t, to)
			for _, r := range list {
				if h := event.At(r); h.Kind == event.KindLink {
					links = append(links, *h.Link())
				}
			}
			require.Len(t, links, 1)
			require.EqualValues(t, 9000, links[0].MTU, "the newest news of the interface")
			require.Equal(t, event.At(list[0]).Time, links[0].Time, "told at the beginning")
			sum, err := Verify(ctx, openSpool(t, to), nil)
			require.NoError(t, err)
			require.Len(t, sum.Holes, 1)
			require.Zero(t, sum.Late)
		})
	}
}

func TestCutOfNothingIsAnEmptySpool(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 2, HostMeta())
	to, res := cut(t, dir, Selection{Connections: []Pattern{pattern(t, "192.0.2.1")}})
	require.Zero(t, res.Events)
	require.Zero(t, res.Blocks)
	require.Empty(t, recordsOf(t, to))
}

func TestDerivedSpoolsNeedAFreePlace(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 2, HostMeta())
	sel := Selection{From: moment(t, "1s")}
	var target *TargetError

	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "letter"), []byte("dear"), 0o600))
	_, err := Cut(ctx, openSpool(t, dir), full, spool.Encryption{}, sel, nil)
	require.ErrorAs(t, err, &target)
	require.FileExists(t, filepath.Join(full, "letter"))

	// Into itself.
	_, err = Cut(ctx, openSpool(t, dir), dir, spool.Encryption{}, sel, nil)
	require.ErrorAs(t, err, &target)

	empty := t.TempDir()
	_, err = Cut(ctx, openSpool(t, dir), empty, spool.Encryption{}, sel, nil)
	require.NoError(t, err)
	require.NotEmpty(t, recordsOf(t, empty))

	left := filepath.Join(t.TempDir(), "new")
	require.NoError(t, os.Mkdir(left+unfinished, 0o700))
	_, err = Cut(ctx, openSpool(t, dir), left, spool.Encryption{}, sel, nil)
	require.ErrorAs(t, err, &target)
	require.Contains(t, target.Hint(), "rm -r")
	require.DirExists(t, left+unfinished)
}

func TestCancelledCutLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	recordedSpool(t, dir, 1, 5*ms, 5, HostMeta())
	ctx, cancel := context.WithCancel(context.Background())
	to := filepath.Join(t.TempDir(), "new")
	_, err := Cut(ctx, openSpool(t, dir), to, spool.Encryption{}, Selection{Connections: []Pattern{pattern(t, ":80")}}, func(done, _ uint64) {
		if done == 2 {
			cancel()
		}
	})
	require.ErrorIs(t, err, context.Canceled)
	entries, err := os.ReadDir(filepath.Dir(to))
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestMergeKeepsSessionsAndTheirRecorders(t *testing.T) {
	ctx := context.Background()
	one, two := t.TempDir(), t.TempDir()
	recordedSpool(t, one, 1, 5*ms, 3, spool.Meta{Host: "alpha"})
	recordedSpool(t, two, 2, 1e12, 3, spool.Meta{Host: "beta"})
	recordedSpool(t, one, 3, 2e12, 3, spool.Meta{Host: "alpha"})

	to := filepath.Join(t.TempDir(), "all")
	res, err := Merge(ctx, to, spool.Encryption{}, []Input{{two, openSpool(t, two)}, {one, openSpool(t, one)}}, nil)
	require.NoError(t, err)
	require.Equal(t, 3, res.Sessions)
	require.Equal(t, res.Source.Events, res.Events)
	require.Equal(t, res.Source.Blocks, res.Blocks)
	require.Equal(t, res.Source.Bytes, res.Bytes)

	sum, err := Verify(ctx, openSpool(t, to), nil)
	require.NoError(t, err)
	var order []string
	for _, s := range sum.Sessions {
		require.True(t, s.Complete)
		order = append(order, s.ID[15:])
	}
	require.Equal(t, []string{"1", "2", "3"}, order)
	for _, h := range sum.Hooks {
		require.True(t, h.Balanced())
		require.False(t, h.Unaccounted)
	}

	alpha, beta := replayOf(t, one, Selection{}), replayOf(t, two, Selection{})
	merged := replayOf(t, to, Selection{})
	third := len(beta)
	require.Len(t, merged, 3*third)
	require.Equal(t, alpha[:third], merged[:third])
	require.Equal(t, beta, merged[third:2*third])
	require.Equal(t, alpha[third:], merged[2*third:])
	require.Contains(t, merged[third], "beta")

	_, err = Merge(ctx, filepath.Join(t.TempDir(), "x"), spool.Encryption{}, []Input{{one, openSpool(t, one)}, {to, openSpool(t, to)}}, nil)
	var twice *MergeError
	require.ErrorAs(t, err, &twice)
	require.ErrorContains(t, err, "session 0000000000000001 is in "+one+" too")
}
