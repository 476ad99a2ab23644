package plan

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir/internal/blocklist"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// compiled returns lists given as action → lines.
func compiled(tb rapid.TB, lists map[blocklist.Action][]string, allow ...string) *blocklist.Compiled {
	tb.Helper()
	var uses []blocklist.Use
	for a := blocklist.Count; a <= blocklist.Drop; a++ {
		b := blocklist.NewBuilder(a.String(), blocklist.Options{Strict: true})
		if err := b.Add("test", strings.NewReader(strings.Join(lists[a], "\n"))); err != nil {
			tb.Fatal(err)
		}
		uses = append(uses, blocklist.Use{List: b.List(), Action: a})
	}
	var never []netip.Prefix
	for _, p := range allow {
		never = append(never, netip.MustParsePrefix(p))
	}
	c, err := blocklist.Compile(uses, never)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// withSummary is NewBlocks with buckets of that many bits; 0: no summary.
func withSummary(c *blocklist.Compiled, bits map[model.Family]int) *Blocks {
	b := &Blocks{Compiled: c, Layout: BlocksLayout{Summary: map[model.Family]int{}, Size: map[string]int{}}}
	b.build(func(t *blocked) int { return bits[t.family] }, &Blocks{})
	return b
}

func rulesetOf(b *Blocks) *ruleset.Ruleset {
	return (&Plan{Ruleset: &ruleset.Ruleset{}}).WithBlocks(b).Ruleset
}

var small = map[blocklist.Action][]string{
	blocklist.Drop:   {"192.0.2.0/24", "198.51.100.7", "198.51.100.9", "203.0.113.128/25", "2001:db8:1::/48", "2001:db8:2::7"},
	blocklist.Reject: {"192.0.2.77", "198.51.100.0/28", "2001:db8:3::/64"},
	blocklist.Count:  {"203.0.113.0/24", "203.0.113.1", "2001:db8::/32"},
}

// TestBlocksGolden holds the table of a small list, without a summary and with one, and
// what a change of it sends.
func TestBlocksGolden(t *testing.T) {
	c := compiled(t, small, "192.0.2.128/26")
	for name, bits := range map[string]map[model.Family]int{
		"direct": nil, "summary": {model.IPv4: 20, model.IPv6: 36}} {
		b := withSummary(c, bits)
		text := rulesetOf(b).String()
		next := map[blocklist.Action][]string{blocklist.Drop: append(small[blocklist.Drop][1:], "198.51.100.8"),
			blocklist.Count: small[blocklist.Count], blocklist.Reject: small[blocklist.Reject]}
		n := &Blocks{Compiled: compiled(t, next), Layout: BlocksLayout{Summary: map[model.Family]int{}, Size: map[string]int{}}}
		n.build(func(t *blocked) int { return bits[t.family] }, b)
		text += "\n# a change\n" + ruleset.Diff(rulesetOf(b), rulesetOf(n)).String()
		file := filepath.Join("testdata", "blocks-"+name+".nft")
		if flag.Lookup("update").Value.String() == "true" {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), text); d != "" {
			t.Errorf("%s (-golden +now):\n%s", file, d)
		}
	}
}

func TestNothingBlocked(t *testing.T) {
	p := &Plan{Ruleset: &ruleset.Ruleset{Tables: []*ruleset.Table{{Name: "weir"}}}}
	for _, b := range []*Blocks{nil, NewBlocks(nil, nil), NewBlocks(compiled(t, nil), nil)} {
		if n := len(p.WithBlocks(b).Ruleset.Tables); n != 1 {
			t.Errorf("%d tables without a blocklist", n)
		}
	}
}

