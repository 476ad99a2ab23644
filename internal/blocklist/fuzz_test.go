package blocklist

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

// netipSpan reads text with net/netip, as slow and as right as can be.
func netipSpan(text string) (first, last netip.Addr, ok bool) {
	if from, to, isRange := strings.Cut(text, "-"); isRange {
		a, err1 := netip.ParseAddr(strings.TrimRight(from, " \t"))
		b, err2 := netip.ParseAddr(strings.TrimLeft(to, " \t"))
		// Both ends are 4-in-6, or neither; but IPv4 may be written either way.
		if err1 != nil || err2 != nil || a.Zone() != "" || b.Zone() != "" {
			return a, b, false
		}
		a, b = a.Unmap(), b.Unmap()
		return a, b, a.Is4() == b.Is4() && !b.Less(a)
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return a, a, false
		}
		return a.Unmap(), a.Unmap(), true
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return first, last, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	return p.Addr(), lastOf(p), true
}

// FuzzParse: entries are read exactly as net/netip reads them.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "192.0.2.0/24", "192.0.2.1-192.0.2.9", "192.0.2.1 - 192.0.2.9", "::", "::1", "1::", "2001:db8::/32",
		"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::3:4:5:6:7:8", "1:2:3:4:5:6:7:8::", "1:2:3:4:5:6:7:8:9", "::ffff:192.0.2.1",
		"::ffff:192.0.2.0/120", "::ffff:c000:201", "1:2:3:4:5:6:192.0.2.1", "1:2:3:4:5:6:7:192.0.2.1", "fe80::1%eth0", "::/0", "0.0.0.0/0",
		"192.0.2.1/33", "192.0.2.1/032", "::1/129", "00::1", "12345::", ":1", "1:", ":::", "", "1.2.3", "1.2.3.4.5", "01.2.3.4", "256.1.1.1",
		"::ffff:1.2.3.4-1.2.3.5", "::fffe:1.2.3.4", "2001:db8::1-2001:db8::", "1.2.3.4-", "-1.2.3.4", "1.2.3.4-1.2.3.4-1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s span
		bad := s.parse([]byte(text), 0)
		first, last, ok := netipSpan(text)
		if ok != (bad.kind == fine) {
			t.Fatalf("%q: %+v, netip: %v", text, bad, ok)
		}
		if !ok {
			if bad.from < 0 || bad.from > bad.to || bad.to > len(text) {
				t.Fatalf("%q: %+v", text, bad)
			}
			bad.message([]byte(text))
			return
		}
		gotFirst, gotLast := s.first4.addr(), s.last4.addr()
		if !s.is4 {
			gotFirst, gotLast = s.first6.addr(), s.last6.addr()
		}
		if gotFirst != first || gotLast != last {
			t.Fatalf("%q: %v to %v, netip: %v to %v", text, gotFirst, gotLast, first, last)
		}
	})
}

// FuzzAdd: no text does harm, and what is said of it stays in its bounds.
func FuzzAdd(f *testing.F) {
	for _, s := range []string{"192.0.2.1\n", "add x 192.0.2.0/24 timeout 5 comment \"a b\" nomatch\n", "create x hash:net family inet6 netmask 64\n",
		`{"cidr":"192.0.2.0/24","sblid":"SBL1"}` + "\n" + `{"type":"metadata","records":1}`, "192.0.2.1 ; note\n\xff\x00\n", "\xef\xbb\xbf::1\r\n",
		"\x1f\x8b\x08\x00", "<html>", strings.Repeat("x", 300), "1.2.3.4\n" + strings.Repeat("\n", 90), "a\n1.1.1.1\nadd"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o := Options{MaxBytes: 1 << 16, MaxEntries: 50, MaxLine: 100}
		b := NewBuilder("fuzz", o)
		err := b.Add("file", bytes.NewReader(text))
		if err != nil {
			printableLine(t, err.Error())
			return
		}
		l := b.List()
		if l.Counts.Entries > o.MaxEntries || len(l.Problems) > MaxProblems || len(l.notes.text) > MaxNotes {
			t.Fatalf("%+v, %d problems", l.Counts, len(l.Problems))
		}
		if got := l.Len() + len(l.four.holes) + len(l.six.holes) + l.Counts.Duplicates; got != l.Counts.Entries {
			t.Fatalf("%d entries and doubles of %d", got, l.Counts.Entries)
		}
		for _, p := range l.Problems {
			printableLine(t, p.Error())
		}
		sorted(t, l.four.entries)
		sorted(t, l.six.entries)
		c, err := Compile([]Use{{l, Drop}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.four.entries {
			for _, m := range c.Lookup(e.first.addr()).Matches {
				printableLine(t, m.Note)
			}
		}
	})
}

func sorted[A number[A]](t *testing.T, list []entry[A]) {
	t.Helper()
	for i, e := range list {
		if e.first.cmp(e.last) > 0 || (i > 0 && list[i-1].compare(e) >= 0) {
			t.Fatalf("%v at %d of %v", e, i, list)
		}
	}
}

func printableLine(t *testing.T, s string) {
	t.Helper()
	if strings.Trim(printable(s), `"`) != strings.Trim(s, `"`) {
		t.Fatalf("%q is not one printable line", s)
	}
}

// FuzzObject: the quick reader of JSON knows only what encoding/json says too.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"cidr":"a"}`, `{ "cidr" : "a" , "sblid":"b","n":12,"t":true,"z":null}`, `{"cidr":1,"cidr":"x"}`, `{"cidr":"x","cidr":1}`,
		`{"records":01}`, `{"records":-1,"type":"metadata"}`, `{"records":99999999999}`, `{"a":tru}`, `{"a":"\u0041"}`, `{"a":{}}`, `{"a":1}x`, `{,}`, `{"a":1,}`, `{"a"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !strings.HasPrefix(text, "{") {
			return
		}
		quick, ok := scanObject([]byte(text))
		if !ok {
			return
		}
		if !json.Valid([]byte(text)) {
			t.Fatalf("%q is not JSON", text)
		}
		slow, ok := decodeObject([]byte(text))
		if !ok || !bytes.Equal(quick.cidr, slow.cidr) || (quick.cidr == nil) != (slow.cidr == nil) || !bytes.Equal(quick.note, slow.note) ||
			quick.metadata != slow.metadata || quick.records != slow.records {
			t.Fatalf("%q: %+v, want %+v", text, quick, slow)
		}
	})
}
