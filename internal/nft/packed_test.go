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
	read := func(pieces []*rs.Packed) map[string]rs.Count {
		t.Helper()
		got := map[string]rs.Count{}
		if err := n.Counts(ctx, weir[0], set, pieces, func(key string, c rs.Count) {
			k := strings.Clone(key)
			if _, twice := got[k]; twice {
				t.Errorf("%x comes twice", k)
			}
			got[k] = c
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	check := func(pieces []*rs.Packed, first, last int) {
		t.Helper()
		got := read(pieces)
		for at := first; at < last; at++ {
			if c, ok := got[string([]byte{10, 0, byte(at >> 8), byte(at)})]; !ok || c.Packets != uint64(at) || c.Bytes != 7 {
				t.Fatalf("%d: %v, %v", at, c, ok)
			}
		}
	}
	for _, way := range []struct {
		words string
		read  func([]*rs.Packed, func(string, rs.Count)) error
	}{
		{"by dump", func(_ []*rs.Packed, each func(string, rs.Count)) error {
			return n.dumpCounts(ctx, weir[0], set, 2500, each)
		}},
		{"by key", func(p []*rs.Packed, each func(string, rs.Count)) error {
			return n.askCounts(ctx, weir[0], set, p, each)
		}},
	} {
		got := map[string]rs.Count{}
		err := way.read(set.Packed, func(key string, c rs.Count) { got[strings.Clone(key)] = c })
		if last := got["\n\x00\t\xc3"]; err != nil || len(got) != 2500 || last.Packets != 2499 {
			t.Errorf("%s there are %d elements, the last one with %v: %v", way.words, len(got), last, err)
		}
	}
	check(set.Packed, 0, 2500)
	check(numberedAddrs(2400, 300), 2400, 2500) // the last 200 are not there
	if got := read(numberedAddrs(2490, 20)); len(got) != 10 {
		t.Errorf("of twenty, ten of which are there, there are %d", len(got))
	}
	if got := read(numberedAddrs(900_000, 20)); len(got) != 0 {
		t.Errorf("of twenty that are not there, there are %d", len(got))
	}
	missing := *set
	missing.Name = "nowhere"
	if err := n.Counts(ctx, weir[0], &missing, set.Packed, func(string, rs.Count) {}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a set that is not there: %v", err)
	}
	n.nft("delete element inet weir entries { 10.0.0.5, 10.0.0.7, 10.0.0.8 }", "-f", "-")
	var left []byte
	for k := range read(numberedAddrs(0, 12)) {
		left = append(left, k[3])
	}
	if slices.Sort(left); !slices.Equal(left, []byte{0, 1, 2, 3, 4, 6, 9, 10, 11}) {
		t.Errorf("of twelve elements, three of which are gone, there are %v", left)
	}
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