// TestNftTakesBlocks loads the printed text with nft.
func TestNftTakesBlocks(t *testing.T) {
	lab.Require(t)
	nft, err := exec.LookPath("nft")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("nft is not installed")
	}
	everything := map[blocklist.Action][]string{blocklist.Drop: {"0.0.0.0/0", "192.0.2.1", "::/0", "2001:db8::/33"}}
	for _, lists := range []map[blocklist.Action][]string{small, everything} {
		for _, bits := range []map[model.Family]int{nil, {model.IPv4: 12, model.IPv6: 10}} {
			cmd := exec.Command(nft, "-c", "-f", "-")
			text := rulesetOf(withSummary(compiled(t, lists), bits)).String()
			cmd.Stdin = strings.NewReader(text)
			out, err := cmd.CombinedOutput()
			if err != nil && lab.InUserNamespace() && strings.Contains(string(out), "Message too long") {
				continue // the socket buffer of an ordinary user bounds what nft can send
			}
			if err != nil {
				t.Errorf("%v\n%s\n%s", err, out, text)
			}
		}
	}
}

// randomLists draws lists that overlap, of one family or both.
func randomLists(t *rapid.T) (map[blocklist.Action][]string, []netip.Addr) {
	lists := map[blocklist.Action][]string{}
	var near []netip.Addr
	for range rapid.IntRange(1, 40).Draw(t, "entries") {
		addr := netip.MustParseAddr(rapid.SampledFrom([]string{"192.0.2.0", "198.51.100.0", "2001:db8::", "2001:db8:1::"}).Draw(t, "net"))
		b := addr.AsSlice()
		for range 2 {
			i := rapid.IntRange(0, len(b)-1).Draw(t, "byte")
			b[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		addr, _ = netip.AddrFromSlice(b)
		n := rapid.OneOf(rapid.Just(addr.BitLen()), rapid.IntRange(addr.BitLen()/8, addr.BitLen())).Draw(t, "length")
		p, _ := addr.Prefix(n)
		a := rapid.SampledFrom([]blocklist.Action{blocklist.Count, blocklist.Reject, blocklist.Drop}).Draw(t, "action")
		lists[a] = append(lists[a], p.String())
		last := p.Addr().AsSlice()
		for i := n; i < len(last)*8; i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		end, _ := netip.AddrFromSlice(last)
		near = append(near, addr, p.Addr(), end, p.Addr().Prev(), end.Next())
	}
	return lists, near
}

// TestBlocksAnswerAsTheLists: whatever the lists and the layout, the ruleset does with an
// address what the compiled lists say, by the element of the entry that decides, and a
// change from one to the other gives the ruleset of the other.
func TestBlocksAnswerAsTheLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var prev *Blocks
		for range 2 {
			lists, near := randomLists(t)
			c := compiled(t, lists)
			bits := map[model.Family]int{
				model.IPv4: rapid.SampledFrom([]int{0, 4, 8, 12, 16}).Draw(t, "bits of IPv4"),
				model.IPv6: rapid.SampledFrom([]int{0, 16, 18, 24}).Draw(t, "bits of IPv6")}
			for _, f := range families { // a bucket for each bit below the widest would be millions
				for e := range c.Entries(f) {
					if bits[f]-e.Prefix.Bits() > 12 {
						bits[f] = 0
					}
				}
			}
			for _, b := range []*Blocks{withSummary(c, bits), NewBlocks(c, prev)} {
				ev := ruleset.NewEvaluator(rulesetOf(b))
				for _, a := range near {
					if a.IsValid() {
						checkAnswer(t, ev, b, a)
					}
				}
			}
			next := NewBlocks(c, prev)
			if prev != nil {
				checkDelta(t, prev, next)
			}
			prev = next
		}
	})
}

