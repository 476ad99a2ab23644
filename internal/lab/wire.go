package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxDevName is the longest device name, in bytes (IFNAMSIZ - 1 of linux/if.h).
const maxDevName = 15

// upTimeout bounds the wait for a new device to carry packets.
const upTimeout = 5 * time.Second

// End is one end of a link.
type End struct {
	Host  *Host
	Name  string           // of the device, 1 to 15 bytes
	Addrs []netip.Prefix   // each an address with the length of its network
	MAC   net.HardwareAddr // nil: the kernel's choice
	MTU   int              // 0: 1500
}

// Link joins two hosts by a pair of virtual Ethernet devices, with addresses, up,
// and carrying packets when Link returns.
func (n *Net) Link(a, b End) error {
	return connect(a, b, func() error { return nil })
}

// connect is Link with something to do before the devices are set up.
func connect(a, b End, before func() error) error {
	if err := pair(a, b); err != nil {
		return err
	}
	if err := before(); err != nil {
		return err
	}
	for _, e := range []End{a, b} {
		for _, p := range e.Addrs {
			if err := e.Host.AddAddr(e.Name, p); err != nil {
				return err
			}
		}
	}
	// b first: a bridge port that is up before its peer sees the carrier come, and
	// forwards from that moment.
	for _, e := range []End{b, a} {
		if err := e.Host.SetLink(e.Name, true); err != nil {
			return err
		}
	}
	return errors.Join(a.Host.waitUp(a.Name), b.Host.waitUp(b.Name))
}

// pair makes the two devices, down and without addresses.
func pair(a, b End) error {
	for _, e := range []End{a, b} {
		if e.Name == "" || len(e.Name) > maxDevName {
			return fmt.Errorf("lab: device name %q: must have 1 to %d bytes", e.Name, maxDevName)
		}
	}
	b.Host.mu.RLock() // its file must stay open meanwhile
	defer b.Host.mu.RUnlock()
	if b.Host.closed || a.Host.isClosed() {
		return ErrClosed
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.Name, a.MTU, a.MAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = b.Name, uint32(b.MTU), b.MAC
	veth.PeerNamespace = netlink.NsFd(b.Host.ns.Fd())
	if err := a.Host.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("lab: link %s %s - %s %s: %w", a.Host.Name, a.Name, b.Host.Name, b.Name, err)
	}
	return nil
}

func (h *Host) isClosed() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.closed
}

// device looks a device up, with the lock that keeps the handle open; release it
// after use.
func (h *Host) device(name string) (link netlink.Link, release func(), err error) {
	h.mu.RLock()
	if h.closed {
		h.mu.RUnlock()
		return nil, nil, ErrClosed
	}
	link, err = h.nl.LinkByName(name)
	if err != nil {
		h.mu.RUnlock()
		return nil, nil, fmt.Errorf("lab: %s: device %s: %w", h.Name, name, err)
	}
	return link, h.mu.RUnlock, nil
}

// waitUp waits until the device is up in the kernel's own view (RFC 2863): the
// kernel handles a new carrier a moment later, and drops packets until then.
func (h *Host) waitUp(dev string) error {
	for deadline := time.Now().Add(upTimeout); ; time.Sleep(time.Millisecond) {
		link, release, err := h.device(dev)
		if err != nil {
			return err
		}
		release()
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("lab: %s: device %s is %s after %s", h.Name, dev, link.Attrs().OperState, upTimeout)
		}
	}
}

// SetLink sets a device up or down. Down also loses the routes through it.
func (h *Host) SetLink(dev string, up bool) error {
	link, release, err := h.device(dev)
	if err != nil {
		return err
	}
	defer release()
	set := h.nl.LinkSetDown
	if up {
		set = h.nl.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("lab: %s: set %s up=%t: %w", h.Name, dev, up, err)
	}
	return nil
}

