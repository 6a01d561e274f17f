// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
	"github.com/tcbee/tcbee-export/spool"
)

// referenceKey is that of the sample of the Crypto-PAn distribution.
var referenceKey = Key{
	21, 34, 23, 141, 51, 164, 207, 128, 19, 10, 91, 22, 73, 144, 125, 16,
	216, 152, 143, 131, 121, 121, 101, 39, 98, 87, 76, 45, 42, 132, 34, 2,
}

func TestCryptoPAnGivesThePublishedPseudonyms(t *testing.T) {
	pan := newCryptoPAn((*[keySize]byte)(&referenceKey))
	for from, to := range map[string]string{
		"128.11.68.132":   "135.242.180.132",
		"129.118.74.4":    "134.136.186.123",
		"130.132.252.244": "133.68.164.234",
		"141.223.7.43":    "141.167.8.160",
		"141.233.145.108": "141.129.237.235",
		"152.163.225.39":  "151.140.114.167",
		"156.29.3.236":    "147.225.12.42",
		"165.247.96.84":   "162.9.99.234",
		"166.107.77.190":  "160.132.178.185",
		"192.102.249.13":  "252.138.62.131",
		"192.215.32.125":  "252.43.47.189",
		"192.233.80.103":  "252.25.108.8",
		"192.41.57.43":    "252.222.221.184",
		"193.150.244.223": "253.169.52.216",
		"195.205.63.100":  "255.186.223.5",
		"198.200.171.101": "249.199.68.213",
		"198.26.132.101":  "249.36.123.202",
		"198.36.213.5":    "249.7.21.132",
		"198.51.77.238":   "249.18.186.254",
		"199.217.79.101":  "248.38.184.213",
	} {
		got := pan.map16(netip.MustParseAddr(from).As16())
		require.Equal(t, to, netip.AddrFrom16(got).Unmap().String(), from)
	}
	// IPv6, and with other keys: what other implementations give.
	var counting Key
	for i := range counting {
		counting[i] = byte(i)
	}
	pan = newCryptoPAn((*[keySize]byte)(&counting))
	require.Equal(t, "2.90.93.17", netip.AddrFrom16(pan.map16(netip.MustParseAddr("192.0.2.1").As16())).Unmap().String())
	other := Key([]byte("boojahyoo3vaeToong0Eijee7Ahz3yee"))
	require.Equal(t, "206.2.124.120", netip.AddrFrom16(newCryptoPAn((*[keySize]byte)(&other)).map16(netip.MustParseAddr("192.0.2.1").As16())).Unmap().String())
	require.Equal(t, "dd92:2c44:3fc0:ff1e:7ff9:c7f0:8180:7e00", netip.AddrFrom16(pan.map16(netip.MustParseAddr("2001:db8::1").As16())).String())
}

func TestCryptoPAnKeepsPrefixes(t *testing.T) {
	pan := newCryptoPAn((*[keySize]byte)(&referenceKey))
	common := func(a, b [16]byte) (n int) {
		for i := range 128 {
			if (a[i/8]^b[i/8])>>(7-i%8)&1 != 0 {
				return i
			}
		}
		return 128
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		var a, b [16]byte
		for j := range a {
			a[j] = byte(rnd.Uint32())
		}
		first := 0
		if i%2 == 0 {
			a = netip.AddrFrom4([4]byte(a[12:])).As16()
			first = 96
		}
		b = a
		at := first + rnd.IntN(128-first)
		b[at/8] ^= 1 << (7 - at%8)
		for j := at + 1; j < 128; j++ {
			b[j/8] ^= byte(rnd.Uint32()) & 1 << (7 - j%8)
		}
		require.Equal(t, at, common(a, b))
		require.Equal(t, at, common(pan.map16(a), pan.map16(b)), "%v %v", netip.AddrFrom16(a), netip.AddrFrom16(b))
	}
	for _, any := range []string{"0.0.0.0", "::"} {
		a := netip.MustParseAddr(any).As16()
		require.Equal(t, a, pan.map16(a))
	}
}

