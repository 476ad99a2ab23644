package flow

import (
	"encoding/hex"
	"math/bits"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// The published results of hashlittle, from the self-test in lookup3.c. It starts
// from the same constant as jhash; initval is jhash's seed.
func TestHashPublishedVectors(t *testing.T) {
	for _, tc := range []struct {
		key  string
		seed uint32
		want uint32
	}{
		{"", 0, 0xdeadbeef},
		{"", 0xdeadbeef, 0xbd5b7dde},
		{"Four score and seven years ago", 0, 0x17770551},
		{"Four score and seven years ago", 1, 0xcd628161},
	} {
		if got := Hash([]byte(tc.key), tc.seed); got != tc.want {
			t.Errorf("Hash(%q, %#x) = %#x, want %#x", tc.key, tc.seed, got, tc.want)
		}
	}
}

// Every byte of a key of every length, and every bit of the seed, must matter.
func TestHashUsesEveryBit(t *testing.T) {
	for n := range 50 {
		key := make([]byte, n)
		base := Hash(key, 0)
		for bit := range 8 * n {
			key[bit/8] ^= 1 << (bit % 8)
			if Hash(key, 0) == base {
				t.Errorf("length %d: bit %d changes nothing", n, bit)
			}
			key[bit/8] = 0
		}
		for bit := range 32 {
			if Hash(key, 1<<bit) == base {
				t.Errorf("length %d: seed bit %d changes nothing", n, bit)
			}
		}
	}
}

func TestScale(t *testing.T) {
	for _, tc := range []struct{ hash, mod, want uint32 }{
		{0, 7, 0},
		{1<<32 - 1, 7, 6},
		{1 << 31, 10, 5},
		{1<<31 - 1, 10, 4},
		{1<<32 - 1, 1, 0},
		{1<<32 - 1, 1<<32 - 1, 1<<32 - 2},
		{12345, 0, 0},
	} {
		if got := Scale(tc.hash, tc.mod); got != tc.want {
			t.Errorf("Scale(%d, %d) = %d, want %d", tc.hash, tc.mod, got, tc.want)
		}
	}
}

func TestScaleIsMonotonousAndInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mod := rapid.Uint32Min(1).Draw(t, "mod")
		a, b := rapid.Uint32().Draw(t, "a"), rapid.Uint32().Draw(t, "b")
		if a > b {
			a, b = b, a
		}
		sa, sb := Scale(a, mod), Scale(b, mod)
		hi, lo := bits.Mul32(a, mod)
		if sa > sb || sb >= mod || uint64(hi)<<32+uint64(lo) != uint64(a)*uint64(mod) || sa != hi {
			t.Fatalf("Scale(%d)=%d, Scale(%d)=%d of %d", a, sa, b, sb, mod)
		}
	})
}

func TestKeys(t *testing.T) {
	for _, tc := range []struct{ addr, source, sourcePort string }{
		{"192.0.2.1", "c0000201", "c00002011f900000"},
		{"::ffff:192.0.2.1", "c0000201", "c00002011f900000"},
		{"2001:db8::1", "20010db8000000000000000000000001", "20010db80000000000000000000000011f900000"},
		{"fe80::1%eth0", "fe800000000000000000000000000001", "fe8000000000000000000000000000011f900000"},
	} {
		// What an earlier key left in the buffer must not reach the next.
		buf := [KeySize]byte{}
		for i := range buf {
			buf[i] = 0xff
		}
		addr := netip.MustParseAddr(tc.addr)
		if got := hex.EncodeToString(KeySource(&buf, addr)); got != tc.source {
			t.Errorf("KeySource(%s) = %s, want %s", tc.addr, got, tc.source)
		}
		if got := hex.EncodeToString(KeySourcePort(&buf, addr, 8080)); got != tc.sourcePort {
			t.Errorf("KeySourcePort(%s) = %s, want %s", tc.addr, got, tc.sourcePort)
		}
	}
}

func TestChoosingAllocatesNothing(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8::1")
	var sum uint32
	if n := testing.AllocsPerRun(100, func() {
		var buf [KeySize]byte
		sum += Choose(KeySourcePort(&buf, addr, 40000), 1, 1021, 0)
		sum += Choose(KeySource(&buf, addr), 1, 1021, 5)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	_ = sum
}

func BenchmarkHash(b *testing.B) {
	for _, tc := range []struct{ name, addr string }{{"ip4", "203.0.113.9"}, {"ip6", "2001:db8::9"}} {
		b.Run(tc.name, func(b *testing.B) {
			addr := netip.MustParseAddr(tc.addr)
			var buf [KeySize]byte
			var sum uint32
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				sum += Choose(KeySourcePort(&buf, addr, uint16(i)), 1, 1021, 0)
			}
			_ = sum
		})
	}
}
