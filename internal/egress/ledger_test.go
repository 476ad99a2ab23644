package egress

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/model"
)

var (
	start  = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	addr   = netip.MustParseAddr
	client = netip.MustParseAddrPort
)

func after(seconds float64) time.Time {
	return start.Add(time.Duration(seconds * float64(time.Second)))
}

func poolOf(name string, lo, hi string, ports ...model.PortRange) *model.Pool {
	return &model.Pool{Name: name, Addresses: []model.AddrRange{{Lo: addr(lo), Hi: addr(hi)}}, Ports: ports, Spill: true}
}

var api = Dest{model.TCP, client("203.0.113.1:443")}

// fill adds n connections of an address to d, from ports upwards.
func fill(c *Census, a string, d Dest, from uint16, n int) {
	for i := range n {
		c.Add(netip.AddrPortFrom(addr(a), from+uint16(i)), d)
	}
}

// dump has the ledger take a census of so many connections to api, by address.
func dump(l *Ledger, at time.Time, use map[string]int) {
	c := l.Census()
	for a, n := range use {
		fill(c, a, api, 1000, n)
	}
	l.Dumped(at, c)
}

func counts(n map[string]uint64) (out []New) {
	for a, c := range n {
		out = append(out, New{Key{addr(a), api}, c})
	}
	return out
}

func TestPorts(t *testing.T) {
	m := poolOf("a", "198.51.100.1", "198.51.100.3", model.DefaultPoolPorts)
	p := NewPool(m, []model.PortRange{{Lo: 1000, Hi: 1049}, {Lo: 1051, Hi: 1099}, {Lo: 2000, Hi: 2000}}, nil)
	for a, want := range map[string]int{"198.51.100.1": 100, "198.51.100.2": 100, "198.51.100.4": 0} {
		if got := p.Ports(addr(a)); got != want {
			t.Errorf("%s: %d ports, want %d", a, got, want)
		}
	}
	c := NewCensus([]*Pool{p}, nil)
	for _, port := range []uint16{999, 1000, 1050, 1051, 2000} {
		c.Add(netip.AddrPortFrom(addr("198.51.100.2"), port), api)
	}
	c.Add(client("198.51.100.2:0"), Dest{1, client("203.0.113.1:0")}) // a ping
	if c.Add(client("198.51.100.9:1000"), api) {
		t.Error("an address of no pool was taken for one")
	}
	u := c.Uses()
	if len(u) != 1 || u[0].InUse != 3 || c.Flows(addr("198.51.100.2")) != 6 {
		t.Errorf("uses %+v, flows %d; ports 1000, 1051 and 2000 are the pool's to give", u, c.Flows(addr("198.51.100.2")))
	}
}

func TestMasquerade(t *testing.T) {
	m := &model.Pool{Name: "m", Masquerade: true, Ports: []model.PortRange{model.DefaultPoolPorts}}
	p := NewPool(m, m.Ports, []netip.Addr{addr("2001:db8::1"), addr("198.51.100.1")})
	if p.Ports(addr("2001:db8::1")) != 64512 || p.Ports(addr("198.51.100.1")) != 64512 {
		t.Errorf("%+v", p)
	}
}

// Whatever the room, nothing that is busy is lost, and no count is more wrong than it says.
func TestCensusIsBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	p := NewPool(poolOf("a", "198.51.100.1", "198.51.100.4", model.DefaultPoolPorts), []model.PortRange{model.DefaultPoolPorts}, nil)
	for _, watched := range []bool{false, true} {
		var watch []Key
		if watched {
			watch = []Key{{addr("198.51.100.1"), api}}
		}
		c := NewCensus([]*Pool{p}, watch)
		c.room = 500
		truth := map[Key]int{}
		const flows = 40_000
		for i := range flows {
			d := api
			if i%10 != 0 { // a crawler: a destination each
				d.To = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(r.IntN(256)), byte(r.IntN(256))}), 80)
			}
			k := Key{p.Addrs[r.IntN(4)], d}
			truth[k]++
			c.Add(netip.AddrPortFrom(k.Addr, uint16(1024+i%60000)), d)
			if len(c.uses) > c.room {
				t.Fatalf("%d places of %d", len(c.uses), c.room)
			}
		}
		for _, u := range c.Uses() {
			n := truth[u.Key]
			if u.InUse > n || u.InUse+u.More < n {
				t.Errorf("%v: counted %d to %d, %d there are", u.Key, u.InUse, u.InUse+u.More, n)
			}
			delete(truth, u.Key)
		}
		for k, n := range truth {
			if n > 2*2*flows/c.room {
				t.Errorf("%v is missing, with %d connections", k, n)
			}
		}
		if exact := c.Uses()[slices.IndexFunc(c.Uses(), func(u Use) bool { return u.Key == Key{p.Addrs[0], api} })]; watched && exact.More != 0 {
			t.Errorf("what was watched is not exact: %+v", exact)
		}
	}
}

