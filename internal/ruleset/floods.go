package ruleset

import (
	"fmt"
	"strings"
	"time"

	"weir/internal/model"
)

// Masked is the first Bits bits of an address field, the others zero.
type Masked struct {
	Field Field
	Bits  int // from 0 to the length of an address
}

func (Masked) expr() {}

// MaskedSaddr returns the first bits of the source address of family f; all of it where bits is
// its length.
func MaskedSaddr(f model.Family, bits int) Expr {
	if bits == 8*AddrType(f).Size() {
		return Saddr(f)
	}
	return Masked{Saddr(f), bits}
}

// Mask returns, in register layout, the bits that are left of the field.
func (m Masked) Mask() string {
	b := make([]byte, m.Field.Type().Size())
	for i := range m.Bits {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return string(b)
}

// RateUnder keeps a bucket of tokens under Key in the dynamic set named Set, and matches a
// packet that takes a token out; one that finds none does not match. A new bucket is full, with
// Burst tokens, and gets Rate of them in a time of Unit (net/netfilter/nft_limit.c). An element
// keeps the rate and burst with which it was made, and goes when no packet came for Timeout.
// Where the set is full, a key without an element matches nothing either.
type RateUnder struct {
	Set     string
	Key     Key
	Rate    uint32        // at least 1
	Unit    time.Duration // a second, a minute or an hour
	Burst   uint32        // at least 1
	Timeout time.Duration // at least a millisecond
}

// NotInSet matches when Key is not in the set named Set.
type NotInSet struct {
	Key Key
	Set string
}

// IsSYN matches TCP segments that ask for a new connection: SYN without FIN, RST or ACK. The
// protocol must be matched before it.
type IsSYN struct{}

// SynProxy answers a SYN in the place of the server, and keeps nothing of it: what it must
// know again is in the sequence number. The ACK that proves the client's address makes it
// send a SYN to the server, and either ends the packet's way. Any other segment goes on
// (net/netfilter/nft_synproxy.c). It can be in input and forward alone, and the protocol
// must be matched before it.
type SynProxy struct {
	MSS    uint16 // that the client is told
	WScale uint8  // window scale that the client is told, 0 to 14
}

func (RateUnder) stmt() {}
func (NotInSet) stmt()  {}
func (IsSYN) stmt()     {}
func (SynProxy) stmt()  {}

func (r RateUnder) text() string {
	return fmt.Sprintf("update @%s { %s timeout %s limit rate %d/%s burst %d packets }",
		r.Set, r.Key, duration(r.Timeout), r.Rate, unitWord(r.Unit), r.Burst)
}

func unitWord(d time.Duration) string {
	switch d {
	case time.Minute:
		return "minute"
	case time.Hour:
		return "hour"
	}
	return "second"
}

func (s SynProxy) text() string {
	return fmt.Sprintf("synproxy mss %d wscale %d timestamp sack-perm", s.MSS, s.WScale)
}

func (m Masked) text() string {
	return fieldInfo[m.Field].text + " & " + m.Field.Type().text(m.Mask())
}

func (x *ruleRun) masked(m Masked) (string, bool) {
	v, ok := x.field(m.Field)
	if !ok {
		return "", false
	}
	b, mask := []byte(v), m.Mask()
	for i := range mask {
		b[i] &= mask[i]
	}
	return string(b), true
}

// rateUnder takes the rate for one that is kept: how full a bucket is only the kernel knows.
func (x *ruleRun) rateUnder(s RateUnder) (bool, Verdict) {
	key, set, ok := x.keyFor(s.Key, s.Set)
	if !ok {
		return false, Verdict{}
	}
	_, renewed := x.dynamic(s.Set, key)
	if !renewed {
		if x.fresh == nil {
			x.fresh = map[dynKey]string{}
		}
		x.fresh[dynKey{s.Set, key}] = ""
	}
	x.trace.Updates = append(x.trace.Updates, ElemUpdate{Set: s.Set, Key: key, Renewed: renewed})
	x.note("element %s of %s", set.set.Key.Text(key, ""), s.Set)
	x.note("up to %d/%s pass, and %d at once: taken for not reached, only the kernel counts",
		s.Rate, unitWord(s.Unit), s.Burst)
	return x.hold("below the limit")
}

func (x *ruleRun) notInSet(s NotInSet) (bool, Verdict) {
	key, set, ok := x.keyFor(s.Key, s.Set)
	if !ok {
		return false, Verdict{}
	}
	text := set.set.Key.Text(key, "")
	_, dyn := x.dynamic(s.Set, key)
	if dyn || set.lookup(key) != nil {
		return x.fail("%s is in %s", text, s.Set)
	}
	return x.hold("%s is not in %s", text, s.Set)
}

// asks reports whether the packet is a SYN without FIN, RST or ACK.
func (x *ruleRun) asks() bool {
	return x.p.Proto == model.TCP && x.flags()&(FIN|SYN|RST|ACK) == SYN
}

func (x *ruleRun) isSYN() (bool, Verdict) {
	if !x.asks() {
		return x.fail("the packet does not ask for a new connection")
	}
	return x.hold("the packet asks for a new connection")
}

// synProxy ends the packet's way. What becomes of the connection, once the client has
// answered, is what becomes of a SYN in its name that the box itself sends.
func (x *ruleRun) synProxy(SynProxy) (bool, Verdict) {
	if !x.asks() {
		x.refuse(Dropped)
		return x.decide(Verdict{Kind: DropPacket}, "taken if it answers the proxy's SYN, else dropped")
	}
	x.trace.Proxied = true
	return x.decide(Verdict{Kind: DropPacket}, "answered in the server's place; the server gets a SYN once the client has proved its address")
}

// stateWords are the words of nft for the states, in the order in which it lists them.
var stateWords = []struct {
	bit  CtStates
	word string
}{{Invalid, "invalid"}, {New, "new"}, {Established, "established"}, {Related, "related"}, {Untracked, "untracked"}}

// String returns the states as nft lists them: "established,related".
func (s CtStates) String() string {
	var words []string
	for _, w := range stateWords {
		if s&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}
