package ruleset

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// kernel is what a delta is applied to: the objects by name, and the rules that the real
// kernel has about what may be there.
type kernel map[string]*kernelTable

type kernelTable struct {
	sets   map[string]*kernelSet
	chains map[string]*kernelChain
}

type kernelSet struct {
	spec  *Set
	elems map[elemKey]Element
}

type kernelChain struct {
	base  *Base
	rules []Rule
}

// apply does a delta in the order of its lists, as strictly as the kernel does.
func (k kernel) apply(d *Delta) error {
	for _, td := range d.Tables {
		name := td.Table.Name
		switch t := k[name]; {
		case td.Delete && t == nil:
			return fmt.Errorf("table %s is not there to go", name)
		case td.Delete:
			delete(k, name)
			continue
		case td.Create && t != nil:
			return fmt.Errorf("table %s is there already", name)
		case td.Create:
			k[name] = &kernelTable{map[string]*kernelSet{}, map[string]*kernelChain{}}
		case t == nil:
			return fmt.Errorf("table %s is not there", name)
		}
		if err := k[name].apply(td); err != nil {
			return err
		}
	}
	return nil
}

func (t *kernelTable) apply(td *TableDelta) error {
	for _, step := range []func(*TableDelta) error{t.flush, t.delElems, t.delChains, t.delSets, t.addChains, t.addSets, t.addElems, t.addRules} {
		if err := step(td); err != nil {
			return err
		}
	}
	return nil
}

func (t *kernelTable) flush(td *TableDelta) error {
	for _, c := range td.Flush {
		if t.chains[c.Name] == nil {
			return fmt.Errorf("flush: no chain %s", c.Name)
		}
		t.chains[c.Name].rules = nil
	}
	return nil
}

func (t *kernelTable) delElems(td *TableDelta) error {
	for _, ch := range td.DelElems {
		s := t.sets[ch.Set.Name]
		if s == nil {
			return fmt.Errorf("delete elements: no set %s", ch.Set.Name)
		}
		for _, e := range ch.Elems {
			if s.elems[e.id()] != e {
				return fmt.Errorf("delete element: %s is not in %s", ch.Set.ElementText(&e), ch.Set.Name)
			}
			delete(s.elems, e.id())
		}
	}
	return nil
}

func (t *kernelTable) delChains(td *TableDelta) error {
	for _, c := range td.DelChains {
		if t.chains[c.Name] == nil {
			return fmt.Errorf("delete chain: no %s", c.Name)
		}
		if chains, _ := t.used(); chains[c.Name] {
			return fmt.Errorf("delete chain: %s is in use", c.Name)
		}
		if len(t.chains[c.Name].rules) > 0 {
			return fmt.Errorf("delete chain: %s has rules", c.Name)
		}
		delete(t.chains, c.Name)
	}
	return nil
}

func (t *kernelTable) delSets(td *TableDelta) error {
	for _, s := range td.DelSets {
		o := t.sets[s.Name]
		if o == nil || o.spec.word() != s.word() {
			return fmt.Errorf("delete %s: no %s", s.word(), s.Name)
		}
		if _, sets := t.used(); sets[s.Name] {
			return fmt.Errorf("delete set: %s is in use", s.Name)
		}
		delete(t.sets, s.Name)
	}
	return nil
}

func (t *kernelTable) addChains(td *TableDelta) error {
	for _, c := range td.AddChains {
		if t.chains[c.Name] != nil {
			return fmt.Errorf("add chain: %s is there already", c.Name)
		}
		t.chains[c.Name] = &kernelChain{base: c.Base}
	}
	return nil
}

func (t *kernelTable) addSets(td *TableDelta) error {
	for _, s := range td.AddSets {
		if t.sets[s.Name] != nil {
			return fmt.Errorf("add set: %s is there already", s.Name)
		}
		t.sets[s.Name] = &kernelSet{s, map[elemKey]Element{}}
	}
	return nil
}

func (t *kernelTable) addElems(td *TableDelta) error {
	for _, ch := range td.AddElems {
		s := t.sets[ch.Set.Name]
		if s == nil || !s.spec.SameSpec(ch.Set) {
			return fmt.Errorf("add elements: no such set %s", ch.Set.Name)
		}
		for _, e := range ch.Elems {
			if _, dup := s.elems[e.id()]; dup {
				return fmt.Errorf("add element: %s is in %s already", ch.Set.ElementText(&e), ch.Set.Name)
			}
			if s.spec.Verdict && t.chains[e.Jump.Chain] == nil {
				return fmt.Errorf("add element: %s: no such chain", ch.Set.ElementText(&e))
			}
			s.elems[e.id()] = e
		}
	}
	return nil
}

