// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"net/netip"
)

// keySize is the length of a key of cryptoPAn: 16 bytes for AES-128 and 16 for the padding.
const keySize = 32

// maxPseudonyms bounds the addresses whose pseudonym is remembered.
const maxPseudonyms = 1 << 20

// cryptoPAn replaces addresses so that two which share a prefix of n bits have pseudonyms that share one of n bits too, and no more
// (J. Xu, J. Fan, M. Ammar, S. Moon: Prefix-Preserving IP Address Anonymization, ICNP 2002). The same key gives the same pseudonyms in
// every recording. IPv4 and IPv6 addresses are two separate trees; for IPv6 the construction is the same with 128 rounds.
type cryptoPAn struct {
	aes   cipher.Block
	pad   [16]byte
	known map[[16]byte][16]byte
}

func newCryptoPAn(key *[keySize]byte) *cryptoPAn {
	c, err := aes.NewCipher(key[:16])
	if err != nil {
		panic("BUG: " + err.Error())
	}
	p := &cryptoPAn{aes: c, known: map[[16]byte][16]byte{}}
	c.Encrypt(p.pad[:], key[16:])
	return p
}

// map16 returns the pseudonym of an address as records have it. The unspecified address stands for "any" and stays.
func (c *cryptoPAn) map16(a [16]byte) [16]byte {
	addr := netip.AddrFrom16(a)
	if addr.Unmap().IsUnspecified() {
		return a
	}
	if to, ok := c.known[a]; ok {
		return to
	}
	to := a
	if addr.Is4In6() {
		c.bits(to[12:], a[12:])
	} else {
		c.bits(to[:], a[:])
	}
	if len(c.known) >= maxPseudonyms {
		clear(c.known)
	}
	c.known[a] = to
	return to
}

// bits flips each bit of a by a bit that all the bits before it decide: the first of AES(those, then the padding).
func (c *cryptoPAn) bits(dst, a []byte) {
	hi, lo := binary.BigEndian.Uint64(c.pad[:8]), binary.BigEndian.Uint64(c.pad[8:])
	var ahi, alo uint64
	if len(a) == 4 {
		ahi = uint64(binary.BigEndian.Uint32(a)) << 32
	} else {
		ahi, alo = binary.BigEndian.Uint64(a), binary.BigEndian.Uint64(a[8:])
	}
	var flips [16]byte
	var in, out [16]byte
	for i := range 8 * len(a) {
		// The i bits before come from the address, the rest from the padding.
		mhi, mlo := ^(^uint64(0) >> i), uint64(0)
		if i >= 64 {
			mhi, mlo = ^uint64(0), ^(^uint64(0) >> (i - 64))
		}
		binary.BigEndian.PutUint64(in[:8], ahi&mhi|hi&^mhi)
		binary.BigEndian.PutUint64(in[8:], alo&mlo|lo&^mlo)
		c.aes.Encrypt(out[:], in[:])
		flips[i/8] |= out[0] >> 7 << (7 - i%8)
	}
	for i := range a {
		dst[i] = a[i] ^ flips[i]
	}
}
