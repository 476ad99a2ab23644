package plan

import (
	"slices"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Chains that several base chains call.
const (
	chainNew      = "new"
	chainLeave    = "leave"
	chainRequests = "count-requests"
	chainReplies  = "count-replies"
	chainClosing  = "-closing" // behind those two: where the end of a connection matters
)

// hook is one base chain.
type hook struct {
	name     string
	typ      string
	hook     ruleset.Hook
	priority int
	why      string
	rules    func(usage) []ruleset.Rule
	optional bool // without rules there is no chain
}

// hooks is where weir meets packets. Priorities are those of nft's words dstnat (-100)
// and srcnat (100), at which address translation is done.
var hooks = []hook{
	{"nudges", "filter", ruleset.Output, -300,
		"what weir sends the clients of connections that it cuts off must not meet conntrack, which looks at -200", nudges, true},
	{"prerouting", "nat", ruleset.Prerouting, -100,
		"new connections from outside get their backend before the route is looked up",
		func(u usage) []ruleset.Rule { return append(proxyUntranslated(u), dispatch(u)...) }, false},
	{"output", "nat", ruleset.Output, -100,
		"so do new connections of the box itself, which never see prerouting", dispatch, false},
	{"input", "nat", ruleset.Input, 100,
		"new connections to a backend on the box itself are counted here", arrive, false},
	{"postrouting", "nat", ruleset.Postrouting, 100,
		"new connections are counted, and get their source once the way out is known", depart, false},
	{"egress-new", "filter", ruleset.Postrouting, 110,
		"what got a source from whomever, at 100, is counted once more by it", egressNewRules, true},
	{"count-in", "filter", ruleset.Input, 99,
		"packets to the box itself, counted just before replies get the listener's address back", countIn, false},
	{"count-out", "filter", ruleset.Postrouting, 99,
		"packets that leave, whoever sent them; together with count-in each is counted once", count, false},
}

// baseChains returns the base chains and those that they call.
func baseChains(u usage, pools []*egressUnit) []*ruleset.Chain {
	var chains []*ruleset.Chain
	for _, h := range hooks {
		rules := h.rules(u)
		if len(rules) == 0 && h.optional {
			continue
		}
		if h.hook == ruleset.Postrouting && h.typ == "nat" {
			for _, p := range pools {
				rules = append(rules, p.rules...)
			}
		}
		chains = append(chains, &ruleset.Chain{
			Name:  h.name,
			Base:  &ruleset.Base{Type: h.typ, Hook: h.hook, Priority: h.priority},
			Rules: rules,
		})
	}
	chains = append(chains,
		&ruleset.Chain{Name: chainNew, Rules: newRules(u)},
		&ruleset.Chain{Name: chainLeave, Rules: leaveRules(u)},
		&ruleset.Chain{Name: chainRequests, Rules: countRules(u, false)},
		&ruleset.Chain{Name: chainReplies, Rules: countRules(u, true)})
	if u.closes() {
		chains = append(chains,
			&ruleset.Chain{Name: chainRequests + chainClosing, Rules: closingRules(u, false)},
			&ruleset.Chain{Name: chainReplies + chainClosing, Rules: closingRules(u, true)})
	}
	return chains
}

// keys by which a listener is found: before and after its address was translated.
func askedKey(f model.Family) ruleset.Key {
	return ruleset.Key{ruleset.Daddr(f), ruleset.L4Proto, ruleset.DPort}
}

func listenedKey(f model.Family) ruleset.Key {
	return ruleset.Key{ruleset.CtOrigDaddr(f), ruleset.L4Proto, ruleset.CtOrigDPort}
}

// requestKey is listenedKey and the backend that was chosen: where a packet to it goes,
// once the destination is translated. The connection knows the backend too, but the
// packet's own fields are read in half the time.
func requestKey(f model.Family) ruleset.Key {
	return append(listenedKey(f), ruleset.Daddr(f), ruleset.DPort)
}

// replyKey is the same for a packet back from the backend: where it comes from, as long as
// the source has not got the listener's address again.
func replyKey(f model.Family) ruleset.Key {
	return append(listenedKey(f), ruleset.Saddr(f), ruleset.SPort)
}

func dispatch(u usage) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		for _, spec := range []setSpec{servicesSpec(f), servicesSpec(f).twin()} {
			if u[spec.Name] != nil {
				rules = append(rules, ruleset.Rule{Comment: "find the service", Stmts: []ruleset.Stmt{
					ruleset.IsFamily(f), ruleset.VMap{Key: askedKey(f), Map: spec.Name},
				}})
			}
		}
	}
	return rules
}

