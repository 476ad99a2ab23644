package nft

import (
	"context"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	rs "weir/internal/ruleset"
)

// edits are changes of a rule's text that keep its fingerprint.
var edits = []struct {
	chain    string
	rule     int
	from, to string
}{
	{"service/web/4", 0, "mod 2", "mod 3"},
	{"service/web/4", 0, "offset 1048576", "offset 1048577"},
	{"service/web/4", 0, " offset 1048576", ""},
	{"service/web/6", 0, "@slots6", "@more6"},
	{"service/web/4", 0, "l4proto tcp", "l4proto udp"},
	{"service/web/4", 0, "meta nfproto ipv4 meta l4proto tcp", "meta l4proto tcp meta nfproto ipv4"},
	{"service/web/4", 0, "dnat", "counter dnat"},
	{"service/web/4", 0, "dnat", "meta mark set 1 dnat"},
	{"service/web/4", 0, "dnat", "limit rate 1/day dnat"},
	{"service/web/4", 0, `"round-robin`, `"nothing at all`},
	{"service/web/4", 1, "random", "inc"},
	{"service/web/4", 2, "seed 0x5eed", "seed 0x5eee"},
	{"service/web/4", 2, " seed 0x5eed", ""},
	{"service/web/4", 2, "ip saddr . th sport", "ip saddr . th dport"},
	{"service/web/6", 3, "ip6 saddr", "ip6 daddr"},
	{"service/web/4", 5, "@addr4", "@addr4 persistent"},
	{"count/4", 0, "update", "add"},
	{"count/4", 1, "timeout 3600s", "timeout 7200s"},
	{"count/4", 1, " timeout 3600s", ""},
	{"count/4", 1, "@replies4", "@replies4x"},
	{"count/4", 2, ": ip daddr", ": ip saddr"},
	{"count/6", 2, "@hairpin6", "!= @hairpin6"},
	{"count/4", 3, "masquerade", "masquerade random"},
	{"count/4", 3, "masquerade", "masquerade to :1024-2048"},
	{"count/4", 4, "198.51.100.10", "198.51.100.11"},
	{"count/4", 4, "198.51.100.10", "198.51.100.10-198.51.100.12"},
	{"count/4", 3, "meta l4proto tcp ", ""},
	{"count/4", 4, "snat", "meta l4proto tcp snat"},
	{"count/6", 3, "2001:db8::10", "2001:db8::10 fully-random"},
	{"find/4", 0, "vmap @services4", "vmap @ranges4"},
	{"find/4", 2, "drop", "accept"},
	{"find/6", 2, "drop", ""},
	{"find/4", 3, "& 255.255.248.0", "& 255.255.240.0"},
	{"find/6", 3, "vmap @entries6", "vmap @entries6x"},
	{"refuse", 2, "admin-prohibited", "port-unreachable"},
	{"odd", 0, "direction reply", "direction original"},
	{"odd", 0, "return", "drop"},
	{"odd", 2, "accept", "continue"},
	{"limited", 1, "over 100", "over 101"},
	{"limited", 1, "count over", "count"},
	{"limited", 1, " ct count over 100", ""},
	{"limited", 1, "ct count over 100", "counter"},
	{"limited", 2, "over 0", "over 1"},
	{"limited", 2, "timeout 10s", "timeout 11s"},
	{"limited", 3, "timeout 1ms", "timeout 1ms counter"},
	{"limited", 4, "< 121s", "<= 121s"},
	{"limited", 4, "< 121s", "< 122s"},
	{"limited", 4, "fin,syn", "fin"},
	{"limited", 4, "flags fin,syn", "flags & (fin | syn) == 0x0"},
	{"limited", 5, ">= 11s", "> 11s"},
	{"refuse", 0, "reject with tcp reset", "reject"},
	{"refuse", 1, "port-unreachable", "admin-prohibited"},
	{"prerouting", 0, "jump find/4", "goto find/4"},
	{"prerouting", 0, "jump find/4", "jump find/6"},
	{"input", 0, "status dnat", "status snat"},
	{"input", 0, "status dnat", "status != dnat"},
	{"input", 1, "goto refuse", "goto nothing"},
	{"raw-out", 0, "notrack ", ""},
	{"raw-out", 0, "meta oif", "meta iif"},
	{"access", 0, "established,related", "established"},
	{"access", 0, "established,related", "established,related,new"},
	{"access", 1, "meta iif", "meta oif"},
	{"access", 2, "tcp flags @flag-bytes", "tcp flags != @flag-bytes"},
	{"access", 6, "iifname", "oifname"},
	{"access", 7, `"eth1"`, `"eth2"`},
	{"over/4", 0, "rate 50/second", "rate 51/second"},
	{"over/4", 0, "rate 50/second", "rate over 50/second"},
	{"over/6", 0, "50/second", "50/minute"},
	{"over/4", 0, "burst 100", "burst 101"},
	{"over/4", 0, "timeout 2s", "timeout 3s"},
	{"over/4", 0, " limit rate 50/second burst 100 packets", ""},
	{"over/4", 0, "limit rate 50/second burst 100 packets", "counter"},
	{"over/4", 0, "255.255.255.0", "255.255.254.0"},
	{"over/6", 0, " & ffff:ffff:ffff:ffff::", ""},
	{"over/6", 1, "!= @buckets6", "@buckets6"},
	{"over/4", 2, "== syn", "!= syn"},
	{"over/4", 2, "rst | ack", "rst"},
	{"proxy", 0, "mss 1460", "mss 1440"},
	{"proxy", 0, "wscale 7", "wscale 8"},
	{"proxy", 0, " sack-perm", ""},
	{"proxy", 0, "invalid,untracked", "invalid"},
	{"proxy", 1, "state new", "state new,untracked"},
	{"clamp", 0, "set rt mtu", "set 1200"},
	{"remember", 0, "timeouts/tcp", "timeouts/udp"},
	{"leaks", 0, "& snat == 0", "& snat != 0"},
	{"leaks", 0, "status & snat", "status & dnat"},
	{"leaks", 0, "iif != 0", "iif == 0"},
}

