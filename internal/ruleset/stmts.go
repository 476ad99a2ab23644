package ruleset

import (
	"net/netip"
	"time"

	"weir/internal/model"
)

// Expr gives a value: a field of the packet or its connection, a choice, or what a map
// holds under a key.
type Expr interface{ expr() }

// Field is a value read from the packet or its connection.
type Field uint8

// The fields in use.
const (
	IPSaddr       Field = iota + 1 // ip saddr
	IPDaddr                        // ip daddr
	IP6Saddr                       // ip6 saddr
	IP6Daddr                       // ip6 daddr
	SPort                          // th sport
	DPort                          // th dport
	L4Proto                        // meta l4proto
	NFProto                        // meta nfproto, 1 byte: 2 IPv4, 10 IPv6
	CtDirection                    // ct direction, 1 byte
	CtStatus                       // ct status, 4 bytes of bits
	CtOrigDaddr4                   // ct original ip daddr
	CtOrigDaddr6                   // ct original ip6 daddr
	CtOrigDPort                    // ct original proto-dst; nft wants `meta l4proto X` before it
	CtReplySaddr4                  // ct reply ip saddr
	CtReplySaddr6                  // ct reply ip6 saddr
	CtReplySPort                   // ct reply proto-src; as CtOrigDPort
	IIFName                        // iifname, by which the packet came in
	OIFName                        // oifname, by which it leaves
	TCPFlagBits                    // tcp flags, 1 byte; the protocol must be matched before it
	ICMPType                       // icmp type, as TCPFlagBits
	ICMP6Type                      // icmpv6 type, as TCPFlagBits
	FibDaddrType                   // fib daddr type: what the box's routes make of the destination
	NextHop4                       // rt ip nexthop: the neighbour that the packet is sent to
	NextHop6                       // rt ip6 nexthop
)

var fieldInfo = [...]struct {
	text string
	typ  Type
}{
	IPSaddr:       {"ip saddr", IPv4Addr},
	IPDaddr:       {"ip daddr", IPv4Addr},
	IP6Saddr:      {"ip6 saddr", IPv6Addr},
	IP6Daddr:      {"ip6 daddr", IPv6Addr},
	SPort:         {"th sport", Port},
	DPort:         {"th dport", Port},
	L4Proto:       {"meta l4proto", Protocol},
	NFProto:       {"meta nfproto", Protocol},
	CtDirection:   {"ct direction", Protocol},
	CtStatus:      {"ct status", Integer},
	CtOrigDaddr4:  {"ct original ip daddr", IPv4Addr},
	CtOrigDaddr6:  {"ct original ip6 daddr", IPv6Addr},
	CtOrigDPort:   {"ct original proto-dst", Port},
	CtReplySaddr4: {"ct reply ip saddr", IPv4Addr},
	CtReplySaddr6: {"ct reply ip6 saddr", IPv6Addr},
	CtReplySPort:  {"ct reply proto-src", Port},
	IIFName:       {"iifname", IfName},
	OIFName:       {"oifname", IfName},
	TCPFlagBits:   {"tcp flags", TCPFlagByte},
	ICMPType:      {"icmp type", ICMPTypeByte},
	ICMP6Type:     {"icmpv6 type", ICMP6TypeByte},
	FibDaddrType:  {"fib daddr type", RouteType},
	NextHop4:      {"rt ip nexthop", IPv4Addr},
	NextHop6:      {"rt ip6 nexthop", IPv6Addr},
}

// Type returns the type of the field's value.
func (f Field) Type() Type { return fieldInfo[f].typ }

// Key is one expression or a concatenation.
type Key []Expr

// Numgen counts up (or draws) a number in [Offset, Offset+Mod). An incremental one has
// its state in the rule: it starts at Offset when the rule is loaded.
type Numgen struct {
	Random bool
	Mod    uint32 // at least 1
	Offset uint32
}

// Const is a fixed number in a place where nft syntax allows no constant: it prints,
// and is sent, as `numgen inc mod 1 offset N`.
func Const(n uint32) Numgen { return Numgen{Mod: 1, Offset: n} }

// Hash is nft's jhash of Key, scaled to [Offset, Offset+Mod); internal/flow has the same.
type Hash struct {
	Key    Key
	Mod    uint32
	Seed   uint32
	Offset uint32
}

// MapGet looks Key up in the map named Map. Where there is none, the rule ends.
type MapGet struct {
	Key Key
	Map string
}

// Concat is several values one after the other, for a map's data.
type Concat []Field

// FixedPort is a constant port.
type FixedPort uint16

func (Field) expr()  {}
func (Numgen) expr() {}
func (Hash) expr()   {}
func (MapGet) expr() {}
func (Concat) expr() {}

func (FixedPort) expr() {}

// Stmt is one statement of a rule. A match that fails ends the rule, and so does a
// look-up that finds nothing.
type Stmt interface{ stmt() }

// Match compares a one-byte field with a value.
type Match struct {
	Field Field // L4Proto, NFProto or CtDirection
	Value uint8
}

// StatusDNAT matches packets of connections whose destination was translated.
type StatusDNAT struct{}

