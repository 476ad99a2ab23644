package e2e

import (
	bin "encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/conntrack"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
)

// Where the forged sources of a flood are.
var (
	forged4 = netip.MustParsePrefix("198.18.0.0/16")
	forged6 = netip.MustParsePrefix("2001:db8:bad::/48")
)

// forged returns the i-th source of a flood: nobody has it.
func forged(f model.Family, i int) netip.AddrPort {
	if f == model.IPv4 {
		a := [4]byte{198, 18}
		bin.BigEndian.PutUint16(a[2:], uint16(i))
		return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1024+i%60000))
	}
	a := netip.MustParseAddr("2001:db8:bad::").As16()
	bin.BigEndian.PutUint32(a[8:], uint32(i))
	return netip.AddrPortFrom(netip.AddrFrom16(a), uint16(1024+i%60000))
}

// flood sends n SYNs from as many forged sources. They are those of sockets, whose checksums
// count as verified, as those that come by a network card do: the kernel's proxy drops IPv6
// packets that nobody has verified.
func (s *site) flood(t *testing.T, from *lab.Host, to netip.AddrPort, n int) {
	t.Helper()
	sockaddr := func(a netip.AddrPort) unix.Sockaddr {
		if a.Addr().Is4() {
			return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
		}
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	f := model.FamilyOf(to.Addr())
	domain, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if f == model.IPv6 {
		domain, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	one := func(i int) error {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(forged(f, i))); err != nil {
			return err
		}
		if err := unix.Connect(fd, sockaddr(to)); err != unix.EINPROGRESS {
			return err
		}
		return nil
	}
	check(t, from.Do(func() error {
		for i := range n {
			if err := one(i); err != nil {
				return fmt.Errorf("SYN %d: %w", i, err)
			}
		}
		return nil
	}))
}

// tableEntries is how many connections the gateway's kernel knows.
func (s *site) tableEntries() int {
	s.t.Helper()
	var st engine.Status
	s.mustJSON(&st, "status")
	return st.Connections.Entries
}

// TestSYNProxy: clients get through, say what they want to and are seen as they are, with the
// listener's address held by weir, routed elsewhere, and of the box itself; neither the
// kernel's settings about late packets nor an access policy makes a difference.
func TestSYNProxy(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 2)
	s.nextHop()
	s.serve("tcp", s.Backends, 7)
	list := backendList(on("", s.Backends...)...)
	config := services(
		service("assigned", listenOn(1, "7/tcp"), list, "syn_proxy: true", "assign: "+lab.OutsideDev),
		service("routed", listenOn(2, "7/tcp"), list, "syn_proxy: true", "sticky: 1m"),
		service("masqueraded", listenOn(3, "7/tcp"), list, "syn_proxy: true", "source: masquerade"),
		service("ranged", listenOn(4, "5-9/tcp"), list, "syn_proxy: true", `limit: {new_connections: 1000/second}`),
		ownService("local", listenOn(5, "7/tcp"), "syn_proxy: true", `limit: {new_connections: 1000/second}`),
		ownService("held", listenOn(6, "7/tcp"), "syn_proxy: true", `limit: {new_connections: 5/hour}`),
		service("limited", listenOn(7, "7/tcp"), list, "syn_proxy: true", `limit: {new_connections: 5/hour}`),
	)
	s.apply(config)
	_, err := lab.EchoTCP(s.Gateway, "gateway", join(vip(4, 5), 7), join(vip(6, 5), 7), join(vip(4, 6), 7), join(vip(6, 6), 7))
	check(t, err)
	for n, name := range []string{"held", "limited"} {
		t.Run("limit/"+name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f model.Family) { s.proxyLimits(t, name, f, n+6) })
		})
	}
	for _, loose := range []string{"1", "0"} {
		check(t, s.Gateway.Sysctl("net.netfilter.nf_conntrack_tcp_loose", loose))
		if loose == "0" {
			s.apply("edge: {policy: drop, management: [10.9.0.0/16]}\n" + config)
		}
		for n, name := range []string{"assigned", "routed", "masqueraded", "ranged", "local"} {
			t.Run(name+"/loose "+loose, func(t *testing.T) {
				eachFamily(t, func(t *testing.T, f model.Family) {
					before := s.status(name).Total.NewConnections
					at := netip.AddrPortFrom(vip(f, n+1), 7)
					for _, c := range s.Clients {
						for range 5 {
							k := s.talk(t, c, at)
							for range 3 {
								k.ask(t)
							}
							want := addrOf(c, f)
							if name == "masqueraded" {
								want = s.inside(f)
							}
							if k.seen != want {
								t.Errorf("the server sees %s, want %s", k.seen, want)
							}
							check(t, k.Close())
						}
					}
					if got := s.status(name).Total.NewConnections - before; got != 10 {
						t.Errorf("%d new connections counted, want 10", got)
					}
				})
			})
		}
	}
}

