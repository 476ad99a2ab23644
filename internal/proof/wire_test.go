package proof

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/conntrack"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/ruleset"
)

// site is where a packet is sent from or seen.
type site string

const (
	atClient  site = "client"  // before the gateway: every client's address leads here
	atSink    site = "sink"    // behind it: every backend's and every listener's address leads here
	atGateway site = "gateway" // the gateway's own loopback device
)

// Addresses of the links, and of nobody: sentinels go there.
var (
	clientLink4, clientLink6 = netip.MustParsePrefix("10.9.0.0/30"), netip.MustParsePrefix("2001:db8:9::/64")
	sinkLink4, sinkLink6     = netip.MustParsePrefix("10.9.1.0/30"), netip.MustParsePrefix("2001:db8:9:1::/64")

	sentinelAt = map[site]netip.AddrPort{
		atClient:  netip.MustParseAddrPort("203.0.113.250:9"),
		atSink:    netip.MustParseAddrPort("10.250.0.1:9"),
		atGateway: netip.MustParseAddrPort("127.0.0.9:9"),
	}
	// A sentinel to a site is sent from the one whose packets get there the longest way.
	sentinelFrom = map[site]site{atClient: atSink, atSink: atClient, atGateway: atGateway}
	sentinelSrc  = map[site]netip.AddrPort{
		atClient:  netip.MustParseAddrPort("203.0.113.251:9"),
		atSink:    netip.MustParseAddrPort("10.250.0.2:9"),
		atGateway: netip.MustParseAddrPort("127.0.0.1:9"),
	}

	behindClient = []string{"203.0.113.0/24", "2001:db8:c::/64"}
	behindSink   = []string{"10.1.0.0/16", "10.250.0.0/16", "2001:db8:2::/64", // backends, sentinels
		"198.51.100.0/24", "198.18.0.0/15", "2001:db8:1::/64"} // listeners: what is not translated passes
)

// wire is a gateway between two hosts that answer nothing.
//
// All that is sent is sent by one thread that stays on one processor. A virtual device
// gives a packet to the queue of the processor that sends, and that queue is worked off
// in order, so what a packet caused has been seen when a sentinel sent after it is.
type wire struct {
	tb      testing.TB
	hosts   map[site]*lab.Host
	taps    map[site]*lab.Capture
	raw     map[site]map[model.Family]int
	inside  map[model.Family]netip.Addr // of the gateway, towards the sink
	kernel  *nft.Conn
	tracker *conntrack.Conn
	last    uint32 // number of the last probe or sentinel
}

func newWire(tb testing.TB) *wire {
	lab.Require(tb)
	network := must(lab.New())(tb)
	tb.Cleanup(func() { check(tb, network.Close()) })
	w := &wire{tb: tb, hosts: map[site]*lab.Host{}, taps: map[site]*lab.Capture{}, raw: map[site]map[model.Family]int{}}
	for _, s := range []site{atClient, atSink, atGateway} {
		w.hosts[s] = must(network.Host(string(s)))(tb)
	}
	gw := w.hosts[atGateway]
	for _, s := range [][2]string{
		{"net.ipv4.ip_forward", "1"}, {"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv4.conf.all.rp_filter", "0"}, {"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.conf.all.send_redirects", "0"}, {"net.ipv4.conf.default.send_redirects", "0"},
	} {
		check(tb, gw.Sysctl(s[0], s[1]))
	}
	// The limit of ICMP errors of all kinds together; namespaces have their own since 6.12.
	_ = gw.Sysctl("net.ipv4.icmp_msgs_per_sec", "1000000")
	_ = gw.Sysctl("net.ipv4.icmp_msgs_burst", "100000")
	w.link(network, atClient, behindClient, clientLink4, clientLink6)
	w.link(network, atSink, behindSink, sinkLink4, sinkLink6)
	w.inside = map[model.Family]netip.Addr{model.IPv4: nth(sinkLink4, 1), model.IPv6: nth(sinkLink6, 1)}
	w.taps[atGateway] = must(gw.Capture("lo"))(tb)
	for s := range w.hosts {
		w.raw[s] = map[model.Family]int{model.IPv4: w.rawSocket(s, unix.AF_INET), model.IPv6: w.rawSocket(s, unix.AF_INET6)}
	}
	check(tb, gw.Do(func() (err error) {
		if w.kernel, err = nft.Open(); err == nil {
			w.tracker, err = conntrack.Open()
		}
		return err
	}))
	tb.Cleanup(func() { w.kernel.Close(); w.tracker.Close() })
	return w
}

