package flow

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseTuple(t *testing.T) {
	for _, tc := range []struct{ src, dst, want, err string }{
		{src: "203.0.113.9:40000", dst: "198.51.100.10:80/tcp", want: "203.0.113.9:40000 -> 198.51.100.10:80/tcp"},
		{src: "203.0.113.9:40000/udp", dst: "198.51.100.10:53", want: "203.0.113.9:40000 -> 198.51.100.10:53/udp"},
		{src: "203.0.113.9:1/sctp", dst: "198.51.100.10:2/132", want: "203.0.113.9:1 -> 198.51.100.10:2/sctp"},
		{src: "[2001:db8::9]:40000", dst: "[2001:db8::1]:80/33", want: "[2001:db8::9]:40000 -> [2001:db8::1]:80/33"},
		{src: "203.0.113.9:1", dst: "198.51.100.10:80", err: "no protocol: write the destination as 198.51.100.10:80/tcp"},
		{src: "203.0.113.9:1/tcp", dst: "198.51.100.10:80/udp", err: "source is tcp but destination is udp"},
		{src: "203.0.113.9:1", dst: "[2001:db8::1]:80/tcp", err: "different IP versions"},
		{src: "203.0.113.9", dst: "198.51.100.10:80/tcp", err: `source: "203.0.113.9" is not ADDRESS:PORT`},
		{src: "203.0.113.9:1", dst: "198.51.100.10:65536/tcp", err: `destination: "198.51.100.10:65536/tcp" is not`},
		{src: "203.0.113.9:1", dst: "2001:db8::1:80/tcp", err: "is not ADDRESS:PORT"},
		{src: "[::ffff:203.0.113.9]:1", dst: "198.51.100.10:80/tcp", err: "write the IPv4 address 203.0.113.9 as such"},
		{src: "[fe80::1%eth0]:1", dst: "[fe80::2]:80/tcp", err: "zone is not allowed"},
		{src: "203.0.113.9:1", dst: "198.51.100.10:80/", err: `protocol "" is not tcp, udp, sctp or a number`},
		{src: "203.0.113.9:1", dst: "198.51.100.10:80/0", err: `protocol "0" is not`},
		{src: "203.0.113.9:1", dst: "198.51.100.10:80/256", err: `protocol "256" is not`},
		{src: "", dst: "", err: "source: "},
	} {
		got, err := ParseTuple(tc.src, tc.dst)
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("ParseTuple(%q, %q): error %v, want %q", tc.src, tc.dst, err, tc.err)
		case tc.err == "" && err != nil:
			t.Errorf("ParseTuple(%q, %q): %v", tc.src, tc.dst, err)
		case tc.err == "" && got.String() != tc.want:
			t.Errorf("ParseTuple(%q, %q) = %q, want %q", tc.src, tc.dst, got, tc.want)
		}
	}
}

func TestTupleTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{4, 16}).Draw(t, "size")
		want := Tuple{
			Src:   drawAddrPort(t, size),
			Dst:   drawAddrPort(t, size),
			Proto: rapid.Uint8Min(1).Draw(t, "proto"),
		}
		src, dst, _ := strings.Cut(want.String(), " -> ")
		got, err := ParseTuple(src, dst)
		if err != nil || got != want {
			t.Fatalf("%s read back as %s, %v", want, got, err)
		}
	})
}

func drawAddrPort(t *rapid.T, size int) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "addr"))
	if addr.Is4In6() {
		addr = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(addr, rapid.Uint16().Draw(t, "port"))
}

// Whatever is read without an error is written so that it reads the same again.
func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"203.0.113.9:40000", "[2001:db8::1]:80/tcp", "1.2.3.4:5/0", "[::1%a]:1", "a:b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ap, proto, err := ParseEndpoint(s)
		if err != nil {
			return
		}
		again, proto2, err := ParseEndpoint(FormatEndpoint(ap, proto))
		if err != nil || again != ap || proto2 != proto {
			t.Errorf("%q: %v/%d, then %v/%d, %v", s, ap, proto, again, proto2, err)
		}
	})
}
