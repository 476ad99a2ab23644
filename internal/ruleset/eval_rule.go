package ruleset

import (
	"fmt"
	"net/netip"
	"strings"

	"weir/internal/model"
)

// maxLevel is how deep chains may call each other, gotos included
// (NFT_JUMP_STACK_SIZE in include/net/netfilter/nf_tables.h).
const maxLevel = 16

// ending is how a chain ended.
type ending uint8

const (
	ranOut   ending = iota // its end, or "return": the caller goes on
	accepted               // the base chain is done
	stopped                // the packet is
)

// run follows the packet through one chain.
func (w *walk) run(t *tableIndex, c *Chain, level int) ending {
	for i := range c.Rules {
		v, ok := w.rule(t, c, &c.Rules[i])
		if !ok {
			continue
		}
		switch v.Kind {
		case AcceptPacket:
			return accepted
		case DropPacket:
			return stopped
		case ReturnBack:
			return ranOut
		}
		to := t.chains[v.Chain]
		if to == nil || level >= maxLevel {
			w.refuse(Dropped)
			w.trace.Steps = append(w.trace.Steps, Step{Hook: w.at, Chain: c.Name,
				Words: "chain " + v.Chain + " does not exist or is called too deep: no kernel loads this; dropped"})
			return stopped
		}
		if end := w.run(t, to, level+1); end != ranOut || v.Kind == GotoChain {
			return end
		}
	}
	return ranOut
}

func (w *walk) refuse(o Outcome) { w.trace.Verdict = o }

// rule runs one rule and records it. ok is false where the next rule has its turn.
func (w *walk) rule(t *tableIndex, c *Chain, r *Rule) (v Verdict, ok bool) {
	x := &ruleRun{walk: w, table: t, rule: r}
	matched := true
	for _, s := range r.Stmts {
		if matched, v = x.stmt(s); !matched || v.Kind != "" {
			break
		}
	}
	if r.Comment != "" {
		x.words = r.Comment + ": " + x.words
	}
	w.trace.Steps = append(w.trace.Steps, Step{
		Hook: w.at, Chain: c.Name, Rule: r.body(), Words: x.words, Comment: r.Comment,
		Matched: matched, Detail: strings.Join(x.detail, "; "),
	})
	return v, matched && v.Kind != ""
}

// ruleRun is one rule at work.
type ruleRun struct {
	*walk
	table  *tableIndex
	rule   *Rule
	words  string // what the last statement did, or why it did not
	detail []string
}

func (x *ruleRun) note(format string, args ...any) {
	x.detail = append(x.detail, fmt.Sprintf(format, args...))
}

// fail gives the reason for which the rule ends.
func (x *ruleRun) fail(format string, args ...any) (bool, Verdict) {
	x.words = fmt.Sprintf(format, args...)
	return false, Verdict{}
}

// hold says what the statement did; the rule goes on.
func (x *ruleRun) hold(format string, args ...any) (bool, Verdict) {
	x.words = fmt.Sprintf(format, args...)
	return true, Verdict{}
}

// decide says what the statement did; the rule is done, with v.
func (x *ruleRun) decide(v Verdict, format string, args ...any) (bool, Verdict) {
	x.words = fmt.Sprintf(format, args...)
	return true, v
}