// compiled returns full without the rule that nft 1.0.6 compiles wrong; see raw.
func compiled() *rs.Ruleset {
	want := full()
	c := want.Tables[0].Chain("count/6")
	c.Rules = slices.Delete(c.Rules, 2, 3)
	return want
}

// extra are sets that edits refer to and that are not wanted.
const extra = `
table inet weir {
	map more6 { typeof numgen inc mod 2 : ip6 daddr . th dport; counter; }
	map entries6x { type ipv6_addr : verdict; counter; }
	set replies4x { type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service; size 9; flags dynamic,timeout; counter; }
}
`

// TestEditsKeepTheComment has somebody load weir's text with one rule edited, and its
// fingerprint left as it was. Each must be seen and undone, and the other rules believed.
func TestEditsKeepTheComment(t *testing.T) {
	n := namespace(t)
	want := compiled()
	n.make(want)
	for _, e := range edits {
		text := want.Tables[0].Chain(e.chain).Rules[e.rule].String()
		edited := strings.Replace(text, e.from, e.to, 1)
		all := strings.Replace(want.String(), text, edited, 1)
		if edited == text || !strings.Contains(all, edited) {
			t.Fatalf("%s, rule %d: there is no %q in %s", e.chain, e.rule, e.from, text)
		}
		if out, err := n.tryNft("delete table inet weir\n"+extra+all, "-f", "-"); err != nil {
			t.Errorf("%s: %v\n%s", edited, err, out)
			continue
		}
		n.onlyOdd(want, e.chain, e.rule, edited)
		if believed, _ := n.read(nil); slices.Contains(believed.Tables[0].Chain(e.chain).Fingerprints(), "") {
			t.Errorf("%s: not even the comment is right", edited)
		}
		n.make(want)
		n.same(want)
	}
}

// TestReplaceRule edits a rule where it is.
func TestReplaceRule(t *testing.T) {
	n := namespace(t)
	want := full()
	n.make(want)
	edited := strings.Replace(want.Tables[0].Chain("find/4").Rules[2].String(), "drop", "accept", 1)
	n.nft("replace rule inet weir find/4 handle "+n.handle("find/4", 2)+" "+edited, "-f", "-")
	n.onlyOdd(want, "find/4", 2, edited)
	n.make(want)
	n.same(want)
}

