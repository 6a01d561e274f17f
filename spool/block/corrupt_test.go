// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/bpf/event"
)

// sampleBlock returns a block of n records of generated traffic.
func sampleBlock(t testing.TB, n int) []byte {
	t.Helper()
	b := NewBuilder(Options{})
	b.Add(newTraffic(5, 20, true).records(n))
	return b.Seal(nil)
}

// mend corrects the lengths and the CRCs of a damaged block, so that decoders look further.
func mend(p []byte) []byte {
	if len(p) < minBlock {
		return p
	}
	p = slices.Clone(p)
	binary.LittleEndian.PutUint32(p[offLength:], uint32(len(p)))
	head := binary.LittleEndian.Uint32(p[offHead:])
	if head < fixedSize+4 || int64(head)+4 > int64(len(p)) {
		return p
	}
	binary.LittleEndian.PutUint32(p[head-4:], crc32.Checksum(p[:head-4], castagnoli))
	binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.Checksum(p[head:len(p)-4], castagnoli))
	return p
}

func TestCorruptBlockIsToldWithItsPlace(t *testing.T) {
	whole := sampleBlock(t, 3000)
	var h head
	require.NoError(t, h.read(whole))
	require.NotEmpty(t, h.filter)
	with := func(off int, b ...byte) []byte {
		p := slices.Clone(whole)
		copy(p[off:], b)
		return p
	}
	flip := func(off int) []byte { return with(off, whole[off]^0x10) }
	tests := map[string]struct {
		in   []byte
		err  error
		text string
	}{
		"empty":                   {nil, ErrCorrupt, "header, offset 0: unexpected end"},
		"a few bytes":             {whole[:9], ErrCorrupt, "header, offset 9: unexpected end"},
		"not a block":             {bytes.Repeat([]byte("text"), 100), ErrCorrupt, "bad magic"},
		"newer format":            {with(offVersion, Version+1), ErrVersion, "format 2"},
		"newer records":           {with(offSchema, SchemaVersion+1), ErrVersion, "records 2"},
		"version 0":               {with(offVersion, 0), ErrCorrupt, "version 0"},
		"unknown flags":           {with(offFlags, 1), ErrCorrupt, "unknown flags"},
		"torn after the fixed":    {whole[:fixedSize], ErrCorrupt, "torn: offset 16: unexpected end"},
		"torn in the directory":   {whole[:h.directory+10], ErrCorrupt, "torn"},
		"torn tail":               {whole[:len(whole)-3], ErrCorrupt, "torn"},
		"bytes after the end":     {append(slices.Clone(whole), 0), ErrCorrupt, "1 bytes after the block's end"},
		"head longer than all":    {with(offHead, 0xff, 0xff, 0xff, 0x7f), ErrCorrupt, "head of 2147483647 bytes"},
		"flip in the counts":      {flip(fixedSize + 1), ErrCorrupt, "header and directory, offset 0 to"},
		"flip in the anchor":      {flip(fixedSize + 40), ErrCorrupt, "header and directory"},
		"flip in the directory":   {flip(h.directory + h.dirLen/2), ErrCorrupt, "header and directory"},
		"flip in the filter":      {flip(h.directory - len(h.filter)), ErrCorrupt, "header and directory"},
		"flip in the head's CRC":  {flip(h.Head - 2), ErrCorrupt, "header and directory"},
		"flip in the first frame": {flip(h.Head + 10), ErrCorrupt, "columns, offset"},
		"flip in the bits":        {flip(len(whole) - 100), ErrCorrupt, "columns, offset"},
		"flip in the last CRC":    {flip(len(whole) - 1), ErrCorrupt, "columns, offset"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dst := make([]byte, 8, 64)
			got, err := NewDecoder().Decode(dst, tt.in)
			require.ErrorIs(t, err, tt.err)
			require.ErrorContains(t, err, tt.text)
			require.Equal(t, dst, got)
		})
	}
}

// TestDirectoryNeedsNoColumns shows that damage in the columns does not hide the head.
func TestDirectoryNeedsNoColumns(t *testing.T) {
	p := sampleBlock(t, 3000)
	want, err := NewDecoder().Directory(nil, p)
	require.NoError(t, err)
	p[len(p)-50] ^= 1
	got, err := NewDecoder().Directory(nil, p)
	require.NoError(t, err)
	require.Equal(t, want, got)
	_, err = ReadInfo(p)
	require.NoError(t, err)
	_, err = NewDecoder().Decode(nil, p)
	require.ErrorIs(t, err, ErrCorrupt)
}

// TestEveryFlippedByteIsNoticed flips bytes in every column, of the directory too, and in all that is around them: the error says in which part.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	p := sampleBlock(t, 300)
	var h head
	require.NoError(t, h.read(p))
	head, dirLen := h.Head, h.directory+h.dirLen
	d := NewDecoder()
	for i := range p {
		for _, x := range []byte{0x01, 0x80, 0xff} {
			p[i] ^= x
			_, err := d.Decode(nil, p)
			require.Error(t, err, "byte %d", i)
			switch {
			case i >= head:
				require.ErrorContains(t, err, ": columns, offset ", "byte %d", i)
			case i >= fixedSize && i < dirLen+4:
				require.ErrorContains(t, err, ": header and directory, offset 0 to ", "byte %d", i)
			}
			_, err = d.Directory(nil, p[:head])
			require.Equal(t, i < head, err != nil, "the directory is independent of the columns, byte %d: %v", i, err)
			p[i] ^= x
		}
	}
	_, err := d.Decode(nil, p)
	require.NoError(t, err, "the decoder is fit for use after errors")
}

// TestDamageBehindTheCRC damages blocks and corrects their CRCs: what follows may be an error or
// wrong records, but no panic, and records are well-formed.
func TestDamageBehindTheCRC(t *testing.T) {
	p := sampleBlock(t, 100)
	b, d := NewBuilder(Options{}), NewDecoder()
	for i := fixedSize; i < len(p); i++ {
		for _, x := range []byte{0x01, 0x80} {
			p[i] ^= x
			inspect(t, b, d, mend(p))
			p[i] ^= x
		}
	}
	for n := range p {
		inspect(t, b, d, mend(p[:n]))
	}
}

// inspect decodes what may be damaged and checks what came of it.
func inspect(t testing.TB, b *Builder, d *Decoder, p []byte) {
	info, err := ReadInfo(p)
	if err != nil {
		return
	}
	if entries, err := d.Directory(nil, p); err == nil {
		require.Len(t, entries, info.Connections-1)
	}
	out, err := d.Decode(nil, p)
	if err != nil {
		return
	}
	require.Len(t, out, info.Raw)
	require.NoError(t, event.Check(out))
	n := 0
	for range event.All(out) {
		n++
	}
	require.Equal(t, info.Events, n)
	// What was decoded can be encoded, and then it is the same.
	b.Add(out)
	again, err := d.Decode(nil, b.Seal(nil))
	require.NoError(t, err)
	requireSame(t, out, again)
}