func (t *kernelTable) addRules(td *TableDelta) error {
	for _, c := range td.AddRules {
		k := t.chains[c.Name]
		if k == nil || len(k.rules) > 0 {
			return fmt.Errorf("add rules: chain %s is not there, or not empty", c.Name)
		}
		k.rules = c.Rules
	}
	chains, sets := t.used()
	for name := range chains {
		if t.chains[name] == nil {
			return fmt.Errorf("a rule or element uses chain %s, which is not there", name)
		}
	}
	for name := range sets {
		if t.sets[name] == nil {
			return fmt.Errorf("a rule uses set %s, which is not there", name)
		}
	}
	return nil
}

// used returns the chains and sets that rules and elements refer to.
func (t *kernelTable) used() (chains, sets map[string]bool) {
	chains, sets = map[string]bool{}, map[string]bool{}
	for _, s := range t.sets {
		for _, e := range s.elems {
			if e.Jump.Chain != "" {
				chains[e.Jump.Chain] = true
			}
		}
	}
	for _, c := range t.chains {
		for _, r := range c.rules {
			for _, s := range r.Stmts {
				switch s := s.(type) {
				case VMap:
					sets[s.Map] = true
				case InSet:
					sets[s.Set] = true
				case Verdict:
					if s.Chain != "" {
						chains[s.Chain] = true
					}
				}
			}
		}
	}
	return chains, sets
}

// String is the same for kernels that hold the same.
func (k kernel) String() string {
	var b strings.Builder
	for _, name := range sortedKeys(k) {
		fmt.Fprintf(&b, "table %s\n", name)
		for _, n := range sortedKeys(k[name].sets) {
			s := k[name].sets[n]
			fmt.Fprintf(&b, "%s %s %s\n", s.spec.word(), n, s.spec.spec())
			var elems []string
			for e := range maps.Values(s.elems) {
				elems = append(elems, s.spec.ElementText(&e))
			}
			slices.Sort(elems)
			fmt.Fprintf(&b, "  %s\n", strings.Join(elems, "\n  "))
		}
		for _, n := range sortedKeys(k[name].chains) {
			c := k[name].chains[n]
			fmt.Fprintf(&b, "chain %s %v\n", n, c.base)
			for _, r := range c.rules {
				fmt.Fprintf(&b, "  %s\n", &r)
			}
		}
	}
	return b.String()
}

// load makes a kernel that holds r, without Diff.
func load(r *Ruleset) kernel {
	k := kernel{}
	for _, t := range r.Tables {
		kt := &kernelTable{map[string]*kernelSet{}, map[string]*kernelChain{}}
		for _, s := range t.Sets {
			ks := &kernelSet{s, map[elemKey]Element{}}
			for _, p := range s.Parts {
				for _, e := range p.Elems {
					ks.elems[e.id()] = e
				}
			}
			kt.sets[s.Name] = ks
		}
		for _, c := range t.Chains {
			kt.chains[c.Name] = &kernelChain{c.Base, c.Rules}
		}
		k[t.Name] = kt
	}
	return k
}

func mustApply(t rapid.TB, a, b *Ruleset, d *Delta) {
	t.Helper()
	k := load(a)
	if err := k.apply(d); err != nil {
		t.Fatalf("%v\nfrom:\n%s\nto:\n%s\ndelta:\n%s", err, a, b, d)
	}
	if got, want := k.String(), load(b).String(); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s\ndelta:\n%s", got, want, d)
	}
}

func TestDiffApplies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genPair(t)
		mustApply(t, p.a, p.b, Diff(p.a, p.b))
		mustApply(t, p.a, p.b, Diff(readBack(p.a), p.b))
	})
}

func TestDiffOfTheSameIsEmpty(t *testing.T) {
	check := func(t rapid.TB, a *Ruleset) {
		for what, same := range map[string]*Ruleset{"itself": a, "a copy": clone(a), "what is read back": readBack(a)} {
			if d := Diff(same, a); !d.Empty() || d.String() != "" || d.Summary() != "no change" {
				t.Fatalf("against %s: %s\n%s", what, d.Summary(), d)
			}
		}
	}
	check(t, fixture())
	rapid.Check(t, func(t *rapid.T) { check(t, genRuleset(t)) })
}

// Sharing is an optimization: it changes nothing in the result.
func TestDiffOfSharedParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genPair(t)
		a, b := p.a, p.b
		shared := share(a, b)
		mustApply(t, a, b, Diff(a, shared))
		if got, want := linesSorted(Diff(a, shared)), linesSorted(Diff(a, b)); got != want {
			t.Fatalf("shared:\n%s\nnot shared:\n%s", got, want)
		}
	})
}