// MAC returns the hardware address of a device.
func (h *Host) MAC(dev string) (net.HardwareAddr, error) {
	link, release, err := h.device(dev)
	if err != nil {
		return nil, err
	}
	defer release()
	return link.Attrs().HardwareAddr, nil
}

// AddAddr gives a device an address, usable at once; one that is there already is
// fine. Use dev "lo" for an address that the host holds without announcing it.
func (h *Host) AddAddr(dev string, p netip.Prefix) error {
	link, release, err := h.device(dev)
	if err != nil {
		return err
	}
	defer release()
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("lab: %s: address %s on %s: %w", h.Name, p, dev, err)
	}
	h.remember(p.Addr())
	return nil
}

func (h *Host) remember(a netip.Addr) {
	switch {
	case a.Is4() && !h.V4.IsValid():
		h.V4 = a
	case a.Is6() && !h.V6.IsValid():
		h.V6 = a
	}
}

// DelAddr takes an address from a device.
func (h *Host) DelAddr(dev string, p netip.Prefix) error {
	link, release, err := h.device(dev)
	if err != nil {
		return err
	}
	defer release()
	if err := h.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
		return fmt.Errorf("lab: %s: remove address %s from %s: %w", h.Name, p, dev, err)
	}
	return nil
}

// Route sets the route to dst, replacing one that is there. via may be the zero
// Addr (dst is on the link), dev may be empty (where via is reached). 0.0.0.0/0 and
// ::/0 are the default routes.
func (h *Host) Route(dst netip.Prefix, via netip.Addr, dev string) error {
	r := &netlink.Route{Dst: ipNet(dst.Masked()), Protocol: unix.RTPROT_STATIC}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return ErrClosed
	}
	if dev != "" {
		link, err := h.nl.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("lab: %s: device %s: %w", h.Name, dev, err)
		}
		r.LinkIndex = link.Attrs().Index
	}
	if err := h.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("lab: %s: route %s via %s dev %q: %w", h.Name, dst, via, dev, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Switch is one Ethernet segment: a bridge in a namespace of its own, invisible to
// IP.
type Switch struct {
	net  *Net
	host *Host
}

const bridgeName = "br0"

// Switch makes a segment. It fails on kernels without bridges (CONFIG_BRIDGE).
func (n *Net) Switch(name string) (*Switch, error) {
	h, err := n.Host(name)
	if err != nil {
		return nil, err
	}
	// The segment itself takes no part in IP, and frames that cross it do not pass
	// netfilter's IP hooks, which would track every connection twice.
	for _, key := range []string{
		"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables",
		"net.bridge.bridge-nf-call-arptables",
	} {
		if err := h.Sysctl(key, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if err := h.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	off := false
	if err := h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return nil, fmt.Errorf("lab: switch %s: bridge device (kernel option CONFIG_BRIDGE): %w", name, err)
	}
	return &Switch{net: n, host: h}, h.SetLink(bridgeName, true)
}

// Attach joins a host to the segment by a device of that name with these addresses.
func (s *Switch) Attach(h *Host, ifname string, prefixes ...netip.Prefix) error {
	return s.AttachEnd(End{Host: h, Name: ifname, Addrs: prefixes})
}

// AttachEnd is Attach with all that an End can say.
func (s *Switch) AttachEnd(e End) error {
	s.net.mu.Lock()
	s.net.switches++
	port := End{Host: s.host, Name: fmt.Sprintf("port%d", s.net.switches), MTU: e.MTU}
	s.net.mu.Unlock()
	return connect(e, port, func() error {
		link, release, err := s.host.device(port.Name)
		if err != nil {
			return err
		}
		defer release()
		bridge, err := s.host.nl.LinkByName(bridgeName)
		if err == nil {
			err = s.host.nl.LinkSetMaster(link, bridge)
		}
		if err != nil {
			return fmt.Errorf("lab: %s: attach %s: %w", s.host.Name, e.Host.Name, err)
		}
		return nil
	})
}