func arrive(usage) []ruleset.Rule {
	return []ruleset.Rule{translated("new connection of a service", ruleset.JumpTo, chainNew)}
}

func depart(u usage) []ruleset.Rule {
	return append(arrive(u), translated("its source", ruleset.GotoChain, chainLeave))
}

func count(usage) []ruleset.Rule {
	request := translated("packet to a backend", ruleset.GotoChain, chainRequests)
	request.Stmts = slices.Insert(request.Stmts, 1, ruleset.Stmt(ruleset.Match{Field: ruleset.CtDirection}))
	return []ruleset.Rule{request, translated("packet from a backend", ruleset.GotoChain, chainReplies)}
}

// countIn leaves out what the box sent to itself: count-out has had it.
func countIn(u usage) []ruleset.Rule {
	rules := count(u)
	for i := range rules {
		rules[i].Stmts = slices.Insert(rules[i].Stmts, 1, ruleset.Stmt(ruleset.NotLoopback{}))
	}
	return rules
}

// translated returns the rule that sends on what belongs to a service; all other traffic
// goes its way after this one test.
func translated(words string, kind ruleset.VerdictKind, chain string) ruleset.Rule {
	return ruleset.Rule{Comment: words, Stmts: []ruleset.Stmt{
		ruleset.StatusDNAT{}, ruleset.Verdict{Kind: kind, Chain: chain}}}
}

// leaveRules choose the source of a new connection.
func leaveRules(u usage) []ruleset.Rule {
	rules := eachListener(u, sourceSpec, "source", func(f model.Family, set string) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.VMap{Key: listenedKey(f), Map: set}}
	})
	return append(rules, eachListener(u, hairpinSpec, "a backend calls its own service",
		func(f model.Family, set string) []ruleset.Stmt {
			key := append(listenedKey(f), ruleset.Saddr(f))
			return []ruleset.Stmt{ruleset.InSet{Key: key, Set: set}, ruleset.Masquerade{}}
		})...)
}

// eachListener returns a rule for each family, each of the two sets of a declaration and
// each protocol that is in use. The protocol is matched because nft knows the type of a
// connection's port only then.
func eachListener(u usage, spec func(model.Family) setSpec, words string,
	stmts func(f model.Family, set string) []ruleset.Stmt) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		for _, s := range []setSpec{spec(f), spec(f).twin()} {
			for _, p := range u.protos(s.Name) {
				match := []ruleset.Stmt{ruleset.IsFamily(f), ruleset.IsProto(p)}
				rules = append(rules, ruleset.Rule{Comment: words,
					Stmts: append(match, stmts(f, s.Name)...)})
			}
		}
	}
	return rules
}

// newRules count a new connection and remember the client of a sticky service.
func newRules(u usage) []ruleset.Rule {
	rules := counted(u, "count the connection", func(f model.Family) ruleset.Update {
		return ruleset.Update{Set: connectionsSpec(f).Name, Key: requestKey(f)}
	})
	return append(rules, eachListener(u, learnSpec, "sticky", func(f model.Family, set string) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.VMap{Key: listenedKey(f), Map: set}}
	})...)
}

func countRules(u usage, reply bool) []ruleset.Rule {
	rules := counted(u, "count the packet", func(f model.Family) ruleset.Update {
		requests, replies := trafficSpecs(f)
		if reply {
			return ruleset.Update{Set: replies.Name, Key: replyKey(f)}
		}
		return ruleset.Update{Set: requests.Name, Key: requestKey(f)}
	})
	if !u.closes() {
		return rules
	}
	chain := chainRequests
	if reply {
		chain = chainReplies
	}
	return append(rules, ruleset.Rule{Comment: "near the end of a connection", Stmts: []ruleset.Stmt{
		ruleset.IsProto(model.TCP), ruleset.Expires{Time: closingBelow},
		ruleset.Verdict{Kind: ruleset.GotoChain, Chain: chain + chainClosing}}})
}

func counted(u usage, words string, update func(model.Family) ruleset.Update) []ruleset.Rule {
	var rules []ruleset.Rule
	for _, f := range families {
		for _, p := range u.served(f) {
			rules = append(rules, ruleset.Rule{Comment: words, Stmts: []ruleset.Stmt{
				ruleset.IsFamily(f), ruleset.IsProto(p), update(f)}})
		}
	}
	return rules
}
