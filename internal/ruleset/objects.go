package ruleset

// Family is the family of a table.
type Family string

// The families in use.
const (
	Inet   Family = "inet"
	Netdev Family = "netdev" // packets as a device hands them over, before routing and conntrack
)

// Ruleset is everything that weir owns in the kernel, or wants to.
type Ruleset struct {
	Tables []*Table
}

// Table is one table. Names of sets are unique in it, and so are names of chains.
type Table struct {
	Family Family
	Name   string
	Sets   []*Set
	Chains []*Chain
	// Timeouts are its `ct timeout` objects.
	Timeouts []*Timeouts

	// Dormant says that somebody switched the table off, so that none of its chains is
	// called. It is never wanted, only read back.
	Dormant bool

	// Unread says that what the table's sets hold is not known, for to read it would take too
	// long. It is never wanted; such a table is replaced as a whole.
	Unread bool

	// Copies says that its rules make copies alone, which changes nothing for the packets that
	// meet them. It is not read back.
	Copies bool

	// Owned says that the table goes with the connection it is made by, however that ends, and
	// that nobody else may change it (NFT_TABLE_F_OWNER, from Linux 5.12 on). It is not read back.
	Owned bool

	// Marker is the name of a chain whose rules tell all that is Packed: they change with
	// every change of it. So a reader that finds the same rules need not read the elements.
	// It is no part of what the kernel holds; "" for none.
	Marker string
}

// Unmarked returns the ruleset without markers: what to expect where somebody else may have
// changed elements.
func (r *Ruleset) Unmarked() *Ruleset {
	out := &Ruleset{Tables: make([]*Table, len(r.Tables))}
	for i, t := range r.Tables {
		plain := *t
		plain.Marker = ""
		out.Tables[i] = &plain
	}
	return out
}

// Hook is where a base chain is called from.
type Hook string

// The hooks in use.
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
	Ingress     Hook = "ingress" // of one device, in tables of the family netdev alone
)

// Base makes a chain a base chain. Its policy is always accept.
type Base struct {
	Type     string // "nat" or "filter"
	Hook     Hook
	Priority int
	Device   string // whose packets come by; "" but for Ingress
}

// Chain is a list of rules. A chain is immutable once it is part of a ruleset: Diff
// takes the same pointer for the same content.
type Chain struct {
	Name  string
	Base  *Base // nil for a chain that is jumped to
	Rules []Rule

	prints []string // fingerprints; see Fingerprints
}

// Rule is a list of statements and words that say what it is for.
type Rule struct {
	Stmts   []Stmt
	Comment string // at most 100 bytes of printable ASCII without quotes
}

// Set is a set, or a map where Data or Verdict says so.
type Set struct {
	Name    string
	Key     Types
	Data    Types // a map's data
	Verdict bool  // a verdict map
	Range   bool  // keys are ranges field by field (Element.KeyEnd)
	Dynamic bool  // rules add the elements; Parts stays empty
	Counter bool  // every element counts packets and bytes
	Timeout bool  // elements may have one
	// Size is the most elements; 0 leaves it open. Where it is given and elements neither
	// are dynamic nor time out, the kernel makes a hash of fixed size, which is faster.
	Size  int
	Parts []*Part
	// Packed is elements, too, in place of Parts, where there may be very many of them: of
	// a set or verdict map without ranges, in pieces of ascending order.
	Packed []*Packed
}

// Part is the share of a set's elements that one source, say a service, brings. It is
// immutable, and Diff takes the same pointer for the same content, so that a change in
// one service costs no look at the others. Two parts of a set may hold the same element
// if all of it is the same.
type Part struct {
	Elems []Element
}

// Element is one element of a set or map, its bytes in register layout.
type Element struct {
	Key    string
	KeyEnd string // inclusive end of a range, field by field; "" for a single key
	Data   string // a map's data; for a verdict map see Jump
	Jump   Jump   // a verdict map's data
}

// Jump is where a verdict map sends a packet, or what it does with it.
type Jump struct {
	Chain string
	Goto  bool  // goto instead of jump
	Plain Plain // a verdict that needs no chain, instead of both
}

// Plain is a verdict that needs no chain.
type Plain uint8

// The verdicts that need no chain.
const (
	PlainDrop     Plain = iota + 1
	PlainAccept         // ends the base chain
	PlainContinue       // the rule goes on, as if nothing had been found
	PlainReturn
)

// Verdict returns the verdict.
func (j Jump) Verdict() Verdict {
	switch {
	case j.Plain != 0:
		return Verdict{Kind: [...]VerdictKind{PlainDrop: DropPacket, PlainAccept: AcceptPacket,
			PlainContinue: ContinueRule, PlainReturn: ReturnBack}[j.Plain]}
	case j.Goto:
		return Verdict{GotoChain, j.Chain}
	}
	return Verdict{JumpTo, j.Chain}
}

// SameSpec reports whether two sets differ in nothing but their elements.
func (s *Set) SameSpec(o *Set) bool {
	return s.Name == o.Name && string(typeBytes(s.Key)) == string(typeBytes(o.Key)) &&
		string(typeBytes(s.Data)) == string(typeBytes(o.Data)) && s.Verdict == o.Verdict &&
		s.Range == o.Range && s.Dynamic == o.Dynamic && s.Counter == o.Counter &&
		s.Timeout == o.Timeout && s.Size == o.Size
}

func typeBytes(ts Types) []byte {
	b := make([]byte, len(ts))
	for i, t := range ts {
		b[i] = byte(t)
	}
	return b
}

// Len returns the number of elements of all parts; an element in two parts counts twice.
func (s *Set) Len() int {
	n := 0
	for _, p := range s.Parts {
		n += len(p.Elems)
	}
	return n + packedLen(s.Packed)
}

// IsMap reports whether the set maps its keys to data or verdicts.
func (s *Set) IsMap() bool { return s.Verdict || len(s.Data) > 0 }

// Set returns the set of that name, or nil.
func (t *Table) Set(name string) *Set {
	for _, s := range t.Sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Chain returns the chain of that name, or nil.
func (t *Table) Chain(name string) *Chain {
	for _, c := range t.Chains {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Table returns the table of that family and name, or nil.
func (r *Ruleset) Table(f Family, name string) *Table {
	for _, t := range r.Tables {
		if t.Family == f && t.Name == name {
			return t
		}
	}
	return nil
}