// nth returns address n of a prefix whose last byte is zero.
func nth(p netip.Prefix, n byte) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = n
	a, _ := netip.AddrFromSlice(b)
	return a
}

// link joins a host to the gateway. The gateway sends it what is behind it, and it sends
// the gateway everything. Neighbours are set by hand, so that no packet waits for its
// neighbour to be found while others pass.
func (w *wire) link(network *lab.Net, s site, behind []string, nets ...netip.Prefix) {
	gw, host, dev := w.hosts[atGateway], w.hosts[s], string(s)
	var ours, theirs []netip.Prefix
	for _, p := range nets {
		ours = append(ours, netip.PrefixFrom(nth(p, 1), p.Bits()))
		theirs = append(theirs, netip.PrefixFrom(nth(p, 2), p.Bits()))
	}
	check(w.tb, network.Link(lab.End{Host: gw, Name: dev, Addrs: ours}, lab.End{Host: host, Name: "eth0", Addrs: theirs}))
	via := func(p netip.Prefix) netip.Prefix {
		if p.Addr().Is4() {
			return nets[0]
		}
		return nets[1]
	}
	for _, b := range behind {
		p := netip.MustParsePrefix(b)
		check(w.tb, gw.Route(p, nth(via(p), 2), dev))
	}
	for _, b := range []string{"0.0.0.0/0", "::/0"} {
		p := netip.MustParsePrefix(b)
		check(w.tb, host.Route(p, nth(via(p), 1), "eth0"))
	}
	for _, p := range nets {
		w.neighbour(gw, dev, nth(p, 2), host, "eth0")
		w.neighbour(host, "eth0", nth(p, 1), gw, dev)
	}
	w.taps[s] = must(host.Capture("eth0"))(w.tb)
}

func (w *wire) neighbour(on *lab.Host, dev string, addr netip.Addr, of *lab.Host, ofDev string) {
	mac := must(of.MAC(ofDev))(w.tb)
	check(w.tb, on.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(),
			HardwareAddr: mac, State: netlink.NUD_PERMANENT})
	}))
}

func (w *wire) rawSocket(s site, domain int) (fd int) {
	check(w.tb, w.hosts[s].Do(func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	w.tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

// pin keeps the calling goroutine on one thread and that on one processor, until unpin.
func pin(tb testing.TB) (unpin func()) {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	check(tb, unix.SchedGetaffinity(0, &before))
	for cpu := 0; ; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	check(tb, unix.SchedSetaffinity(0, &one))
	return func() {
		check(tb, unix.SchedSetaffinity(0, &before))
		runtime.UnlockOSThread()
	}
}

// send sends one packet. One that its own host's rules drop is sent, too.
func (w *wire) send(from site, pkt []byte) error {
	hdr, err := lab.ParseIP(pkt)
	if err != nil {
		return err
	}
	dst := hdr.Dst.Addr()
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16()}
	if dst.Is4() {
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	err = unix.Sendto(w.raw[from][model.FamilyOf(dst)], pkt, 0, to)
	if from == atGateway && errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// sighting is what became of a probe. The addresses are those of the probe as it was
// seen, or as it was when it was refused.
type sighting struct {
	at       site
	outcome  ruleset.Outcome
	src, dst netip.AddrPort
}

func (s sighting) String() string {
	if s == (sighting{}) {
		return "nothing was seen"
	}
	return fmt.Sprintf("%s, seen at the %s, %s > %s", s.outcome, s.at, s.src, s.dst)
}

// ask sends a probe and returns what it caused, in no order. A drop causes nothing.
func (w *wire) ask(p probe) ([]sighting, error) {
	id, err := w.probe(p)
	if err != nil {
		return nil, err
	}
	return w.listen(id)
}

// probe sends a probe and returns the number in it.
func (w *wire) probe(p probe) (id uint32, err error) {
	w.last++
	if err := w.send(p.from, p.packet(w.last)); err != nil {
		return 0, fmt.Errorf("send %s: %w", p, err)
	}
	return w.last, nil
}

// listen returns what the probe of that number has caused by now.
func (w *wire) listen(id uint32) ([]sighting, error) {
	var seen []sighting
	for _, s := range []site{atClient, atSink, atGateway} {
		w.last++
		mark := probe{proto: model.UDP, src: sentinelSrc[sentinelFrom[s]], dst: sentinelAt[s]}
		if err := w.send(sentinelFrom[s], mark.packet(w.last)); err != nil {
			return nil, fmt.Errorf("send a sentinel: %w", err)
		}
		got, err := w.until(s, w.last, id)
		if err != nil {
			return nil, fmt.Errorf("a sentinel to the %s was not seen: %w", s, err)
		}
		seen = append(seen, got...)
	}
	return seen, nil
}

// until reads what was captured at a site up to the sentinel of that number.
func (w *wire) until(s site, sentinel, id uint32) (seen []sighting, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		pkt, err := w.taps[s].Next(ctx)
		if err != nil {
			return nil, err
		}
		hdr, err := lab.ParseIP(pkt.Data)
		if err != nil || pkt.Out {
			continue
		}
		if n, ok := number(hdr); ok && n == sentinel {
			return seen, nil
		}
		if sight, ok := about(hdr, id); ok {
			sight.at = s
			seen = append(seen, sight)
		}
	}
}

// about reads a packet as a consequence of probe id: the probe itself, a TCP reset that
// answers it, or an ICMP error "port unreachable" that quotes it.
func about(hdr lab.Header, id uint32) (sighting, bool) {
	if n, ok := number(hdr); ok && n == id {
		return sighting{outcome: ruleset.Accepted, src: hdr.Src, dst: hdr.Dst}, true
	}
	b := hdr.Payload
	switch {
	case hdr.Proto == unix.IPPROTO_TCP && len(b) >= 20 && b[13]&lab.RST != 0 && binary.BigEndian.Uint32(b[8:]) == id+1:
		return sighting{outcome: ruleset.RejectedReset, src: hdr.Dst, dst: hdr.Src}, true
	case hdr.Proto == unix.IPPROTO_ICMP && len(b) > 8 && b[0] == 3 && b[1] == 3, // RFC 792
		hdr.Proto == unix.IPPROTO_ICMPV6 && len(b) > 8 && b[0] == 1 && b[1] == 4: // RFC 4443
		quoted, err := lab.ParseIP(b[8:])
		if n, ok := number(quoted); err == nil && ok && n == id {
			return sighting{outcome: ruleset.RejectedICMP, src: quoted.Src, dst: quoted.Dst}, true
		}
	}
	return sighting{}, false
}

// forget empties the gateway's connection table.
func (w *wire) forget() error {
	ctx := context.Background()
	var flows []conntrack.Flow
	err := w.tracker.Dump(ctx, conntrack.Filter{}, func(f conntrack.Flow) bool {
		flows = append(flows, f)
		return true
	})
	for _, f := range flows {
		if _, e := w.tracker.Delete(ctx, f); e != nil {
			err = errors.Join(err, e)
		}
	}
	return err
}

// load replaces what the kernel holds by a ruleset that is new in all its parts.
func (w *wire) load(want *ruleset.Ruleset) error {
	for _, next := range []*ruleset.Ruleset{{}, want} {
		have, gen, err := w.kernel.Read(context.Background(), tables, next)
		if err != nil {
			return err
		}
		if _, err := w.kernel.Apply(context.Background(), ruleset.Diff(have, next), gen); err != nil {
			return err
		}
	}
	return w.forget()
}
