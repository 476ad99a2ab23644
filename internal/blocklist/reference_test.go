package blocklist

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// line is an entry of a list as the reference sees it.
type line struct {
	prefix  netip.Prefix
	to      netip.Addr // of a range; invalid for a prefix
	nomatch bool
}

func (l line) String() string {
	text := l.prefix.String()
	if l.to.IsValid() {
		text = l.prefix.Addr().String() + "-" + l.to.String()
	}
	if l.nomatch {
		return "add x " + text + " nomatch"
	}
	return text
}

func (l line) holds(a netip.Addr) bool {
	if l.to.IsValid() {
		return l.prefix.Addr().Compare(a) <= 0 && a.Compare(l.to) <= 0
	}
	return l.prefix.Contains(a)
}

// referenceList says by looking at every line whether a list holds a: of the prefixes that
// hold it, the most specific one counts; a range has no length, and holds what is in it.
func referenceList(lines []line, a netip.Addr) bool {
	best, in := -1, false
	for _, l := range lines {
		switch {
		case !l.holds(a):
		case l.to.IsValid():
			return true
		case l.prefix.Bits() > best:
			best, in = l.prefix.Bits(), !l.nomatch
		case l.prefix.Bits() == best && l.nomatch:
			in = false
		}
	}
	return in
}

// addrGen makes addresses that lie close together, so that things meet: only some bits
// differ, high and low ones.
func addrGen(four bool) *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		x := rapid.Uint16().Draw(t, "bits")
		if rapid.Bool().Draw(t, "few") {
			x &= 0x303
		}
		if four {
			return netip.AddrFrom4([4]byte{byte(x >> 14 << 6), 0, byte(x >> 8 & 3), byte(x)})
		}
		return netip.AddrFrom16([16]byte{0x20 | byte(x>>14<<6), 1, 7: byte(x >> 12 & 3), 8: byte(x >> 8 & 15), 15: byte(x)})
	})
}

func prefixGen(four bool) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := addrGen(four).Draw(t, "addr")
		lengths := []int{0, 1, 2, 3, 16, 22, 23, 24, 25, 26, 28, 30, 31, 32}
		if !four {
			lengths = []int{0, 1, 3, 32, 62, 64, 66, 68, 120, 124, 126, 127, 128}
		}
		return netip.PrefixFrom(a, rapid.SampledFrom(lengths).Draw(t, "bits")).Masked()
	})
}

func linesGen(four, ranges bool) *rapid.Generator[[]line] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) line {
		l := line{prefix: prefixGen(four).Draw(t, "prefix")}
		if ranges && rapid.Bool().Draw(t, "range") {
			a, b := l.prefix.Addr(), addrGen(four).Draw(t, "to")
			if b.Less(a) {
				a, b = b, a
			}
			return line{prefix: netip.PrefixFrom(a, a.BitLen()), to: b}
		}
		l.nomatch = !ranges && rapid.IntRange(0, 3).Draw(t, "nomatch") == 0
		return l
	}), 0, 12)
}

// world is some lists and allowed prefixes, and what they are compiled to.
type world struct {
	lines    [][]line
	actions  []Action
	allow    []netip.Prefix
	compiled *Compiled
}

func drawWorld(t *rapid.T, four bool) world {
	var w world
	var uses []Use
	for i := range rapid.IntRange(1, 4).Draw(t, "lists") {
		lines := linesGen(four, rapid.Bool().Draw(t, "ranges")).Draw(t, "lines")
		action := rapid.SampledFrom([]Action{Count, Reject, Drop}).Draw(t, "action")
		w.lines, w.actions = append(w.lines, lines), append(w.actions, action)
		uses = append(uses, Use{listOf(t, fmt.Sprintf("list%d", i), lines), action})
	}
	w.allow = rapid.SliceOfN(prefixGen(four), 0, 4).Draw(t, "allow")
	w.allow = slices.DeleteFunc(w.allow, func(p netip.Prefix) bool { return p.Bits() == 0 && len(w.allow) > 1 })
	compiled, err := Compile(uses, w.allow)
	if err != nil {
		t.Fatal(err)
	}
	w.compiled = compiled
	return w
}

// fataler is what testing.T and rapid.T have in common here.
type fataler interface{ Fatal(args ...any) }