// linesSorted returns the delta with one element a line, in an order of its own.
func linesSorted(d *Delta) string {
	var lines []string
	for l := range strings.Lines(d.String()) {
		head, elems, isElem := strings.Cut(l, " { ")
		if !isElem || !strings.Contains(head, " element ") {
			lines = append(lines, l)
			continue
		}
		for e := range strings.SplitSeq(strings.TrimSuffix(elems, " }\n"), ", ") {
			lines = append(lines, head+" "+e+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// A change in one part costs the same however much the other parts hold.
func TestDiffSharedPartsCostNothing(t *testing.T) {
	allocs := func(elems int) float64 {
		others := make([]*Part, 10)
		for i := range others {
			others[i] = &Part{}
			for n := range elems {
				others[i].Elems = append(others[i].Elems, Element{Key: keyOf(uint32(i<<20 | n)), Data: keyOf("10.0.0.1")})
			}
		}
		with := func(data string) *Ruleset {
			own := part(Element{Key: keyOf(uint32(1 << 30)), Data: keyOf(data)})
			return &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir", Sets: []*Set{
				{Name: "m", Key: Types{Integer}, Data: Types{IPv4Addr}, Parts: append(others[:10:10], own)}}}}}
		}
		a, b := with("10.0.0.2"), with("10.0.0.3")
		mustEqual(t, "delta", Diff(a, b).Summary(), "1 element changed")
		return testing.AllocsPerRun(5, func() { Diff(a, b) })
	}
	mustEqual(t, "allocations with 10 and with 5,000 elements a part", allocs(10), allocs(5000))
}

// elemDelta diffs two rulesets of one map, given by its parts.
func elemDelta(a, b []*Part) string {
	r := func(parts []*Part) *Ruleset {
		return &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir", Sets: []*Set{
			{Name: "m", Key: Types{Integer}, Data: Types{Port}, Parts: parts}}}}}
	}
	return Diff(r(a), r(b)).String()
}

// An element that two parts hold comes with the first and goes with the last.
func TestDiffElementInTwoParts(t *testing.T) {
	e := func(k uint32, port int) Element { return Element{Key: keyOf(k), Data: keyOf(port)} }
	p, q := part(e(1, 80), e(2, 80)), part(e(2, 80), e(3, 80))
	for _, c := range []struct {
		name string
		a, b []*Part
		want string
	}{
		{"both come", nil, []*Part{p, q}, "add element inet weir m { 1 : 80, 2 : 80, 3 : 80 }\n"},
		{"the second comes", []*Part{p}, []*Part{p, q}, "add element inet weir m { 3 : 80 }\n"},
		{"the first goes", []*Part{p, q}, []*Part{q}, "delete element inet weir m { 1 : 80 }\n"},
		{"the second goes", []*Part{p, q}, []*Part{p}, "delete element inet weir m { 3 : 80 }\n"},
		{"one for the other", []*Part{p}, []*Part{q}, "delete element inet weir m { 1 : 80 }\nadd element inet weir m { 3 : 80 }\n"},
		{"both go", []*Part{p, q}, nil, "delete element inet weir m { 1 : 80, 2 : 80, 3 : 80 }\n"},
		{"order of parts", []*Part{p, q}, []*Part{q, p}, ""},
		{"a part twice", []*Part{p}, []*Part{p, p}, ""},
		{"other data in both", []*Part{p, q}, []*Part{part(e(1, 80), e(2, 81)), part(e(2, 81), e(3, 80))},
			"delete element inet weir m { 2 : 80 }\nadd element inet weir m { 2 : 81 }\n"},
	} {
		t.Run(c.name, func(t *testing.T) { mustEqual(t, "delta", elemDelta(c.a, c.b), c.want) })
	}
}

// A set of another kind under the same name: what binds it is loaded again.
func TestDiffRespec(t *testing.T) {
	a, b := fixture(), fixture()
	s := *b.Tables[0].Set("hairpin4")
	s.Counter = true
	b.Tables[0].Sets[slices.IndexFunc(b.Tables[0].Sets, func(s *Set) bool { return s.Name == "hairpin4" })] = &s
	d := Diff(a, share(a, b))
	mustApply(t, a, b, d)
	mustEqual(t, "summary", d.Summary(), "1 set replaced")
	mustEqual(t, "chains loaded again", len(d.Tables[0].AddRules), len(a.Tables[0].Chains))
}