// handle returns the handle of a chain's i-th rule.
func (n netns) handle(chain string, i int) string {
	n.tb.Helper()
	all := regexp.MustCompile(`comment ".*" # handle (\d+)`).FindAllStringSubmatch(n.nft("", "-a", "list", "chain", "inet", "weir", chain), -1)
	return all[i][1]
}

// onlyOdd fails the test unless one rule of the kernel's, and no other, is seen to be
// something else than its comment says.
func (n netns) onlyOdd(want *rs.Ruleset, chain string, rule int, what string) {
	n.tb.Helper()
	have, _ := n.read(want)
	for _, c := range have.Tables[0].Chains {
		for i, print := range c.Fingerprints() {
			if odd := c.Name == chain && i == rule; odd != (print == "") {
				n.tb.Errorf("%s: rule %d of chain %s is taken for %q", what, i+1, c.Name, print)
			}
		}
	}
}

// TestMoved has rules in another order: each is what it says, and yet the chain differs.
func TestMoved(t *testing.T) {
	n := namespace(t)
	want := full()
	n.make(want)
	c := want.Tables[0].Chain("find/4")
	n.nft(fmt.Sprintf("delete rule inet weir %s handle %s\nadd rule inet weir %s %s", c.Name, n.handle(c.Name, 0), c.Name, &c.Rules[0]), "-f", "-")
	have, _ := n.read(want)
	prints := have.Tables[0].Chain(c.Name).Fingerprints()
	if slices.Contains(prints, "") || slices.Equal(prints, c.Fingerprints()) {
		t.Errorf("%q", prints)
	}
	n.make(want)
	n.same(want)
}

// TestListEditLoad goes the way of `nft list ruleset > f; vi f; nft -f f`. Since nft lists
// some rules without a match that it puts in another place when it loads them, these are
// other rules too.
func TestListEditLoad(t *testing.T) {
	n := namespace(t)
	want := full()
	want.Tables[0].Chain("learn").Rules = nil // what nft lists of it, nft can't load
	n.make(want)
	listed := n.nft("", "list", "table", "inet", "weir")
	edited := strings.Replace(listed, "mod 251 seed 0x5eed", "mod 241 seed 0x5eed", 1)
	n.nft("delete table inet weir\n"+edited, "-f", "-")
	have, _ := n.read(want)
	if prints := have.Tables[0].Chain("service/web/4").Fingerprints(); prints[2] != "" || prints[1] == "" {
		t.Errorf("after an edit of the third rule: %q", prints)
	}
	n.make(want)
	n.same(want)
}

// eachRule calls f for every rule of full with the attribute of its expressions.
func eachRule(t *testing.T, f func(text string, exprs []byte)) {
	for _, tab := range full().Tables {
		for _, c := range tab.Chains {
			for i := range c.Rules {
				var w buf
				if err := w.exprs(tab, &c.Rules[i], Counter{}); err != nil {
					t.Fatal(err)
				}
				f(c.Rules[i].String(), w.b)
			}
		}
	}
}