func listOf(t fataler, name string, lines []line) *List {
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(l.String() + "\n")
	}
	b := NewBuilder(name, Options{Strict: true})
	if err := b.Add(name+".txt", strings.NewReader(text.String())); err != nil {
		t.Fatal(err)
	}
	return b.List()
}

// action is the reference: what happens to packets from a, by looking at everything.
func (w world) action(a netip.Addr) Action {
	for _, p := range w.allow {
		if p.Contains(a) {
			return None
		}
	}
	most := None
	for i, lines := range w.lines {
		if referenceList(lines, a) {
			most = max(most, w.actions[i])
		}
	}
	return most
}

// probes are addresses worth asking for: random ones, and both sides of every edge.
func (w world) probes(t *rapid.T, four bool) []netip.Addr {
	out := rapid.SliceOfN(addrGen(four), 5, 20).Draw(t, "probes")
	edge := func(p netip.Prefix, to netip.Addr) {
		if !to.IsValid() {
			to = lastOf(p)
		}
		for _, a := range []netip.Addr{p.Addr(), p.Addr().Prev(), to, to.Next()} {
			if a.IsValid() {
				out = append(out, a)
			}
		}
	}
	for _, lines := range w.lines {
		for _, l := range lines {
			edge(l.prefix, l.to)
		}
	}
	for _, p := range w.allow {
		edge(p, netip.Addr{})
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// mostSpecific looks an address up as a kernel would: the longest prefix that holds it.
func mostSpecific(table []Entry, a netip.Addr) (best Entry, ok bool) {
	for _, e := range table {
		if e.Prefix.Contains(a) && (!ok || e.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = e, true
		}
	}
	return best, ok
}

func familyOf(four bool) model.Family {
	if four {
		return model.IPv4
	}
	return model.IPv6
}

// TestActionIsTheReferences: for every address the most specific prefix of the compiled
// table has the action that a look at every line and every allowed prefix gives.
func TestActionIsTheReferences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "four")
		w := drawWorld(t, four)
		table := slices.Collect(w.compiled.Entries(familyOf(four)))
		for i, e := range table {
			if i > 0 && (table[i-1].Prefix.Compare(e.Prefix) == 0 || comparePrefixes(table[i-1].Prefix, e.Prefix) > 0) {
				t.Fatalf("%v stands behind %v", e.Prefix, table[i-1].Prefix)
			}
			if e.Prefix != e.Prefix.Masked() || e.From != e.From.Masked() || !e.From.Overlaps(e.Prefix) || e.From.Bits() > e.Prefix.Bits() {
				t.Fatalf("%+v", e)
			}
		}
		for _, a := range w.probes(t, four) {
			want := w.action(a)
			slow, _ := mostSpecific(table, a)
			if slow.Action != want {
				t.Fatalf("%v: the table says %v, the reference %v\nlists %v %v\nallow %v\ntable %v", a, slow.Action, want, w.lines, w.actions, w.allow, table)
			}
			if quick, _ := w.compiled.Find(a); quick != slow {
				t.Fatalf("%v: Find says %+v, a look at all entries %+v", a, quick, slow)
			}
			w.checkAnswer(t, a, want)
		}
	})
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// checkAnswer: Lookup finds every entry and allowed prefix that holds a, and the lists of
// the deciding entry are among them.
func (w world) checkAnswer(t *rapid.T, a netip.Addr, want Action) {
	answer := w.compiled.Lookup(a)
	if answer.Action != want {
		t.Fatalf("Lookup(%v) says %v, want %v", a, answer.Action, want)
	}
	expect := map[string]int{}
	for i, lines := range w.lines {
		for _, l := range lines {
			if l.holds(a) {
				expect[fmt.Sprintf("list%d %v", i, l.nomatch)]++
			}
		}
	}
	got := map[string]int{}
	lists := map[string]bool{}
	for _, m := range answer.Matches {
		got[fmt.Sprintf("%s %v", m.List, m.Exception)] += 1 + m.More
		lists[m.List] = true
	}
	if !maps.Equal(got, expect) {
		t.Fatalf("Lookup(%v) finds %v, want %v", a, got, expect)
	}
	allowed := 0
	for _, p := range w.compiled.Allow() {
		if p.Contains(a) {
			allowed++
		}
	}
	if len(answer.Allow) != allowed {
		t.Fatalf("Lookup(%v).Allow = %v of %v", a, answer.Allow, w.allow)
	}
	if answer.Action == None {
		return
	}
	for _, name := range w.compiled.Set(answer.Entry.Set) {
		if !lists[name] {
			t.Fatalf("%v: %+v is of list %s, which does not hold it", a, answer.Entry, name)
		}
	}
}

