package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// numbered returns the packed addresses base+first to base+first+n-1 of 10.0.0.0/8.
func numberedAddrs(first, n int, jumps ...rs.Jump) []*rs.Packed {
	p := rs.NewPacker(4, jumps, nil)
	for i := first; i < first+n; i++ {
		p.Add([]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}, uint8(i%max(len(jumps), 1)))
	}
	return p.Pieces()
}

var (
	dropIt = rs.Jump{Plain: rs.PlainDrop}
	passIt = rs.Jump{Plain: rs.PlainAccept}
)

// marked returns a table with one packed map of that room and a marker.
func markedTable(marker string, size int, pieces []*rs.Packed) *rs.Ruleset {
	return &rs.Ruleset{Tables: []*rs.Table{{Family: rs.Inet, Name: "weir", Marker: "content",
		Sets: []*rs.Set{{Name: "entries", Key: rs.Types{rs.IPv4Addr}, Verdict: true, Counter: true, Size: size, Packed: pieces}},
		Chains: []*rs.Chain{
			{Name: "prerouting", Base: &rs.Base{Type: "filter", Hook: rs.Prerouting, Priority: -450}, Rules: []rs.Rule{
				rule("", rs.IsFamily(model.IPv4), rs.VMap{Key: rs.Source(model.IPv4, 32), Map: "entries"})}},
			{Name: "content", Rules: []rs.Rule{rule(marker, rs.Verdict{Kind: rs.ReturnBack})}}}}}}
}

