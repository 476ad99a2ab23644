package tap

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// handshakes has n clients open connections, each answered after its number in
// milliseconds, and the last one not at all.
func handshakes(a *Analysis, v, n int) {
	for i := 1; i <= n; i++ {
		from := netip.AddrPortFrom(client[v].Addr(), uint16(1000+i))
		at := time.Duration(i) * time.Second
		a.in(at, made{src: from, dst: server[v], proto: TCP, id: uint16(i), flags: flagSYN, seq: uint32(i)}.bytes())
		if i < n {
			a.in(at+time.Duration(i)*ms, made{src: server[v], dst: from, proto: TCP, id: uint16(i), flags: synAck, seq: 7, ack: uint32(i) + 1}.bytes())
		}
	}
}

func TestAnswerTimes(t *testing.T) {
	for _, v := range bothIPs {
		a := New(Options{})
		handshakes(a, v, 101)
		o := one(t, a.Figures())
		is(t, "connections", o.Connections, 101)
		is(t, "answered", o.Answered, 100)
		if p50, p99 := *o.AnswerP50, *o.AnswerP99; p50 < 50 || p50 > 52 || p99 < 99 || p99 > 102.5 {
			t.Errorf("%s: p50 %v, p99 %v ms", family[v], p50, p99)
		}
		if len(a.Figures().Services) != 0 {
			t.Error("a service that was learnt and is silent is in the figures")
		}
	}
}

// TestOneWay has a mirror show one direction alone: what that does not tell is not known.
func TestOneWay(t *testing.T) {
	for _, v := range bothIPs {
		for _, back := range []bool{false, true} {
			a := New(Options{})
			for i, st := range append(opened(), c(20*ms, ack, 1000, 5000, 100), s(30*ms, ack, 5000, 1100, 100),
				c(300*ms, ack, 1000, 5000, 100), s(400*ms, ack, 5000, 1100, 100)) {
				st.proto, st.src, st.dst, st.id = TCP, client[v], server[v], uint16(i+1)
				if st.back {
					st.src, st.dst = st.dst, st.src
				}
				if st.back == back {
					a.in(st.at, st.bytes())
				}
			}
			o := one(t, a.Figures())
			dir, there, not := "to", 1, unknown
			if back {
				dir, there, not = "from", unknown, 1
			}
			if o.Directions != dir || o.AnswerP50 != nil || o.AnswerP99 != nil {
				t.Errorf("%s: directions %s, answers after %v", family[v], o.Directions, o.AnswerP50)
			}
			is(t, "connections", o.Connections, there)
			is(t, "retransmissions to", o.RetransmissionsTo, there)
			is(t, "resets to", o.ResetsTo, min(there, 0))
			is(t, "answered", o.Answered, not)
			is(t, "retransmissions from", o.RetransmissionsFrom, not)
			is(t, "resets from", o.ResetsFrom, min(not, 0))
		}
	}
}

// TestUDP looks at a service that is named: datagrams teach none.
func TestUDP(t *testing.T) {
	for _, v := range bothIPs {
		a := New(Options{Services: []Service{{server[v], UDP}}})
		ask := made{src: client[v], dst: server[v], proto: UDP, id: 1, data: 30}
		reply := made{src: server[v], dst: client[v], proto: UDP, id: 1, data: 300}
		a.in(0, ask.bytes())
		a.in(3*ms, reply.bytes())
		a.in(4*ms, made{src: server[v], dst: client[v], proto: UDP, id: 2, data: 300}.bytes())
		ask.src = netip.AddrPortFrom(ask.src.Addr(), 5)
		a.in(5*ms, ask.bytes())
		ask.id = 9
		a.in(6*ms, ask.bytes())
		ask.dst = netip.AddrPortFrom(ask.dst.Addr(), 54)
		a.in(7*ms, ask.bytes())
		f := a.Figures()
		o := one(t, f)
		is(t, "connections", o.Connections, 2)
		is(t, "answered", o.Answered, 1)
		is(t, "retransmissions", o.RetransmissionsTo, unknown)
		if o.PacketsTo != 3 || o.PacketsFrom != 2 || *o.AnswerP50 < 3 || *o.AnswerP50 > 3.1 || f.Flows != 3 || f.Duplicates != 0 {
			t.Errorf("%s: %+v, %d flows, %d duplicates", family[v], o, f.Flows, f.Duplicates)
		}
	}
}

// TestFragments cuts a datagram into pieces: they count for the service of the first.
func TestFragments(t *testing.T) {
	for _, v := range bothIPs {
		a := New(Options{Services: []Service{{server[v], UDP}}})
		all := pieces(made{src: client[v], dst: server[v], proto: UDP, data: 3000}.bytes(), 4711, 1200)
		for i, b := range all {
			a.in(time.Duration(i), b)
			a.in(time.Duration(i)+10, b) // each comes twice
		}
		a.in(ms, pieces(made{src: client[v], dst: server[v], proto: UDP, data: 3000}.bytes(), 4712, 1200)[1]) // without its first
		f := a.Figures()
		o := one(t, f)
		if len(all) != 3 || f.Fragments != 7 || f.Duplicates != 3 || f.Unreadable != 0 || o.PacketsTo != 3 || f.Flows != 1 || f.Packets != 7 {
			t.Errorf("%s: %+v, service %+v", family[v], f, o)
		}
	}
}

