package blocklist

import (
	"bytes"
	"net/netip"
)

// fault is what is wrong with a line, and where: bytes from and to of it. Its words are
// only made for those that are kept: a file may have a million bad lines.
type fault struct {
	kind     kind
	from, to int
}

// kind is a kind of fault; its words are in problem.go.
type kind uint8

const (
	fine kind = iota
	notEntry
	badBits4
	badBits6
	badMappedBits
	hasZone
	backwards
	twoFamilies
	behind
	tooLong
	setCommand
	setOption
	setValue
	setNoEntry
	setPorts
	setType
	setMask
	setSecond
	notJSON
	cutJSON
	noCIDR
	badCIDR
	recordCount
)

// span is what one entry covers: the addresses from first to last of one family.
type span struct {
	is4            bool
	first4, last4  v4
	first6, last6  v6
	masked, mapped bool // bits behind the prefix were cleared; it was 4-in-6
}

// parse reads ADDRESS, ADDRESS/BITS or ADDRESS-ADDRESS, which must be all of text. Spaces
// may stand around the "-". at is where text begins in its line.
func (s *span) parse(text []byte, at int) fault {
	a, n := scan4(text)
	if n == 0 {
		return s.parse6(text, at)
	}
	*s = span{is4: true, first4: a, last4: a}
	if n == len(text) {
		return fault{}
	}
	if text[n] == '/' {
		bits, ok := scanBits(text[n+1:])
		switch {
		case !ok:
			return fault{notEntry, at, at + len(text)}
		case bits > 32:
			return fault{badBits4, at + n + 1, at + len(text)}
		}
		s.first4, s.last4 = a.first(bits), a.last(bits)
		s.masked = a != s.first4
		return fault{}
	}
	return s.parseRange(text, n, at)
}

// parse6 is parse for all that is not plain IPv4.
func (s *span) parse6(text []byte, at int) fault {
	a, n := scan6(text)
	if n == 0 {
		return fault{notEntry, at, at + len(text)}
	}
	s.set6(a, a)
	switch {
	case n == len(text):
		return fault{}
	case text[n] == '%':
		return fault{hasZone, at, at + len(text)}
	case text[n] != '/':
		return s.parseRange(text, n, at)
	}
	bits, ok := scanBits(text[n+1:])
	switch {
	case !ok:
		return fault{notEntry, at, at + len(text)}
	case bits > 128:
		return fault{badBits6, at + n + 1, at + len(text)}
	case s.mapped && bits < 96:
		return fault{badMappedBits, at + n + 1, at + len(text)}
	}
	s.set6(a.first(bits), a.last(bits))
	s.masked = a != a.first(bits)
	return fault{}
}

// set6 makes s the addresses from first to last, IPv4 ones when both are 4-in-6.
func (s *span) set6(first, last v6) {
	*s = span{first6: first, last6: last}
	const mapped = 0xffff
	if first.hi == 0 && first.lo>>32 == mapped && last.hi == 0 && last.lo>>32 == mapped {
		*s = span{is4: true, mapped: true, first4: v4(first.lo), last4: v4(last.lo)}
	}
}

// parseRange reads what stands behind a range's first address, which is in s and ends at
// text[n].
func (s *span) parseRange(text []byte, n, at int) fault {
	i := n + spaces(text[n:])
	if i == len(text) || text[i] != '-' {
		if i > n {
			return fault{behind, at + i, at + len(text)}
		}
		return fault{notEntry, at, at + len(text)}
	}
	i++
	i += spaces(text[i:])
	var end span
	switch f := end.parse(text[i:], at+i); {
	case f.kind != fine && f.kind != notEntry:
		return f
	case f.kind == notEntry || bytes.ContainsAny(text[i:], "/-"):
		return fault{notEntry, at, at + len(text)}
	case end.is4 != s.is4:
		return fault{twoFamilies, at, at + len(text)}
	}
	s.last4, s.last6 = end.first4, end.first6
	s.mapped = s.mapped || end.mapped
	if s.first4 > s.last4 || s.first6.cmp(s.last6) > 0 {
		return fault{backwards, at, at + len(text)}
	}
	return fault{}
}

// spaces returns how many blanks b begins with.
func spaces(b []byte) int {
	n := 0
	for n < len(b) && (b[n] == ' ' || b[n] == '\t') {
		n++
	}
	return n
}

// scanBits reads a decimal number of up to three digits, without zeros before it.
func scanBits(b []byte) (n int, ok bool) {
	if len(b) == 0 || len(b) > 3 || (b[0] == '0' && len(b) > 1) {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

// scan4 reads an IPv4 address at the start of b, as netip.ParseAddr does, and returns
// its length; 0 when there is none.
func scan4(b []byte) (a v4, n int) {
	for field := 0; ; field++ {
		start, v := n, 0
		for n < len(b) && b[n] >= '0' && b[n] <= '9' {
			v = 10*v + int(b[n]-'0')
			if n++; n-start > 3 {
				return 0, 0
			}
		}
		if n == start || v > 255 || (b[start] == '0' && n-start > 1) {
			return 0, 0
		}
		a = a<<8 | v4(v)
		if field == 3 {
			return a, n
		}
		if n == len(b) || b[n] != '.' {
			return 0, 0
		}
		n++
	}
}

// scan6 reads an IPv6 address at the start of b, as netip.ParseAddr does, and returns
// its length; 0 when there is none.
func scan6(b []byte) (a v6, n int) {
	var words [8]uint16
	count, gap := 0, -1 // gap: how many words stand before "::"
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		gap, n = 0, 2
	}
	for count < 8 {
		v, digits := scanHex(b[n:])
		if digits == 0 && gap == count {
			break // "::" is the end
		}
		n += digits
		if digits == 0 || digits > 4 {
			return v6{}, 0
		}
		if n < len(b) && b[n] == '.' {
			return scanDotted(b)
		}
		words[count] = v
		count++
		if n == len(b) || b[n] != ':' || count == 8 {
			break
		}
		n++
		if n < len(b) && b[n] == ':' {
			if gap >= 0 {
				return v6{}, 0
			}
			gap = count
			n++
		}
	}
	if (count < 8) != (gap >= 0) {
		return v6{}, 0
	}
	if gap >= 0 {
		moved := count - gap
		copy(words[8-moved:], words[gap:count])
		clear(words[gap : 8-moved])
	}
	for i := range 4 {
		a.hi = a.hi<<16 | uint64(words[i])
		a.lo = a.lo<<16 | uint64(words[i+4])
	}
	return a, n
}

// scanHex reads up to five hexadecimal digits; five are too many.
func scanHex(b []byte) (v uint16, n int) {
	for n < len(b) && n < 5 {
		c := b[n]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return v, n
		}
		v = v<<4 | uint16(c)
		n++
	}
	return v, n
}

// scanDotted is scan6 for an address that ends like IPv4. These are rare.
func scanDotted(b []byte) (v6, int) {
	n := 0
	for n < len(b) && n < 46 && (b[n] == ':' || b[n] == '.' || hexDigit(b[n])) {
		n++
	}
	a, err := netip.ParseAddr(string(b[:n]))
	if err != nil || !a.Is6() {
		return v6{}, 0
	}
	wide := a.As16()
	var out v6
	for i := range 8 {
		out.hi = out.hi<<8 | uint64(wide[i])
		out.lo = out.lo<<8 | uint64(wide[i+8])
	}
	return out, n
}

func hexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
