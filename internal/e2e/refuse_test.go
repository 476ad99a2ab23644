package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
	"weir/internal/model"
)

// wantRefused checks that a TCP or UDP client was told at once that nobody is there.
func wantRefused(t *testing.T, network string, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: got error %v, want connection refused", network, err)
	}
}

// TestNothingToChooseFrom has clients call services without backends, which refuse them or
// say nothing.
func TestNothingToChooseFrom(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, 1)
	s.serve("tcp", s.Backends, 7)
	client := s.Clients[0]
	entries := []string{"7/tcp", "7/udp", "7/sctp", "100-200/tcp", "100-200/udp", "100-200/sctp"}
	s.apply(services(
		service("unsaid", listenOn(1, entries...), "[]"),
		service("refuses", listenOn(2, entries...), "[]", "when_all_down: reject"),
		service("silent", listenOn(3, entries...), "[]", "when_all_down: drop"),
		service("works", listenOn(4, "7/tcp"), backendList(on("", s.Backends...)...))))
	for _, n := range []int{1, 2} {
		for _, port := range []uint16{7, 150} {
			eachFamily(t, func(t *testing.T, f model.Family) {
				target := netip.AddrPortFrom(vip(f, n), port)
				for _, network := range []string{"tcp", "udp"} {
					before := retried(t, client)
					_, err := try(t, client, network, s.port(), target)
					wantRefused(t, network, err)
					wantNoRetry(t, network, client, before)
				}
				s.wantUnreachable(t, client, target)
			})
		}
	}
	eachFamily(t, func(t *testing.T, f model.Family) {
		for _, port := range []uint16{7, 150} {
			for _, network := range []string{"tcp", "udp", "sctp"} {
				s.wantSilence(t, client, network, netip.AddrPortFrom(vip(f, 3), port))
			}
		}
		s.ask(t, client, "tcp", netip.AddrPortFrom(vip(f, 4), 7)) // the others do not suffer
	})
}

// wantUnreachable sends an SCTP INIT and waits for ICMP's port unreachable.
func (s *site) wantUnreachable(t *testing.T, client *lab.Host, target netip.AddrPort) {
	t.Helper()
	f := model.FamilyOf(target.Addr())
	src := netip.AddrPortFrom(addrOf(client, f), s.port())
	c, err := client.Capture(lab.HostDev)
	check(t, err)
	defer c.Close()
	check(t, client.SendIP(lab.SCTPInit(src, target, 1)))
	_, _, err = c.Find(within(t, patience), func(p lab.Packet, h lab.Header) bool {
		if p.Out || h.Dst.Addr() != src.Addr() || len(h.Payload) < 8 {
			return false
		}
		// RFC 792: type 3 code 3; RFC 4443: type 1 code 4. What was refused follows.
		typ, code := h.Payload[0], h.Payload[1]
		icmp := f == model.IPv4 && h.Proto == unix.IPPROTO_ICMP && typ == 3 && code == 3 ||
			f == model.IPv6 && h.Proto == unix.IPPROTO_ICMPV6 && typ == 1 && code == 4
		return icmp && quotes(h.Payload[8:], src, target)
	})
	if err != nil {
		t.Errorf("SCTP to %s: no port unreachable: %v", target, err)
	}
}

// quotes reports whether an ICMP error is about a packet from src to dst. The quoted
// packet may be cut short.
func quotes(b []byte, src, dst netip.AddrPort) bool {
	var s, d netip.Addr
	var ports []byte
	switch {
	case src.Addr().Is4() && len(b) >= 24:
		s, d = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		ports = b[20:]
	case src.Addr().Is6() && len(b) >= 44:
		s, d = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		ports = b[40:]
	default:
		return false
	}
	sport, dport := uint16(ports[0])<<8|uint16(ports[1]), uint16(ports[2])<<8|uint16(ports[3])
	return src == netip.AddrPortFrom(s, sport) && dst == netip.AddrPortFrom(d, dport)
}

// wantSilence asks, and wants no answer and no error until it gives up.
func (s *site) wantSilence(t *testing.T, client *lab.Host, network string, target netip.AddrPort) {
	t.Helper()
	from := join(addrOf(client, model.FamilyOf(target.Addr())), s.port())
	reply, err := client.AskFrom(within(t, silence), network, from, target.String())
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s to %s: answer %q, error %v; want silence", network, target, reply, err)
	}
}
