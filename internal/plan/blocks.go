package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// BlocksTableName is the name of the table that holds the blocklists. It is one of its own,
// so that a listing of the other stays readable.
const BlocksTableName = "weir-blocks"

// Chains of that table.
const (
	chainReject  = "refuse"
	chainContent = "content"
)

// blocksHook is where blocked packets end. See hooks for the others.
var blocksHook = hook{name: "prerouting", typ: "filter", hook: ruleset.Prerouting, priority: -450,
	why: "before conntrack (-200) and before fragments are gathered (-400): what is blocked costs neither"}

// Blocks is compiled blocklists and how they lie in the kernel.
//
// Each length of prefix and action has a set of its own whose elements are the entries. So an
// entry's element is the same whatever else is in the lists, and a change of them is a change
// of elements. A packet that meets one makes the counter of the entry, in another set (see
// hits.go). Which of the sets have to be asked is known by
// one look-up in a summary: it leads the first bits of a source (a bucket) to a chain that
// asks those sets that have entries in the bucket, the longest prefixes first. The summary
// counts nothing and may change at will.
//
// The sets are no verdict maps: when a verdict that leads to a chain comes, the kernel walks
// all verdict maps behind it, and before 6.18 it walks them again for each way there.
type Blocks struct {
	Compiled *blocklist.Compiled
	Layout   BlocksLayout

	table *ruleset.Table
}

// BlocksLayout is what of a table follows from the lists before, too: what fits well enough
// stays. The zero value is that of no table.
type BlocksLayout struct {
	Summary map[model.Family]int // bits of a bucket; 0: there is no summary
	Size    map[string]int       // room in each set, by its name
}

// ReadBlocksLayout returns the layout of a table that was read from the kernel. Only the
// declarations of its sets are looked at.
func ReadBlocksLayout(sets []*ruleset.Set) BlocksLayout {
	l := BlocksLayout{Summary: map[model.Family]int{}, Size: map[string]int{}}
	for _, s := range sets {
		l.Size[s.Name] = s.Size
		for _, f := range families {
			if bits, ok := strings.CutPrefix(s.Name, summaryName(f, "")); ok {
				l.Summary[f], _ = strconv.Atoi(bits)
			}
		}
	}
	return l
}

// NewBlocks plans compiled lists, nil for none. prev is the plan before, or what the kernel
// is known to hold (&Blocks{Layout: ReadBlocksLayout(…)}), or nil.
func NewBlocks(c *blocklist.Compiled, prev *Blocks) *Blocks {
	if prev == nil {
		prev = &Blocks{}
	}
	if prev.table != nil && prev.Compiled == c {
		return prev
	}
	b := &Blocks{Compiled: c, Layout: BlocksLayout{Summary: map[model.Family]int{}, Size: map[string]int{}}}
	if c != nil && c.Len(model.IPv4)+c.Len(model.IPv6) > 0 {
		b.build(func(t *blocked) int { return t.bucketBits(prev.Layout.Summary[t.family]) }, prev)
	}
	return b
}

// build makes the table. bucket chooses the bits of a family's buckets, 0 for no summary.
func (b *Blocks) build(bucket func(*blocked) int, prev *Blocks) {
	b.table = &ruleset.Table{Family: ruleset.Inet, Name: BlocksTableName, Marker: chainContent}
	start := &ruleset.Chain{Name: blocksHook.name,
		Base: &ruleset.Base{Type: blocksHook.typ, Hook: blocksHook.hook, Priority: blocksHook.priority}}
	b.table.Chains = []*ruleset.Chain{start, rejectChain()}
	b.add(uncountedSpec.set(), prev)
	for _, f := range families {
		if b.Compiled.Len(f) > 0 {
			t := newBlocked(f, b.Compiled)
			b.addEntries(t, prev)
			start.Rules = append(start.Rules, b.addLookup(t, bucket(t), prev)...)
		}
	}
	b.table.Chains = append(b.table.Chains, contentChain(b.table.Sets))
	if prev.table != nil {
		for i, chain := range b.table.Chains {
			b.table.Chains[i] = sameChain(prev.table.Chains, chain)
		}
	}
}

