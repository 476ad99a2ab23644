package ruleset

// NoSYN matches TCP segments that do not ask for a new connection: those whose SYN flag is
// not set. The protocol must be matched before it.
type NoSYN struct{}

// Notrack keeps the packet from conntrack, which then neither finds nor makes a
// connection for it. It belongs in a chain of a priority below conntrack's own, -200.
type Notrack struct{}

func (NoSYN) stmt()   {}
func (Notrack) stmt() {}

// flags returns the packet's flags. Where it does not say them, the first one of a
// connection is its SYN, unless Packet.Late says otherwise.
func (x *ruleRun) flags() TCPFlags {
	switch {
	case x.p.Flags != 0:
		return TCPFlags(x.p.Flags)
	case x.p.Conn == nil && !x.p.Late:
		return SYN
	}
	return ACK
}

func (x *ruleRun) noSYN() (bool, Verdict) {
	if x.flags()&SYN != 0 {
		return x.fail("the packet asks for a new connection")
	}
	return x.hold("the packet does not ask for a new connection")
}

func (x *ruleRun) notrack() (bool, Verdict) {
	x.untracked = !x.tracked
	return x.hold("conntrack does not see the packet")
}
