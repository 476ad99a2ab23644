package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Device is a network device that copies come in by.
type Device struct {
	Name  string
	index int
}

// Find looks for a device in the network namespace of the calling thread, and says what is
// wrong with it: a port of something else hands its packets to that before they are routed.
func Find(name string) (Device, error) {
	link, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return Device{}, fmt.Errorf("there is no device %s", name)
	}
	if err != nil {
		return Device{}, fmt.Errorf("device %s: %w", name, err)
	}
	at := link.Attrs()
	if at.MasterIndex != 0 {
		of := "another device"
		if m, err := netlink.LinkByIndex(at.MasterIndex); err == nil {
			of = m.Type() + " " + m.Attrs().Name
		}
		return Device{}, fmt.Errorf("device %s is part of %s, which gets its packets: copies need a device of their own", name, of)
	}
	if at.Flags&net.FlagUp == 0 {
		return Device{}, fmt.Errorf("device %s is down; type: ip link set %s up", name, name)
	}
	return Device{name, at.Index}, nil
}

// Addresses are the box's own: what goes to them is no copy.
type Addresses map[netip.Addr]bool

// Own reads the addresses of all devices of the network namespace that the calling thread is
// in.
func Own() (Addresses, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("the addresses of this box: %w", err)
	}
	own := make(Addresses, len(list))
	for _, l := range list {
		if a, ok := netip.AddrFromSlice(l.IP); ok {
			own[a.Unmap()] = true
		}
		if a, ok := netip.AddrFromSlice(l.Broadcast); ok {
			own[a.Unmap()] = true
		}
	}
	return own, nil
}

// Has reports whether packets to a are for this box, or for many.
func (o Addresses) Has(a netip.Addr) bool {
	return o[a] || a.IsMulticast() || a == limitedBroadcast
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
