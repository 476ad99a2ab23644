package match

import (
	"fmt"
	"strings"
)

// Header is the header that a condition counts its offset from.
type Header uint8

// The headers, in the order in which errors list them.
const (
	IP Header = iota
	IP6
	TCP
	UDP
	SCTP
	ICMP
	ICMP6
)

// headers are the names of the headers and, of those of a transport, the IANA protocol number.
var headers = [...]struct {
	name  string
	proto uint8
}{
	IP:    {"ip", 0},
	IP6:   {"ip6", 0},
	TCP:   {"tcp", protoTCP},
	UDP:   {"udp", protoUDP},
	SCTP:  {"sctp", protoSCTP},
	ICMP:  {"icmp", protoICMP},
	ICMP6: {"icmp6", protoICMP6},
}

// String returns the name of the header.
func (h Header) String() string {
	if int(h) < len(headers) {
		return headers[h].name
	}
	return fmt.Sprintf("header %d", uint8(h))
}

// transport reports whether the header is one behind the header of IP.
func (h Header) transport() bool { return headers[h].proto != 0 }

// MaxOffset is the highest offset of a condition in bytes: nobody needs more of a packet's
// payload to know it, and what is copied of every packet must reach that far.
const MaxOffset = 1400

// MaxConditions is how many conditions may be joined.
const MaxConditions = 16

// Condition compares some bytes of a packet.
type Condition struct {
	Header Header
	Offset int    // in bytes from the first of the header, 0 to MaxOffset
	Length int    // in bytes: 1, 2, 4 or 8
	Not    bool   // the bytes are others
	Mask   uint64 // the bits that are compared, at least one, within the length
	Value  uint64 // what they are; no bits beside Mask
}

// String returns the condition in its one canonical form, which Parse reads.
func (c Condition) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s[%d:%d]", c.Header, c.Offset, c.Length)
	if c.Mask != full(c.Length) {
		fmt.Fprintf(&b, " & 0x%0*x", 2*c.Length, c.Mask)
	}
	op := "="
	if c.Not {
		op = "!="
	}
	fmt.Fprintf(&b, " %s 0x%0*x", op, 2*c.Length, c.Value)
	return b.String()
}

// full is the mask of all bits of so many bytes.
func full(length int) uint64 { return ^uint64(0) >> (64 - 8*length) }

// Conditions hold together or not at all. None of them hold of every packet.
type Conditions []Condition

// String returns the conditions in their canonical form, which Parse reads; "" for none.
func (cs Conditions) String() string {
	parts := make([]string, len(cs))
	for i, c := range cs {
		parts[i] = c.String()
	}
	return strings.Join(parts, " and ")
}

// Match reports whether all conditions hold of the packet.
func (cs Conditions) Match(p *Packet) bool {
	for i := range cs {
		if !cs[i].Match(p) {
			return false
		}
	}
	return true
}

// Match reports whether the condition holds of the packet.
func (c *Condition) Match(p *Packet) bool {
	at := 0
	switch c.Header {
	case IP:
		if p.V6 {
			return false
		}
	case IP6:
		if !p.V6 {
			return false
		}
	default:
		if p.Transport == 0 || p.Proto != headers[c.Header].proto {
			return false
		}
		at = p.Transport
	}
	at += c.Offset
	if at+c.Length > len(p.Data) {
		return false
	}
	v := uint64(0)
	for _, x := range p.Data[at : at+c.Length] {
		v = v<<8 | uint64(x)
	}
	return (v&c.Mask == c.Value) != c.Not
}

// maxHeaders is how many bytes of headers may stand before a transport header, as far as
// CopyLength reckons: an IPv6 header and some extension headers. It is more than the longest
// header of IPv4, which has 60.
const maxHeaders = 128

// portBytes is how many bytes of a transport header hold its ports.
const portBytes = 4

// CopyLength returns how many bytes of a packet must be there for the conditions to be told,
// and its ports, where there are no more than 128 bytes before the transport header.
func (cs Conditions) CopyLength() int {
	n := maxHeaders + portBytes
	for _, c := range cs {
		end := c.Offset + c.Length
		if c.Header.transport() {
			end += maxHeaders
		}
		n = max(n, end)
	}
	return n
}