// NotLoopback matches packets that did not come in by the loopback device: those that
// went from the box to itself have passed the hooks on the way out before.
type NotLoopback struct{}

// InSet matches when Key is in the set named Set; a counter of the element counts.
type InSet struct {
	Key Key
	Set string
}

// VMap looks Key up in the verdict map named Map and goes where it says.
type VMap struct {
	Key Key
	Map string
}

// Update adds Key (to Data, in a map) to the dynamic set or map named Set, or renews the
// timeout of the element that is there; a counter of the element counts.
type Update struct {
	Set     string
	Key     Key
	Data    Expr          // a Field or a Concat; nil for a set
	Timeout time.Duration // 0: none
}

// CountOver counts the connection under Key in the dynamic set named Set, which has no
// timeouts, and matches when more than Limit are counted there. A connection that has
// ended counts no more (TCP: from TIME_WAIT on; net/netfilter/nf_conncount.c). An element
// keeps the limit with which it was made.
type CountOver struct {
	Set   string
	Key   Key
	Limit uint32
}

// Expires compares the time after which the kernel forgets the connection if no packet
// comes; 0 for the first packet of a connection.
type Expires struct {
	AtLeast bool // at least Time; else less than Time
	Time    time.Duration
}

// TCPFlags matches TCP packets that have one of the flags.
type TCPFlags uint8

// Flags of the TCP header (RFC 9293 section 3.1, RFC 3168).
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	psh
	ACK
	urg
	ece
	cwr
)

// DNAT sets the destination of the connection and ends the evaluation.
type DNAT struct {
	Family model.Family
	To     Expr // a MapGet whose data is an address, or address . port if WithPort
	// WithPort says that To brings the port too.
	WithPort bool
	Port     Expr // a FixedPort, or nil
}

// SNAT sets the source address of the connection and ends the evaluation.
type SNAT struct {
	Family model.Family
	To     netip.Addr
	Via    Expr // in place of To: a MapGet whose data is an address
	// Ports are those that the connection may have; zero: its own where that is free. The
	// protocol must be matched before it.
	Ports model.PortRange
}

// Masquerade sets the source address to the outgoing interface's own. Ports are as SNAT's.
type Masquerade struct{ Ports model.PortRange }

// RejectWith refuses the packet: a TCP reset, or else ICMP port unreachable.
type RejectWith struct {
	TCPReset   bool
	Prohibited bool // without TCPReset: ICMP administratively prohibited
}

// Verdict is what a rule ends with.
type Verdict struct {
	Kind  VerdictKind
	Chain string // for JumpTo and GotoChain
}

// VerdictKind is the word of a verdict.
type VerdictKind string

// The verdicts in use.
const (
	AcceptPacket VerdictKind = "accept"
	DropPacket   VerdictKind = "drop"
	JumpTo       VerdictKind = "jump"
	GotoChain    VerdictKind = "goto"
	ReturnBack   VerdictKind = "return"
	ContinueRule VerdictKind = "continue" // in a verdict map alone
)

func (Match) stmt()       {}
func (StatusDNAT) stmt()  {}
func (NotLoopback) stmt() {}
func (InSet) stmt()       {}
func (VMap) stmt()        {}
func (Update) stmt()      {}
func (CountOver) stmt()   {}
func (Expires) stmt()     {}
func (TCPFlags) stmt()    {}
func (DNAT) stmt()        {}
func (SNAT) stmt()        {}
func (Masquerade) stmt()  {}
func (RejectWith) stmt()  {}
func (Verdict) stmt()     {}

// The values of NFProto.
const (
	nfprotoIPv4 = 2
	nfprotoIPv6 = 10
)

// IsFamily matches packets of family f.
func IsFamily(f model.Family) Match {
	if f == model.IPv4 {
		return Match{NFProto, nfprotoIPv4}
	}
	return Match{NFProto, nfprotoIPv6}
}

// IsProto matches packets of protocol p.
func IsProto(p model.Proto) Match { return Match{L4Proto, uint8(p)} }

// AddrType returns the type of an address of family f.
func AddrType(f model.Family) Type {
	if f == model.IPv4 {
		return IPv4Addr
	}
	return IPv6Addr
}

func pick(f model.Family, v4, v6 Field) Field {
	if f == model.IPv4 {
		return v4
	}
	return v6
}

// Source returns the first bits of the source address of family f as a key; all of it where
// bits is its length.
func Source(f model.Family, bits int) Key {
	if bits == 8*AddrType(f).Size() {
		return Key{Saddr(f)}
	}
	return Key{Masked{Saddr(f), bits}}
}

// Saddr returns the source address field of family f.
func Saddr(f model.Family) Field { return pick(f, IPSaddr, IP6Saddr) }

// Daddr returns the destination address field of family f.
func Daddr(f model.Family) Field { return pick(f, IPDaddr, IP6Daddr) }

// CtOrigDaddr returns the field that holds the address the client first asked for.
func CtOrigDaddr(f model.Family) Field { return pick(f, CtOrigDaddr4, CtOrigDaddr6) }