// oneHundred is a pool of four addresses with 100 ports each.
func oneHundred() *model.Pool {
	return poolOf("apis", "198.51.100.1", "198.51.100.4", model.PortRange{Lo: 1000, Hi: 1099})
}

func ledgerOf(m ...*model.Pool) *Ledger {
	var pools []*Pool
	for _, p := range m {
		pools = append(pools, NewPool(p, p.Ports, nil))
	}
	return NewLedger(pools)
}

func TestRateAndForecast(t *testing.T) {
	l := ledgerOf(oneHundred())
	l.Counted(start, counts(map[string]uint64{"198.51.100.1": 5000})) // before weir looked
	dump(l, start, map[string]int{"198.51.100.1": 20})
	for i := 1; i <= 40; i++ {
		l.Counted(after(float64(i)), counts(map[string]uint64{"198.51.100.1": 5000 + 10*uint64(i)}))
	}
	e := l.keys[Key{addr("198.51.100.1"), api}]
	if e.bound() != 420 || e.total != 400 || math.Abs(e.rate-10) > 0.01 {
		t.Fatalf("bound %d, total %d, rate %g", e.bound(), e.total, e.rate)
	}
	dump(l, after(40), map[string]int{"198.51.100.1": 40})
	r := l.Report(0, 10)
	u := r.Uses[0]
	if u.InUse != 40 || u.Ports != 100 || u.Growth != 0.5 || u.FullIn != 120 || r.Addrs[0].FullIn != 120 || r.Addrs[0].Busiest.Percent() != 40 {
		t.Errorf("%+v; 20 more in 40 s, 60 to go", u)
	}
	if r.Total != 400 || r.Flows != 40 || math.Abs(r.New-10) > 0.01 {
		t.Errorf("%+v", r)
	}
	// 400 came, 20 stayed: 380 ended in 40 s, of 30 on average: each lives 30/9.5 s.
	if math.Abs(r.Hold-30/9.5) > 0.01 {
		t.Errorf("hold %g", r.Hold)
	}
	// Nothing fills that stays as it is, and nothing that goes.
	for i, n := range []int{40, 35} {
		dump(l, after(50+10*float64(i)), map[string]int{"198.51.100.1": n})
		if u := l.Report(0, 1).Uses[0]; !math.IsNaN(u.FullIn) {
			t.Errorf("full in %g with growth %g", u.FullIn, u.Growth)
		}
	}
}

// A counter that the kernel forgot begins anew, and does not count backwards.
func TestCounterBeginsAnew(t *testing.T) {
	l := ledgerOf(oneHundred())
	for i, n := range []uint64{7, 10, 4, 0, 5} {
		list := counts(map[string]uint64{"198.51.100.2": n})
		if n == 0 {
			list = nil
		}
		l.Counted(after(float64(i)), list)
	}
	if got := l.Total(addr("198.51.100.2")); got != 3+4+5 {
		t.Errorf("total %d", got)
	}
}

func TestWantsDump(t *testing.T) {
	l := ledgerOf(oneHundred())
	if !l.WantsDump(time.Second) {
		t.Error("nothing is known, and no dump is wanted")
	}
	l.Counted(start, nil)
	dump(l, start, map[string]int{"198.51.100.1": 40})
	for i, c := range []struct {
		fresh uint64
		want  bool
	}{{0, false}, {39, false}, {40, true}, {70, true}} {
		l.Counted(after(100*float64(i+1)), counts(map[string]uint64{"198.51.100.1": c.fresh}))
		if got := l.WantsDump(time.Second); got != c.want {
			t.Errorf("40 in use, %d came: %v", c.fresh, got)
		}
	}
	dump(l, after(1000), map[string]int{"198.51.100.1": 81})
	if l.WantsDump(time.Second) {
		t.Error("nothing came since, and another dump is wanted")
	}
}

func words(list []Alarm) string {
	var out []string
	for _, a := range list {
		out = append(out, fmt.Sprintf("%s %d", a.Level, a.InUse))
	}
	return strings.Join(out, ", ")
}