// TestMarker: the elements are believed where the marker is the wanted one, and read where
// it is not, where it is left out, or where their number is another.
func TestMarker(t *testing.T) {
	n := namespace(t)
	first := markedTable("one", 8192, numberedAddrs(0, 3000, dropIt, passIt))
	n.make(first)
	n.same(first)
	second := markedTable("two", 8192, numberedAddrs(500, 3000, dropIt, passIt))
	have, _ := n.read(second)
	if got := rs.Diff(have, second).Summary(); got != "500 elements added, 500 elements deleted, 1 rule replaced" {
		t.Errorf("with another marker: %s", got)
	}
	n.make(second)
	n.same(second)
	if sets, err := n.Declarations(context.Background(), weir[0]); err != nil || len(sets) != 1 ||
		!sets[0].SameSpec(second.Tables[0].Sets[0]) || sets[0].Len() != 0 {
		t.Errorf("declared: %+v, %v", sets, err)
	}
	if sets, err := n.Declarations(context.Background(), TableRef{rs.Inet, "nobody"}); err != nil || len(sets) != 0 {
		t.Errorf("of a table that is not there: %+v, %v", sets, err)
	}
	n.nft("delete element inet weir entries { 10.0.3.1 }; add element inet weir entries { 10.9.9.9 : drop }", "-f", "-")
	have, _ = n.read(second)
	if d := rs.Diff(have, second); !d.Empty() {
		t.Errorf("the marker is not believed: %s", d)
	}
	second.Tables[0].Marker = ""
	have, _ = n.read(second)
	if got := rs.Diff(have, second).Summary(); got != "1 element added, 1 element deleted" {
		t.Errorf("without the marker: %s", got)
	}
	n.make(second)
	n.same(second)
	second.Tables[0].Marker = "content"
	counts := false
	if err := n.request(msgType(unix.NFT_MSG_GETSET), unix.NLM_F_DUMP, nil, func(_ header, body string) error {
		counts = counts || attr(body, setCount) != ""
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n.nft("delete element inet weir entries { 10.0.3.1 }", "-f", "-")
	have, _ = n.read(second)
	if d := rs.Diff(have, second); counts == d.Empty() {
		t.Errorf("one is missing, and the kernel tells their number: %v; the delta: %s", counts, d.Summary())
	}
	n.make(&rs.Ruleset{})
	n.same(&rs.Ruleset{})
}

// TestRoom: what has no room beside what goes makes a new set, and one that does not count.
func TestRoom(t *testing.T) {
	n := namespace(t)
	n.make(markedTable("one", 2048, numberedAddrs(0, 1000, dropIt)))
	exact := markedTable("two", 2048, numberedAddrs(1000, 1048, dropIt))
	have, _ := n.read(exact)
	if d := rs.Diff(have, exact); len(d.Tables[0].DelSets) > 0 {
		t.Error("the set has room for all and is replaced")
	}
	n.make(exact)
	n.same(exact)
	more := markedTable("three", 2048, numberedAddrs(3000, 1001, dropIt))
	have, _ = n.read(more)
	if d := rs.Diff(have, more); len(d.Tables[0].DelSets) != 1 || len(d.Tables[0].AddSets) != 1 {
		t.Errorf("the set has no room and stays: %s", d.Summary())
	}
	n.make(more)
	n.same(more)
}

// TestCounts gives elements counters to start with and asks for them, by key.
func TestCounts(t *testing.T) {
	n := namespace(t)
	ctx := context.Background()
	want := markedTable("one", 8192, numberedAddrs(0, 2500, dropIt))
	d := rs.Diff(&rs.Ruleset{}, want)
	for _, ch := range d.Tables[0].AddElems {
		ch.Counts = make([]rs.Count, ch.Len())
		for i := range ch.Counts {
			k := ch.Packed.Key(i)
			ch.Counts[i] = rs.Count{Packets: uint64(k[2])<<8 | uint64(k[3]), Bytes: 7}
		}
	}
	if !strings.Contains(d.String(), "10.0.1.2 counter packets 258 bytes 7 : drop") {
		t.Error("the text has no counters")
	}
	if _, err := n.Apply(ctx, d, 0); err != nil {
		t.Fatal(err)
	}
	n.same(want)
	set := want.Tables[0].Sets[0]
	check := func(pieces []*rs.Packed, first, last int) {
		t.Helper()
		at := first
		err := n.Counts(ctx, weir[0], set, pieces, func(key string, c rs.Count) bool {
			if wantKey := string([]byte{10, 0, byte(at >> 8), byte(at)}); key != wantKey || c.Packets != uint64(at) || c.Bytes != 7 {
				t.Fatalf("%x: %v, want element %d", key, c, at)
			}
			at++
			return true
		})
		if err != nil || at != last {
			t.Errorf("%d to %d were answered, want %d: %v", first, at, last, err)
		}
	}
	check(set.Packed, 0, 2500)
	check(numberedAddrs(2400, 300), 2400, 2500) // the last 200 are not there
	calls := 0
	if err := n.Counts(ctx, weir[0], set, set.Packed, func(string, rs.Count) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("%d calls after the end: %v", calls, err)
	}
	missing := *set
	missing.Name = "nowhere"
	if err := n.Counts(ctx, weir[0], &missing, set.Packed, func(string, rs.Count) bool { return true }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a set that is not there: %v", err)
	}

	// A larger set, and other verdicts: both go on with what was counted.
	for _, next := range []*rs.Ruleset{
		markedTable("two", 16384, numberedAddrs(0, 3000, dropIt)),
		markedTable("three", 16384, numberedAddrs(0, 3000, passIt)),
	} {
		have, gen := n.read(next)
		d := rs.Diff(have, next)
		if err := n.CarryCounts(ctx, d); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Apply(ctx, d, gen); err != nil {
			t.Fatal(err)
		}
		n.same(next)
		set = next.Tables[0].Sets[0]
		check(numberedAddrs(0, 2500), 0, 2500)
	}
	n.nft("delete element inet weir entries { 10.0.0.5, 10.0.0.7, 10.0.0.8 }", "-f", "-")
	var left []byte
	if err := n.Counts(ctx, weir[0], set, numberedAddrs(0, 12), func(key string, _ rs.Count) bool {
		left = append(left, key[3])
		return true
	}); err != nil || !slices.Equal(left, []byte{0, 1, 2, 3, 4, 6, 9, 10, 11}) {
		t.Errorf("of twelve elements, three of which are gone, there are %v: %v", left, err)
	}
	full := next2500(n, set)
	if slices.ContainsFunc(full, func(c rs.Count) bool { return c != rs.Count{} }) {
		t.Error("new elements have counted")
	}
}

// next2500 returns the counters of the elements behind the first 2,500.
func next2500(n netns, set *rs.Set) (out []rs.Count) {
	err := n.Counts(context.Background(), weir[0], set, numberedAddrs(2500, 500), func(_ string, c rs.Count) bool {
		out = append(out, c)
		return true
	})
	if err != nil || len(out) != 500 {
		n.tb.Fatalf("%d elements: %v", len(out), err)
	}
	return out
}

// TestPackedRefused names the very element that the kernel refuses.
func TestPackedRefused(t *testing.T) {
	n := namespace(t)
	have := markedTable("one", 0, numberedAddrs(700, 1, dropIt))
	n.make(have)
	set := have.Tables[0].Sets[0]
	d := &rs.Delta{Tables: []*rs.TableDelta{{Table: have.Tables[0], AddElems: []*rs.ElemChange{
		{Set: set, Packed: numberedAddrs(0, 100, dropIt)[0]}}}}}
	for _, p := range numberedAddrs(600, 200, rs.Jump{Chain: "nowhere"}) {
		d.Tables[0].AddElems = append(d.Tables[0].AddElems, &rs.ElemChange{Set: set, Packed: p})
	}
	_, err := n.Apply(context.Background(), d, 0)
	if err == nil || !strings.Contains(err.Error(), "10.0.2.88") {
		t.Errorf("%v, want the first element that leads nowhere", err)
	}
	for _, bad := range []*rs.ElemChange{
		{Set: set, Packed: &rs.Packed{Stride: 8, Keys: "12345678", Jumps: []rs.Jump{dropIt}}},
		{Set: set, Packed: numberedAddrs(0, 1)[0]},
		{Set: set, Packed: numberedAddrs(0, 1, dropIt)[0], Counts: make([]rs.Count, 2)},
	} {
		if _, err := Encode(&rs.Delta{Tables: []*rs.TableDelta{{Table: have.Tables[0], AddElems: []*rs.ElemChange{bad}}}}, 0); err == nil {
			t.Errorf("%+v can be encoded", bad.Packed)
		}
	}
}

// TestLargeCommitIsQuiet: the monitor is not told of each of very many elements, and hears
// what follows.
func TestLargeCommitIsQuiet(t *testing.T) {
	n := namespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ch, err := n.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n.make(markedTable("one", 1<<16, numberedAddrs(0, quietElems+1, dropIt)))
	gen, err := n.Generation()
	if err != nil {
		t.Fatal(err)
	}
	n.nft("", "add", "table", "inet", "other")
	e := <-ch
	if e.Gen != gen+1 || fmt.Sprint(e.Tables) != "[table inet other]" || e.Lost {
		t.Errorf("the first event is %+v, want that of generation %d", e, gen+1)
	}
}