func checkAnswer(t *rapid.T, ev *ruleset.Evaluator, b *Blocks, a netip.Addr) {
	dst := netip.MustParseAddr("203.0.113.250")
	if a.Is6() {
		dst = netip.MustParseAddr("2001:db8:ffff::1")
	}
	e, _ := b.Compiled.Find(a)
	for proto, reject := range map[model.Proto]ruleset.Outcome{model.TCP: ruleset.RejectedReset, model.UDP: ruleset.RejectedICMP} {
		got := ev.Eval(ruleset.Packet{Src: netip.AddrPortFrom(a, 1000), Dst: netip.AddrPortFrom(dst, 80), Proto: proto}, nil)
		want := [...]ruleset.Outcome{blocklist.None: ruleset.Accepted, blocklist.Count: ruleset.Accepted,
			blocklist.Reject: reject, blocklist.Drop: ruleset.Dropped}[e.Action]
		if got.Verdict != want {
			t.Fatalf("%s: %s, want %s, because of %v\n%s", a, got.Verdict, want, e, rulesetOf(b))
		}
		hits := ""
		for _, s := range got.Steps {
			if s.Matched && strings.Contains(s.Detail, " found in set ") {
				hits += s.Detail + "; "
			}
		}
		wantHits := ""
		if e.Action != blocklist.None {
			wantHits = fmt.Sprintf("key %s found in set %s; ", e.Prefix.Addr(), b.Set(e).Name)
		}
		if hits != wantHits {
			t.Fatalf("%s met %q, want %q", a, hits, wantHits)
		}
		var counted []ruleset.ElemUpdate
		if e.Action != blocklist.None {
			counted = []ruleset.ElemUpdate{{Set: b.Counts(e)[0].Name, Key: string(ruleset.AppendAddr(nil, e.Prefix.Addr()))}}
		}
		if d := cmp.Diff(counted, got.Updates); d != "" {
			t.Fatalf("%s is counted otherwise:\n%s", a, d)
		}
	}
}

// checkDelta applies the delta of the packed elements by hand.
func checkDelta(t *rapid.T, from, to *Blocks) {
	d := ruleset.Diff(rulesetOf(from), rulesetOf(to))
	have := map[string]ruleset.Jump{}
	if from.table != nil {
		for _, s := range from.table.Sets {
			elements(s, func(e ruleset.Element) { have[s.Name+e.Key] = e.Jump })
		}
	}
	each := func(ch *ruleset.ElemChange, do func(string, ruleset.Jump)) {
		for i := range ch.Packed.Len() {
			do(ch.Set.Name+ch.Packed.Key(i), ch.Packed.Jump(i))
		}
	}
	for _, td := range d.Tables {
		for _, s := range td.DelSets {
			elements(s, func(e ruleset.Element) { delete(have, s.Name+e.Key) })
		}
		for _, ch := range td.DelElems {
			each(ch, func(k string, _ ruleset.Jump) { delete(have, k) })
		}
		for _, ch := range td.AddElems {
			each(ch, func(k string, j ruleset.Jump) { have[k] = j })
		}
	}
	want := map[string]ruleset.Jump{}
	if to.table != nil {
		for _, s := range to.table.Sets {
			elements(s, func(e ruleset.Element) { want[s.Name+e.Key] = e.Jump })
		}
	}
	if to.table == nil {
		have = want // the table goes as a whole
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Fatalf("after the delta (-want +have):\n%s\n%s", diff, d)
	}
}

func elements(s *ruleset.Set, each func(ruleset.Element)) {
	for _, p := range s.Packed {
		for i := range p.Len() {
			each(p.Elem(i))
		}
	}
}

// mixed returns n entries of nine lengths and single addresses, as in internal/bench.
func mixed(n int, seed uint64) []string {
	rnd := rand.New(rand.NewPCG(seed, 1))
	out := make([]string, n)
	for i := range out {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rnd.Uint32()|1<<24)
		bits := 32
		if rnd.IntN(3) > 0 {
			bits = []int{14, 16, 18, 20, 22, 24, 24, 24}[rnd.IntN(8)]
		}
		out[i] = netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked().String()
	}
	return out
}

