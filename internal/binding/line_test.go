package binding

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/internal/conntrack"
	"weir/internal/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC)

func flow(proto model.Proto, inside, outside, to string) conntrack.Flow {
	at := netip.MustParseAddrPort
	f := conntrack.Flow{Proto: proto, Status: conntrack.StatusSNAT,
		Orig:  conntrack.Tuple{Src: at(inside), Dst: at(to)},
		Reply: conntrack.Tuple{Src: at(to), Dst: at(outside)}}
	if proto == conntrack.ICMP || proto == conntrack.ICMPv6 {
		f.Orig.ICMPID, f.Reply.ICMPID = f.Orig.Src.Port(), f.Reply.Dst.Port()
	}
	return f
}

func pool(name string, more func(*model.Pool)) *model.Pool {
	p := &model.Pool{Name: name, Log: true, Out: []string{"eth1"}, Ports: []model.PortRange{model.DefaultPoolPorts}}
	more(p)
	return p
}

func addrs(lo, hi string) model.AddrRange {
	return model.AddrRange{Lo: netip.MustParseAddr(lo), Hi: netip.MustParseAddr(hi)}
}

// TestLinesGolden holds a line of every kind: its fields are part of weir's interface.
func TestLinesGolden(t *testing.T) {
	var out []byte
	b := Book{}
	emit := func(l Line) { out = l.Append(out) }
	b.SetPools([]*model.Pool{
		pool("web", func(p *model.Pool) {
			p.Addresses = []model.AddrRange{addrs("198.51.100.0", "198.51.100.5"), addrs("2001:db8:f::", "2001:db8:f::5")}
		}),
		pool("home", func(p *model.Pool) {
			p.Block, p.From = 512, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
			p.Addresses = []model.AddrRange{addrs("198.51.100.9", "198.51.100.9")}
		}),
		pool("silent", func(p *model.Pool) {
			p.Log, p.Addresses = false, []model.AddrRange{addrs("198.51.100.7", "198.51.100.7")}
		}),
		pool("mine", func(p *model.Pool) { p.Masquerade = true }),
	})
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	emit(Line{Time: at(0), Event: Watch})
	b.Snapshot(at(0), emit)
	four := flow(model.TCP, "10.0.0.1:40000", "198.51.100.3:1024", "203.0.113.9:443")
	six := flow(model.UDP, "[2001:db8:1::1]:40000", "[2001:db8:f::5]:1025", "[2001:db8:c::9]:53")
	b.Begin(at(1), &four, emit)
	b.Begin(at(2), &six, emit)
	for i, f := range []conntrack.Flow{
		flow(conntrack.ICMP, "10.0.0.1:77", "198.51.100.0:78", "203.0.113.9:0"),
		flow(47, "10.0.0.1:0", "198.51.100.0:0", "203.0.113.9:0"),
		flow(model.TCP, "10.1.0.7:40000", "198.51.100.9:4608", "203.0.113.9:443"),
		flow(model.TCP, "10.1.0.7:40001", "198.51.100.9:4609", "203.0.113.9:443"),
		flow(model.TCP, "10.0.0.1:40001", "198.51.100.7:1024", "203.0.113.9:443"),
		flow(model.TCP, "10.0.0.2:40000", "192.0.2.1:40000", "203.0.113.9:443"),
	} {
		b.Begin(at(3+i), &f, emit)
	}
	b.End(at(60), &four, emit)
	never := flow(model.TCP, "10.0.0.1:40009", "198.51.100.3:1029", "203.0.113.9:443")
	b.End(at(61), &never, emit)
	emit(Line{Time: at(62), Event: Lost, After: at(61)})
	old := flow(model.TCP, "10.0.0.1:40010", "198.51.100.3:1030", "203.0.113.9:443")
	d, err := b.Compare(at(63), func(fn func(conntrack.Flow) bool) error { fn(old); fn(six); return nil }, emit)
	if err != nil {
		t.Fatal(err)
	}
	b.Settle(at(63), d, emit)
	emit(Line{Time: at(70), Event: Failed, After: at(65), Lines: 12})
	b.End(at(70), &old, emit)
	b.SetPools(nil)
	b.TellBlocks(at(71), emit)
	b.Snapshot(at(72), emit)
	emit(Line{Time: at(80), Event: Stop})

	const path = "testdata/lines.jsonl"
	if *update {
		if err := os.WriteFile(path, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(out)); d != "" {
		t.Errorf("lines differ (-want +got):\n%s", d)
	}
	for _, text := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
		l, err := ParseLine(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if l.String() != string(text) {
			t.Errorf("%s is read as %s", text, l.String())
		}
	}
}

func TestOddLines(t *testing.T) {
	for _, text := range []string{"", "{", "{}", `{"time":"2026-11-21T12:00:00Z"}`, `{"time":"noon","event":"start"}`, `[]`, "\x00"} {
		if l, err := ParseLine([]byte(text)); err == nil {
			t.Errorf("%q is read as %s", text, l.String())
		}
	}
	if text := (&Line{Time: noon, Event: Start, Pool: "a\"b\n"}).String(); text != `{"time":"2026-11-21T12:00:00.123456Z","event":"start","pool":"a\"b\n"}` {
		t.Error(text)
	}
}
