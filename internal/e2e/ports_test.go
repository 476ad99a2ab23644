package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"weir/internal/lab"
	"weir/internal/model"
)

// portCase is a service, and where each port that is asked must arrive.
type portCase struct {
	name     string
	listen   []string // PORTS, for every protocol
	backends func(b []*lab.Host) []backend
	// want maps a port that is asked to the port of backend1 and of backend2 that answers.
	want map[uint16][2]uint16
}

// shifted is the want of lo-hi with fixed distances.
func shifted(lo, hi uint16, by1, by2 uint16) map[uint16][2]uint16 {
	out := map[uint16][2]uint16{}
	for p := lo; p <= hi; p++ {
		out[p] = [2]uint16{p + by1, p + by2}
	}
	return out
}

// merged joins maps.
func merged(list ...map[uint16][2]uint16) map[uint16][2]uint16 {
	out := map[uint16][2]uint16{}
	for _, m := range list {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func twice(port string) func(b []*lab.Host) []backend {
	return func(b []*lab.Host) []backend { return on(port, b[0], b[1]) }
}

func each(port1, port2 string) func(b []*lab.Host) []backend {
	return func(b []*lab.Host) []backend { return []backend{{b[0], port1, 1}, {b[1], port2, 1}} }
}

var portCases = []portCase{
	{"one port to one", []string{"80"}, twice("9000"), map[uint16][2]uint16{80: {9000, 9000}}},
	{"one port to two", []string{"80"}, each("9000", "9001"), map[uint16][2]uint16{80: {9000, 9001}}},
	{"no port: kept", []string{"9000"}, twice(""), shifted(9000, 9000, 0, 0)},
	{"mixed, one listener", []string{"9002"}, each("", "9001"), map[uint16][2]uint16{9002: {9002, 9001}}},
	{"a list, kept", []string{"9000,9003,9005-9007"}, twice(""),
		merged(shifted(9000, 9000, 0, 0), shifted(9003, 9003, 0, 0), shifted(9005, 9007, 0, 0))},
	{"entries, a list and a range to one", []string{"80", "443,9009", "8000-8003"}, twice("9000"),
		map[uint16][2]uint16{80: {9000, 9000}, 443: {9000, 9000}, 9009: {9000, 9000},
			8000: {9000, 9000}, 8001: {9000, 9000}, 8003: {9000, 9000}}},
	{"mixed, a list and a range", []string{"9002", "9004-9006"}, each("", "9000"),
		map[uint16][2]uint16{9002: {9002, 9000}, 9004: {9004, 9000}, 9005: {9005, 9000}, 9006: {9006, 9000}}},
	{"a range translated", []string{"8000-8010"}, twice("9000-9010"), shifted(8000, 8010, 1000, 1000)},
	{"two ranges translated to one", []string{"8000-8004", "8100-8104"}, twice("9002-9006"),
		merged(shifted(8000, 8004, 1002, 1002), shifted(8100, 8104, 902, 902))},
	{"a range kept, translated apart", []string{"9000-9004"}, each("", "9006-9010"), shifted(9000, 9004, 0, 6)},
	{"a range to another and to one", []string{"8000-8004"}, each("9000-9004", "9010"),
		map[uint16][2]uint16{8000: {9000, 9010}, 8001: {9001, 9010}, 8002: {9002, 9010}, 8003: {9003, 9010}, 8004: {9004, 9010}}},
}

// TestPorts asks every port of every form of listener and backend twice: with round-robin
// that is each backend once, on the port that it should be.
func TestPorts(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 2)
	var ports []uint16
	for p := uint16(9000); p <= 9010; p++ {
		ports = append(ports, p)
	}
	protos := []string{"tcp", "udp", "sctp"}
	for _, proto := range protos {
		s.serve(proto, s.Backends, ports...)
	}
	var list []string
	for i, c := range portCases {
		var entries []string
		for _, p := range protos {
			for _, l := range c.listen {
				entries = append(entries, l+"/"+p)
			}
		}
		list = append(list, service(fmt.Sprintf("case%d", i), listenOn(i+1, entries...), backendList(c.backends(s.Backends)...)))
	}
	s.apply(services(list...))
	for i, c := range portCases {
		t.Run(c.name, func(t *testing.T) {
			for _, proto := range protos {
				eachFamily(t, func(t *testing.T, f model.Family) {
					for asked, want := range c.want {
						got := tally(s.askMany(t, s.Clients[0], proto, netip.AddrPortFrom(vip(f, i+1), asked), 2))
						for b, port := range want {
							if id := fmt.Sprintf("backend%d/%d", b+1, port); got[id] != 1 {
								t.Errorf("%s port %d: %v answer, want %s once", proto, asked, got, id)
							}
						}
					}
				})
			}
		})
	}
}

// TestPortsAroundAListener sees that the ports beside a listener's are not the service's.
func TestPortsAroundAListener(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serve("tcp", s.Backends, 7999, 8000, 8010, 8011)
	s.apply(services(
		service("range", listenOn(1, "8000-8010/tcp"), backendList(on("", s.Backends...)...)),
		service("other", listenOn(2, "1-65535/tcp"), backendList(on("8000", s.Backends...)...))))
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, p := range []uint16{8000, 8010} {
			if a := s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 1), p)); a.id != fmt.Sprintf("backend1/%d", p) {
				t.Errorf("port %d is answered by %s", p, a.id)
			}
		}
		for _, p := range []uint16{7999, 8011} {
			// The gateway has no way to the address; that news may take a second to be heeded.
			reply, err := s.Clients[0].AskFrom(within(t, silence), "tcp", "", join(vip(f, 1), p))
			if err == nil {
				t.Errorf("port %d, on which nobody listens, is answered: %s", p, reply)
			}
		}
		for _, p := range []uint16{1, 65535} {
			s.ask(t, s.Clients[0], "tcp", netip.AddrPortFrom(vip(f, 2), p))
		}
	})
}