func TestDeltaSummary(t *testing.T) {
	change := func(f func(*Table)) string {
		r := clone(fixture())
		f(r.Tables[0])
		return Diff(fixture(), r).Summary()
	}
	chain := func(t *Table, name string) *Chain { return t.Chain(name) }
	drop := Rule{Stmts: []Stmt{Verdict{Kind: DropPacket}}}
	for _, c := range []struct{ want, got string }{
		{"no change", change(func(*Table) {})},
		{"1 rule replaced", change(func(t *Table) { chain(t, "new").Rules[1] = drop })},
		{"1 rule added", change(func(t *Table) { chain(t, "new").Rules = append(chain(t, "new").Rules, drop) })},
		{"2 rules deleted", change(func(t *Table) { chain(t, "new").Rules = nil })},
		{"2 rules replaced", change(func(t *Table) {
			chain(t, "new").Rules[1], chain(t, "leave").Rules[0] = drop, drop
		})},
		{"1 chain loaded again", change(func(t *Table) { slices.Reverse(chain(t, "new").Rules) })},
		{"1 chain replaced, 1 rule replaced", change(func(t *Table) {
			chain(t, "count-in").Base.Priority++
			chain(t, "count-in").Rules[0] = drop
		})},
		{"1 element added", change(func(t *Table) {
			p := t.Set("services4").Parts[0]
			p.Elems = append(p.Elems, to(vip, model.TCP, 443, "service/web/ip/tcp"))
		})},
		{"1 set deleted", change(func(t *Table) { t.Sets = slices.Delete(t.Sets, 8, 9) })},
		{"1 set added, 1 chain added, 1 rule added", change(func(t *Table) {
			t.Sets = append(t.Sets, &Set{Name: "more", Key: Types{Port}})
			t.Chains = append(t.Chains, &Chain{Name: "more", Rules: []Rule{drop}})
		})},
		{"1 table deleted", Diff(fixture(), &Ruleset{}).Summary()},
		{"1 table added", Diff(&Ruleset{}, &Ruleset{Tables: []*Table{{Family: Inet, Name: "weir"}}}).Summary()},
	} {
		mustEqual(t, "summary", c.got, c.want)
	}
}

// TestDiffWakes has a table that somebody switched off. What the kernel does not take in
// one transaction with the waking makes the table new.
func TestDiffWakes(t *testing.T) {
	off := func(f func(*Table)) *Delta {
		r := readBack(fixture())
		r.Tables[0].Dormant = true
		f(r.Tables[0])
		return Diff(r, fixture())
	}
	for _, c := range []struct {
		what    string
		change  func(*Table)
		summary string
		anew    bool
	}{
		{"nothing else", func(*Table) {}, "1 table switched on", false},
		{"a base chain is missing", func(t *Table) {
			t.Chains = slices.DeleteFunc(t.Chains, func(c *Chain) bool { return c.Name == "prerouting" })
		}, "1 table switched on, 1 chain added, 3 rules added", false},
		{"a chain too many", func(t *Table) { t.Chains = append(t.Chains, &Chain{Name: "x"}) },
			"1 table switched on, 1 chain deleted", false},
		{"a base chain too many", func(t *Table) {
			t.Chains = append(t.Chains, &Chain{Name: "x", Base: &Base{Type: "filter", Hook: Input, Priority: 7}})
		}, "", true},
	} {
		d := off(c.change)
		last := d.Tables[len(d.Tables)-1]
		if c.anew {
			if len(d.Tables) != 2 || !d.Tables[0].Delete || !last.Create || last.Wake {
				t.Errorf("%s: the table is not made anew: %s", c.what, d)
			}
			mustEqual(t, c.what, d.String(), "delete table inet weir\n"+Diff(&Ruleset{}, fixture()).String())
			continue
		}
		mustEqual(t, c.what, d.Summary(), c.summary)
		if lines := strings.Split(strings.TrimSpace(d.String()), "\n"); lines[len(lines)-1] != "add table inet weir" {
			t.Errorf("%s: the last line is %q", c.what, lines[len(lines)-1])
		}
	}
}

func TestDeltaGolden(t *testing.T) {
	b := fixture()
	tab := b.Tables[0]
	tab.Set("addrport4/00").Parts[0] = slots(webBase, "10.1.1.2:8080", "10.1.1.3:8080", "10.1.1.4:8080")
	tab.Set("services4").Parts[1] = part(to(vip, model.UDP, 5353, "service/dns/ip/udp"))
	tab.Sets = slices.DeleteFunc(tab.Sets, func(s *Set) bool { return s.Name == "services6" })
	tab.Chains = slices.DeleteFunc(tab.Chains, func(c *Chain) bool { return c.Name == "service/web/ip6/tcp" })
	tab.Chain("prerouting").Rules = tab.Chain("prerouting").Rules[:2]
	tab.Chain("output").Rules = tab.Chain("output").Rules[:2]
	tab.Chains = append(tab.Chains, &Chain{Name: "late", Base: &Base{Type: "filter", Hook: Input, Priority: 7}, Rules: []Rule{{Stmts: []Stmt{Verdict{Kind: AcceptPacket}}}}})
	d := Diff(fixture(), b)
	mustApply(t, fixture(), b, d)
	golden(t, "delta.nft", "# "+d.Summary()+"\n"+d.String())
}
