package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// fence is a site whose client sends under any address of two networks, to a service whose
// backend notes what comes.
type fence struct {
	*site
	mu   sync.Mutex
	came map[int]int // packets by their number
	last int
}

var (
	badNet4 = netip.MustParsePrefix("192.0.2.0/24")
	badNet6 = netip.MustParsePrefix("2001:db8:bad::/48")
)

func newFence(t *testing.T) *fence {
	t.Helper()
	f := &fence{site: newSite(t, 1, 1), came: map[int]int{}}
	check(t, f.Gateway.Route(badNet4, f.Clients[0].V4, lab.OutsideDev))
	check(t, f.Gateway.Route(badNet6, f.Clients[0].V6, lab.OutsideDev))
	check(t, f.Gateway.Sysctl("net.ipv4.icmp_ratelimit", "0"))
	for _, fam := range families {
		c, err := f.Backends[0].ListenPacket("udp", join(addrOf(f.Backends[0], fam), 9))
		check(t, err)
		t.Cleanup(func() { c.Close() })
		go func() {
			for buf := make([]byte, 2048); ; {
				n, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				if number, err := strconv.Atoi(string(buf[:n])); err == nil {
					f.mu.Lock()
					f.came[number]++
					f.mu.Unlock()
				}
			}
		}()
	}
	return f
}

// config is a configuration of that service, with more keys before it.
func (f *fence) config(lines ...string) string {
	return strings.Join(lines, "\n") + "\n" + services(service("sink", listenOn(1, "9/udp"), backendList(on("", f.Backends...)...)))
}

// in returns the n-th address of the network under which is sent.
func in(fam model.Family, n int) netip.Addr {
	p := badNet4
	if fam == model.IPv6 {
		p = badNet6
	}
	return number(p, n)
}

// send sends n packets from an address and returns their number.
func (f *fence) send(src netip.Addr, n int) int {
	f.t.Helper()
	f.last++
	dst := target(model.FamilyOf(src), 1, 9)
	for range n {
		check(f.t, f.Clients[0].SendIP(lab.UDPPacket(netip.AddrPortFrom(src, 5000), dst, fmt.Appendf(nil, "%08d", f.last))))
	}
	return f.last
}

func (f *fence) got(number int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.came[number]
}

// passes reports whether packets from an address get through: one is sent, and one behind it
// from an address that nobody blocks.
func (f *fence) passes(src netip.Addr) bool { return f.passed(src, 1) == 1 }

// passed sends n packets and returns how many got through.
func (f *fence) passed(src netip.Addr, n int) int {
	f.t.Helper()
	number := f.send(src, n)
	for try := 0; ; try++ { // of the first packets a neighbour may be asked for
		behind := f.send(in(model.FamilyOf(src), 250), 1)
		for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if f.got(behind) > 0 {
				return f.got(number)
			}
		}
		if try == 10 {
			f.t.Fatalf("nothing comes from an address that nobody blocks")
		}
	}
}

// warm makes all neighbours known.
func (f *fence) warm() {
	f.t.Helper()
	for _, fam := range families {
		await(f.t, "a first packet", func() bool { return f.passes(in(fam, 251)) })
	}
}

// wants sends from addresses of both families and wants that those that pass do, and the
// others do not.
func (f *fence) wants(t *testing.T, when string, pass map[int]bool) {
	t.Helper()
	for _, fam := range families {
		for n, want := range pass {
			if got := f.passes(in(fam, n)); got != want {
				t.Errorf("%s: packets from %s pass: %t, want %t", when, in(fam, n), got, want)
			}
		}
	}
}

// awaitPass waits until packets from an address of each family pass, or do not.
func (f *fence) awaitPass(t *testing.T, what string, n int, want bool) time.Duration {
	t.Helper()
	return await(t, what, func() bool { return f.passes(in(model.IPv4, n)) == want && f.passes(in(model.IPv6, n)) == want })
}

// list writes a file of a list, at once, as it should be.
func (f *fence) list(name string, lines ...string) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	check(f.t, os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	check(f.t, os.Rename(path+".new", path))
	return path
}

// bad returns the addresses of these numbers in both families, one a line.
func bad(numbers ...int) []string {
	var out []string
	for _, fam := range families {
		for _, n := range numbers {
			out = append(out, in(fam, n).String())
		}
	}
	return out
}

// why returns what weir why says.
func (f *fence) why(a netip.Addr) api.Why {
	f.t.Helper()
	var out api.Why
	f.mustJSON(&out, "why", a.String())
	return out
}

// problem returns what is wrong with a list.
func (f *fence) problem(list string) string {
	f.t.Helper()
	var out api.Blocks
	f.mustJSON(&out, "blocks")
	for _, l := range out.Lists {
		if l.Name == list {
			return l.Problem
		}
	}
	return "there is no such list"
}

// wantEvent wants an event of a list or an operator.
func (s *site) wantEvent(t *testing.T, kind, list, words string) {
	t.Helper()
	events := s.events(0)
	if !slices.ContainsFunc(events, func(e engine.Event) bool {
		return e.Kind == kind && e.List == list && strings.Contains(e.Message, words)
	}) {
		t.Errorf("no event %s %s %q in %s", kind, list, words, fmt.Sprint(events))
	}
}
