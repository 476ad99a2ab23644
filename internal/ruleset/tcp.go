package ruleset

// NoSYN matches TCP segments that do not ask for a new connection: those whose SYN flag is
// not set. The protocol must be matched before it.
type NoSYN struct{}

func (NoSYN) stmt() {}

// noSYN tells by what the packet is, for a Packet has no flags: the first one of a
// connection is its SYN, unless Packet.Late says otherwise.
func (x *ruleRun) noSYN() (bool, Verdict) {
	if x.p.Conn == nil && !x.p.Late {
		return x.fail("the packet asks for a new connection")
	}
	return x.hold("the packet does not ask for a new connection")
}
