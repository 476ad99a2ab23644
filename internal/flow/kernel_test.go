//go:build linux

package flow

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// TestKernelAgrees sends packets of random tuples through rules that let the kernel
// compute its own jhash … mod … seed … offset …, and compares each result with
// Choose. The kernel's answer is the packet mark, which the rule after each hash
// puts in a set together with the packet's source.
func TestKernelAgrees(t *testing.T) {
	lab.Require(t)
	for _, tool := range []string{"nft", "ip"} {
		if _, err := findTool(tool); err != nil {
			unavailable(t, "%v", err)
		}
	}
	compareWithKernel(t)
}

// unavailable skips the test for want of something, but not in CI, where a test that
// does not run must be seen.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// findTool looks in the system's own directories too, which are not in the PATH of
// ordinary users everywhere.
func findTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", err
}

// run runs a tool with text on its standard input and returns what it printed.
func run(t *testing.T, stdin, name string, args ...string) []byte {
	path, err := findTool(name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return stdout.Bytes()
}

// family is what differs between IPv4 and IPv6 in these tests.
type family struct {
	word, nfproto, setType string
	source                 int // where the source address starts in the header, in bits
	raw                    int // bytes of raw payload that one expression can read from there
	prefixes               []netip.Prefix
}

var families = []family{
	{"ip", "ipv4", "ipv4_addr", 96, 8, []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("203.0.113.0/24"),
	}},
	{"ip6", "ipv6", "ipv6_addr", 64, 16, []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
}

// hashCase is one jhash expression, the key that should equal the registers it reads,
// and its parameters.
type hashCase struct {
	expr              string
	key               func(Tuple) []byte
	mod, seed, offset uint32
}

func (c hashCase) String() string {
	return fmt.Sprintf("jhash %s mod %d seed %#x offset %d", c.expr, c.mod, c.seed, c.offset)
}

// hashCases returns every expression of the family with every set of parameters, and
// raw payload of each length with a few, so that every length of the last block occurs.
func hashCases(f family) []hashCase {
	params := []hashCase{
		{mod: 1}, {mod: 2, seed: 1}, {mod: 7, seed: 0xdeadbeef, offset: 3}, {mod: 1021, seed: 0x77656972},
		{mod: 65521, seed: 1<<32 - 1, offset: 100000}, {mod: 1<<32 - 1, seed: 1 << 31}, {mod: 1<<32 - 1, seed: 2, offset: 1},
	}
	for range 4 {
		params = append(params, hashCase{mod: 1 + rand.Uint32N(1<<20), seed: rand.Uint32(), offset: rand.Uint32N(1 << 20)})
	}
	exprs := []hashCase{
		{expr: f.word + " saddr", key: func(t Tuple) []byte {
			return KeySource(new([KeySize]byte), t.Src.Addr())
		}},
		{expr: f.word + " saddr . th sport", key: func(t Tuple) []byte {
			return KeySourcePort(new([KeySize]byte), t.Src.Addr(), t.Src.Port())
		}},
		{expr: f.word + " saddr . " + f.word + " daddr . th sport . th dport . meta l4proto", key: func(t Tuple) []byte {
			return concat(t.Src.Addr().AsSlice(), t.Dst.Addr().AsSlice(), port(t.Src), port(t.Dst), []byte{t.Proto})
		}},
		{expr: "th sport", key: func(t Tuple) []byte { return port(t.Src) }},
		{expr: "th dport . meta l4proto", key: func(t Tuple) []byte { return concat(port(t.Dst), []byte{t.Proto}) }},
	}
	var cases []hashCase
	for _, e := range exprs {
		for _, p := range params {
			p.expr, p.key = e.expr, e.key
			cases = append(cases, p)
		}
	}
	for n := 1; n <= f.raw; n++ {
		for _, p := range params[len(params)-2:] {
			p.expr = fmt.Sprintf("@nh,%d,%d", f.source, 8*n)
			p.key = func(t Tuple) []byte { return append(t.Src.Addr().AsSlice(), t.Dst.Addr().AsSlice()...)[:n] }
			cases = append(cases, p)
		}
	}
	return cases
}

func port(ap netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(nil, ap.Port()) }

// concat lays fields out as registers do: each padded with zeros to 4 bytes.
func concat(fields ...[]byte) []byte {
	var key []byte
	for _, f := range fields {
		key = append(key, f...)
		key = append(key, make([]byte, (4-len(f)%4)%4)...)
	}
	return key
}

// compareWithKernel runs in a network namespace of its own.
func compareWithKernel(t *testing.T) {
	const tuples = 400
	run(t, "", "ip", "link", "set", "lo", "up")
	var ruleset, rules strings.Builder
	cases := map[string]hashCase{} // by the name of the set that holds the results
	sent := map[string][]Tuple{}   // likewise
	ruleset.WriteString("table inet flowtest {\n")
	for _, f := range families {
		for _, p := range f.prefixes {
			run(t, "", "ip", "route", "add", "local", p.String(), "dev", "lo")
		}
		all := randomTuples(f, tuples)
		for i, c := range hashCases(f) {
			set := fmt.Sprintf("%s_%d", f.word, i)
			cases[set], sent[set] = c, all
			fmt.Fprintf(&ruleset, "set %s { type %s . inet_service . mark; flags dynamic; size 65535; }\n", set, f.setType)
			fmt.Fprintf(&rules, "meta nfproto %s meta l4proto udp meta mark set %s add @%s { %s saddr . th sport . meta mark }\n", f.nfproto, c, set, f.word)
		}
	}
	fmt.Fprintf(&ruleset, "chain output {\ntype filter hook output priority 0;\n%s}\n}\n", &rules)
	run(t, ruleset.String(), "nft", "-f", "-")
	for _, f := range families {
		for _, tuple := range sent[f.word+"_0"] {
			if err := sendUDP(tuple); err != nil {
				t.Fatalf("sending %s: %v", tuple, err)
			}
		}
	}
	results := readSets(t)
	compared := 0
	for set, c := range cases {
		compared += compareCase(t, c, sent[set], results[set])
	}
	t.Logf("%d results of %d expressions compared", compared, len(cases))
}

// compareCase compares one set with what Choose says, and returns how many results
// it compared.
func compareCase(t *testing.T, c hashCase, sent []Tuple, got map[netip.AddrPort][]uint32) int {
	if len(got) != len(sent) {
		t.Errorf("%s: %d tuples sent, %d results", c, len(sent), len(got))
	}
	for _, tuple := range sent {
		want := Choose(c.key(tuple), c.seed, c.mod, c.offset)
		if marks := got[tuple.Src]; len(marks) != 1 || marks[0] != want {
			t.Errorf("%s: %s: kernel has %d, Choose %d", c, tuple, marks, want)
			return 0 // one of each expression tells enough
		}
	}
	return len(sent)
}

// randomTuples returns n tuples, no two of one source.
func randomTuples(f family, n int) []Tuple {
	seen := map[netip.AddrPort]bool{}
	var tuples []Tuple
	for len(tuples) < n {
		t := Tuple{Src: randomAddrPort(f), Dst: randomAddrPort(f), Proto: protoUDP}
		if !seen[t.Src] {
			seen[t.Src] = true
			tuples = append(tuples, t)
		}
	}
	return tuples
}

func randomAddrPort(f family) netip.AddrPort {
	prefix := f.prefixes[rand.IntN(len(f.prefixes))]
	addr := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < 8*len(addr); bit++ {
		addr[bit/8] |= byte(rand.IntN(2)) << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a, uint16(1+rand.IntN(65535)))
}

// sendUDP sends one datagram from and to exactly the addresses of the tuple. When it
// returns, the packet has passed the output hook.
func sendUDP(t Tuple) error {
	domain, level, freebind := unix.AF_INET, unix.IPPROTO_IP, unix.IP_FREEBIND
	if t.Src.Addr().Is6() {
		domain, level, freebind = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	// The addresses are local by route alone, which is not enough to bind in IPv6.
	if err := unix.SetsockoptInt(fd, level, freebind, 1); err != nil {
		return fmt.Errorf("freebind: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(t.Src)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(t.Dst)); err != nil {
		return fmt.Errorf("sendto: %w", err)
	}
	return nil
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// readSets returns the marks that each set holds for each source.
func readSets(t *testing.T) map[string]map[netip.AddrPort][]uint32 {
	var listing struct {
		Nftables []struct {
			Set struct {
				Name string
				Elem []struct{ Concat [3]json.RawMessage }
			}
		}
	}
	if err := json.Unmarshal(run(t, "", "nft", "-j", "list", "table", "inet", "flowtest"), &listing); err != nil {
		t.Fatal(err)
	}
	sets := map[string]map[netip.AddrPort][]uint32{}
	for _, object := range listing.Nftables {
		marks := map[netip.AddrPort][]uint32{}
		for _, e := range object.Set.Elem {
			var addr netip.Addr
			var port uint16
			var mark uint32
			for i, value := range []any{&addr, &port, &mark} {
				if err := json.Unmarshal(e.Concat[i], value); err != nil {
					t.Fatalf("set %s: %s: %v", object.Set.Name, e.Concat, err)
				}
			}
			source := netip.AddrPortFrom(addr, port)
			marks[source] = append(marks[source], mark)
		}
		sets[object.Set.Name] = marks
	}
	return sets
}
