package ruleset

import (
	"net/netip"

	"weir/internal/model"
)

// Packet is one packet as it comes in, or as the box sends it, before any translation.
type Packet struct {
	Src, Dst netip.AddrPort // of one family; never 4-in-6
	Proto    model.Proto
	Local    bool // sent by the box itself: output comes first, not prerouting
	// ToLocal says whether an address is the box's own. It is asked for the destination
	// as it is after translation; nil says no to all.
	ToLocal func(netip.Addr) bool
	// Conn is the connection the packet belongs to; nil for its first packet, the only
	// one for which chains of type nat are looked at.
	Conn *Conn
	// Late says of a TCP packet without Conn that it is not a SYN: conntrack has forgotten
	// its connection, or never knew it, and takes the packet for the first of a new one.
	Late  bool
	Reply bool // with Conn: the packet goes from ReplySrc to ReplyDst

	// In and Out are the devices by which the packet comes in and leaves; "": not known, and
	// no rule that names one matches.
	In, Out  string
	Flags    uint8 // of a TCP segment; 0: SYN for the first packet of a connection that is not Late, else ACK
	ICMPType uint8 // of an ICMP or ICMPv6 message

	Mark, ConnMark uint32 // of the packet as it comes in, and of its connection
}

// Conn is a tracked connection: the addresses of its first packet as that came in, and
// the addresses of an answer as it comes in. Without translation the one is the other
// turned round.
type Conn struct {
	OrigSrc, OrigDst, ReplySrc, ReplyDst netip.AddrPort
}

// Env is what a packet's way depends on beside the ruleset. All of it may be left out.
type Env struct {
	// Next gives the next value of n in the rule, in [0, n.Mod). It is asked only where
	// Mod is above 1. nil gives 0 every time.
	Next func(rule *Rule, n Numgen) uint32
	// Dynamic looks a key up in a dynamic set or map; data is "" in a set. nil: all are empty.
	Dynamic func(set, key string) (data string, ok bool)
	// Counted returns how many open connections are counted under a key of a dynamic set,
	// without the one that the packet begins. nil: no limit is reached.
	Counted func(set, key string) int
	// Queued answers for the program that listens to the queue: of the packet as it is then, and its
	// mark. nil: what it says is not known, and the packet goes on as it was.
	Queued func(q Queue, p Packet, mark uint32) Answer
}

// Outcome is what becomes of a packet.
type Outcome string

// The outcomes.
const (
	Accepted      Outcome = "accept"
	Dropped       Outcome = "drop"
	RejectedReset Outcome = "reject tcp-reset" // answered with a TCP reset
	RejectedICMP  Outcome = "reject icmp"      // answered with ICMP port unreachable
)

// Trace is a packet's way through a ruleset.
type Trace struct {
	Steps   []Step
	Verdict Outcome
	// DNAT is what the destination became; invalid if it was left alone.
	DNAT netip.AddrPort
	// SNAT is what the source address became; invalid if it was left alone or by Masquerade.
	SNAT netip.Addr
	// Masquerade says that the source becomes the outgoing interface's address, which a
	// ruleset does not know: Src and Conn go on with the address from before.
	Masquerade bool
	// Ports are those of which the kernel gives one to the connection; zero where the rules
	// left that open. Src and Conn go on with one of them.
	Ports    model.PortRange
	Src, Dst netip.AddrPort // the packet as it leaves, or was when it was refused
	Conn     Conn           // its connection from then on
	Updates  []ElemUpdate   // what the rules did to dynamic sets and maps
	Counts   []ElemUpdate   // where the rules counted the connection; no data
	Found    []Found        // the elements of other sets that matched
	Proxied  bool           // a SYN proxy took the packet
	Queued   bool           // user space was asked
	// Mark and ConnMark are what the marks are in the end.
	Mark, ConnMark uint32
	Fwd            netip.Addr // whose neighbour the frame was sent to as it is; invalid if it was not
}

// Found is an element of a set that a rule looked for and found.
type Found struct {
	Set  string
	Elem Element
}

// Step is one rule that was looked at, or the translation that an established connection
// brings (then Chain and Rule are empty).
type Step struct {
	Hook    Hook
	Chain   string
	Rule    string // in nft syntax, without its comment
	Words   string // what the rule did, or why it did nothing
	Comment string // what the rule is for, as it says
	Matched bool   // all of the rule's statements were reached and held
	Detail  string // the look-ups and numbers on the way, separated by "; "
}

// ElemUpdate is an element that a rule put into a dynamic set or map, or renewed.
type ElemUpdate struct {
	Set, Key, Data string // key and data in register layout
	Renewed        bool   // it was there already, and kept its data
}

// Eval follows p through the ruleset; see [Evaluator.Eval]. Who evaluates many packets
// makes one [Evaluator].
func (r *Ruleset) Eval(p Packet, env *Env) Trace { return NewEvaluator(r).Eval(p, env) }

// Eval follows p through the base chains in netfilter's order: by hook, in a hook by
// priority, and chains of one priority as they stand in the ruleset. It is a pure
// function of its arguments.
//
// It knows what nf_tables does (net/netfilter/nf_tables_core.c, nf_nat_core.c): a failed
// match or look-up ends the rule; a chain's end or "return" goes back to the rule after
// the jump; "accept" ends a base chain, a drop everything. What the kernel refuses to
// load is not told apart: a look-up in a set that does not exist finds nothing, and
// chains that call each other too deep drop the packet.
//
// It does not know of port changes by which the kernel avoids that two connections look
// alike, of full sets, and of the rules in chains that came from [ReadBack].
func (ev *Evaluator) Eval(p Packet, env *Env) Trace {
	w := newWalk(ev, p, env)
	for _, h := range w.firstHooks() {
		if !w.hook(h) {
			return w.end()
		}
	}
	for _, h := range w.lastHooks() {
		if !w.hook(h) {
			break
		}
	}
	return w.end()
}

