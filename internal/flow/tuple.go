package flow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// IANA protocol numbers that have a name in the text form of a tuple.
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// Tuple is the 5-tuple of a packet as it is on the wire, before any translation.
type Tuple struct {
	Src, Dst netip.AddrPort // of one family; never 4-in-6, never with a zone
	Proto    uint8          // IANA protocol number
}

// String returns "203.0.113.9:40000 -> 198.51.100.10:80/tcp".
func (t Tuple) String() string {
	return t.Src.String() + " -> " + FormatEndpoint(t.Dst, t.Proto)
}

// ParseTuple makes a tuple of a source and a destination, each an endpoint as
// ParseEndpoint reads it. The protocol is said at either end, or at both alike. An
// error says which end is wrong and what is allowed.
func ParseTuple(src, dst string) (Tuple, error) {
	s, sp, err := ParseEndpoint(src)
	if err != nil {
		return Tuple{}, fmt.Errorf("source: %w", err)
	}
	d, dp, err := ParseEndpoint(dst)
	if err != nil {
		return Tuple{}, fmt.Errorf("destination: %w", err)
	}
	switch {
	case s.Addr().Is4() != d.Addr().Is4():
		return Tuple{}, fmt.Errorf("source %s and destination %s are of different IP versions", s.Addr(), d.Addr())
	case sp == 0 && dp == 0:
		return Tuple{}, fmt.Errorf("no protocol: write the destination as %s", FormatEndpoint(d, protoTCP))
	case sp != 0 && dp != 0 && sp != dp:
		return Tuple{}, fmt.Errorf("source is %s but destination is %s", protoName(sp), protoName(dp))
	}
	return Tuple{Src: s, Dst: d, Proto: max(sp, dp)}, nil
}

// FormatEndpoint returns "198.51.100.10:80/tcp" or "[2001:db8::1]:80/tcp"; protocol
// 0 leaves the last part out.
func FormatEndpoint(ap netip.AddrPort, proto uint8) string {
	if proto == 0 {
		return ap.String()
	}
	return ap.String() + "/" + protoName(proto)
}

// ParseEndpoint reads ADDRESS:PORT or ADDRESS:PORT/PROTOCOL, an IPv6 address in
// brackets. The protocol is tcp, udp, sctp or a number from 1 to 255; where none is
// said, 0 is returned. 4-in-6 addresses and zones are errors, because no packet
// carries them.
func ParseEndpoint(s string) (netip.AddrPort, uint8, error) {
	where, protoText, hasProto := strings.Cut(s, "/")
	ap, err := netip.ParseAddrPort(where)
	if err != nil {
		return netip.AddrPort{}, 0, fmt.Errorf("%q is not ADDRESS:PORT/PROTOCOL, such as 198.51.100.10:80/tcp or [2001:db8::1]:80/tcp", s)
	}
	switch {
	case ap.Addr().Is4In6():
		return netip.AddrPort{}, 0, fmt.Errorf("%q: write the IPv4 address %s as such", s, ap.Addr().Unmap())
	case ap.Addr().Zone() != "":
		return netip.AddrPort{}, 0, fmt.Errorf("%q: an address with a zone is not allowed", s)
	case !hasProto:
		return ap, 0, nil
	}
	proto, err := parseProto(protoText)
	if err != nil {
		return netip.AddrPort{}, 0, fmt.Errorf("%q: %w", s, err)
	}
	return ap, proto, nil
}

// protoName returns the name of proto, or its number where it has none here.
func protoName(proto uint8) string {
	switch proto {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoSCTP:
		return "sctp"
	}
	return strconv.Itoa(int(proto))
}

func parseProto(s string) (uint8, error) {
	switch s {
	case "tcp":
		return protoTCP, nil
	case "udp":
		return protoUDP, nil
	case "sctp":
		return protoSCTP, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("protocol %q is not tcp, udp, sctp or a number from 1 to 255", s)
	}
	return uint8(n), nil
}
