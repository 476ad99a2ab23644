package plan

import (
	"net/netip"
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// A SYN proxy answers clients before a server, or conntrack, hears of them. The way of a
// connection to a proxied listener:
//
//	SYN      it is not translated, and IPv4 is kept from conntrack; in input or forward,
//	         wherever the route of the listener's address leads, the proxy answers it, and it
//	         goes no further
//	ACK      conntrack takes it for the first packet of a connection it does not know, or for
//	         invalid (nf_conntrack_tcp_loose=0): either way it is not translated, gets to the
//	         same hook, and proves the client's address
//	SYN'     the kernel sends the server one in the client's name, through output: there it is
//	         a new connection like any other, and finds its backend
//
// The proxy in the kernel (nf_synproxy_core.c) then joins the two by translating sequence
// numbers. All that comes later is a packet of that connection.

// What the proxy tells clients. It can not know what the server would say: the largest
// segments of Ethernet, and the window scale that Linux chooses for buffers of 6 MB.
const (
	proxyMSS4   = 1460
	proxyMSS6   = 1440
	proxyWScale = 7
)

// proxiedSpec: listeners with a SYN proxy.
func proxiedSpec(f model.Family) setSpec {
	return setSpec{Name: "syn-proxy" + digit(f), Key: listenerKey(f)}
}

// synProxy adds the TCP listeners of family f, and returns what keeps from being translated
// what is no SYN.
func (u *unit) synProxy(f model.Family) []ruleset.Rule {
	var t twins
	for _, l := range u.service.Listen {
		if l.Family() == f && l.Proto == model.TCP {
			t.add(l, listenElement(l, netip.Addr{}))
		}
	}
	u.addTwins(proxiedSpec(f), &t)
	if u.service.Local() || len(t.protos[0])+len(t.protos[1]) == 0 {
		return nil
	}
	return []ruleset.Rule{{Comment: "for the SYN proxy",
		Stmts: []ruleset.Stmt{ruleset.IsFamily(f), ruleset.IsProto(model.TCP), ruleset.NoSYN{}, accept}}}
}

// proxyUntracked keeps IPv4 SYNs to proxied listeners from conntrack. The SYN that the kernel
// sends a program on the box comes by here on the loopback device, and must be tracked.
//
// IPv6 SYNs are better not kept from it: the kernel's proxy verifies their checksums as if
// they were IPv4 (nft_synproxy_do_eval calls nf_ip_checksum), and so drops packets that do not
// count as verified yet. Where a card gives a sum of the whole packet (CHECKSUM_COMPLETE),
// conntrack verifies it (nf_ip6_checksum). What it makes for the SYN is thrown away with it,
// before it gets into the table. What neither card nor GRO has looked at is dropped still.
func proxyUntracked(u usage) []ruleset.Rule {
	return eachProxied(u, model.IPv4, "a SYN for the proxy", fromOutside(), notracked()...)
}

// proxyUntranslated keeps IPv6 SYNs to proxied listeners from being translated. In output the
// same would be the SYN that the kernel sends.
func proxyUntranslated(u usage) []ruleset.Rule {
	return eachProxied(u, model.IPv6, "a SYN for the proxy", fromOutside(), accept)
}

func fromOutside() []ruleset.Stmt {
	return []ruleset.Stmt{ruleset.NotLoopback{}, ruleset.IsProto(model.TCP), ruleset.IsSYN{}}
}

// proxyRules answer SYNs, and take the ACKs that follow. Most packets end at the first
// statement.
func proxyRules(u usage) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		syn, proxy := ruleset.Untracked, ruleset.SynProxy{MSS: proxyMSS4, WScale: proxyWScale}
		if f == model.IPv6 {
			syn, proxy.MSS = ruleset.New, proxyMSS6
		}
		rules = append(rules, eachProxied(u, f, "answer the SYN",
			append([]ruleset.Stmt{ruleset.CtState{States: syn}}, fromOutside()...), proxy)...)
		rules = append(rules, eachProxied(u, f, "its client's answer", []ruleset.Stmt{ruleset.CtState{States: ruleset.New | ruleset.Invalid},
			ruleset.IsProto(model.TCP), ruleset.NoSYN{}}, proxy)...)
	}
	return rules
}

// eachProxied returns a rule for each set of proxied listeners of family f.
func eachProxied(u usage, f model.Family, words string, match []ruleset.Stmt, then ...ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, s := range []setSpec{proxiedSpec(f), proxiedSpec(f).twin()} {
		if u[s.Name] == nil {
			continue
		}
		stmts := append(slices.Clip(match), ruleset.IsFamily(f), ruleset.InSet{Key: askedKey(f), Set: s.Name})
		rules = append(rules, ruleset.Rule{Comment: words, Stmts: append(stmts, then...)})
	}
	return rules
}

// eval follows a packet, and where a SYN proxy takes it, the SYN that the kernel sends in its
// place.
func (p *Plan) eval(packet ruleset.Packet, env *ruleset.Env) ruleset.Trace {
	ev := ruleset.NewEvaluator(p.Ruleset)
	trace := ev.Eval(packet, env)
	if !trace.Proxied {
		return trace
	}
	packet.Local = true
	second := ev.Eval(packet, env)
	second.Steps = append(trace.Steps, second.Steps...)
	second.Proxied = true
	return second
}
