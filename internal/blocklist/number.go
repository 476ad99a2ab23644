package blocklist

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// number is an address as a number: 32 bits of an IPv4 address or 128 of an IPv6 one.
// A netip.Addr takes 24 bytes, these take 4 and 16, and a list has millions of them.
type number[A any] interface {
	comparable
	cmp(A) int            // less, equal, greater: -1, 0, +1
	first(n int) A        // first address of the prefix of length n that holds it
	last(n int) A         // last address of that prefix
	next() A              // the address behind it; wraps to zero
	common(A) int         // length of the longest prefix that holds both
	zeros() int           // zero bits at the right end; the width for zero
	width() int           // 32 or 128
	byte(i int) byte      // in network order
	addr() netip.Addr     // never 4-in-6
	append([]byte) []byte // in network order
	networks(A) uint64    // IPv4: addresses from it to the other; IPv6: /48 networks
}

type v4 uint32

func (a v4) cmp(b v4) int            { return cmp.Compare(a, b) }
func (a v4) first(n int) v4          { return a &^ v4(uint64(0xffffffff)>>n) }
func (a v4) last(n int) v4           { return a | v4(uint64(0xffffffff)>>n) }
func (a v4) next() v4                { return a + 1 }
func (a v4) common(b v4) int         { return bits.LeadingZeros32(uint32(a ^ b)) }
func (a v4) zeros() int              { return bits.TrailingZeros32(uint32(a)) }
func (a v4) width() int              { return 32 }
func (a v4) byte(i int) byte         { return byte(a >> (24 - 8*i)) }
func (a v4) append(to []byte) []byte { return binary.BigEndian.AppendUint32(to, uint32(a)) }
func (a v4) networks(b v4) uint64    { return uint64(b-a) + 1 }

func (a v4) addr() netip.Addr {
	var buf [4]byte
	binary.BigEndian.PutUint32(buf[:], uint32(a))
	return netip.AddrFrom4(buf)
}

type v6 struct{ hi, lo uint64 }

func (a v6) cmp(b v6) int {
	if a.hi != b.hi {
		return cmp.Compare(a.hi, b.hi)
	}
	return cmp.Compare(a.lo, b.lo)
}

// hosts6 returns the bits behind a prefix of length n.
func hosts6(n int) v6 {
	if n >= 64 {
		return v6{0, ^uint64(0) >> (n - 64)}
	}
	return v6{^uint64(0) >> n, ^uint64(0)}
}

func (a v6) first(n int) v6 {
	h := hosts6(n)
	return v6{a.hi &^ h.hi, a.lo &^ h.lo}
}

func (a v6) last(n int) v6 {
	h := hosts6(n)
	return v6{a.hi | h.hi, a.lo | h.lo}
}

func (a v6) next() v6 {
	lo, carry := bits.Add64(a.lo, 1, 0)
	return v6{a.hi + carry, lo}
}

func (a v6) common(b v6) int {
	if a.hi != b.hi {
		return bits.LeadingZeros64(a.hi ^ b.hi)
	}
	return 64 + bits.LeadingZeros64(a.lo^b.lo)
}

func (a v6) zeros() int {
	if a.lo != 0 {
		return bits.TrailingZeros64(a.lo)
	}
	return 64 + bits.TrailingZeros64(a.hi)
}

func (a v6) byte(i int) byte {
	if i < 8 {
		return byte(a.hi >> (56 - 8*i))
	}
	return byte(a.lo >> (120 - 8*i))
}

func (a v6) append(to []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(to, a.hi), a.lo)
}

func (a v6) width() int           { return 128 }
func (a v6) networks(b v6) uint64 { return b.hi>>16 - a.hi>>16 + 1 }

func (a v6) addr() netip.Addr {
	var buf [16]byte
	binary.BigEndian.PutUint64(buf[:8], a.hi)
	binary.BigEndian.PutUint64(buf[8:], a.lo)
	return netip.AddrFrom16(buf)
}

// numberOf returns one of the two numbers, and which: a 4-in-6 address is IPv4.
func numberOf(a netip.Addr) (four v4, six v6, is4 bool) {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return v4(binary.BigEndian.Uint32(b[:])), v6{}, true
	}
	b := a.As16()
	return 0, v6{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, false
}

// prefix is an address and a length, no bit set behind it.
type prefix[A number[A]] struct {
	addr A
	bits uint8
}

func (p prefix[A]) last() A { return p.addr.last(int(p.bits)) }

func (p prefix[A]) netip() netip.Prefix { return netip.PrefixFrom(p.addr.addr(), int(p.bits)) }

// compare orders prefixes by address, the wider first.
func (p prefix[A]) compare(o prefix[A]) int {
	if c := p.addr.cmp(o.addr); c != 0 {
		return c
	}
	return cmp.Compare(p.bits, o.bits)
}

// take returns the widest prefix that starts at first and does not go beyond last, which
// is not before first. Taken again and again, it splits a range into the fewest prefixes:
// at most 62 for IPv4, 254 for IPv6.
func take[A number[A]](first, last A) prefix[A] {
	n := first.common(last)
	if first.first(n) == first && first.last(n) == last {
		return prefix[A]{first, uint8(n)}
	}
	// Beyond last, or not aligned: both are over before the common length grows.
	n = max(first.width()-first.zeros(), n)
	for first.last(n).cmp(last) > 0 {
		n++
	}
	return prefix[A]{first, uint8(n)}
}

// split appends the prefixes that first to last is made of, in order.
func split[A number[A]](to []prefix[A], first, last A) []prefix[A] {
	for {
		p := take(first, last)
		to = append(to, p)
		end := p.last()
		if end == last {
			return to
		}
		first = end.next()
	}
}