func TestAnonymizeChangesOnlyWhatTellsWho(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	local, peer := netip.MustParseAddr("10.1.2.3").As16(), netip.MustParseAddr("2001:db8::7").As16()
	head := event.Header{Time: 6 * ms, Cookie: 3, Netns: 4, SockSeq: 5, Local: local, Peer: peer, LocalPort: 40001, PeerPort: 443, Family: 6, CPU: 1, Hook: event.HookSetState}
	inc := event.Incident{Header: head, Cgroup: 77, PID: 11, TID: 12, UID: 13, OldState: event.SynSent, NewState: event.Established, Present: event.HasProcess, Comm: [16]byte{'s', 's', 'h'}}
	seg := event.Segment{Header: head, Seq: 1, Ack: 2, GSOSegs: 1, VLAN: event.NoVLAN, VLANInner: event.NoVLAN, OptionsLen: 20}
	seg.Hook, seg.Dir = event.HookTCEgress, event.DirOut
	// NOP NOP, timestamps, ADD_ADDR of 10.1.2.3 with a port.
	copy(seg.Options[:], []byte{1, 30, 10, 3<<4 | 1, 9, 10, 1, 2, 3, 0x1f, 0x90, 8, 10, 9, 8, 7, 6, 5, 4, 3})
	eth := event.Link{Header: event.Header{Time: 6 * ms, Netns: 4}, Ifindex: 2, Name: [16]byte{'w', 'g', '-', 'a', 'c', 'm', 'e'}}
	lo := event.Link{Header: event.Header{Time: 6 * ms, Netns: 4}, Ifindex: 1, Name: [16]byte{'l', 'o'}}
	batch := event.Append(nil, &inc)
	batch = event.Append(batch, &seg)
	batch = event.Append(batch, &eth)
	batch = event.Append(batch, &lo)

	src := traffic(1, 5*ms, 2, true)
	meta := spool.Meta{Host: "alpha", Kernel: "6.1", BootID: "b", MachineID: "m", HZ: 250, Program: "p", Config: []byte(`{"a":1}`), Extra: map[string]string{"cut.connections": "10.1.2.3", metaNetns: "7"}}
	cfg := spool.DefaultConfig()
	cfg.Dir = dir
	w, err := spool.Create(ctx, cfg, meta, nil)
	require.NoError(t, err)
	appendBlocks(t, w, append([][]byte{src.batches[0], batch}, src.batches[1:]...), 10)
	require.NoError(t, w.Close())

	for name, keep := range map[string]bool{"all": false, "but processes": true} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "new")
			res, err := Anonymize(ctx, openSpool(t, dir), to, spool.Encryption{}, AnonymizeOptions{Key: referenceKey, KeepProcess: keep}, nil)
			require.NoError(t, err)
			require.Equal(t, res.Source.Events, res.Events)
			require.Equal(t, res.Source.Blocks, res.Blocks)

			before, after := recordsOf(t, dir), recordsOf(t, to)
			require.Len(t, after, len(before))
			pan := newCryptoPAn((*[keySize]byte)(&referenceKey))
			for i := range before {
				want := event.At(before[i])
				if want.Family != 0 {
					want.Local, want.Peer = pan.map16(want.Local), pan.map16(want.Peer)
					require.NotEqual(t, local, want.Local)
				}
				switch {
				case want.Kind == event.KindIncident && !keep:
					x := want.Incident()
					x.Cgroup, x.PID, x.TID, x.UID, x.Comm, x.Present = 0, 0, 0, 0, [16]byte{}, 0
				case want.Kind == event.KindLink && want.Link().Ifindex == 2:
					want.Link().Name = [16]byte{'i', 'f', '2'}
				case want.Kind == event.KindSegment && want.Segment().OptionsLen == 20:
					a := pan.map16(local)
					copy(before[i][len(before[i])-24+5:], a[12:])
				}
				require.Empty(t, cmp.Diff(before[i], after[i]), "record %d", i)
			}
			got := *openSpool(t, to).Segments()[0].Meta
			require.Empty(t, cmp.Diff(spool.Meta{Kernel: "6.1", HZ: 250, Program: "p", Extra: map[string]string{"anonymized": "addresses by Crypto-PAn", metaNetns: "7"}}, got))
			sum, err := Verify(ctx, openSpool(t, to), nil)
			require.NoError(t, err)
			require.Empty(t, sum.Damaged)
			for _, h := range sum.Hooks {
				require.False(t, h.Unaccounted)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, text []byte, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, text, mode))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	for name, text := range map[string][]byte{
		"raw":                    referenceKey[:],
		"newline":                append(referenceKey[:], '\n'),
		"hex":                    []byte(hex.EncodeToString(referenceKey[:]) + "\n"),
		"base64":                 []byte(base64.StdEncoding.EncodeToString(referenceKey[:])),
		"base64 without padding": []byte(base64.RawStdEncoding.EncodeToString(referenceKey[:]) + "\r\n"),
	} {
		key, open, err := ReadKey(write(name, text, 0o600))
		require.NoError(t, err, name)
		require.Equal(t, referenceKey, key, name)
		require.False(t, open)
	}
	_, open, err := ReadKey(write("open", referenceKey[:], 0o644))
	require.NoError(t, err)
	require.True(t, open)
	_, _, err = ReadKey(write("short", referenceKey[:31], 0o600))
	require.ErrorContains(t, err, "holds no key")
	_, _, err = ReadKey(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)

	path := filepath.Join(dir, "made")
	require.NoError(t, GenerateKey(path))
	one, open, err := ReadKey(path)
	require.NoError(t, err)
	require.False(t, open)
	require.NotEqual(t, Key{}, one)
	require.ErrorIs(t, GenerateKey(path), fs.ErrExist)
	again, _, err := ReadKey(path)
	require.NoError(t, err)
	require.Equal(t, one, again)
}

func BenchmarkCryptoPAn(b *testing.B) {
	pan := newCryptoPAn((*[keySize]byte)(&referenceKey))
	a := netip.MustParseAddr("10.1.2.3").As16()
	b.ReportAllocs()
	for b.Loop() {
		clear(pan.known)
		pan.map16(a)
	}
}
