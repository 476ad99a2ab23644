package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weir/internal/lab"
	"weir/internal/model"
)

// starters start a server of each kind.
var starters = map[string]func(*lab.Host, string, ...string) (*lab.Server, error){
	"tcp": lab.EchoTCP, "http": lab.HTTPServer, "udp": lab.EchoUDP, "sctp": lab.EchoSCTP,
}

// serve starts servers of a protocol on the hosts, in both families, on each port. Their
// answers begin with the host's name and, where there are several ports, the port.
func (s *site) serve(proto string, hosts []*lab.Host, ports ...uint16) []*lab.Server {
	s.t.Helper()
	start := starters[proto]
	var out []*lab.Server
	for _, h := range hosts {
		for _, p := range ports {
			id := h.Name
			if len(ports) > 1 {
				id = fmt.Sprintf("%s/%d", h.Name, p)
			}
			srv, err := start(h, id, join(h.V4, p), join(h.V6, p))
			check(s.t, err)
			out = append(out, srv)
		}
	}
	return out
}

// answer is what a server said: who it is, and whom it saw.
type answer struct {
	id   string
	seen netip.AddrPort
}

// try opens one connection from a client's port, asks once and returns the answer.
func try(t *testing.T, client *lab.Host, network string, port uint16, target netip.AddrPort) (answer, error) {
	from := addrOf(client, model.FamilyOf(target.Addr()))
	reply, err := client.AskFrom(t.Context(), network, join(from, port), target.String())
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(t, reply), nil
}

func parseAnswer(t *testing.T, reply string) answer {
	t.Helper()
	id, peer, _ := strings.Cut(reply, " ")
	seen, err := netip.ParseAddrPort(peer)
	check(t, err)
	return answer{id, seen}
}

// ask is try that has to work, from a fresh port.
func (s *site) ask(t *testing.T, client *lab.Host, network string, target netip.AddrPort) answer {
	t.Helper()
	a, err := try(t, client, network, s.port(), target)
	if err != nil {
		t.Fatalf("%s asks %s %s: %v", client.Name, network, target, err)
	}
	return a
}

// talk is a TCP connection that stays open.
type talk struct {
	net.Conn
	r    *bufio.Reader
	seen netip.Addr // whom the server sees
}

// talk opens a connection and asks once on it.
func (s *site) talk(t *testing.T, client *lab.Host, target netip.AddrPort) *talk {
	t.Helper()
	from := join(addrOf(client, model.FamilyOf(target.Addr())), s.port())
	c, err := client.Dial(within(t, patience), "tcp", from, target.String())
	check(t, err)
	t.Cleanup(func() { c.Close() })
	k := &talk{Conn: c, r: bufio.NewReader(c)}
	k.ask(t)
	return k
}

// ask asks once more and returns who answers.
func (k *talk) ask(t *testing.T) string {
	t.Helper()
	check(t, k.SetDeadline(time.Now().Add(patience)))
	_, err := k.Write([]byte("?\n"))
	check(t, err)
	line, err := k.r.ReadString('\n')
	if err != nil {
		t.Fatalf("the connection from %s to %s is broken: %v", k.LocalAddr(), k.RemoteAddr(), err)
	}
	a := parseAnswer(t, strings.TrimSpace(line))
	k.seen = a.seen.Addr()
	return a.id
}

// askMany asks n times, one after the other, and returns who answered.
func (s *site) askMany(t *testing.T, client *lab.Host, network string, target netip.AddrPort, n int) []string {
	t.Helper()
	var ids []string
	for range n {
		ids = append(ids, s.ask(t, client, network, target).id)
	}
	return ids
}

// tally counts how often each comes.
func tally(ids []string) map[string]int {
	out := map[string]int{}
	for _, id := range ids {
		out[id]++
	}
	return out
}

// within is a context that ends after d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eachFamily runs a subtest for each family.
func eachFamily(t *testing.T, fn func(t *testing.T, f model.Family)) {
	for _, f := range families {
		t.Run(map[model.Family]string{model.IPv4: "v4", model.IPv6: "v6"}[f], func(t *testing.T) { fn(t, f) })
	}
}