func TestAlarmsDoNotFlap(t *testing.T) {
	l := ledgerOf(oneHundred())
	for i, c := range []struct {
		inUse        int
		all, changed string
	}{
		{79, "", ""}, {80, "warning 80", "warning 80"}, {76, "warning 76", ""}, {94, "warning 94", ""},
		{95, "error 95", "error 95"}, {91, "error 91", ""}, {100, "error 100", ""}, {89, "warning 89", "warning 89"},
		{75, "warning 75", ""}, {74, "", "ok 74"}, {79, "", ""}, {96, "error 96", "error 96"}, {0, "", "ok 0"},
	} {
		dump(l, after(float64(i)), map[string]int{"198.51.100.3": c.inUse, "198.51.100.1": 10})
		all, changed := l.Alarms()
		if c.inUse == 0 {
			c.changed = "ok 10" // the fullest now
		}
		if words(all) != c.all || words(changed) != c.changed {
			t.Errorf("%d in use: %s, changed %s; want %s, %s", c.inUse, words(all), words(changed), c.all, c.changed)
		}
		if len(all) > 0 && all[0].Level == Warning && c.inUse == 80 {
			if s := all[0].String(); s != "198.51.100.3 has 80 of 100 ports in use for tcp 203.0.113.1:443 (80%); all 4 addresses together 22%" {
				t.Error(s)
			}
		}
	}
}

func reliefOf(l *Ledger, at time.Time, reaction time.Duration) string {
	list, crowded := l.Relief(at, reaction)
	var out []string
	for _, r := range list[0] {
		out = append(out, fmt.Sprintf("%s %s without %v", r.Proto, r.To, r.Without))
	}
	for _, c := range crowded {
		out = append(out, fmt.Sprintf("crowded %s", c.Dest))
	}
	return strings.Join(out, "; ")
}

func TestReliefComesAndGoes(t *testing.T) {
	const second, rest = "tcp 203.0.113.1:443 without [198.51.100.2]", ""
	l := ledgerOf(oneHundred())
	at := 0.0
	for _, c := range []struct {
		inUse int
		want  string
	}{{98, rest}, {99, second}, {95, second}, {90, second}, {88, rest}, {98, rest}, {100, second}} {
		at += 11
		dump(l, after(at), map[string]int{"198.51.100.2": c.inUse, "198.51.100.1": 5})
		if got := reliefOf(l, after(at), time.Second); got != c.want {
			t.Errorf("%d in use: %q, want %q", c.inUse, got, c.want)
		}
	}
	dump(l, after(at+5), map[string]int{"198.51.100.2": 0})
	if got := reliefOf(l, after(at+5), time.Second); got != second {
		t.Errorf("taken back within five seconds: %q", got)
	}
	if got := reliefOf(l, after(at+11), time.Second); got != "" {
		t.Errorf("never taken back: %q", got)
	}
}

// What comes within the time of reaction is kept free, between two dumps by what came since.
func TestReliefLooksAhead(t *testing.T) {
	l := ledgerOf(oneHundred())
	l.Counted(start, nil)
	dump(l, start, map[string]int{"198.51.100.1": 40})
	for i := range 10 {
		l.Counted(after(float64(i+1)), counts(map[string]uint64{"198.51.100.1": uint64(4 * (i + 1))}))
	}
	if got := reliefOf(l, after(10), time.Second); got != "" {
		t.Errorf("80 of 100 at most, 4 a second: %q", got)
	}
	if got := reliefOf(l, after(10), 10*time.Second); got == "" {
		t.Error("80 of 100, 4 a second, ten seconds to react: nothing")
	}
}

// Between dumps that are far apart, what comes is not all more: as much ends.
func TestReliefExpectsEnds(t *testing.T) {
	l := ledgerOf(oneHundred())
	l.Counted(start, nil)
	dump(l, start, map[string]int{"198.51.100.1": 60})
	for i := range 20 { // 5 a second, each for 12 s: it stays
		l.Counted(after(float64(i+1)), counts(map[string]uint64{"198.51.100.1": uint64(5 * (i + 1))}))
	}
	dump(l, after(20), map[string]int{"198.51.100.1": 60})
	for i := range 10 {
		l.Counted(after(float64(21+i)), counts(map[string]uint64{"198.51.100.1": uint64(5 * (21 + i))}))
	}
	if got := reliefOf(l, after(30), time.Second); got != "" {
		t.Errorf("60 of 100 in use, and 50 came and went: %q", got)
	}
	if !l.WantsDump(time.Second) {
		t.Error("it may be full, and no dump is wanted")
	}
}

