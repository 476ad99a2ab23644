// Package tunnel holds the VXLAN devices by which copies reach collectors in other networks.
//
// Its one idea: a device says whose it is by its name. Everything of type vxlan that is called
// weir-vx and a number is weir's, is made, changed and removed, and nothing else is touched; so
// nothing has to be remembered, and whoever runs next goes on from what is there.
//
// A device has no addresses and asks for no neighbours. What is to go through it is sent to one of
// its next hops, each with a route of its own.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// mtu of a device, in bytes: copies are as large as the packets they are of, so nothing is too
// large for the tunnel. What is too large for the way is sent in fragments, of the outer packet.
const mtu = 65000

// Keeper belongs to one network namespace. Its methods must not be called at the same time.
type Keeper struct{ h *netlink.Handle }

// Open returns a Keeper for the network namespace of the calling thread. Sync needs CAP_NET_ADMIN.
func Open() (*Keeper, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	return &Keeper{h}, nil
}

// Close frees the socket.
func (k *Keeper) Close() { k.h.Close() }

// Sync makes the tunnels, removes weir's others, and returns the names of devices that it made and
// removed. One that is as wanted stays as it is, with what it counts. What cannot be done does not
// keep the rest from it.
func (k *Keeper) Sync(_ context.Context, want []model.VXLAN) (added, removed []string, err error) {
	have, err := k.devices()
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for name, dev := range have {
		i := slices.IndexFunc(want, func(w model.VXLAN) bool { return w.Device() == name })
		if i >= 0 && is(dev, want[i]) {
			continue
		}
		if err := k.h.LinkDel(dev); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("tunnel: remove %s: %w", name, err))
			continue
		}
		delete(have, name)
		if i < 0 {
			removed = append(removed, name)
		}
	}
	for _, w := range want {
		made, err := k.keep(w, have[w.Device()])
		if err != nil {
			errs = append(errs, fmt.Errorf("tunnel: %s to %s: %w", w.Device(), w.Remote, err))
		}
		if made {
			added = append(added, w.Device())
		}
	}
	slices.Sort(removed)
	return added, removed, errors.Join(errs...)
}

// dumpTries is how often a list is asked for that was not consistent.
const dumpTries = 5

// devices returns weir's tunnels, by name.
func (k *Keeper) devices() (map[string]*netlink.Vxlan, error) {
	var links []netlink.Link
	var err error
	for range dumpTries {
		if links, err = k.h.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("tunnel: list devices: %w", err)
	}
	out := map[string]*netlink.Vxlan{}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && ours(v.Name) {
			out[v.Name] = v
		}
	}
	return out, nil
}

func ours(name string) bool {
	number, ok := strings.CutPrefix(name, model.VXLANPrefix)
	id, err := strconv.ParseUint(number, 10, 24)
	return ok && err == nil && name == model.VXLAN{ID: uint32(id)}.Device()
}

// is reports whether the device is the tunnel. Whether it is up, and has its routes, can be put
// right without another one.
func is(v *netlink.Vxlan, w model.VXLAN) bool {
	remote, ok := netip.AddrFromSlice(v.Group)
	return ok && remote.Unmap() == w.Remote && v.Port == int(w.Port) && v.VxlanId == int(w.ID) && !v.Learning && v.MTU == mtu
}

// keep makes the tunnel where dev is nil, and has it up with its routes.
func (k *Keeper) keep(w model.VXLAN, dev *netlink.Vxlan) (made bool, err error) {
	if dev == nil {
		if dev, err = k.add(w); err != nil {
			return false, err
		}
		made = true
	}
	if dev.Attrs().Flags&net.FlagUp == 0 {
		if err := k.h.LinkSetUp(dev); err != nil {
			return made, fmt.Errorf("switch on: %w", err)
		}
	}
	for _, hop := range w.Hops() {
		route := &netlink.Route{LinkIndex: dev.Index, Dst: host(hop), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
		if hop.Is6() {
			route.Scope = netlink.SCOPE_UNIVERSE
		}
		// Without IPv6 on the machine there are no packets of it to copy.
		if err := k.h.RouteReplace(route); err != nil && (hop.Is4() || !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT)) {
			return made, fmt.Errorf("route to %s: %w", hop, err)
		}
	}
	return made, nil
}

func (k *Keeper) add(w model.VXLAN) (*netlink.Vxlan, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = w.Device(), mtu
	v := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(w.ID), Group: w.Remote.AsSlice(), Port: int(w.Port), UDPCSum: w.Remote.Is6()}
	err := k.h.LinkAdd(v)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("there is a device of that name, or another VXLAN with that identifier and port: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return nil, fmt.Errorf("the kernel has no VXLAN (module vxlan): %w", err)
	case err != nil:
		return nil, err
	}
	link, err := k.h.LinkByName(attrs.Name)
	if err != nil {
		return nil, err
	}
	dev, ok := link.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("it is of type %s", link.Type())
	}
	// Nobody is asked for there, so no neighbour has to answer; and the device has nothing to say
	// of its own.
	if err = k.h.LinkSetARPOff(dev); err == nil {
		err = k.h.LinkSetIP6AddrGenMode(dev, addrGenNone)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			err = nil // no IPv6 here
		}
	}
	if err != nil {
		return nil, errors.Join(err, k.h.LinkDel(dev))
	}
	return dev, nil
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of if_link.h: no link-local address.
const addrGenNone = 1

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
