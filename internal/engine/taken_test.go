package engine

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weir/internal/model"
	"weir/internal/sockets"
)

func TestTakenPorts(t *testing.T) {
	a, b, far := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("198.51.100.9")
	six := netip.MustParseAddr("2001:db8::1")
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	ports := []model.PortRange{model.DefaultPoolPorts}
	rang := func(lo, hi netip.Addr) []model.AddrRange { return []model.AddrRange{{Lo: lo, Hi: hi}} }
	here := &model.Pool{Name: "here", Ports: ports, Addresses: rang(a, b)}
	half := &model.Pool{Name: "half", Ports: ports, Addresses: rang(b, netip.MustParseAddr("198.51.100.4"))}
	away := &model.Pool{Name: "away", Ports: ports, Addresses: rang(far, far)}
	both := &model.Pool{Name: "both", Ports: ports, Addresses: append(rang(far, far), rang(six, six)...)}
	masq := &model.Pool{Name: "masq", Ports: ports, Masquerade: true}
	held := []netip.Addr{a, b, six, netip.MustParseAddr("127.0.0.1")}
	start := time.Unix(1e9, 0)
	for name, c := range map[string]struct {
		pool *model.Pool
		li   sockets.Listener
		want string
	}{
		"all addresses, all of them here":  {here, sockets.Listener{Proto: model.TCP, Addr: any4, Port: 8080}, "[{invalid IP 8080}]"},
		"all addresses, one of three here": {half, sockets.Listener{Proto: model.UDP, Addr: any4, Port: 8080}, "[{198.51.100.2 8080}]"},
		"all addresses, none here":         {away, sockets.Listener{Proto: model.TCP, Addr: any4, Port: 8080}, "[]"},
		"both families, one here":          {both, sockets.Listener{Proto: model.TCP, Addr: any6, Port: 8080}, "[{2001:db8::1 8080}]"},
		"IPv4 alone, IPv6 here":            {both, sockets.Listener{Proto: model.TCP, Addr: any4, Port: 8080}, "[]"},
		"an address of the pool":           {here, sockets.Listener{Proto: model.TCP, Addr: b, Port: 8080}, "[{198.51.100.2 8080}]"},
		"transparent, not here":            {away, sockets.Listener{Proto: model.TCP, Addr: far, Port: 8080}, "[{198.51.100.9 8080}]"},
		"another address":                  {here, sockets.Listener{Proto: model.TCP, Addr: far, Port: 8080}, "[]"},
		"a port it does not hand out":      {here, sockets.Listener{Proto: model.TCP, Addr: any4, Port: 22}, "[]"},
		"masquerade":                       {masq, sockets.Listener{Proto: model.TCP, Addr: any4, Port: 8080}, "[{invalid IP 8080}]"},
		"masquerade, one address":          {masq, sockets.Listener{Proto: model.TCP, Addr: a, Port: 8080}, "[{198.51.100.1 8080}]"},
		"masquerade, loopback":             {masq, sockets.Listener{Proto: model.TCP, Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}, "[]"},
	} {
		tp := newTakenPorts()
		tp.see(start, []sockets.Listener{c.li}, model.PortRange{Lo: 32768, Hi: 60999}, held)
		if got := fmt.Sprint(tp.ofPool(c.pool)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A socket that asks for a name is no listener; one that stays is, and does not flap.
func TestTakenPortsSettle(t *testing.T) {
	a := netip.MustParseAddr("198.51.100.1")
	p := &model.Pool{Name: "p", Ports: []model.PortRange{model.DefaultPoolPorts}, Addresses: []model.AddrRange{{Lo: a, Hi: a}}}
	udp := sockets.Listener{Proto: model.UDP, Addr: a, Port: 40000}
	tcp := sockets.Listener{Proto: model.TCP, Addr: a, Port: 40001}
	tp := newTakenPorts()
	for _, c := range []struct {
		at    int
		there []sockets.Listener
		want  int
	}{
		{0, []sockets.Listener{udp, tcp}, 1}, {2, []sockets.Listener{tcp}, 1}, {4, []sockets.Listener{udp, tcp}, 1},
		{6, []sockets.Listener{udp, tcp}, 1}, {9, []sockets.Listener{udp, tcp}, 2}, {20, nil, 2}, {38, nil, 2}, {39, nil, 0},
	} {
		tp.see(time.Unix(int64(1000+c.at), 0), c.there, model.PortRange{Lo: 32768, Hi: 60999}, nil)
		if got := tp.ofPool(p); len(got) != c.want {
			t.Errorf("at %d s: %v, want %d", c.at, got, c.want)
		}
	}
}
