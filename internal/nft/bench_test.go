package nft

import (
	"context"
	"fmt"
	"testing"
	"time"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// large returns 10,000 services of ten slots: a chain with a rule each, one verdict map
// with an element each, and 512 maps that share the slots.
func large() *rs.Ruleset {
	const services, slotsEach, maps = 10_000, 10, 512
	find := &rs.Set{Name: "services4", Key: rs.Types{rs.IPv4Addr, rs.Protocol, rs.Port}, Verdict: true}
	t := &rs.Table{Family: rs.Inet, Name: "weir", Sets: []*rs.Set{find}}
	for i := range maps {
		t.Sets = append(t.Sets, &rs.Set{Name: fmt.Sprintf("slots4/%03d", i),
			Key: rs.Types{rs.Integer}, Data: rs.Types{rs.IPv4Addr, rs.Port}, Counter: true})
	}
	for i := range services {
		chain := fmt.Sprintf("service/s%05d/ip/tcp", i)
		vip := fmt.Sprintf("198.18.%d.%d", i>>8, i&0xff)
		find.Parts = append(find.Parts, part(goTo(pack(vip, model.TCP, 80), chain))...)
		s := t.Sets[1+i%maps]
		p := &rs.Part{}
		base := uint32(i) << 12
		for k := range slotsEach {
			p.Elems = append(p.Elems, kv(pack(base+uint32(k)), pack(fmt.Sprintf("10.%d.%d.%d", i>>8, i&0xff, k+1), 8080)))
		}
		s.Parts = append(s.Parts, p)
		t.Chains = append(t.Chains, &rs.Chain{Name: chain, Rules: []rs.Rule{
			rule("round-robin", rs.IsFamily(model.IPv4), rs.IsProto(model.TCP), rs.DNAT{Family: model.IPv4, WithPort: true,
				To: rs.MapGet{Key: rs.Key{rs.Numgen{Mod: slotsEach, Offset: base}}, Map: s.Name}})}})
	}
	t.Chains = append(t.Chains, &rs.Chain{Name: "prerouting",
		Base: &rs.Base{Type: "nat", Hook: rs.Prerouting, Priority: -100},
		Rules: []rs.Rule{rule("find", rs.IsFamily(model.IPv4),
			rs.VMap{Key: rs.Key{rs.IPDaddr, rs.L4Proto, rs.DPort}, Map: "services4"})}})
	return &rs.Ruleset{Tables: []*rs.Table{t}}
}

func BenchmarkEncode(b *testing.B) {
	d := rs.Diff(&rs.Ruleset{}, large())
	b.ReportAllocs()
	for b.Loop() {
		batch, err := Encode(d, 1)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(batch.Bytes())))
	}
}

// BenchmarkKernel loads 10,000 services from nothing, reads them back, without a
// look at what the rules do and with it, and clears them.
func BenchmarkKernel(b *testing.B) {
	n := namespace(b)
	ctx := context.Background()
	want := large()
	var apply, believe, read, clear time.Duration
	for b.Loop() {
		have, gen := n.read(nil)
		start := time.Now()
		gen, err := n.Apply(ctx, rs.Diff(have, want), gen)
		if err != nil {
			b.Fatal(err)
		}
		apply += time.Since(start)
		start = time.Now()
		n.read(nil)
		believe += time.Since(start)
		start = time.Now()
		got, _ := n.read(want)
		read += time.Since(start)
		if d := rs.Diff(got, want); !d.Empty() {
			b.Fatal("the kernel has something else")
		}
		start = time.Now()
		if _, err := n.Apply(ctx, rs.Diff(got, &rs.Ruleset{}), gen); err != nil {
			b.Fatal(err)
		}
		clear += time.Since(start)
	}
	for name, d := range map[string]time.Duration{"apply": apply, "believe": believe, "read": read, "clear": clear} {
		b.ReportMetric(d.Seconds()*1000/float64(b.N), name+"-ms/op")
	}
}