// WithBlocks returns a plan that has the tables of p and that of b, and b as its Blocks.
func (p *Plan) WithBlocks(b *Blocks) *Plan {
	next := *p
	next.Blocks = b
	if b != nil && b.table != nil {
		tables := p.Ruleset.Tables
		next.Ruleset = &ruleset.Ruleset{Tables: append(tables[:len(tables):len(tables)], b.table)}
	}
	return &next
}

// Table returns the table, nil where nothing is blocked.
func (b *Blocks) Table() *ruleset.Table { return b.table }

// Set returns the set that holds an entry of the compiled lists, or nil. The element's key is
// the entry's address.
func (b *Blocks) Set(e blocklist.Entry) *ruleset.Set {
	if b == nil || b.table == nil {
		return nil
	}
	return b.table.Set(entriesName(model.FamilyOf(e.Prefix.Addr()), sortOf{e.Prefix.Bits(), e.Action}))
}

// entriesName names the set of entries of one sort: "drop4/24".
func entriesName(f model.Family, s sortOf) string { return fmt.Sprintf("%s%d/%d", s.action, f, s.bits) }

func summaryName(f model.Family, bits string) string { return fmt.Sprintf("summary%d/%s", f, bits) }

// verdicts are what becomes of packets that meet an entry, by its action. An entry that
// only counts ends the chain, too: what is around it only counts as well, and the most
// specific entry is the one that does.
var verdicts = [...]ruleset.Verdict{
	blocklist.Count:  {Kind: ruleset.AcceptPacket},
	blocklist.Reject: {Kind: ruleset.GotoChain, Chain: chainReject},
	blocklist.Drop:   {Kind: ruleset.DropPacket},
}

func rejectChain() *ruleset.Chain {
	return &ruleset.Chain{Name: chainReject, Rules: []ruleset.Rule{
		{Comment: "refuse", Stmts: []ruleset.Stmt{ruleset.IsProto(model.TCP), ruleset.RejectWith{TCPReset: true}}},
		{Comment: "refuse", Stmts: []ruleset.Stmt{ruleset.RejectWith{Prohibited: true}}},
	}}
}

// contentChain makes the marker: a chain that nobody calls, with a rule that tells the
// content of all sets by a hash.
func contentChain(sets []*ruleset.Set) *ruleset.Chain {
	h := sha256.New()
	for _, s := range sets {
		fmt.Fprintf(h, "%s %d %d\n", s.Name, s.Size, s.Len())
		var jumps []ruleset.Jump // of the piece before; to write them takes longer than all the rest
		for _, p := range s.Packed {
			h.Write([]byte(p.Keys))
			if !slices.Equal(p.Jumps, jumps) {
				jumps = p.Jumps
				for _, j := range jumps {
					fmt.Fprintf(h, "%v\n", j)
				}
			}
			h.Write([]byte(p.Which))
		}
	}
	return &ruleset.Chain{Name: chainContent, Rules: []ruleset.Rule{{
		Comment: "content " + hex.EncodeToString(h.Sum(nil)[:16]),
		Stmts:   []ruleset.Stmt{ruleset.Verdict{Kind: ruleset.ReturnBack}}}}}
}

// addEntries adds the sets that hold the entries, and the sets and chains that count those
// that packets meet.
func (b *Blocks) addEntries(t *blocked, prev *Blocks) {
	packed := t.pack(func(s sortOf) []*ruleset.Packed { return prev.pieces(entriesName(t.family, s)) })
	ofLength := map[int]int{}
	for i, sort := range t.sorts {
		ofLength[sort.bits] += t.count[i]
	}
	var hits []string
	for i, sort := range t.sorts {
		name := entriesName(t.family, sort)
		b.add(&ruleset.Set{Name: name, Key: ruleset.Types{ruleset.AddrType(t.family)},
			Size: room(t.count[i], prev.Layout.Size[name]), Packed: packed[i]}, prev)
		if i == 0 || sort.bits != t.sorts[i-1].bits {
			hits = b.addHits(t.family, sort.bits, ofLength[sort.bits], prev)
		}
		b.table.Chains = append(b.table.Chains, hitChain(t.family, sort, hits))
	}
}