// proxyLimits holds that a limit counts clients that have proved their address.
func (s *site) proxyLimits(t *testing.T, name string, f model.Family, n int) {
	c, at := s.Clients[0], netip.AddrPortFrom(vip(f, n), 7)
	before := s.over(name)
	s.flood(t, c, at, 100)
	for range 5 {
		s.ask(t, c, "tcp", at)
	}
	if over := s.over(name) - before; over != 0 {
		t.Errorf("%d refused before the limit was reached", over)
	}
	if reply, err := c.AskFrom(within(t, silence), "tcp", join(addrOf(c, f), s.port()), at.String()); err == nil {
		t.Errorf("one too many is answered: %s", reply)
	}
	if s.over(name) == before {
		t.Error("the one too many is not counted")
	}
}

// TestSYNFlood sends 50,000 SYNs of as many forged sources. Without a proxy the kernel keeps
// something of each; with one it keeps nothing, servers hear of none, and good clients get
// through all the while.
func TestSYNFlood(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, 1)
	s.nextHop()
	servers := s.serve("tcp", s.Backends, 7)
	list := backendList(on("", s.Backends...)...)
	config := func(proxy string) string {
		return services(service("web", listenOn(1, "7/tcp"), list, proxy),
			ownService("box", listenOn(2, "7/tcp"), proxy))
	}
	s.apply(config("syn_proxy: false"))
	box, err := lab.EchoTCP(s.Gateway, "gateway", join(vip(4, 2), 7), join(vip(6, 2), 7))
	check(t, err)
	const control = 1000
	for _, f := range families {
		s.flood(t, s.Clients[0], netip.AddrPortFrom(vip(f, 1), 7), control)
	}
	if n := s.tableEntries(); n < control {
		t.Fatalf("the control shows nothing: %d entries after %d SYNs without a proxy", n, 2*control)
	}
	check(t, s.Gateway.Do(forgetConnections))
	s.apply(config("syn_proxy: true"))
	before := s.status("web").Total
	const each = 12_500
	good := 0 // connections of good clients
	for n := 1; n <= 2; n++ {
		for _, f := range families {
			at := netip.AddrPortFrom(vip(f, n), 7)
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.flood(t, s.Clients[0], at, each)
			}()
			begun := good
			for over := false; !over || good < begun+20; good++ {
				if _, err := try(t, s.Clients[1], "tcp", s.port(), at); err != nil {
					t.Errorf("a good client, %d after the flood began: %v", good-begun, err)
					break
				}
				select {
				case <-done:
					over = true
				default:
				}
			}
			<-done
		}
	}
	if n := s.tableEntries(); n > good+1000 { // those of the good clients linger in TIME_WAIT
		t.Errorf("%d entries in the connection table after the flood, and %d good clients", n, good)
	}
	var st engine.Status
	s.mustJSON(&st, "status")
	if p := st.SYNProxy; p.SYNs < 4*each*9/10 || p.Valid < uint64(good) {
		t.Errorf("%+v after %d SYNs", *p, 4*each)
	}
	flooded := 0
	check(t, s.Gateway.Do(func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Dump(t.Context(), conntrack.Filter{}, func(f conntrack.Flow) bool {
			if src := f.Orig.Src.Addr(); forged4.Contains(src) || forged6.Contains(src) {
				flooded++
			}
			return true
		})
	}))
	if flooded > 0 {
		t.Errorf("%d connections of the flood are in the table", flooded)
	}
	accepted := uint64(0)
	for _, srv := range servers {
		accepted += srv.Accepted()
	}
	if got := s.status("web").Total.NewConnections - before.NewConnections; got != accepted || got < 40 {
		t.Errorf("%d new connections, %d accepted by the server", got, accepted)
	}
	if box.Accepted() < 40 {
		t.Errorf("%d accepted on the box", box.Accepted())
	}
}

// forgetConnections empties the table of connections of the network namespace it runs in.
func forgetConnections() error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.ConntrackTableFlush(netlink.ConntrackTable)
}
