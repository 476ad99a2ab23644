package plan

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// Entries have no counters of their own: to make one for each of a million takes the kernel
// longer than all the rest. Packets make them, in sets by the length of the prefix, whatever
// the entry's action is.

// uncountedSpec: packets that met an entry for whose counter there was no room, by the device
// they came in by.
var uncountedSpec = setSpec{Name: "uncounted", Key: ruleset.Types{ruleset.IfName}, Counter: true, Size: 256}

// hitsName names the sets in which the entries of one length count: "hits4/24", then
// "hits4/24/1".
func hitsName(f model.Family, bits, i int) string {
	name := fmt.Sprintf("hits%d/%d", f, bits)
	if i > 0 {
		name += "/" + strconv.Itoa(i)
	}
	return name
}

// addHits adds the sets in which n entries of one length count, and returns their names:
// those that are there, and one more where these have no room for all. A set that has become
// too small is not replaced by a larger one, for what it counts between a look at it and the
// replacement would be lost.
func (b *Blocks) addHits(f model.Family, bits, n int, prev *Blocks) []string {
	var names []string
	sum := 0
	add := func(name string, size int) {
		b.add(&ruleset.Set{Name: name, Key: ruleset.Types{ruleset.AddrType(f)}, Dynamic: true, Counter: true, Size: size}, prev)
		names, sum = append(names, name), sum+size
	}
	for {
		name := hitsName(f, bits, len(names))
		size := prev.Layout.Size[name]
		if size <= 0 {
			break
		}
		add(name, size)
	}
	// One in sixteen is for counters that packets made while their entries went.
	if need := n + n/16; sum < need {
		add(hitsName(f, bits, len(names)), hitsRoom(max(need-sum, sum)))
	}
	return names
}

// hitsRoom returns for how many elements a set for n of them is made. The kernel makes
// buckets for all of them at once, 10.7 bytes for each; see minRoom for the steps.
func hitsRoom(n int) int {
	size := 3072
	for size < n {
		size *= 2
	}
	return size
}

// hitName names the chain of packets that met an entry of a sort.
func hitName(f model.Family, s sortOf) string { return "hit/" + entriesName(f, s) }

// hitChain returns the chain that counts a packet in the first of the sets that has its
// element or has room for it, and says what becomes of it. A set that is full, or an element
// for which there is no memory, ends the rule (net/netfilter/nft_dynset.c): so the verdict
// stands behind all of them once more.
func hitChain(f model.Family, s sortOf, hits []string) *ruleset.Chain {
	c := &ruleset.Chain{Name: hitName(f, s)}
	for _, name := range hits {
		c.Rules = append(c.Rules, ruleset.Rule{Comment: s.action.String(), Stmts: []ruleset.Stmt{ruleset.IsFamily(f),
			ruleset.Update{Set: name, Key: ruleset.Source(f, s.bits)}, verdicts[s.action]}})
	}
	c.Rules = append(c.Rules,
		ruleset.Rule{Comment: "no room to count it", Stmts: []ruleset.Stmt{
			ruleset.Update{Set: uncountedSpec.Name, Key: ruleset.Key{ruleset.IIFName}}}},
		ruleset.Rule{Comment: s.action.String(), Stmts: []ruleset.Stmt{verdicts[s.action]}})
	return c
}

// EntrySet is a set of the table of blocklists that has to do with entries of one length.
type EntrySet struct {
	Family model.Family
	Bits   int
	Hits   bool // packets that met entries make its elements; else they are entries
}

// ParseEntrySet reads what a set is from its name; false where it is neither.
func ParseEntrySet(name string) (EntrySet, bool) {
	for _, f := range families {
		for a := blocklist.Count; a <= blocklist.Drop; a++ {
			if bits, ok := strings.CutPrefix(name, fmt.Sprintf("%s%d/", a, f)); ok {
				n, err := strconv.Atoi(bits)
				return EntrySet{Family: f, Bits: n}, err == nil
			}
		}
		if bits, ok := strings.CutPrefix(name, fmt.Sprintf("hits%d/", f)); ok {
			bits, _, _ = strings.Cut(bits, "/")
			n, err := strconv.Atoi(bits)
			return EntrySet{Family: f, Bits: n, Hits: true}, err == nil
		}
	}
	return EntrySet{}, false
}

// Prefix returns the entry of an element's key.
func (s EntrySet) Prefix(key string) netip.Prefix {
	a, _ := netip.AddrFromSlice([]byte(key))
	return netip.PrefixFrom(a, s.Bits)
}

// CountedBlocks is all entries of one length and the sets in which they count. What an entry has
// counted is the sum over these.
type CountedBlocks struct {
	EntrySet
	Sets    []*ruleset.Set
	Entries []*ruleset.Packed // not in order
}

// Counted returns where entries count.
func (b *Blocks) Counted() []CountedBlocks {
	if b == nil || b.table == nil {
		return nil
	}
	var out []CountedBlocks
	at := map[EntrySet]int{}
	for _, s := range b.table.Sets {
		of, ok := ParseEntrySet(s.Name)
		if !ok {
			continue
		}
		hits := of.Hits
		of.Hits = true
		i, known := at[of]
		if !known {
			i = len(out)
			at[of], out = i, append(out, CountedBlocks{EntrySet: of})
		}
		if hits {
			out[i].Sets = append(out[i].Sets, s)
		} else {
			out[i].Entries = append(out[i].Entries, s.Packed...)
		}
	}
	return out
}

// Counts returns the sets in which an entry of the compiled lists counts; the key is its
// address.
func (b *Blocks) Counts(e blocklist.Entry) []*ruleset.Set {
	for _, c := range b.Counted() {
		if c.Bits == e.Prefix.Bits() && c.Family == model.FamilyOf(e.Prefix.Addr()) {
			return c.Sets
		}
	}
	return nil
}

// Uncounted returns the set that counts packets that met an entry for whose counter there was
// no room, nil where nothing is blocked.
func (b *Blocks) Uncounted() *ruleset.Set {
	if b == nil || b.table == nil {
		return nil
	}
	return b.table.Set(uncountedSpec.Name)
}
