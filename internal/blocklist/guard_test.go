package blocklist

import (
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir/internal/model"
)

// use reads a list from lines.
func use(t *testing.T, name string, action Action, lines ...string) Use {
	t.Helper()
	b := NewBuilder(name, Options{Strict: true})
	if err := b.Add(name+".netset", strings.NewReader(strings.Join(lines, "\n")+"\n")); err != nil {
		t.Fatal(err)
	}
	return Use{b.List(), action}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func compile(t *testing.T, allow []netip.Prefix, uses ...Use) *Compiled {
	t.Helper()
	c, err := Compile(uses, allow)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var protectedThings = []Protected{
	{netip.MustParsePrefix("10.1.1.1/32"), "backend 10.1.1.1:80 of service web"},
	{netip.MustParsePrefix("203.0.113.0/28"), "management 203.0.113.0/28"},
	{netip.MustParsePrefix("2001:db8::1/128"), "gateway 2001:db8::1"},
	{netip.MustParsePrefix("::ffff:198.51.100.1/128"), "address 198.51.100.1 of eth0"},
}

func TestCheckProtected(t *testing.T) {
	for _, tc := range []struct {
		name   string
		action Action
		lines  []string
		allow  []netip.Prefix
		want   []string
	}{
		{"nothing", Drop, []string{"192.0.2.0/24", "10.1.1.2", "2001:db8::2"}, nil, nil},
		{"count cuts nothing", Count, []string{"0.0.0.0/0", "10.1.1.1", "::/0"}, nil, nil},
		{"covers", Drop, []string{"192.0.2.1", "10.0.0.0/8"}, nil, []string{
			"l.netset:2: 10.0.0.0/8 of list l would drop packets from backend 10.1.1.1:80 of service web; to keep them write allow: [10.1.1.1], or take the entry out of the list"}},
		{"is inside", Reject, []string{"203.0.113.7"}, nil, []string{
			"l.netset:1: 203.0.113.7 of list l would reject packets from management 203.0.113.0/28; to keep them write allow: [203.0.113.7], or take the entry out of the list"}},
		{"6", Drop, []string{"2001:db8::/32"}, nil, []string{
			"l.netset:1: 2001:db8::/32 of list l would drop packets from gateway 2001:db8::1; to keep them write allow: [2001:db8::1], or take the entry out of the list"}},
		{"a range", Drop, []string{"198.51.99.0-198.51.100.1"}, nil, []string{
			"l.netset:1: 198.51.99.0-198.51.100.1 of list l would drop packets from address 198.51.100.1 of eth0; to keep them write allow: [198.51.100.1], or take the entry out of the list"}},
		{"a range that ends before", Drop, []string{"198.51.99.0-198.51.100.0"}, nil, nil},
		{"allowed", Drop, []string{"10.0.0.0/8"}, prefixes("10.1.1.1/32"), nil},
		{"allowed as a net", Drop, []string{"10.0.0.0/8"}, prefixes("10.0.0.0/8"), nil},
		{"allowed in part", Drop, []string{"203.0.113.0/24"}, prefixes("203.0.113.0/29"), []string{
			"l.netset:1: 203.0.113.0/24 of list l would drop packets from management 203.0.113.0/28; to keep them write allow: [203.0.113.0/28], or take the entry out of the list"}},
		{"allowed what is cut", Drop, []string{"203.0.113.4/30"}, prefixes("203.0.113.0/29"), nil},
		{"an exception of ipset's", Drop, []string{"add x 10.0.0.0/8", "add x 10.1.0.0/16 nomatch"}, nil, nil},
		{"an exception elsewhere", Drop, []string{"add x 10.0.0.0/8", "add x 10.2.0.0/16 nomatch"}, nil, []string{
			"l.netset:1: 10.0.0.0/8 of list l would drop packets from backend 10.1.1.1:80 of service web; to keep them write allow: [10.1.1.1], or take the entry out of the list"}},
		{"an exception that is wider", Drop, []string{"add x 10.1.1.0/24", "add x 10.1.0.0/16 nomatch"}, nil, []string{
			"l.netset:1: 10.1.1.0/24 of list l would drop packets from backend 10.1.1.1:80 of service web; to keep them write allow: [10.1.1.1], or take the entry out of the list"}},
		{"everything", Drop, []string{"0.0.0.0/0", "::/0"}, prefixes("10.1.1.1/32"), []string{
			"l.netset:1: 0.0.0.0/0 of list l would drop all of IPv4; take it out of the list",
			"l.netset:2: ::/0 of list l would drop all global addresses of IPv6; take it out of the list"}},
		{"everything, as a range", Drop, []string{"0.0.0.0-255.255.255.255", "2000::/3"}, nil, []string{
			"l.netset:1: 0.0.0.0/0 of list l would drop all of IPv4; take it out of the list",
			"l.netset:2: 2000::/3 of list l would drop all global addresses of IPv6; take it out of the list"}},
		{"most", Drop, []string{"0.0.0.0/2", "64.0.0.0/2", "128.0.0.0"}, prefixes("10.1.1.1/32"), nil},
		{"more than half", Drop, []string{"0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2"}, prefixes("10.1.1.1/32"), []string{
			"the lists together would cut 74 % of all IPv4 addresses; allowed: 50 %: is one of them a list of addresses to let in?"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, p := range CheckProtected(compile(t, tc.allow, use(t, "l", tc.action, tc.lines...)), protectedThings) {
				got = append(got, p.Error())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPrivateNet: who uses a list that has private nets is told to allow the net of his
// own, and does as he is told.
func TestPrivateNet(t *testing.T) {
	level1 := use(t, "level1", Drop, "10.0.0.0/8", "192.0.2.0/24")
	var things []Protected
	for i := range 12 {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		things = append(things, Protected{netip.PrefixFrom(a, 32), "backend " + a.String()})
	}
	got := CheckProtected(compile(t, nil, level1), things)
	const want = "level1.netset:1: 10.0.0.0/8 of list level1 would drop packets from backend 10.0.0.1, backend 10.0.0.2, backend 10.0.0.3 and 9 more; " +
		"to keep them write allow: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7, 10.0.0.8, …], " +
		"or all of it, if it is a net of your own: allow: [10.0.0.0/8], or take the entry out of the list"
	if len(got) != 1 || got[0].Error() != want {
		t.Errorf("%v", got)
	}
	c := compile(t, prefixes("10.0.0.0/8"), level1)
	if got := CheckProtected(c, things); got != nil {
		t.Errorf("%v", got)
	}
	if c.Allowed != 1 || c.Len(model.IPv4) != 1 {
		t.Errorf("%d allowed, %d left", c.Allowed, c.Len(model.IPv4))
	}
}

func TestProtectedIsBounded(t *testing.T) {
	var lines []string
	for i := range 100 {
		lines = append(lines, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	got := CheckProtected(compile(t, nil, use(t, "l", Drop, lines...)), []Protected{{netip.MustParsePrefix("192.0.2.0/24"), "net"}})
	if len(got) != MaxProblems+1 || got[MaxProblems].Msg != "up to 80 more entries would cut what is protected" {
		t.Errorf("%d: %v", len(got), got[len(got)-1])
	}
}

// TestProtectedIsTheTables: there is a problem exactly when the compiled table cuts
// something that is protected.
func TestProtectedIsTheTables(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "four")
		w := drawWorld(t, four)
		thing := prefixGen(four).Filter(func(p netip.Prefix) bool { return p.Bits() > 3 }).Draw(t, "protected")
		cut := false
		for e := range w.compiled.Entries(familyOf(four)) {
			cut = cut || e.Action > Count && e.Prefix.Overlaps(thing)
		}
		found := false
		var got []string
		for _, p := range CheckProtected(w.compiled, []Protected{{thing, "thing"}}) {
			got = append(got, p.Error())
			found = found || strings.Contains(p.Msg, "from thing")
			if strings.Contains(p.Msg, "take it out") {
				return // all of a family: said without looking at what is protected
			}
		}
		if found != cut {
			t.Fatalf("%v is cut: %v; problems %q\nlists %v %v allow %v", thing, cut, got, w.lines, w.actions, w.allow)
		}
	})
}

func TestCheckChange(t *testing.T) {
	for _, tc := range []struct {
		name      string
		last, now Size
		percent   float64
		want      []string
	}{
		{"the same", Size{1000, 1000, 0}, Size{1000, 1000, 0}, 50, nil},
		{"half", Size{1000, 1000, 0}, Size{500, 500, 0}, 50, nil},
		{"less than half", Size{1000, 1000, 0}, Size{499, 499, 0}, 50, []string{"list l: the list shrank from 1000 to 499 entries (50.1 %); max_change allows 50 %"}},
		{"grew", Size{1000, 1000, 0}, Size{1501, 1501, 0}, 50, []string{"list l: the list grew from 1000 to 1501 entries (50.1 %); max_change allows 50 %"}},
		{"small", Size{60, 60, 0}, Size{159, 159, 0}, 50, nil},
		{"no longer small", Size{60, 60, 0}, Size{160, 160, 0}, 50, []string{"list l: the list grew from 60 to 160 entries (166.7 %); max_change allows 50 %"}},
		{"nothing left", Size{10, 10, 0}, Size{}, 50, []string{"list l: the list has no entries any more; there were 10"}},
		{"nothing left of a few", Size{9, 9, 0}, Size{}, 50, nil},
		{"nothing before", Size{}, Size{5000, 5000, 0}, 50, nil},
		{"one wide prefix", Size{1000, 1000, 0}, Size{1001, 1000 + 1<<24, 0}, 50, []string{"list l: the list grew from 1000 to 16778216 IPv4 addresses (1677721.6 %); max_change allows 50 %"}},
		{"IPv6 for the first time", Size{1000, 1000, 0}, Size{1001, 1000, 1 << 21}, 50, []string{"list l: the list grew from 0 to 2097152 /48 networks of IPv6; max_change allows 50 %"}},
		{"a wide prefix gone", Size{1000, 1 << 24, 0}, Size{999, 1000, 0}, 50, []string{"list l: the list shrank from 16777216 to 1000 IPv4 addresses (100.0 %); max_change allows 50 %"}},
		{"more is allowed", Size{1000, 1000, 0}, Size{2500, 2500, 0}, 150, nil},
		{"off", Size{1000, 1000, 0}, Size{}, 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, p := range CheckChange("l", tc.last, tc.now, tc.percent) {
				got = append(got, p.Error())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSize: addresses and networks are each counted once.
func TestSize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "four")
		lines := linesGen(four, true).Draw(t, "lines")
		for i := range lines {
			lines[i].nomatch = false
		}
		got := listOf(t, "l", lines).Size()
		want := new(big.Int)
		var reach *big.Int
		number := func(a netip.Addr) *big.Int {
			n := new(big.Int).SetBytes(a.AsSlice())
			if !four {
				n.Rsh(n, 80)
			}
			return n
		}
		slices.SortFunc(lines, func(a, b line) int { return a.prefix.Addr().Compare(b.prefix.Addr()) })
		for _, l := range lines {
			first, last := number(l.prefix.Addr()), number(lastOf(l.prefix))
			if l.to.IsValid() {
				last = number(l.to)
			}
			if reach != nil && first.Cmp(reach) <= 0 {
				first = new(big.Int).Add(reach, big.NewInt(1))
			}
			if last.Cmp(first) >= 0 {
				want.Add(want, last).Sub(want, first).Add(want, big.NewInt(1))
				reach = last
			}
		}
		if n := got.Addresses + got.Networks; new(big.Int).SetUint64(n).Cmp(want) != 0 {
			t.Fatalf("%v: %d, want %v", lines, n, want)
		}
	})
}

// TestShape: the figures of a table, and what counting inside dropping comes to.
func TestShape(t *testing.T) {
	c := compile(t, prefixes("192.0.2.128/25"),
		use(t, "a", Drop, "192.0.2.0/24", "198.51.100.1"),
		use(t, "b", Count, "192.0.2.1", "198.51.100.1", "203.0.113.0/24"))
	got := c.Shape(model.IPv4)
	want := Shape{Lengths: map[int]int{24: 1, 25: 1, 32: 2}, Actions: map[Action]int{Drop: 3, Count: 1}, Inside: 1, Shared: 1, Cut: 1, Addresses: 129}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	e, ok := c.Find(netip.MustParseAddr("192.0.2.1"))
	if !ok || e.Action != Drop || e.Own != Count || !slices.Equal(c.Set(e.Set), []string{"b"}) {
		t.Errorf("%+v of %v", e, c.Set(e.Set))
	}
	e, ok = c.Find(netip.MustParseAddr("192.0.2.2"))
	if !ok || e.Prefix.String() != "192.0.2.0/25" || e.From.String() != "192.0.2.0/24" {
		t.Errorf("%+v", e)
	}
	if e, ok := c.Find(netip.MustParseAddr("192.0.2.200")); ok {
		t.Errorf("%+v", e)
	}
}

// TestLookup: what weir says of an address, the most specific entry first.
func TestLookup(t *testing.T) {
	c := compile(t, prefixes("192.0.2.128/25", "192.0.0.0/16"),
		use(t, "a", Drop, "192.0.2.0/24 # net", "192.0.2.0/24"),
		use(t, "b", Count, "add x 192.0.2.130-192.0.2.131", "add x 192.0.2.128/26 nomatch", `{"cidr":"192.0.2.130","sblid":"SBL1"}`))
	got := c.Lookup(netip.MustParseAddr("::ffff:192.0.2.130"))
	for i := range got.Matches {
		got.Matches[i].order = [3]uint64{}
	}
	want := []Match{
		{List: "b", Action: Count, Entry: "192.0.2.130", File: "b.netset", Line: 3, Note: "SBL1"},
		{List: "b", Action: Count, Entry: "192.0.2.130/31", File: "b.netset", Line: 1},
		{List: "b", Action: Count, Entry: "192.0.2.128/26", Exception: true, File: "b.netset", Line: 2},
		{List: "a", Action: Drop, Entry: "192.0.2.0/24", File: "a.netset", Line: 1, Note: "net", More: 1},
	}
	if diff := cmp.Diff(want, got.Matches, cmp.AllowUnexported(Match{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Action != None || !slices.Equal(got.Allow, prefixes("192.0.2.128/25", "192.0.0.0/16")) {
		t.Errorf("%v, allowed by %v", got.Action, got.Allow)
	}
}