// TestMembershipIsExact: without exceptions and allowed prefixes a table's prefix names
// exactly the lists that hold it as an entry, or as a part of a range.
func TestMembershipIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := map[netip.Prefix][]string{}
		var uses []Use
		for i := range rapid.IntRange(1, 40).Draw(t, "lists") {
			name := fmt.Sprint("list", i)
			prefixes := rapid.SliceOfN(prefixGen(true), 0, 6).Draw(t, "prefixes")
			var lines []line
			for _, p := range prefixes {
				lines = append(lines, line{prefix: p})
				if !slices.Contains(want[p], name) {
					want[p] = append(want[p], name)
				}
			}
			uses = append(uses, Use{listOf(t, name, lines), Drop})
		}
		c, err := Compile(uses, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Len(model.IPv4) != len(want) {
			t.Fatalf("%d prefixes, want %d", c.Len(model.IPv4), len(want))
		}
		for e := range c.Entries(model.IPv4) {
			if got := c.Set(e.Set); !slices.Equal(got, want[e.Prefix]) {
				t.Fatalf("%v: %v, want %v", e.Prefix, got, want[e.Prefix])
			}
			if e.From != e.Prefix || int(e.Set) >= c.Sets() {
				t.Fatalf("%+v of %d sets", e, c.Sets())
			}
		}
	})
}

// TestDiff: the old table with the changes is the new one, and a table does not differ
// from itself compiled once more.
func TestDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "four")
		old, now := drawWorld(t, four), drawWorld(t, four)
		f := familyOf(four)
		table := map[netip.Prefix]string{}
		for e := range old.compiled.Entries(f) {
			table[e.Prefix] = describe(old.compiled, e)
		}
		for change := range Diff(old.compiled, now.compiled, f) {
			switch change.Kind {
			case Removed:
				delete(table, change.Old.Prefix)
			case Added:
				if _, ok := table[change.New.Prefix]; ok {
					t.Fatalf("%v is added and was there", change.New.Prefix)
				}
				table[change.New.Prefix] = describe(now.compiled, change.New)
			case Changed:
				if change.Old.Prefix != change.New.Prefix || describe(old.compiled, change.Old) == describe(now.compiled, change.New) {
					t.Fatalf("%+v is no change", change)
				}
				table[change.New.Prefix] = describe(now.compiled, change.New)
			}
		}
		want := map[netip.Prefix]string{}
		for e := range now.compiled.Entries(f) {
			want[e.Prefix] = describe(now.compiled, e)
		}
		if !maps.Equal(table, want) {
			t.Fatalf("got %v, want %v", table, want)
		}
		again, err := Compile(now.compiled.uses, now.allow)
		if err != nil {
			t.Fatal(err)
		}
		for change := range Diff(now.compiled, again, f) {
			t.Fatalf("compiled again: %+v", change)
		}
	})
}

func describe(c *Compiled, e Entry) string {
	words, _ := json.Marshal([]any{e.Action, e.Own, e.From, c.Set(e.Set)})
	return string(words)
}

// TestSplit: a range comes to the fewest prefixes, which are exactly its addresses.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "four")
		a, b := addrGen(four).Draw(t, "a"), addrGen(four).Draw(t, "b")
		if b.Less(a) {
			a, b = b, a
		}
		a4, a6, _ := numberOf(a)
		b4, b6, _ := numberOf(b)
		var parts []netip.Prefix
		if four {
			for _, p := range split(nil, a4, b4) {
				parts = append(parts, p.netip())
			}
		} else {
			for _, p := range split(nil, a6, b6) {
				parts = append(parts, p.netip())
			}
		}
		next := a
		for i, p := range parts {
			if p.Addr() != next || p != p.Masked() {
				t.Fatalf("%v-%v: %v", a, b, parts)
			}
			next = lastOf(p).Next()
			// Two neighbours that make one prefix would be one too many.
			if i > 0 && p.Bits() == parts[i-1].Bits() && netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked().Addr() == parts[i-1].Addr() {
				t.Fatalf("%v-%v: %v and %v are one", a, b, parts[i-1], p)
			}
		}
		if lastOf(parts[len(parts)-1]) != b {
			t.Fatalf("%v-%v: %v", a, b, parts)
		}
	})
}
