package ruleset

import "net/netip"

// FirstSNAT matches the first packets of connections whose source is translated: until the
// kernel has taken the connection into its table, which it does behind the last chain of
// postrouting (nf_conntrack_confirm in net/netfilter/nf_conntrack_core.c).
type FirstSNAT struct{}

func (FirstSNAT) stmt() {}

func (s SNAT) text() string {
	to, ports := s.To.String(), ""
	if s.Via != nil {
		to = exprText(s.Via)
	} else if s.To.Is6() && !s.Ports.IsZero() {
		to = "[" + to + "]"
	}
	if !s.Ports.IsZero() {
		ports = " : " + s.Ports.String()
	}
	return "snat " + s.Family.String() + " to " + to + ports
}

func (m Masquerade) text() string {
	if m.Ports.IsZero() {
		return "masquerade"
	}
	return "masquerade to :" + m.Ports.String()
}

func (x *ruleRun) firstSNAT() (bool, Verdict) {
	if !x.tracked || x.status()&(statusSrcNAT|statusConfirmed) != statusSrcNAT {
		return x.fail("the packet is not the first of a connection whose source is translated")
	}
	return x.hold("the packet is the first of a connection whose source is translated")
}

func (x *ruleRun) snat(s SNAT) (bool, Verdict) {
	if ok, v := x.family(s.Family); !ok {
		return ok, v
	}
	to := s.To
	if s.Via != nil {
		data, ok := x.value(s.Via)
		if !ok {
			return false, Verdict{}
		}
		to, _ = netip.AddrFromSlice([]byte(data[:AddrType(s.Family).Size()]))
	}
	words := ""
	port := x.src.Port()
	if !s.Ports.IsZero() {
		words = ", with a port of " + s.Ports.String()
		if !s.Ports.Contains(port) {
			port = s.Ports.Lo // which of them only the kernel knows
		}
	}
	x.conn.ReplyDst = netip.AddrPortFrom(to, port)
	x.srcDone, x.trace.SNAT, x.trace.Ports = true, to, s.Ports
	return x.decide(Verdict{Kind: AcceptPacket}, "the source becomes %s%s", to, words)
}

func (x *ruleRun) masquerade(m Masquerade) (bool, Verdict) {
	words := ""
	if !m.Ports.IsZero() {
		words = ", with a port of " + m.Ports.String()
	}
	x.srcDone, x.trace.Masquerade, x.trace.Ports = true, true, m.Ports
	return x.decide(Verdict{Kind: AcceptPacket}, "the source becomes the outgoing interface's address%s", words)
}