func TestReliefNeverOfAll(t *testing.T) {
	m := oneHundred()
	l := ledgerOf(m)
	dump(l, start, map[string]int{"198.51.100.1": 100, "198.51.100.2": 100, "198.51.100.3": 99, "198.51.100.4": 60})
	if got := reliefOf(l, start, time.Second); got != "tcp 203.0.113.1:443 without [198.51.100.1 198.51.100.2 198.51.100.3]" {
		t.Error(got)
	}
	dump(l, after(1), map[string]int{"198.51.100.1": 100, "198.51.100.2": 100, "198.51.100.3": 99, "198.51.100.4": 99})
	if got := reliefOf(l, after(1), time.Second); got != "crowded tcp 203.0.113.1:443" {
		t.Error(got)
	}
	// One that is drained is none to go to.
	drained := *m
	drained.Drained = []netip.Addr{addr("198.51.100.4")}
	l = ledgerOf(&drained)
	dump(l, start, map[string]int{"198.51.100.1": 100, "198.51.100.2": 100, "198.51.100.3": 99, "198.51.100.4": 0})
	if got := reliefOf(l, start, time.Second); got != "crowded tcp 203.0.113.1:443" {
		t.Error(got)
	}
}

func TestPoolsWithoutRelief(t *testing.T) {
	for name, change := range map[string]func(*model.Pool){
		"stable, fail": func(m *model.Pool) { m.Spread, m.Spill = model.SpreadClient, false },
		"blocks":       func(m *model.Pool) { m.Block = 10 },
	} {
		m := oneHundred()
		change(m)
		l := ledgerOf(m)
		dump(l, start, map[string]int{"198.51.100.1": 100})
		if got := reliefOf(l, start, time.Second); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestFailures(t *testing.T) {
	l := ledgerOf(oneHundred())
	dump(l, start, map[string]int{"198.51.100.1": 50})
	l.Failed(Stats{InsertFailed: 100, Drop: 120}, false) // before weir looked
	l.Failed(Stats{InsertFailed: 103, Drop: 123}, false)
	dump(l, start, map[string]int{"198.51.100.1": 100})
	if f, pools := l.Failed(Stats{InsertFailed: 110, Drop: 130}, false); f.Exhaustion != 7 || !slices.Equal(pools, []string{"apis"}) {
		t.Errorf("%+v %v", f, pools)
	}
	l.Failed(Stats{InsertFailed: 110, Drop: 140}, true)
	want := Failures{InsertFailed: 10, Drop: 20, Exhaustion: 7, Race: 3, TableFull: 10}
	if got := l.Failures(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestBear(t *testing.T) {
	m := oneHundred()
	l := ledgerOf(m)
	dump(l, start, map[string]int{"198.51.100.1": 40, "198.51.100.2": 10})
	b, ok := l.Bear(0, 0.8)
	if !ok || !b.Even || b.Load != 50 || b.Limit != 320 || b.Factor != 6.4 {
		t.Errorf("%+v", b)
	}
	m.Spread, m.Spill = model.SpreadClient, false
	l = ledgerOf(m)
	dump(l, start, map[string]int{"198.51.100.1": 40, "198.51.100.2": 10})
	if b, ok = l.Bear(0, 0.8); !ok || b.Even || b.Load != 40 || b.Limit != 80 || b.Factor != 2 || b.Addr != addr("198.51.100.1") {
		t.Errorf("%+v", b)
	}
	if _, ok := ledgerOf(m).Bear(0, 0.8); ok {
		t.Error("nothing is in use")
	}
}

// A reload keeps what is known of addresses that stay, and forgets others.
func TestLoad(t *testing.T) {
	m := oneHundred()
	l := ledgerOf(poolOf("other", "198.51.100.77", "198.51.100.77", m.Ports...), m)
	l.Counted(start, nil)
	dump(l, start, map[string]int{"198.51.100.1": 40, "198.51.100.4": 99, "198.51.100.77": 9})
	l.Counted(after(1), counts(map[string]uint64{"198.51.100.4": 3, "198.51.100.77": 4}))
	less := poolOf("apis", "198.51.100.3", "198.51.100.4", m.Ports...)
	l.Load([]*Pool{NewPool(less, less.Ports, nil)})
	if l.Total(addr("198.51.100.4")) != 3 || l.Total(addr("198.51.100.77")) != 0 {
		t.Error("totals")
	}
	if got := reliefOf(l, after(1), time.Second); got != "tcp 203.0.113.1:443 without [198.51.100.4]" {
		t.Error(got)
	}
	if !l.LastDump().IsZero() || !l.WantsDump(time.Second) {
		t.Error("the census before is of other pools")
	}
}