func TestBounds(t *testing.T) {
	a := New(Options{MaxFlows: 10, MaxServices: 5})
	for i := range 100 {
		at := time.Duration(i) * ms
		to := netip.AddrPortFrom(server[0].Addr(), uint16(i))
		a.in(at, made{src: client[0], dst: to, proto: TCP, id: uint16(i + 1), flags: flagSYN}.bytes())
	}
	f := a.Figures()
	if f.FlowsKept != 10 || f.FlowsEvicted != 90 || f.FlowsNew != 100 || len(f.Services) != 5 || f.ServicesLeftOut != 95 {
		t.Errorf("%+v", f)
	}
	// One that was silent makes room.
	a.in(20*time.Second, made{src: client[0], dst: server[0], proto: TCP, flags: flagSYN}.bytes())
	if o := one(t, a.Figures()); o.Service != server[0].String()+"/tcp" {
		t.Errorf("%+v", o)
	}
	a.in(20*time.Second+flowIdle+1, made{src: client[0], dst: server[0], proto: UDP}.bytes())
	if f := a.Figures(); f.FlowsKept != 1 || f.FlowsEvicted != 91 {
		t.Errorf("after a long silence: %+v", f)
	}
}

// TestNamed shows a service that was named although nothing came, and learns no other.
func TestNamed(t *testing.T) {
	a := New(Options{Services: []Service{{server[0], TCP}}})
	handshakes(a, 1, 3)
	o := one(t, a.Figures())
	is(t, "connections", o.Connections, unknown)
	if o.Directions != "none" {
		t.Errorf("%+v", o)
	}
}

func TestHist(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var h hist
		var all []time.Duration
		for range 1 + rnd.IntN(300) {
			d := time.Duration(rnd.Int64N(1 << (10 + rnd.IntN(32))))
			all = append(all, d)
			h.add(d)
		}
		slices.Sort(all)
		for _, q := range []float64{0.01, 0.5, 0.99, 1} {
			want := all[max(int(q*float64(len(all))+0.999999), 1)-1].Truncate(time.Microsecond)
			if got := h.quantile(q); got < want || float64(got-want) > 0.032*float64(want) {
				t.Fatalf("quantile %v of %d: %v, want %v", q, len(all), got, want)
			}
		}
	}
	for i := range histLen {
		if up := histUpper(i); histIndex(up) != i || up < 1<<histBits-1 && histIndex(up+1) != i+1 {
			t.Fatalf("bucket %d ends at %d µs, which is in %d", i, up, histIndex(up))
		}
	}
	var h hist
	h.add(-1)
	h.add(100 * time.Hour)
	if h.quantile(0.5) != 0 || h.quantile(1) < time.Hour {
		t.Error("the ends")
	}
}

// TestGolden holds the names and the form of the figures.
func TestGolden(t *testing.T) {
	a := New(Options{Services: []Service{{server[0], TCP}, {server[1], UDP}}})
	handshakes(a, 0, 3)
	a.in(4*time.Second, made{src: client[1], dst: server[1], proto: UDP, data: 10}.bytes())
	got, err := json.MarshalIndent(a.Figures(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/figures.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("differs (-want +got); run with -update if it should:\n%s", d)
	}
}

// FuzzAdd has anything read and counted: nothing panics, nothing is counted twice.
func FuzzAdd(f *testing.F) {
	for _, v := range bothIPs {
		for _, m := range []made{{proto: TCP, flags: flagSYN, options: []byte{2, 4, 5, 180}}, {proto: TCP, flags: ack, data: 20}, {proto: UDP, data: 40}, {proto: 1}, {proto: 132}} {
			m.src, m.dst = client[v], server[v]
			b := m.bytes()
			f.Add(b, b, len(b))
			f.Add(b[:len(b)/2], b[:30], 1500)
			p := pieces(b, 7, 8)
			f.Add(p[0], p[len(p)-1], 100)
		}
	}
	f.Add([]byte{0x60, 0, 0, 0, 0, 16, 0, 64, 41: 1, 55: 1}, []byte{0x45}, 56)
	f.Fuzz(func(t *testing.T, one, two []byte, wire int) {
		a := New(Options{MaxFlows: 4, MaxServices: 2})
		filter, _ := ParseFilter("not (tcp port 80 or src net 10.0.0.0/8)")
		n := uint64(0)
		for i, b := range [][]byte{one, two, one, two[:len(two)/2], one, two} {
			var p Packet
			ok := p.Decode(b, max(len(b), wire))
			p.Dst()
			filter.Match(&p)
			a.Add(time.Duration(i)*ms, &p, ok)
			n++
			if p.payload < 0 || p.length < 0 {
				t.Fatalf("%d bytes of data in %d", p.payload, p.length)
			}
		}
		if f := a.Figures(); f.Packets != n || f.Unreadable+f.Duplicates > n || f.FlowsKept > 4 || len(f.Services) > 2 {
			t.Fatalf("%+v", f)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	a := New(Options{})
	var all [][]byte
	for i := range 5000 {
		from := netip.AddrPortFrom(client[0].Addr(), uint16(1000+i))
		all = append(all, made{src: from, dst: server[0], proto: TCP, id: 1, flags: flagSYN}.bytes(),
			made{src: from, dst: server[0], proto: TCP, id: 2, flags: ack, seq: 1, data: 100}.bytes())
	}
	b.ResetTimer()
	for i := range b.N {
		a.in(time.Duration(i)*100*time.Microsecond, all[i%len(all)])
	}
}
