package look

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Own is an address that belongs to the box or that it needs: one of a device, or a gateway.
type Own struct {
	Addr netip.Addr
	What string // for people: "address 192.0.2.1 of eth0"
}

// maxRoutes is how many routes are looked at for their gateways: a router with more learns
// them from few neighbours, and those come early.
const maxRoutes = 20_000

// Own returns the addresses of all devices and the gateways of routes, sorted.
func (l *Looker) Own() ([]Own, error) {
	own := map[netip.Addr]string{}
	if err := l.gateways(own); err != nil {
		return nil, err
	}
	names := map[int]string{}
	err := l.r.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg), func(b []byte) error {
		if d, ok := parseLink(b); ok {
			names[d.Index] = d.Name
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	err = l.r.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, make([]byte, unix.SizeofIfAddrmsg), func(b []byte) error {
		if p, index := parseAddress(b); p.IsValid() {
			own[p.Addr()] = fmt.Sprintf("address %s of %s", p.Addr(), names[index])
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]Own, 0, len(own))
	for a, what := range own {
		out = append(out, Own{a, what})
	}
	slices.SortFunc(out, func(a, b Own) int { return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.What, b.What)) })
	return out, nil
}

var errEnough = errors.New("enough was read")

func (l *Looker) gateways(own map[netip.Addr]string) error {
	n := 0
	err := l.r.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, make([]byte, unix.SizeofRtMsg), func(b []byte) error {
		if n++; n > maxRoutes {
			return errEnough
		}
		for _, h := range parseGateways(b) {
			if h.gateway.IsValid() {
				own[h.gateway] = fmt.Sprintf("gateway %s", h.gateway)
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		// What is left of the answer is of no question of a new socket.
		fresh, err := openRTNL()
		if err != nil {
			return err
		}
		l.r.close()
		l.r = fresh
		return nil
	}
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	return nil
}

// parseGateways reads the ways of a struct rtmsg and its attributes.
func parseGateways(b []byte) []hop {
	if len(b) < unix.SizeofRtMsg {
		return nil
	}
	var only hop
	var all []hop
	for typ, d := range attrs(b[unix.SizeofRtMsg:]) {
		if typ == unix.RTA_MULTIPATH {
			all = parseHops(d)
		}
		only.attr(typ, d)
	}
	return append(all, only)
}
