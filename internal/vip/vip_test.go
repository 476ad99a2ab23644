package vip

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var cmpNet = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var cmpPrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func want(dev, addr string) Want { return Want{dev, netip.MustParseAddr(addr)} }

func ours(dev, prefix string) Have { return Have{dev, netip.MustParsePrefix(prefix), true} }

func theirs(dev, prefix string) Have { return Have{dev, netip.MustParsePrefix(prefix), false} }

func TestDiff(t *testing.T) {
	const v4, v6 = "198.51.100.10", "2001:db8::10"
	for _, c := range []struct {
		name    string
		want    []Want
		have    []Have
		add     []Want
		del     []Have
		foreign []Have
	}{
		{name: "nothing"},
		{name: "fresh, sorted, no duplicates",
			want: []Want{want("eth1", v6), want("eth1", v4), want("eth0", v6), want("eth1", v4)},
			add:  []Want{want("eth0", v6), want("eth1", v4), want("eth1", v6)}},
		{name: "there already",
			want: []Want{want("eth1", v4), want("eth1", v6)},
			have: []Have{ours("eth1", v4+"/32"), ours("eth1", v6+"/128")}},
		{name: "no longer wanted; an operator's address stays",
			have: []Have{ours("eth1", v4+"/32"), theirs("eth1", "192.0.2.1/24")},
			del:  []Have{ours("eth1", v4+"/32")}},
		{name: "held by others, with whatever prefix",
			want:    []Want{want("eth1", v4), want("eth1", v6)},
			have:    []Have{theirs("eth1", v4+"/24"), theirs("eth1", v6+"/128")},
			foreign: []Have{theirs("eth1", v4+"/24"), theirs("eth1", v6+"/128")}},
		{name: "moves to another device",
			want: []Want{want("eth2", v4)},
			have: []Have{ours("eth1", v4+"/32")},
			add:  []Want{want("eth2", v4)},
			del:  []Have{ours("eth1", v4+"/32")}},
		{name: "another device's holder is no obstacle",
			want: []Want{want("eth2", v4)},
			have: []Have{theirs("lo", v4+"/32")},
			add:  []Want{want("eth2", v4)}},
	} {
		add, del, foreign := Diff(c.want, c.have)
		got := []any{add, del, foreign}
		if d := cmp.Diff([]any{c.add, c.del, c.foreign}, got, cmpNet, cmpPrefix); d != "" {
			t.Errorf("%s: -want +got:\n%s", c.name, d)
		}
	}
}

// Whatever is wanted and there: nobody else's address is deleted, what is added and what
// is held is what is wanted, and once it is done there is nothing to do.
func TestDiffIsEnough(t *testing.T) {
	drawWant := rapid.Custom(func(t *rapid.T) Want {
		addr := fmt.Sprintf("192.0.2.%d", rapid.IntRange(1, 5).Draw(t, "host"))
		return want(rapid.SampledFrom([]string{"eth0", "eth1"}).Draw(t, "dev"), addr)
	})
	rapid.Check(t, func(t *rapid.T) {
		wants := rapid.SliceOf(drawWant).Draw(t, "want")
		holders := rapid.MapOf(drawWant, rapid.Bool()).Draw(t, "have")
		var have []Have
		for w, mine := range holders {
			have = append(have, Have{w.Dev, netip.PrefixFrom(w.Addr, 32), mine})
		}
		add, del, foreign := Diff(wants, have)
		for _, h := range del {
			if !h.Ours || slices.Contains(wants, h.want()) {
				t.Fatalf("deletes %v", h)
			}
		}
		after := slices.DeleteFunc(slices.Clone(have), func(h Have) bool { return slices.Contains(del, h) })
		for _, w := range add {
			after = append(after, Have{w.Dev, netip.PrefixFrom(w.Addr, 32), true})
		}
		for _, w := range wants {
			if !slices.ContainsFunc(after, func(h Have) bool { return h.want() == w }) {
				t.Fatalf("%v is not held", w)
			}
		}
		add, del, again := Diff(wants, after)
		if len(add) != 0 || len(del) != 0 || !slices.Equal(foreign, again) {
			t.Fatalf("the second time: add %v, delete %v, foreign %v then %v", add, del, foreign, again)
		}
	})
}