// The bits of a connection's status that can be told from here; see enum
// ip_conntrack_status in include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	statusSeenReply = 1 << 1
	statusConfirmed = 1 << 3
	statusSrcNAT    = 1 << 4
	statusDstNAT    = 1 << 5
	statusSrcDone   = 1 << 7
	statusDstDone   = 1 << 8
)

// walk is one packet on its way.
type walk struct {
	ev       *Evaluator
	env      Env
	p        Packet
	src, dst netip.AddrPort // as the packet is now
	conn     Conn
	tracked  bool // conntrack has seen the packet

	// untracked says that it will not, because a rule said so.
	untracked bool

	srcDone bool // the connection's source translation is settled
	dstDone bool
	fresh   map[dynKey]string // what this packet's updates added

	at    Hook
	trace Trace
}

type dynKey struct{ set, key string }

func newWalk(ev *Evaluator, p Packet, env *Env) *walk {
	w := &walk{ev: ev, p: p, src: p.Src, dst: p.Dst}
	if env != nil {
		w.env = *env
	}
	if p.Conn != nil {
		w.conn, w.srcDone, w.dstDone = *p.Conn, true, true
	} else {
		w.conn = Conn{p.Src, p.Dst, p.Dst, p.Src}
	}
	w.trace.Verdict, w.trace.Mark, w.trace.ConnMark = Accepted, p.Mark, p.ConnMark
	return w
}

func (w *walk) end() Trace {
	w.trace.Src, w.trace.Dst, w.trace.Conn = w.src, w.dst, w.conn
	return w.trace
}

func (w *walk) firstHooks() []Hook {
	if w.p.Local {
		return []Hook{Output}
	}
	return []Hook{Ingress, Prerouting}
}

// lastHooks decides, as routing does, by the destination after its translation. A packet
// from the box to itself leaves by the loopback device and comes in again, still known
// to conntrack.
func (w *walk) lastHooks() []Hook {
	local := w.p.ToLocal != nil && w.p.ToLocal(w.dst.Addr())
	switch {
	case w.p.Local && local:
		return []Hook{Postrouting, Prerouting, Input}
	case w.p.Local:
		return []Hook{Postrouting}
	case local:
		return []Hook{Input}
	}
	return []Hook{Forward, Postrouting}
}

// hook runs one hook; false: the packet goes no further.
func (w *walk) hook(h Hook) bool {
	w.at = h
	for i := range w.ev.hooks[h] {
		s := &w.ev.hooks[h][i]
		w.tracked = !w.untracked && (w.tracked || s.priority > conntrackPriority)
		if s.nat && w.untracked {
			continue
		}
		if s.nat {
			if !w.nat(s) {
				return false
			}
			continue
		}
		for _, c := range s.chains {
			if c.chain.Base.Device != "" && c.chain.Base.Device != w.p.In || c.table.family != 0 && c.table.family != model.FamilyOf(w.src.Addr()) {
				continue
			}
			if w.run(c.table, c.chain, 1) == stopped {
				return false
			}
		}
	}
	if h == Ingress {
		return true // conntrack comes later
	}
	w.tracked = !w.untracked
	return true
}

// nat settles the translation that belongs to the hook, if this is the connection's
// first packet and no hook before has, and translates the packet.
func (w *walk) nat(s *stage) bool {
	done, isDst := &w.srcDone, w.at == Prerouting || w.at == Output
	if isDst {
		done = &w.dstDone
	}
	for _, c := range s.chains {
		if *done {
			break
		}
		if w.run(c.table, c.chain, 1) == stopped {
			return false
		}
	}
	*done = true
	if isDst {
		w.translateDst()
	} else {
		w.translateSrc()
	}
	return true
}

// translateDst and translateSrc make the packet look as the other direction of its
// connection expects it: the destination becomes what would answer.
func (w *walk) translateDst() {
	to := w.conn.ReplySrc
	if w.p.Reply {
		to = w.conn.OrigSrc
	}
	if to == w.dst {
		return
	}
	w.established("destination", to)
	w.dst, w.trace.DNAT = to, to
}

func (w *walk) translateSrc() {
	to := w.conn.ReplyDst
	if w.p.Reply {
		to = w.conn.OrigDst
	}
	if to == w.src {
		return
	}
	w.established("source", to)
	w.src, w.trace.SNAT = to, to.Addr()
}

// established records a translation that no rule asked for now.
func (w *walk) established(what string, to netip.AddrPort) {
	if w.p.Conn != nil {
		w.trace.Steps = append(w.trace.Steps, Step{
			Hook: w.at, Matched: true,
			Words: "the connection is established: its " + what + " becomes " + to.String(),
		})
	}
}

// status returns the connection's status bits.
func (w *walk) status() uint32 {
	var s uint32
	for _, b := range []struct {
		on  bool
		bit uint32
	}{
		{w.p.Reply, statusSeenReply},
		{w.p.Conn != nil, statusConfirmed},
		{w.conn.ReplyDst != w.conn.OrigSrc || w.trace.Masquerade, statusSrcNAT},
		{w.conn.ReplySrc != w.conn.OrigDst, statusDstNAT},
		{w.srcDone, statusSrcDone},
		{w.dstDone, statusDstDone},
	} {
		if b.on {
			s |= b.bit
		}
	}
	return s
}

// dynamic looks a key up in a dynamic set or map.
func (w *walk) dynamic(set, key string) (string, bool) {
	if data, ok := w.fresh[dynKey{set, key}]; ok {
		return data, true
	}
	if w.env.Dynamic == nil {
		return "", false
	}
	return w.env.Dynamic(set, key)
}