// TestEveryAttributeCounts changes every attribute that the driver sends, takes out every
// expression and swaps it with the next: what the rule means must be another thing.
func TestEveryAttributeCounts(t *testing.T) {
	eachRule(t, func(text string, exprs []byte) {
		meant, ok := appendMeaning(nil, string(exprs))
		if !ok {
			t.Fatalf("%s: not understood", text)
		}
		differs := func(what string, b []byte) {
			t.Helper()
			if got, ok := appendMeaning(nil, string(b)); ok && string(got) == string(meant) {
				t.Errorf("%s: %s makes no difference", text, what)
			}
		}
		var spans [][]byte
		const head = unix.SizeofRtAttr
		for at := head; at < len(exprs); {
			size, _ := attrAt(exprs, at)
			span := exprs[at : at+align(size)]
			spans = append(spans, span)
			kind := cstr(attr(string(span[head:]), unix.NFTA_EXPR_NAME))
			dataAt := at + head + align(head+len(kind)+1) // the nest behind the name
			end, _ := attrAt(exprs, dataAt)
			for in := dataAt + head; in < dataAt+end; {
				n, typ := attrAt(exprs, in)
				b := slices.Clone(exprs)
				i := in + n - 1
				_, inner := attrAt(exprs, in+head)
				switch k := slices.IndexFunc(meanings[kind], func(a exprAttr) bool { return a.typ == typ }); {
				case k < 0:
					t.Errorf("%s: attribute %d of %s does not count", text, typ, kind)
				case meanings[kind][k].is == data && inner == unix.NFTA_DATA_VERDICT:
					i = in + 3*head + 3 // the verdict's code
				case meanings[kind][k].is == data:
					i = in + 2*head
				case meanings[kind][k].is == name:
					i-- // what ends it is no part of it
				case meanings[kind][k].is == millisec:
					i-- // less than the last byte says may get lost
				}
				b[i] ^= 0x40
				differs(fmt.Sprintf("attribute %d of %s", typ, kind), b)
				in += align(n)
			}
			at += align(size)
		}
		for i := range spans {
			differs(fmt.Sprintf("expression %d", i), list(slices.Delete(slices.Clone(spans), i, i+1)))
			if i > 0 && string(spans[i]) != string(spans[i-1]) {
				swapped := slices.Clone(spans)
				swapped[i], swapped[i-1] = swapped[i-1], swapped[i]
				differs(fmt.Sprintf("the order of expressions %d and %d", i-1, i), list(swapped))
			}
		}
		differs("one more expression", list(append(spans, spans[0])))
	})
}

// list puts expressions into one attribute.
func list(exprs [][]byte) []byte {
	var w buf
	at := w.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range exprs {
		w.b = append(w.b, e...)
	}
	w.close(at)
	return w.b
}

// TestMeaningStays writes what is the same thing in other words.
func TestMeaningStays(t *testing.T) {
	eachRule(t, func(text string, exprs []byte) {
		meant, _ := appendMeaning(nil, string(exprs))
		var w buf
		at := w.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range attrs(string(exprs[unix.SizeofRtAttr:])) {
			kind := cstr(attr(e, unix.NFTA_EXPR_NAME))
			x := w.nest(unix.NFTA_LIST_ELEM)
			w.str(unix.NFTA_EXPR_NAME, kind)
			d := w.nest(unix.NFTA_EXPR_DATA)
			w.u32(30, 1) // of a kernel to come
			for typ, p := range attrs(attr(e, unix.NFTA_EXPR_DATA)) {
				i := slices.IndexFunc(meanings[kind], func(a exprAttr) bool { return a.typ == typ })
				if n := be32(p); i >= 0 && meanings[kind][i].is == register && n > 0 && n < 8 {
					p = string(binary.BigEndian.AppendUint32(nil, unix.NFT_REG32_00+4*(n-1)))
				}
				w.raw(typ, p)
			}
			w.close(d)
			w.close(x)
		}
		w.close(at)
		if got, ok := appendMeaning(nil, string(w.b)); !ok || string(got) != string(meant) {
			t.Errorf("%s: taken for something else", text)
		}
	})
}

// TestDormant switches the table off: what packets put there must be there afterwards.
func TestDormant(t *testing.T) {
	n := namespace(t)
	want := full()
	n.make(want)
	const put = "add element inet weir sticky-addr4 { 1 . 192.0.2.1 timeout 1h : 10.0.0.1 }"
	n.nft(put+"\nadd table inet weir { flags dormant; }", "-f", "-")
	have, gen := n.read(want)
	d := rs.Diff(have, want)
	if got := d.String(); got != "add table inet weir\n" {
		t.Fatalf("%q", got)
	}
	if _, err := n.Apply(context.Background(), d, gen); err != nil {
		t.Fatal(err)
	}
	n.same(want)
	if !strings.Contains(n.nft("", "list", "map", "inet", "weir", "sticky-addr4"), "10.0.0.1") {
		t.Error("the element has gone")
	}
	n.nft("add table inet weir { flags dormant; }", "-f", "-")
	n.nft(d.String(), "-f", "-") // the same as text
	n.same(want)
}
