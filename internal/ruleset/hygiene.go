package ruleset

// ClampMSS lowers the maximum segment size that a SYN announces to what the route to its
// destination and the one back to its source bear, the smaller MTU of the two less 40 bytes
// in IPv4 and 60 in IPv6 (net/netfilter/nft_rt.c); it never raises it, and a SYN that
// announces none stays as it is (net/netfilter/nft_exthdr.c). It can be in forward, output and
// postrouting alone, and the protocol must be matched before it.
type ClampMSS struct{}

// SourceKept matches packets that conntrack knows and whose source is not translated. What
// conntrack does not know (invalid, untracked) has no status and matches nothing.
type SourceKept struct{}

// CameIn matches packets that came in by some device: those that the box itself sends
// have none. In postrouting the kernel tells from Linux 5.7 on, and before that it never
// matches there.
type CameIn struct{}

func (ClampMSS) stmt()   {}
func (SourceKept) stmt() {}
func (CameIn) stmt()     {}

func (x *ruleRun) clampMSS() (bool, Verdict) {
	return x.hold("the SYN announces no more than the routes bear")
}

func (x *ruleRun) sourceKept() (bool, Verdict) {
	switch {
	case !x.tracked:
		return x.fail("conntrack does not know the packet")
	case x.status()&statusSrcNAT != 0:
		return x.fail("the connection's source is translated")
	}
	return x.hold("the connection's source is not translated")
}

func (x *ruleRun) cameIn() (bool, Verdict) {
	if x.p.Local {
		return x.fail("the box itself sends the packet")
	}
	return x.hold("the packet came in from outside")
}
