package steer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/steer/match"
)

const mask = 0x0fff0000

// group returns a target with n members of each family.
func group(name string, first uint32, n int) Target {
	t := Target{Name: name}
	for i := range n {
		mark := (first + uint32(2*i)) << 16
		t.Members = append(t.Members,
			Member{flow.Member{ID: fmt.Sprintf("10.1.1.%d:80", i+1), Weight: 1}, false, mark},
			Member{flow.Member{ID: fmt.Sprintf("[2001:db8:1::%d]:80", i+1), Weight: 1}, true, mark + 1<<16})
	}
	return t
}

func prefixList(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func bytesOf(tb testing.TB, s string) match.Conditions {
	tb.Helper()
	cs, err := match.Parse(s)
	if err != nil {
		tb.Fatal(err)
	}
	return cs
}

func udp(src, dst, data string) []byte {
	return lab.UDPPacket(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), []byte(data))
}

func tcp(src, dst string) []byte {
	return lab.TCPPacket(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), lab.SYN, 1, 0)
}

func packet(tb testing.TB, data []byte) *match.Packet {
	tb.Helper()
	p := &match.Packet{}
	if !p.Parse(data) {
		tb.Fatal("is no packet")
	}
	return p
}

func must(tb testing.TB, cfg Config, before *Set) *Set {
	tb.Helper()
	s, err := New(cfg, before)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// testRules is a configuration with every kind of condition.
func testRules(tb testing.TB) Config {
	return Config{Seed: 0x5eed, Mask: mask, None: 0x0fff0000, Workers: 2,
		Targets: []Target{group("a", 1, 3), group("b", 101, 5), {Name: "empty"}},
		Rules: []Rule{
			{Name: "rest", Priority: 100, Protocols: []uint8{6, 17}, To: "a", Destinations: prefixList("198.51.100.10/32 2001:db8::10/128")},
			{Name: "invite", Priority: 10, Protocols: []uint8{17}, To: "b", Destinations: prefixList("198.51.100.10/32 2001:db8::10/128"),
				DestinationPorts: []PortRange{{5060, 5061}, {5080, 5080}}, Bytes: bytesOf(tb, "udp[8:4]&0xffffff00=0x494e5600")},
			{Name: "from", Priority: 20, To: "b", Sources: prefixList("203.0.113.0/25"), SourcePorts: []PortRange{{1024, 65535}}},
			{Name: "nobody", Priority: 30, To: "empty", Protocols: []uint8{132}},
			{Name: "late", Priority: 20, To: "a", Sources: prefixList("203.0.113.0/24")},
		}}
}

func TestChoose(t *testing.T) {
	s := must(t, testRules(t), nil)
	for _, c := range []struct {
		name string
		pkt  []byte
		rule string
	}{
		{"INVITE", udp("203.0.113.9:4000", "198.51.100.10:5060", "INVITE"), "invite"},
		{"INVITE, IPv6", udp("[2001:db8::9]:4000", "[2001:db8::10]:5061", "INVITE"), "invite"},
		{"INVITE, single port", udp("[2001:db8::9]:4000", "[2001:db8::10]:5080", "INVITE"), "invite"},
		{"another method", udp("[2001:db8::9]:4000", "[2001:db8::10]:5060", "BYE"), "rest"},
		{"another port", udp("[2001:db8::9]:4000", "[2001:db8::10]:5062", "INVITE"), "rest"},
		{"TCP", tcp("192.0.2.9:4000", "198.51.100.10:5060"), "rest"},
		{"source", tcp("203.0.113.127:1024", "198.51.100.10:5060"), "from"},
		{"source port below", tcp("203.0.113.127:1023", "198.51.100.10:5060"), "late"},
		{"source beyond", tcp("203.0.113.128:1024", "198.51.100.10:5060"), "late"},
		{"IPv6 where there is a source of IPv4", tcp("[2001:db8::9]:4000", "[2001:db8::10]:5060"), "rest"},
		{"another destination", tcp("192.0.2.9:4000", "198.51.100.11:5060"), ""},
		{"another destination, IPv6", tcp("[2001:db8::9]:4000", "[2001:db8::11]:5060"), ""},
		{"ICMP has no ports", lab.IPPacket(netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.10"), 1, make([]byte, 8)), "late"},
		{"a group without members", lab.IPPacket(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.10"), 132, make([]byte, 12)), "nobody"},
	} {
		got := s.Choose(packet(t, c.pkt))
		name := ""
		if got.Rule >= 0 {
			name = s.cfg.Rules[got.Rule].Name
		}
		if name != c.rule {
			t.Errorf("%s: rule %q, want %q", c.name, name, c.rule)
		}
		if none := c.rule == "" || c.rule == "nobody"; none != (got.Member < 0) || none != (got.Mark == s.cfg.None) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if got.Member >= 0 {
			m := s.cfg.Targets[got.Target].Members[got.Member]
			if m.Mark != got.Mark || m.V6 != packet(t, c.pkt).V6 || s.cfg.Targets[got.Target].Name != s.cfg.Rules[got.Rule].To {
				t.Errorf("%s: %+v is %+v", c.name, got, m)
			}
		}
	}
}

// TestSameChoice: the choice is that of the expression jhash over the tables that a service of
// these members has in the kernel.
func TestSameChoice(t *testing.T) {
	cfg := Config{Seed: 7, Mask: mask, Workers: 1, Rules: []Rule{{Name: "all", To: "g"}}, Targets: []Target{group("g", 1, 12)}}
	for _, by := range []By{BySourcePort, BySource} {
		cfg.Targets[0].By = by
		s := must(t, cfg, nil)
		var members [2][]flow.Member
		for i, m := range cfg.Targets[0].Members {
			members[i%2] = append(members[i%2], m.Member)
		}
		size := flow.TableSize(12)
		tables := [2][]int32{flow.Maglev(members[0], size), flow.Maglev(members[1], size)}
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			v6 := rnd.IntN(2)
			src := []string{fmt.Sprintf("203.0.113.%d:%d", rnd.IntN(256), rnd.IntN(65536)),
				fmt.Sprintf("[2001:db8::%x]:%d", rnd.IntN(65536), rnd.IntN(65536))}[v6]
			dst := []string{"198.51.100.10:80", "[2001:db8::10]:80"}[v6]
			from := netip.MustParseAddrPort(src)
			var buf [flow.KeySize]byte
			key := flow.KeySourcePort(&buf, from.Addr(), from.Port())
			if by == BySource {
				key = flow.KeySource(&buf, from.Addr())
			}
			want := members[v6][tables[v6][flow.Choose(key, 7, uint32(size), 0)]].ID
			got := s.Choose(packet(t, tcp(src, dst)))
			if id := cfg.Targets[0].Members[got.Member].ID; id != want {
				t.Fatalf("%s: %s, and the kernel's table says %s", src, id, want)
			}
		}
	}
}

// TestOrder: which rules stand first in the file, and which member, makes no difference.
func TestOrder(t *testing.T) {
	cfg := testRules(t)
	s := must(t, cfg, nil)
	turned := cfg
	turned.Rules, turned.Targets = slices.Clone(cfg.Rules), slices.Clone(cfg.Targets)
	slices.SortFunc(turned.Rules, func(a, b Rule) int { return strings.Compare(a.Name, b.Name) })
	slices.Reverse(turned.Targets)
	for i := range turned.Targets {
		turned.Targets[i].Members = slices.Clone(turned.Targets[i].Members)
		slices.Reverse(turned.Targets[i].Members)
	}
	other := must(t, turned, nil)
	for i := range 500 {
		p := packet(t, udp(fmt.Sprintf("203.0.%d.%d:%d", 113+i%2, i%256, 900+i), "198.51.100.10:5060", "INVITE"))
		if a, b := s.Choose(p), other.Choose(p); a.Mark != b.Mark {
			t.Fatalf("%+v and %+v", a, b)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for words, change := range map[string]func(*Config){
		"0 workers":                      func(c *Config) { c.Workers = 0 },
		"mask 0x0":                       func(c *Config) { c.Mask = 0 },
		"mark 0x1 for no target":         func(c *Config) { c.None = 1 },
		"target b is there twice":        func(c *Config) { c.Targets[0].Name = "b" },
		"there is no target \"x\"":       func(c *Config) { c.Rules[0].To = "x" },
		"rule from is there twice":       func(c *Config) { c.Rules[0].Name = "from" },
		"the first is above the last":    func(c *Config) { c.Rules[0].SourcePorts = []PortRange{{2, 1}} },
		"is none of IPv4 or IPv6":        func(c *Config) { c.Rules[0].Sources = []netip.Prefix{{}} },
		"is 0 or not within the mask":    func(c *Config) { c.Targets[0].Members[1].Mark = 0 },
		"member 10.1.1.1:80 is there tw": func(c *Config) { c.Targets[0].Members[1].ID = "10.1.1.1:80" },
		"10486 members":                  func(c *Config) { c.Targets[0].Members = make([]Member, 10486) },
	} {
		cfg := testRules(t)
		change(&cfg)
		if _, err := New(cfg, nil); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
}

func TestMark(t *testing.T) {
	s := must(t, testRules(t), nil)
	st := NewSteerer(s)
	pkt := tcp("203.0.113.1:4000", "198.51.100.10:80")
	want := s.Choose(packet(t, pkt)).Mark
	if got := st.Mark(0, pkt, 0xfabc1234); got != want|0xf0001234 {
		t.Errorf("mark 0x%x, want 0x%x in the mask and the other bits as they were", got, want)
	}
	if got := st.Mark(1, []byte("no packet"), 0xfabc1234); got != 0xffff1234 {
		t.Errorf("no packet: mark 0x%x", got)
	}
}

func TestCounts(t *testing.T) {
	cfg := testRules(t)
	st := NewSteerer(must(t, cfg, nil))
	pkt := tcp("203.0.113.1:4000", "198.51.100.10:80")
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for range 1000 {
				st.Mark(w, pkt, 0)
			}
		})
	}
	st.Mark(0, nil, 0)
	st.Mark(0, lab.IPPacket(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.10"), 132, make([]byte, 12)), 0)
	wg.Wait()
	member := st.Set().Choose(packet(t, pkt)).Member
	check := func(from, b int) {
		t.Helper()
		got := st.Set().Counts()
		want := Counts{Rules: make([]uint64, len(got.Rules)), Targets: make([]uint64, len(got.Targets)), Unmatched: 1, Nobody: 1}
		want.Rules[from], want.Rules[3], want.Targets[b], want.Targets[2] = 2000, 1, 2000, 1
		for _, list := range got.Members {
			want.Members = append(want.Members, make([]uint64, len(list)))
		}
		want.Members[b][member] = 2000
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	check(2, 1)
	// Other rules, more workers: what keeps its name keeps its count.
	cfg.Rules = slices.Clone(cfg.Rules)
	cfg.Rules[0], cfg.Rules[2] = cfg.Rules[2], cfg.Rules[0]
	cfg.Workers = 5
	st.Replace(must(t, cfg, st.Set()))
	check(0, 1)
}

func TestNoAllocation(t *testing.T) {
	st := NewSteerer(must(t, testRules(t), nil))
	pkts := [][]byte{udp("[2001:db8::9]:4000", "[2001:db8::10]:5060", "INVITE"), tcp("192.0.2.9:4000", "198.51.100.10:5060"), nil}
	if n := testing.AllocsPerRun(1000, func() {
		for _, p := range pkts {
			st.Mark(0, p, 1)
		}
	}); n != 0 {
		t.Errorf("%g allocations for three packets", n)
	}
}

// FuzzMark: whatever a packet is and however it is cut, only bits of the mask change.
func FuzzMark(f *testing.F) {
	f.Add(udp("[2001:db8::9]:4000", "[2001:db8::10]:5060", "INVITE"), uint32(0xffffffff))
	f.Add(tcp("203.0.113.1:4000", "198.51.100.10:80"), uint32(1))
	st := NewSteerer(must(f, testRules(f), nil))
	f.Fuzz(func(t *testing.T, data []byte, mark uint32) {
		if got := st.Mark(0, data, mark); got&^mask != mark&^mask || got&mask == 0 {
			t.Fatalf("0x%x becomes 0x%x", mark, got)
		}
	})
}

func BenchmarkMark(b *testing.B) {
	for _, rules := range []int{1, 10, 100, 500} {
		cfg := Config{Mask: mask, Workers: 1, Targets: []Target{group("a", 1, 20)}}
		for i := range rules {
			cfg.Rules = append(cfg.Rules, Rule{Name: fmt.Sprint(i), To: "a", Protocols: []uint8{6},
				Sources: prefixList("203.0.113.0/24 2001:db8::/32"), Destinations: prefixList(fmt.Sprintf("198.51.100.10/32 10.0.%d.0/24", i%256)),
				DestinationPorts: []PortRange{{80, uint16(80 + (i+1)/rules*1000)}}})
		}
		st := NewSteerer(must(b, cfg, nil))
		pkt := tcp("203.0.113.1:4000", "198.51.100.10:443")
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if st.Mark(0, pkt, 0) == 0 {
					b.Fatal("no rule")
				}
			}
		})
	}
}
