package ruleset

import (
	"encoding/binary"
	"net/netip"
)

// Type is the type of one field of a key or of a map's data.
type Type uint8

// The types in use. Their numbers are weir's own; internal/nft knows the kernel's.
const (
	IPv4Addr      Type = iota + 1 // 4 bytes, network order
	IPv6Addr                      // 16 bytes
	Protocol                      // 1 byte, IANA protocol number
	Port                          // 2 bytes, network order
	Integer                       // 4 bytes, host order
	IfName                        // 16 bytes, the name of a device and zeros
	TCPFlagByte                   // 1 byte, the flags of a TCP segment
	ICMPTypeByte                  // 1 byte, the type of an ICMP message
	ICMP6TypeByte                 // 1 byte, the type of an ICMPv6 message
	MarkBits                      // 4 bytes, host order, of the mark of a packet or connection
	RouteType                     // 4 bytes, host order, the type of a route
)

var typeInfo = [...]struct {
	name   string // as in `type …`; "" where nft knows it by `typeof` alone
	typeOf string // an expression of that type, as in `typeof …`
	size   int
}{
	IPv4Addr: {"ipv4_addr", "ip daddr", 4},
	IPv6Addr: {"ipv6_addr", "ip6 daddr", 16},
	Protocol: {"inet_proto", "meta l4proto", 1},
	Port:     {"inet_service", "th dport", 2},
	Integer:  {"", "numgen inc mod 2", 4},

	IfName:        {"ifname", "iifname", 16},
	TCPFlagByte:   {"tcp_flag", "tcp flags", 1},
	ICMPTypeByte:  {"icmp_type", "icmp type", 1},
	ICMP6TypeByte: {"icmpv6_type", "icmpv6 type", 1},
	MarkBits:      {"mark", "meta mark", 4},
	RouteType:     {"fib_addrtype", "fib daddr type", 4},
}

// Size returns the number of meaningful bytes.
func (t Type) Size() int { return typeInfo[t].size }

// Padded returns the bytes the field takes in registers: Size rounded up to four.
func (t Type) Padded() int { return (typeInfo[t].size + 3) &^ 3 }

// Types is the type of a whole key or of a map's data: one field or a concatenation.
type Types []Type

// Len returns the length in registers, in bytes.
func (ts Types) Len() int {
	n := 0
	for _, t := range ts {
		n += t.Padded()
	}
	return n
}

// AppendAddr appends a in register layout.
func AppendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

// AppendPort appends p in register layout.
func AppendPort(b []byte, p uint16) []byte { return append(b, byte(p>>8), byte(p), 0, 0) }

// AppendByte appends a one-byte field in register layout.
func AppendByte(b []byte, v uint8) []byte { return append(b, v, 0, 0, 0) }

// AppendInteger appends v in register layout.
func AppendInteger(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }
