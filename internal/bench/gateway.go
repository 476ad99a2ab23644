package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/conntrack"
	"weir/internal/lab"
)

// The devices of a gateway and of the world around it.
const (
	outside, inside = "eth-out", "eth-in"
	worldOut        = "clients"
	worldIn         = "backends"
)

var (
	// The same addresses in every gateway, so that one set of frames fits all.
	outsideMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	clientMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	insideMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 3}
	serverMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 4}

	outsideNet = netip.MustParsePrefix("198.51.100.1/24")
	insideNet  = netip.MustParsePrefix("192.0.2.1/24")
	clientHop  = netip.MustParseAddr("198.51.100.2")
	serverHop  = netip.MustParseAddr("192.0.2.2")
)

// gateway is a box that forwards, between two devices whose other ends drop all that
// comes, as early as can be.
type gateway struct {
	host, world *lab.Host
}

// dropAll is for the world: nothing is to be paid for there but the receiving.
const dropAll = `table netdev bench {
	chain in { type filter hook ingress devices = { ` + worldOut + `, ` + worldIn + ` } priority 0; policy drop; }
}
`

func newGateway(n *lab.Net, name, dropFile string) (*gateway, error) {
	host, err := n.Host(name)
	if err != nil {
		return nil, err
	}
	world, err := n.Host(name + "-world")
	if err != nil {
		return nil, err
	}
	for _, s := range [][2]string{{"net.ipv4.ip_forward", "1"},
		{"net.ipv4.conf.all.send_redirects", "0"}, {"net.ipv4.conf.default.send_redirects", "0"},
		{"net.ipv4.conf.all.rp_filter", "0"}, {"net.ipv4.conf.default.rp_filter", "0"}} {
		if err := host.Sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	for _, l := range [][2]lab.End{
		{{Host: host, Name: outside, MAC: outsideMAC, Addrs: []netip.Prefix{outsideNet}}, {Host: world, Name: worldOut, MAC: clientMAC}},
		{{Host: host, Name: inside, MAC: insideMAC, Addrs: []netip.Prefix{insideNet}}, {Host: world, Name: worldIn, MAC: serverMAC}},
	} {
		if err := n.Link(l[0], l[1]); err != nil {
			return nil, err
		}
	}
	for _, r := range []struct {
		to  netip.Prefix
		via netip.Addr
		dev string
	}{{clients, clientHop, outside}, {backends, serverHop, inside}, {vips, serverHop, inside}} {
		if err := host.Route(r.to, r.via, r.dev); err != nil {
			return nil, err
		}
	}
	if err := neighbour(host, outside, clientHop, clientMAC); err != nil {
		return nil, err
	}
	if err := neighbour(host, inside, serverHop, serverMAC); err != nil {
		return nil, err
	}
	_, err = world.Run("nft", "-f", dropFile)
	return &gateway{host, world}, err
}

func neighbour(h *lab.Host, dev string, a netip.Addr, mac net.HardwareAddr) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_INET,
			State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac})
	})
}

// delivered is how many packets have come out of the gateway towards the backends.
func (g *gateway) delivered() (packets uint64, err error) { return g.received(worldIn) }

// received is how many packets have come out of the gateway towards that device of the world.
func (g *gateway) received(dev string) (packets uint64, err error) {
	err = g.world.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil {
			packets = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	return packets, err
}

// trackAll makes a gateway track connections, and do nothing with them.
const trackAll = `table ip bench {
	chain forward { type filter hook forward priority 0; policy accept; ct state invalid drop; }
}
`

// forget empties the table of connections.
func (g *gateway) forget() error {
	return g.host.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.ConntrackTableFlush(netlink.ConntrackTable)
	})
}

// send sends what is loaded in the generator to a device of the gateway.
func (g *gateway) send(gen *generator, dev string, n int) (spent time.Duration, err error) {
	err = g.host.Do(func() (err error) {
		spent, err = gen.send(dev, n)
		return err
	})
	return spent, err
}

// establish opens the flows of syns to the end of the handshake and checks in the table
// of connections that every one of them is translated (unless there are no services) and
// established.
func (g *gateway) establish(ctx context.Context, gen *generator, syns, acks [][]byte, translated bool) error {
	gen.load(ether(outsideMAC, clientMAC, syns))
	if _, err := g.send(gen, outside, len(syns)); err != nil {
		return err
	}
	var answers [][]byte
	err := g.flows(ctx, func(f *conntrack.Flow) {
		if f.DNATed() && f.Status&conntrack.StatusSNAT != 0 || !translated {
			answers = append(answers, lab.TCPPacket(f.Reply.Src, f.Reply.Dst, lab.SYN|lab.ACK, serverSeq, clientSeq+1))
		}
	})
	if err != nil {
		return err
	}
	if len(answers) != len(syns) {
		return fmt.Errorf("%d of %d new connections were given to a backend", len(answers), len(syns))
	}
	gen.load(ether(insideMAC, serverMAC, answers))
	if _, err := g.send(gen, inside, len(answers)); err != nil {
		return err
	}
	gen.load(ether(outsideMAC, clientMAC, acks))
	if _, err := g.send(gen, outside, len(acks)); err != nil {
		return err
	}
	const tcpEstablished = 3 // enum tcp_conntrack
	established := 0
	err = g.flows(ctx, func(f *conntrack.Flow) {
		if f.TCPState == tcpEstablished {
			established++
		}
	})
	if err == nil && established != len(syns) {
		err = fmt.Errorf("%d of %d connections are established", established, len(syns))
	}
	return err
}

func (g *gateway) flows(ctx context.Context, each func(*conntrack.Flow)) error {
	return g.host.Do(func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Dump(ctx, conntrack.Filter{}, func(f conntrack.Flow) bool {
			each(&f)
			return true
		})
	})
}