// TestSmallChangeSharesTheRest: a change of a few entries of many leaves the layout and
// nearly all pieces as they are, whatever the start they are planned from.
func TestSmallChangeSharesTheRest(t *testing.T) {
	lines := mixed(100_000, 1)
	first := NewBlocks(compiled(t, map[blocklist.Action][]string{blocklist.Drop: lines}), nil)
	changed := slices.Clone(lines)
	copy(changed[500:], mixed(50, 2))
	second := NewBlocks(compiled(t, map[blocklist.Action][]string{blocklist.Drop: changed}), first)
	if d := cmp.Diff(first.Layout, second.Layout); d != "" {
		t.Errorf("another layout:\n%s", d)
	}
	if first.Layout.Summary[model.IPv4] == 0 {
		t.Error("100,000 prefixes have no summary")
	}
	d := ruleset.Diff(rulesetOf(first), rulesetOf(second))
	elems, shared, all := 0, 0, 0
	for _, td := range d.Tables {
		if len(td.DelSets)+len(td.AddSets) > 0 {
			t.Error("sets come or go")
		}
		for _, ch := range append(td.DelElems, td.AddElems...) {
			elems += ch.Len()
		}
	}
	for _, s := range second.table.Sets {
		old := first.table.Set(s.Name).Packed
		for _, p := range s.Packed {
			all++
			if slices.Contains(old, p) {
				shared++
			}
		}
	}
	if elems < 100 || elems > 4*50*12 {
		t.Errorf("%d elements come or go for 50 entries", elems)
	}
	if shared < all/10 {
		t.Errorf("%d of %d pieces are shared", shared, all)
	}
	again := NewBlocks(second.Compiled, &Blocks{Layout: ReadBlocksLayout(second.table.Sets)})
	if d := ruleset.Diff(rulesetOf(second), rulesetOf(again)); !d.Empty() {
		t.Errorf("planned from what the kernel has: %s", d.Summary())
	}
	if NewBlocks(second.Compiled, second) != second {
		t.Error("the same lists are planned again")
	}
	if bytes.Equal([]byte(first.table.Chain(chainContent).Rules[0].Comment), []byte(second.table.Chain(chainContent).Rules[0].Comment)) {
		t.Error("the marker is the same")
	}
}

// TestVerdictNeedsNoRoom: whatever happens to the counting, the last rule of a chain of
// packets that met an entry is nothing but a verdict.
func TestVerdictNeedsNoRoom(t *testing.T) {
	b := withSummary(compiled(t, small), nil)
	n := 0
	for _, c := range b.table.Chains {
		if !strings.HasPrefix(c.Name, "hit/") {
			continue
		}
		n++
		last := c.Rules[len(c.Rules)-1].Stmts
		if _, ok := last[0].(ruleset.Verdict); len(last) != 1 || !ok {
			t.Errorf("chain %s ends with %s", c.Name, &c.Rules[len(c.Rules)-1])
		}
	}
	if n != 10 {
		t.Errorf("%d chains, want one for each length and action", n)
	}
}

// TestRoomForCounts: the sets in which entries count have room for all of them, and stay when
// there are more.
func TestRoomForCounts(t *testing.T) {
	entries := func(n int) *blocklist.Compiled {
		lines := make([]string, n)
		for i := range lines {
			lines[i] = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()
		}
		return compiled(t, map[blocklist.Action][]string{blocklist.Drop: lines[:n/2], blocklist.Count: lines[n/2:]})
	}
	var prev *Blocks
	want := 0 // sets
	for _, c := range []struct{ n, sets int }{{100, 1}, {2800, 1}, {3072, 2}, {6000, 3}, {20_000, 4}, {50, 4}, {20_000, 4}} {
		b := NewBlocks(entries(c.n), prev)
		sets, room := b.Counted()[0].Sets, 0
		for i, s := range sets {
			room += s.Size
			if prev != nil && i < want && prev.table.Set(s.Name) != s {
				t.Errorf("with %d entries %s is another", c.n, s.Name)
			}
		}
		if want = len(sets); want != c.sets || room < c.n {
			t.Errorf("%d entries count in %d sets with room for %d, want %d sets", c.n, want, room, c.sets)
		}
		prev = &Blocks{Layout: ReadBlocksLayout(b.table.Sets)}
		if again := NewBlocks(entries(c.n), prev); len(again.Counted()[0].Sets) != c.sets {
			t.Errorf("with %d entries, planned from what the kernel has, they are others", c.n)
		}
		prev = b
	}
}
