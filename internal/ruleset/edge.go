package ruleset

import (
	"slices"
	"strings"
)

// CtState matches packets in one of those states of their connection; packets that
// conntrack does not know match none but Untracked.
type CtState struct{ States CtStates }

// CtStates are bits: those of NF_CT_STATE_BIT and NF_CT_STATE_UNTRACKED_BIT in
// include/uapi/linux/netfilter/nf_conntrack_common.h.
type CtStates uint32

// The states in use.
const (
	Established CtStates = 1 << 1 // of a connection that has seen both directions
	Related     CtStates = 1 << 2 // begins another one that a known one asked for, or is an ICMP error about it
	New         CtStates = 1 << 3 // the first of a connection, or a late one of a forgotten one
	Invalid     CtStates = 1 << 0 // no connection, and none can begin with it
	Untracked   CtStates = 1 << 6 // a rule kept it from conntrack
)

// OnLoopback matches packets of the loopback device: those that came in by it or, with Out,
// those that will leave by it because the box sends them to itself.
type OnLoopback struct{ Out bool }

// OutDevice matches packets that leave by the device of that name.
type OutDevice struct{ Name string }

func (CtState) stmt()    {}
func (OnLoopback) stmt() {}
func (OutDevice) stmt()  {}

// AppendDevice appends the name of a network device, at most 15 bytes, in register layout.
func AppendDevice(b []byte, name string) []byte {
	var v [16]byte
	copy(v[:], name)
	return append(b, v[:]...)
}

// DeviceOf reads what AppendDevice wrote.
func DeviceOf(b string) string { return strings.TrimRight(b[:IfName.Size()], "\x00") }

// flagNames are nft's words for the flags, in the order of their bits.
var flagNames = []string{"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"}

// flagsText is the text of a byte of flags as nft takes it in an element.
func flagsText(v uint8) string {
	if v == 0 {
		return "0x0"
	}
	return strings.Join(TCPFlags(v).words(), " | ")
}

// validFlags are the combinations that mean something, PSH, ECE and CWR left out: what
// conntrack takes for valid (tcp_valid_flags in net/netfilter/nf_conntrack_proto_tcp.c).
var validFlags = []TCPFlags{
	SYN, SYN | urg, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | urg, ACK, ACK | urg,
}

// InvalidFlags returns every value of the byte of TCP flags that no sender of good faith
// makes: none at all, SYN with FIN or RST, FIN without ACK, and so on.
func InvalidFlags() []uint8 {
	var out []uint8
	for v := range 256 {
		if !slices.Contains(validFlags, TCPFlags(v)&^(psh|ece|cwr)) {
			out = append(out, uint8(v))
		}
	}
	return out
}

// ctState knows a packet as established when the connection it belongs to is given.
func (x *ruleRun) ctState(s CtState) (bool, Verdict) {
	switch {
	case x.untracked && s.States&Untracked != 0:
		return x.hold("conntrack does not see the packet")
	case !x.tracked:
		return x.fail("conntrack does not know the packet")
	case x.p.Conn == nil && s.States&New != 0:
		return x.hold("the packet begins a connection")
	case x.p.Conn == nil:
		return x.fail("the packet belongs to no known connection")
	case s.States&Established == 0:
		return x.fail("the packet belongs to a known connection")
	}
	return x.hold("the packet belongs to a known connection")
}

func (x *ruleRun) onLoopback(s OnLoopback) (bool, Verdict) {
	itself := x.p.Local && x.at != Output && x.at != Postrouting
	if s.Out {
		itself = x.p.Local && x.p.ToLocal != nil && x.p.ToLocal(x.dst.Addr())
	}
	if !itself {
		return x.fail("the packet does not take the loopback device")
	}
	return x.hold("the packet takes the loopback device")
}

func (x *ruleRun) outDevice(s OutDevice) (bool, Verdict) {
	if x.p.Out != s.Name {
		return x.fail("the packet leaves by %s, not %s", deviceWords(x.p.Out), s.Name)
	}
	return x.hold("the packet leaves by %s", s.Name)
}

func deviceWords(name string) string {
	if name == "" {
		return "a device that is not known"
	}
	return name
}

// edgeField reads the fields that only access rules look at.
func (x *ruleRun) edgeField(f Field) (string, bool) {
	switch f {
	case IIFName:
		name := x.p.In
		if x.p.Local && (x.at == Prerouting || x.at == Input) {
			name = "lo"
		}
		return string(AppendDevice(nil, name)), true
	case FibDaddrType:
		return x.routeType(), true
	case OIFName:
		return string(AppendDevice(nil, x.p.Out)), true
	case TCPFlagBits:
		return string(AppendByte(nil, uint8(x.flags()))), x.p.Proto == 6
	case ICMPType:
		return string(AppendByte(nil, x.p.ICMPType)), x.p.Proto == 1
	case ICMP6Type:
		return string(AppendByte(nil, x.p.ICMPType)), x.p.Proto == 58
	}
	return "", false
}