func (x *ruleRun) stmt(s Stmt) (bool, Verdict) {
	switch s := s.(type) {
	case Match:
		return x.match(s)
	case StatusDNAT:
		if !x.tracked || x.status()&statusDstNAT == 0 {
			return x.fail("the connection's destination is not translated")
		}
		return x.hold("the connection's destination is translated")
	case NotLoopback:
		if x.p.Local && x.at != Output && x.at != Postrouting {
			return x.fail("the packet came in by the loopback device")
		}
		return x.hold("the packet did not come in by the loopback device")
	case NoSYN:
		return x.noSYN()
	case Notrack:
		return x.notrack()
	case CtState:
		return x.ctState(s)
	case OnLoopback:
		return x.onLoopback(s)
	case InDevice:
		return x.inDevice(s)
	case OutDevice:
		return x.outDevice(s)
	case RateUnder:
		return x.rateUnder(s)
	case IsCopy:
		return x.fail("the packet does not bear the mark of copies")
	case IsEther:
		return x.family(s.Family)
	case ToThisHost:
		return x.hold("the frame is addressed to this box")
	case Whole:
		return x.hold("the packet is taken for no fragment")
	case Counting:
		return x.hold("counted")
	case Fwd:
		return x.sendOn(s.To, s.Device)
	case HopsLeft:
		return x.hold("the packet may be sent on")
	case SendOn:
		return x.sendOn(s.To, s.Device)
	case NotInSet:
		return x.notInSet(s)
	case IsSYN:
		return x.isSYN()
	case SynProxy:
		return x.synProxy(s)
	case MarkIs:
		return x.markIs(s)
	case SetMark:
		return x.setMark(s)
	case Queue:
		return x.queue(s)
	case SetTimeouts:
		return x.setTimeouts(s)
	case ClampMSS:
		return x.clampMSS()
	case SourceKept:
		return x.sourceKept()
	case CameIn:
		return x.cameIn()
	case InSet:
		return x.inSet(s)
	case VMap:
		return x.vmap(s)
	case Update:
		return x.update(s)
	case CountOver:
		return x.countOver(s)
	case Expires:
		return x.expires(s)
	case TCPFlags:
		return x.tcpFlags(s)
	case DNAT:
		return x.dnat(s)
	case SNAT:
		return x.snat(s)
	case Masquerade:
		return x.masquerade(s)
	case FirstSNAT:
		return x.firstSNAT()
	case RejectWith:
		return x.reject(s)
	case Verdict:
		return x.verdict(s)
	}
	panic(fmt.Sprintf("ruleset: statement %T cannot be evaluated", s))
}

func (x *ruleRun) match(m Match) (bool, Verdict) {
	got, ok := x.field(m.Field)
	if !ok {
		return false, Verdict{}
	}
	is, want := Match{m.Field, got[0]}.valueText(), m.valueText()
	if got[0] != m.Value {
		return x.fail("the packet is %s, not %s", is, want)
	}
	return x.hold("the packet is %s", want)
}

func (x *ruleRun) inSet(s InSet) (bool, Verdict) {
	key, set, ok := x.keyFor(s.Key, s.Set)
	if !ok {
		return false, Verdict{}
	}
	text := set.set.Key.Text(key, "")
	if e := set.lookup(key); e != nil {
		x.trace.Found = append(x.trace.Found, Found{s.Set, *e})
	} else if _, ok := x.dynamic(s.Set, key); !ok {
		x.note("key %s not found in set %s", text, s.Set)
		return x.fail("%s is not in %s", text, s.Set)
	}
	x.note("key %s found in set %s", text, s.Set)
	return x.hold("%s is in %s", text, s.Set)
}

func (x *ruleRun) vmap(s VMap) (bool, Verdict) {
	key, set, ok := x.keyFor(s.Key, s.Map)
	if !ok {
		return false, Verdict{}
	}
	text := set.set.Key.Text(key, "")
	e := set.lookup(key)
	if e == nil {
		x.note("key %s not found in map %s", text, s.Map)
		return x.fail("%s is not in %s", text, s.Map)
	}
	v := e.Jump.Verdict()
	x.note("key %s found: %s", text, stmtText(v))
	switch e.Jump.Plain {
	case PlainDrop:
		x.refuse(Dropped)
		return x.decide(v, "%s is in %s: dropped without an answer", text, s.Map)
	case PlainAccept:
		return x.decide(v, "%s is in %s: accepted", text, s.Map)
	case PlainReturn:
		return x.decide(v, "%s is in %s: goes back to where the chain was called", text, s.Map)
	case PlainContinue:
		return x.hold("%s is in %s: goes on", text, s.Map)
	}
	return x.decide(v, "%s is in %s: goes on in chain %s", text, s.Map, v.Chain)
}

// update puts the element in, or renews it: its data stays as it is.
func (x *ruleRun) update(s Update) (bool, Verdict) {
	key, set, ok := x.keyFor(s.Key, s.Set)
	if !ok {
		return false, Verdict{}
	}
	var data string
	if s.Data != nil {
		if data, ok = x.value(s.Data); !ok {
			return false, Verdict{}
		}
	}
	old, renewed := x.dynamic(s.Set, key)
	if renewed {
		data = old
	} else {
		if x.fresh == nil {
			x.fresh = map[dynKey]string{}
		}
		x.fresh[dynKey{s.Set, key}] = data
	}
	x.trace.Updates = append(x.trace.Updates, ElemUpdate{s.Set, key, data, renewed})
	text := set.set.Key.Text(key, "")
	if data != "" {
		text += " : " + set.set.Data.Text(data, "")
	}
	did := map[bool]string{false: "added to", true: "renewed in"}[renewed]
	x.note("element %s %s %s", text, did, s.Set)
	return x.hold("%s is %s %s", text, did, s.Set)
}

