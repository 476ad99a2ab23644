// Package flow answers one question, the same way everywhere: which slot does this
// connection belong to, and whose slot is it? It knows the 5-tuple, the keyed hash
// that the kernel computes over it, and the tables (Maglev, weighted rounds) that
// turn a slot number into a member.
//
// Everything here is a pure function of its arguments: nothing depends on the
// machine, the process, the order of a map or the time. Two nodes with the same
// seed and the same members choose alike, and so does the kernel.
package flow

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// jhashInit is the arbitrary constant every jhash state starts from
// (JHASH_INITVAL in the kernel's include/linux/jhash.h).
const jhashInit = 0xdeadbeef

// Hash is the kernel's jhash(key, len(key), seed): Bob Jenkins' lookup3 in its
// byte-wise little-endian form (include/linux/jhash.h; hashlittle in
// burtleburtle.net/bob/c/lookup3.c). It is what nft's "jhash" expression computes,
// before its mod and offset, over the registers that hold the key
// (net/netfilter/nft_hash.c).
//
// The key is the content of those registers, byte for byte: each field of the
// expression in network order, padded with zero bytes to a multiple of 4 where the
// expression is a concatenation. The length that nft sends, and the kernel hashes,
// includes the padding of every field, the last one too; a field that stands alone
// is hashed in its own length, without padding:
//
//	ip saddr                 4 bytes
//	ip saddr . th sport      4 + 2 + 2 zeros = 8
//	ip6 saddr                16
//	ip6 saddr . th sport     16 + 2 + 2 zeros = 20
//	th sport                 2
//
// The kernel reads the key in words of the host's byte order, so this equals what
// little-endian machines compute (amd64, arm64, riscv64, ppc64le); big-endian ones
// choose other slots than their neighbours.
func Hash(key []byte, seed uint32) uint32 {
	a := jhashInit + uint32(len(key)) + seed
	b, c := a, a
	// The last block, even a full one, is left to the finish: hence >, not >=.
	for len(key) > 12 {
		a += binary.LittleEndian.Uint32(key)
		b += binary.LittleEndian.Uint32(key[4:])
		c += binary.LittleEndian.Uint32(key[8:])
		a, b, c = mix(a, b, c)
		key = key[12:]
	}
	if len(key) == 0 {
		return c
	}
	var tail [12]byte
	copy(tail[:], key)
	a += binary.LittleEndian.Uint32(tail[0:])
	b += binary.LittleEndian.Uint32(tail[4:])
	c += binary.LittleEndian.Uint32(tail[8:])
	return finish(a, b, c)
}

// mix stirs one block of 12 bytes into the state; it is reversible, so that no
// block is forgotten.
func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a = (a - c) ^ bits.RotateLeft32(c, 4)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 6)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 8)
	b += a
	a = (a - c) ^ bits.RotateLeft32(c, 16)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 19)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

// finish lets every bit of the state reach c, which is the hash.
func finish(a, b, c uint32) uint32 {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}

// Scale maps a hash evenly to [0, mod) by a multiplication, as the kernel's
// reciprocal_scale does (include/linux/kernel.h). It is what nft writes as "mod":
// not the remainder. A mod of 0, which the kernel refuses, gives 0.
func Scale(hash, mod uint32) uint32 {
	return uint32(uint64(hash) * uint64(mod) >> 32)
}

// Choose is nft's whole expression "jhash … mod MOD seed SEED offset OFFSET": a
// number in [offset, offset+mod). For key see Hash. The kernel refuses a mod of 0
// and an offset+mod-1 beyond 32 bits; Choose does not check.
func Choose(key []byte, seed, mod, offset uint32) uint32 {
	return Scale(Hash(key, seed), mod) + offset
}

// KeySize is the length in bytes of the longest key that KeySource and
// KeySourcePort make: an IPv6 address and a padded port.
const KeySize = 20

// KeySource writes the key of "ip saddr" or "ip6 saddr" to buf and returns the part
// it used: 4 bytes for IPv4 (a 4-in-6 address counts as IPv4), 16 for IPv6. addr
// must be valid; a zone is not part of a packet and is ignored.
func KeySource(buf *[KeySize]byte, addr netip.Addr) []byte {
	return buf[:putAddr(buf, addr)]
}

// KeySourcePort writes the key of "ip saddr . th sport" or "ip6 saddr . th sport"
// to buf and returns the part it used: 8 bytes for IPv4, 20 for IPv6. For addr see
// KeySource.
func KeySourcePort(buf *[KeySize]byte, addr netip.Addr, port uint16) []byte {
	n := putAddr(buf, addr)
	buf[n], buf[n+1], buf[n+2], buf[n+3] = byte(port>>8), byte(port), 0, 0
	return buf[:n+4]
}

// putAddr writes addr in network order and returns its length.
func putAddr(buf *[KeySize]byte, addr netip.Addr) int {
	if addr = addr.Unmap(); addr.Is4() {
		a := addr.As4()
		return copy(buf[:], a[:])
	}
	a := addr.As16()
	return copy(buf[:], a[:])
}
