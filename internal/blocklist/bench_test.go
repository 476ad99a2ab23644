package blocklist

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"weir/internal/model"
)

// mixed writes n lines such as lists have: single addresses, nets, ranges, comments, and
// every tenth of them IPv6.
func mixed(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for i := range n {
		a := r.Uint32()
		dotted := fmt.Sprintf("%d.%d.%d.%d", a>>24, a>>16&255, a>>8&255, a&255)
		switch i % 10 {
		case 0:
			fmt.Fprintf(&b, "2001:db8:%x:%x::/64\n", a>>16, a&0xffff)
		case 1, 2, 3:
			fmt.Fprintf(&b, "%s/%d\n", dotted, 16+r.IntN(17))
		case 4:
			fmt.Fprintf(&b, "%s ; SBL%d\n", dotted, r.IntN(1000))
		case 5:
			fmt.Fprintf(&b, "%d.%d.%d.16-%d.%d.%d.77\n", a>>24, a>>16&255, a>>8&255, a>>24, a>>16&255, a>>8&255)
		default:
			b.WriteString(dotted + "\n")
		}
	}
	return b.Bytes()
}

func build(tb testing.TB, name string, text []byte, o Options) *List {
	tb.Helper()
	b := NewBuilder(name, o)
	if err := b.Add(name+".netset", bytes.NewReader(text)); err != nil {
		tb.Fatal(err)
	}
	return b.List()
}

func BenchmarkMillion(b *testing.B) {
	text := mixed(1_000_000)
	list := build(b, "x", text, Options{})
	compiled, err := Compile([]Use{{list, Drop}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			builder := NewBuilder("x", Options{})
			if err := builder.Add("x", bytes.NewReader(text)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read+normal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			build(b, "x", text, Options{})
		}
	})
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Compile([]Use{{list, Drop}}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("diff", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for range Diff(compiled, compiled, model.IPv4) {
				b.Fatal("differs from itself")
			}
		}
	})
	b.Run("find", func(b *testing.B) {
		r := rand.New(rand.NewPCG(3, 4))
		for b.Loop() {
			compiled.Find(v4(r.Uint32()).addr())
		}
	})
	b.Run("lookup", func(b *testing.B) {
		r := rand.New(rand.NewPCG(3, 4))
		for b.Loop() {
			compiled.Lookup(v4(r.Uint32()).addr())
		}
	})
}

// addresses is a file of n different addresses that is never in memory as a whole.
type addresses struct {
	n, at int
	rest  []byte
}

func (a *addresses) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.at == a.n {
			return 0, io.EOF
		}
		a.rest = a.rest[:0:cap(a.rest)]
		for range min(1000, a.n-a.at) {
			x := uint32(a.at) * 2654435761
			a.rest = fmt.Appendf(a.rest, "%d.%d.%d.%d\n", x>>24, x>>16&255, x>>8&255, x&255)
			a.at++
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

const tenMillion = 10_000_000

// BenchmarkTenMillion shows the memory that a very large list takes: what stays, and what
// all of it took at its peak from the system (in a process of its own: -bench TenMillion).
func BenchmarkTenMillion(b *testing.B) {
	for b.Loop() {
		builder := NewBuilder("x", Options{MaxEntries: tenMillion})
		if err := builder.Add("x", &addresses{n: tenMillion}); err != nil {
			b.Fatal(err)
		}
		list := builder.List()
		compiled, err := Compile([]Use{{list, Drop}}, nil)
		if err != nil {
			b.Fatal(err)
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/1e6, "MB-kept")
		b.ReportMetric(float64(m.Sys)/1e6, "MB-peak")
		runtime.KeepAlive(list)
		runtime.KeepAlive(compiled)
	}
}