// countOver asks how many connections are counted; nobody knows means there is room.
func (x *ruleRun) countOver(s CountOver) (bool, Verdict) {
	key, ok := x.key(s.Key)
	if !ok {
		return false, Verdict{}
	}
	n := 0
	if x.env.Counted != nil {
		n = x.env.Counted(s.Set, key)
	}
	x.trace.Counts = append(x.trace.Counts, ElemUpdate{Set: s.Set, Key: key})
	if n++; n > int(s.Limit) {
		return x.hold("connection %d, where %d are the most", n, s.Limit)
	}
	if x.env.Counted == nil {
		return x.fail("taken for at most %d open connections: how many there are is not known here", s.Limit)
	}
	return x.fail("connection %d, where up to %d pass", n, s.Limit)
}

// expires takes a connection that is there for one that goes on.
func (x *ruleRun) expires(s Expires) (bool, Verdict) {
	first := x.p.Conn == nil
	if first == s.AtLeast {
		return x.fail("%s does not hold", stmtText(s))
	}
	return x.hold("%s holds", stmtText(s))
}

func (x *ruleRun) tcpFlags(s TCPFlags) (bool, Verdict) {
	if x.p.Proto != model.TCP || x.flags()&s == 0 {
		return x.fail("the packet has none of the flags %s", s.names())
	}
	return x.hold("the packet has one of the flags %s", s.names())
}

func (x *ruleRun) dnat(s DNAT) (bool, Verdict) {
	if ok, v := x.family(s.Family); !ok {
		return ok, v
	}
	data, ok := x.value(s.To)
	if !ok {
		return false, Verdict{}
	}
	size := AddrType(s.Family).Size()
	addr, _ := netip.AddrFromSlice([]byte(data[:size]))
	port := x.dst.Port()
	switch {
	case s.WithPort:
		port = uint16(data[size])<<8 | uint16(data[size+1])
	case s.Port != nil:
		if data, ok = x.value(s.Port); !ok {
			return false, Verdict{}
		}
		port = uint16(data[0])<<8 | uint16(data[1])
	}
	to := netip.AddrPortFrom(addr, port)
	x.conn.ReplySrc, x.dstDone, x.trace.DNAT = to, true, to
	return x.decide(Verdict{Kind: AcceptPacket}, "the destination becomes %s", to)
}

// family is the check that nft puts before translations of one family.
func (x *ruleRun) family(f model.Family) (bool, Verdict) {
	if is := model.FamilyOf(x.dst.Addr()); is != f {
		return x.fail("the packet is %s, not %s", is, f)
	}
	return true, Verdict{}
}

// reject ends the packet's way. nft lets a TCP reset answer TCP alone.
func (x *ruleRun) reject(s RejectWith) (bool, Verdict) {
	drop := Verdict{Kind: DropPacket}
	if !s.TCPReset {
		x.refuse(RejectedICMP)
		if s.Prohibited {
			return x.decide(drop, "refused with ICMP administratively prohibited")
		}
		return x.decide(drop, "refused with ICMP port unreachable")
	}
	if x.p.Proto != model.TCP {
		return x.fail("the packet is %s, not tcp", x.p.Proto)
	}
	x.refuse(RejectedReset)
	return x.decide(drop, "refused with a TCP reset")
}

func (x *ruleRun) verdict(v Verdict) (bool, Verdict) {
	switch v.Kind {
	case AcceptPacket:
		return x.decide(v, "accepted")
	case DropPacket:
		x.refuse(Dropped)
		return x.decide(v, "dropped without an answer")
	case ReturnBack:
		return x.decide(v, "goes back to where the chain was called")
	case JumpTo:
		return x.decide(v, "goes through chain %s", v.Chain)
	}
	return x.decide(v, "goes on in chain %s", v.Chain)
}
