package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"weir/internal/api"
	"weir/internal/lab"
)

// manyAddresses returns n lines of addresses, from one on.
func manyAddresses(from, n int) string {
	var text strings.Builder
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&text, "%d.%d.%d.%d\n", 20+i>>24, i>>16&255, i>>8&255, i&255)
	}
	return strings.TrimSuffix(text.String(), "\n")
}

// behind reports whether a list was read, and is still on its way into the kernel.
func (s *site) behind(entries int) (read, behind bool) {
	s.t.Helper()
	var out api.Blocks
	s.mustJSON(&out, "blocks")
	return len(out.Lists) == 1 && out.Lists[0].Entries == entries, out.Applied != nil && !*out.Applied
}

// TestDownWhileListLoads lets a backend die while a large blocklist is on its way into the
// kernel, which it is still when new connections go elsewhere. Where the machine loads the list
// faster than a backend can die, a larger one comes.
func TestDownWhileListLoads(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	servers := s.serve("tcp", s.Backends, 7)
	text := services(service("web", listenOn(1, "7/tcp"), backendList(on("", s.Backends...)...),
		"check: {tcp: true, port: 7, every: 100ms, timeout: 90ms, rise: 1, fall: 1}"))
	s.write(text)
	f := &fence{site: s}
	s.start()
	sick, well := s.Backends[0], s.Backends[1]
	s.awaitStates("web", well, "up")
	n := 200_000
	for overlapped := false; !overlapped; n *= 2 {
		if n > 1_600_000 {
			t.Fatal("no list took long enough")
		}
		s.awaitStates("web", sick, "up")
		f.list("a.txt", manyAddresses(0, n))
		s.write("blocklists: [{name: a, files: a.txt}]\n" + text)
		check(t, s.run.Signal(syscall.SIGHUP))
		awaitWithin(t, 6*patience, "the list is read", func() bool { read, _ := s.behind(n); return read })
		check(t, servers[0].Close())
		s.awaitStates("web", sick, "down")
		s.among(t, "while the list loads", 5, well)
		_, overlapped = s.behind(n)
		awaitWithin(t, 6*patience, "the list is in force", func() bool { _, on := s.behind(n); return !on })
		t.Logf("%d entries: overlapped %t", n, overlapped)
		s.write(text)
		s.must("reload")
		servers[0] = s.serve("tcp", []*lab.Host{sick}, 7)[0]
	}
	s.stop()
}