func TestFrames(t *testing.T) {
	m := mac{0x02, 0, 0, 0xaa, 0xbb, 0xcc}
	v4, v6 := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8::10")
	const na = `
		333300000001 020000aabbcc 86dd
		60000000 0020 3a ff
		20010db8000000000000000000000010 ff020000000000000000000000000001
		88 00 %s %s000000 20010db8000000000000000000000010 0201 020000aabbcc`
	for name, c := range map[string]struct {
		got  [][]byte
		want []string
	}{
		"ARP": {announcements(m, v4, false), []string{
			"ffffffffffff 020000aabbcc 0806 0001 0800 06 04 0001 020000aabbcc c633640a 000000000000 c633640a",
			"ffffffffffff 020000aabbcc 0806 0001 0800 06 04 0002 020000aabbcc c633640a 020000aabbcc c633640a",
		}},
		"NA":             {announcements(m, v6, false), []string{fmt.Sprintf(na, naSum(0x2000), "20")}},
		"NA of a router": {announcements(m, v6, true), []string{fmt.Sprintf(na, naSum(0xa000), "a0")}},
	} {
		if len(c.got) != len(c.want) {
			t.Fatalf("%s: %d frames, want %d", name, len(c.got), len(c.want))
		}
		for i, w := range c.want {
			w = strings.Join(strings.Fields(w), "")
			if got := hex.EncodeToString(c.got[i]); got != w {
				t.Errorf("%s, frame %d:\n got %s\nwant %s", name, i, got, w)
			}
		}
	}
}

// naSum adds up, by hand and word by word, the pseudo-header and the message of the frames
// in TestFrames, whose first word of flags is given.
func naSum(flags uint32) string {
	sum := 2*(0x2001+0x0db8+0x0010) + // source and target
		(0xff02 + 0x0001) + 32 + 58 + // destination, length, next header
		0x8800 + flags +
		0x0201 + 0x0200 + 0x00aa + 0xbbcc
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return hex.EncodeToString(binary.BigEndian.AppendUint16(nil, ^uint16(sum)))
}

func TestParseMalformed(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 7), append(make([]byte, 16), 3, 0, 3, 0)} {
		if _, err := parseLink(b); err == nil {
			t.Errorf("parseLink(%x): no error", b)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 7), append(make([]byte, 8), 3, 0, 2, 0)} {
		if _, _, err := parseAddress(b, false); err == nil {
			t.Errorf("parseAddress(%x): no error", b)
		}
	}
	// An address of a strange size is none, and is passed over.
	h, _, err := parseAddress(append(make([]byte, 8), 6, 0, 2, 0, 1, 2, 0, 0), false)
	if err != nil || h.Prefix.IsValid() {
		t.Errorf("address %v, error %v", h.Prefix, err)
	}
}

// A kernel before 5.18 does not give IFA_PROTO back: the metric is the mark then.
func TestMark(t *testing.T) {
	for _, c := range []struct {
		name     string
		metric   uint32
		proto    []byte
		old, now bool // whether it is weir's, before 5.18 and since
	}{
		{"both", Metric, []byte{Protocol}, true, true},
		{"metric alone", Metric, nil, true, false},
		{"somebody's metric", 100, nil, false, false},
		{"protocol alone", 0, []byte{Protocol}, false, false},
		{"somebody else's protocol", Metric, []byte{4}, false, false},
	} {
		b := []byte{2, 32, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 192, 0, 2, 1}
		if c.metric != 0 {
			b = binary.NativeEndian.AppendUint32(append(b, 8, 0, 9, 0), c.metric)
		}
		if c.proto != nil {
			b = append(b, 5, 0, ifaProto, 0, c.proto[0], 0, 0, 0)
		}
		for protoKept, want := range map[bool]bool{false: c.old, true: c.now} {
			h, index, err := parseAddress(b, protoKept)
			if err != nil || h.Prefix.String() != "192.0.2.1/32" || index != 1 {
				t.Fatalf("%s: %v on %d, error %v", c.name, h, index, err)
			}
			if h.Ours != want {
				t.Errorf("%s, protocols kept %v: ours %v", c.name, protoKept, h.Ours)
			}
		}
	}
}

func TestKeepsProto(t *testing.T) {
	for release, want := range map[string]bool{
		"4.19.0-27-amd64": false, "5.10.0-32-cloud-amd64": false, "5.17.15": false, "5.18.0": true,
		"6.1.0-28-amd64": true, "6.12": true, "10.0": true, "": false, "strange": false,
	} {
		if got := keepsProto(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}