// pieces returns what a set held before.
func (b *Blocks) pieces(name string) []*ruleset.Packed {
	if b.table != nil {
		if s := b.table.Set(name); s != nil {
			return s.Packed
		}
	}
	return nil
}

// add adds a set, or the one of the plan before if it is the same.
func (b *Blocks) add(s *ruleset.Set, prev *Blocks) {
	b.Layout.Size[s.Name] = s.Size
	if prev.table != nil {
		if old := prev.table.Set(s.Name); old != nil && old.SameSpec(s) && samePieces(old.Packed, s.Packed) {
			s = old
		}
	}
	b.table.Sets = append(b.table.Sets, s)
}

func samePieces(a, b []*ruleset.Packed) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

const (
	// minRoom is the least room of a set. The kernel makes a power of two of buckets, four
	// for three elements (nft_hash_buckets in net/netfilter/nft_set_hash.c): with three
	// times a power of two, none are made for nothing.
	minRoom = 48
	// manyEntries is from where on a set has less room, for its buckets are out of all
	// caches.
	manyEntries = 1 << 18
)

// room returns for how many elements a set of n is made: as many as had room, had, if that
// is neither too little nor far too much; else at least twice n, so that all may be
// replaced by others in one transaction, in which both are there. A set that has not room
// enough for a change is made anew.
func room(n, had int) int {
	if had >= n && had <= max(16*n, minRoom) {
		return had
	}
	want := 2 * n
	if n > manyEntries {
		want = n + n/4
	}
	size := minRoom
	for size < want {
		size *= 2
	}
	return size
}

// addLookup adds the summary of buckets of that many bits and its chains, if there is to be
// one, and returns the rules that come first.
func (b *Blocks) addLookup(t *blocked, bits int, prev *Blocks) []ruleset.Rule {
	if bits == 0 {
		return t.asks(t.all())
	}
	b.Layout.Summary[t.family] = bits
	name := summaryName(t.family, strconv.Itoa(bits))
	s := &ruleset.Set{Name: name, Key: ruleset.Types{ruleset.AddrType(t.family)}, Verdict: true}
	var combos []sortSet
	s.Packed, combos = t.summary(bits, prev.pieces(name))
	s.Size = room(s.Len(), prev.Layout.Size[name])
	b.add(s, prev)
	for _, c := range combos {
		b.table.Chains = append(b.table.Chains, &ruleset.Chain{Name: t.chainName(c), Rules: t.asks(c)})
	}
	return []ruleset.Rule{{Comment: "is there an entry near the source", Stmts: []ruleset.Stmt{
		ruleset.IsFamily(t.family), ruleset.VMap{Key: ruleset.Source(t.family, bits), Map: name}}}}
}

// asks returns the rules that look a source up in the sets of these sorts.
func (t *blocked) asks(c sortSet) []ruleset.Rule {
	var rules []ruleset.Rule
	for i, s := range t.sorts {
		if c.has(i) {
			rules = append(rules, ruleset.Rule{Comment: s.action.String(), Stmts: []ruleset.Stmt{
				ruleset.IsFamily(t.family),
				ruleset.InSet{Key: ruleset.Source(t.family, s.bits), Set: entriesName(t.family, s)},
				ruleset.Verdict{Kind: ruleset.GotoChain, Chain: hitName(t.family, s)}}})
		}
	}
	return rules
}

// chainName names the chain of some sorts: "ask4/32.24.16", with the action's first letter
// where that is not drop: "ask4/32.24r".
func (t *blocked) chainName(c sortSet) string {
	if c == t.all() {
		return fmt.Sprintf("ask%d/all", t.family)
	}
	var words []string
	for i, s := range t.sorts {
		if c.has(i) {
			word := strconv.Itoa(s.bits)
			if s.action != blocklist.Drop {
				word += s.action.String()[:1]
			}
			words = append(words, word)
		}
	}
	return fmt.Sprintf("ask%d/%s", t.family, strings.Join(words, "."))
}
