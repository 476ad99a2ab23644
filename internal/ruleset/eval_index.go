package ruleset

import (
	"cmp"
	"slices"

	"weir/internal/model"
)

// conntrackPriority is where conntrack looks at packets in prerouting and output, and
// the others where it translates: the priorities of nat chains order them among
// themselves only (NF_IP_PRI_CONNTRACK, _NAT_DST and _NAT_SRC in
// include/uapi/linux/netfilter_ipv4.h).
const (
	conntrackPriority = -200
	natDstPriority    = -100
	natSrcPriority    = 100
)

// Evaluator is a ruleset made ready for look-ups. The indexes are built as they are
// needed, so it is not for concurrent use. The ruleset must not change meanwhile.
type Evaluator struct {
	hooks map[Hook][]stage
}

// stage is the base chains that are called at one point of a hook.
type stage struct {
	priority int
	nat      bool // chains of type nat: for the first packet only
	chains   []baseChain
}

type baseChain struct {
	table *tableIndex
	chain *Chain
}

type tableIndex struct {
	family model.Family // whose packets alone it sees; 0 for all

	chains map[string]*Chain
	sets   map[string]*setIndex

	timeouts map[string]*Timeouts
}

// NewEvaluator makes r ready for Eval.
func NewEvaluator(r *Ruleset) *Evaluator {
	ev := &Evaluator{hooks: map[Hook][]stage{}}
	bases := map[Hook][]baseChain{}
	for _, t := range r.Tables {
		if t.Copies {
			continue
		}
		ti := indexTable(t)
		for _, c := range t.Chains {
			if c.Base != nil {
				bases[c.Base.Hook] = append(bases[c.Base.Hook], baseChain{ti, c})
			}
		}
	}
	for _, h := range []Hook{Ingress, Prerouting, Input, Forward, Output, Postrouting} {
		ev.hooks[h] = stages(h, bases[h])
	}
	return ev
}

func indexTable(t *Table) *tableIndex {
	ti := &tableIndex{
		family: t.Family.IP(),
		chains: make(map[string]*Chain, len(t.Chains)),
		sets:   make(map[string]*setIndex, len(t.Sets)),
	}
	for _, o := range t.Timeouts {
		if ti.timeouts == nil {
			ti.timeouts = map[string]*Timeouts{}
		}
		ti.timeouts[o.Name] = o
	}
	for _, s := range t.Sets {
		ti.sets[s.Name] = &setIndex{set: s}
	}
	for _, c := range t.Chains {
		ti.chains[c.Name] = c
	}
	return ti
}

// stages orders the base chains of one hook.
func stages(h Hook, bases []baseChain) []stage {
	slices.SortStableFunc(bases, func(a, b baseChain) int {
		return cmp.Compare(a.chain.Base.Priority, b.chain.Base.Priority)
	})
	nat := stage{nat: true, priority: natSrcPriority}
	if h == Prerouting || h == Output {
		nat.priority = natDstPriority
	}
	var out []stage
	for _, b := range bases {
		if b.chain.Base.Type == "nat" {
			nat.chains = append(nat.chains, b)
		} else {
			out = append(out, stage{priority: b.chain.Base.Priority, chains: []baseChain{b}})
		}
	}
	if h == Forward || h == Ingress {
		return out // nothing is translated there
	}
	at := len(out)
	for i, s := range out {
		if s.priority > nat.priority {
			at = i
			break
		}
	}
	return slices.Insert(out, at, nat)
}

// setIndex finds elements of a set. In a set of ranges, the fields in which no element
// spans more than one value choose the few elements that are then compared.
type setIndex struct {
	set    *Set
	single map[string]*Element   // by key; unless set.Range
	spans  map[string][]*Element // by the key's narrow fields; if set.Range
	wide   []bool                // by field: some element spans several values
}

// lookup returns the element that holds key, or nil. The kernel refuses ranges that
// overlap, so that there is one at most.
func (x *setIndex) lookup(key string) *Element {
	if len(x.set.Packed) > 0 {
		if e, ok := findPacked(x.set.Packed, key); ok {
			return &e
		}
	}
	if !x.set.Range {
		if x.single == nil {
			x.single = make(map[string]*Element, x.set.Len())
			x.each(func(e *Element) { x.single[e.Key] = e })
		}
		return x.single[key]
	}
	if x.spans == nil {
		x.indexSpans()
	}
	for _, e := range x.spans[x.narrow(key)] {
		if x.set.Key.holds(e, key) {
			return e
		}
	}
	return nil
}

func (x *setIndex) indexSpans() {
	x.wide = make([]bool, len(x.set.Key))
	x.each(func(e *Element) {
		if e.KeyEnd == "" {
			return
		}
		at := 0
		for i, t := range x.set.Key {
			end := at + t.Padded()
			x.wide[i] = x.wide[i] || e.Key[at:end] != e.KeyEnd[at:end]
			at = end
		}
	})
	x.spans = make(map[string][]*Element, x.set.Len())
	x.each(func(e *Element) {
		k := x.narrow(e.Key)
		x.spans[k] = append(x.spans[k], e)
	})
}

func (x *setIndex) each(f func(*Element)) {
	for _, p := range x.set.Parts {
		for i := range p.Elems {
			f(&p.Elems[i])
		}
	}
}

// narrow returns the fields of key that are not wide.
func (x *setIndex) narrow(key string) string {
	out := make([]byte, 0, len(key))
	at := 0
	for i, t := range x.set.Key {
		if !x.wide[i] {
			out = append(out, key[at:at+t.Padded()]...)
		}
		at += t.Padded()
	}
	return string(out)
}

// holds reports whether key lies in the element, field by field. Fields compare as
// bytes, which is their order for all types but Integer on little-endian machines.
func (ts Types) holds(e *Element, key string) bool {
	if e.KeyEnd == "" {
		return e.Key == key
	}
	at := 0
	for _, t := range ts {
		end := at + t.Padded()
		if v := key[at:end]; v < e.Key[at:end] || v > e.KeyEnd[at:end] {
			return false
		}
		at = end
	}
	return true
}
