package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/state"
)

// Mirrors implements api.Controller.
func (c *control) Mirrors(ctx context.Context) ([]engine.MirrorStatus, error) {
	return c.MirrorList(ctx, c.counters)
}

// StartMirror implements api.Controller.
func (c *control) StartMirror(ctx context.Context, by *state.Operator, name string, m *model.Mirror) error {
	if m != nil {
		for _, d := range m.Match.Devices {
			if noDevice(d) {
				return &api.Error{Code: http.StatusBadRequest, Message: fmt.Sprintf("this machine has no device %q", d)}
			}
		}
		for _, a := range collectorsOf(m) {
			if why := wrongCollector(m, a); why != "" {
				return &api.Error{Code: http.StatusBadRequest, Message: fmt.Sprintf("%s cannot be the collector: %s", a, why)}
			}
		}
	}
	return mirrorError(c.Loop.StartMirror(ctx, by, name, m))
}

// StopMirror implements api.Controller.
func (c *control) StopMirror(ctx context.Context, by *state.Operator, name string) error {
	return mirrorError(c.Loop.StopMirror(ctx, by, name))
}

func mirrorError(err error) error {
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, engine.ErrNoMirror):
		return &api.Error{Code: http.StatusNotFound, Message: err.Error()}
	}
	return &api.Error{Code: http.StatusConflict, Message: err.Error()}
}

// neighbourWords are the states of neighbours (NUD_* of neighbour.h).
var neighbourWords = map[int]string{unix.NUD_INCOMPLETE: "incomplete", unix.NUD_REACHABLE: "reachable", unix.NUD_STALE: "stale",
	unix.NUD_DELAY: "delay", unix.NUD_PROBE: "probe", unix.NUD_FAILED: "failed", unix.NUD_NOARP: "noarp", unix.NUD_PERMANENT: "permanent"}

// wayTo says how the box reaches a collector.
func wayTo(a netip.Addr) (w engine.Way) {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return w
	}
	r := routes[0]
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return w
	}
	w.Dropped = droppedBy(link)
	if _, ok := link.(*netlink.Vxlan); ok && link.Attrs().Statistics != nil {
		w.Errors = link.Attrs().Statistics.TxErrors + link.Attrs().Statistics.TxDropped
	}
	w.Device, w.OnLink = link.Attrs().Name, r.Gw == nil && r.Type == unix.RTN_UNICAST
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := netlink.NeighList(r.LinkIndex, family)
	if err != nil {
		return w
	}
	next := a
	if gateway, ok := netip.AddrFromSlice(r.Gw); ok {
		next = gateway.Unmap()
	}
	for _, n := range neighbours {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == next {
			w.Neighbour = neighbourWords[n.State]
		}
	}
	return w
}

// droppedBy returns the packets that the queue of a device, or the device itself, dropped.
func droppedBy(link netlink.Link) (n uint64) {
	if st := link.Attrs().Statistics; st != nil {
		n = st.TxDropped
	}
	queues, err := netlink.QdiscList(link)
	if err != nil {
		return n
	}
	for _, q := range queues {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Queue != nil {
			n += uint64(a.Statistics.Queue.Drops)
		}
	}
	return n
}

// collectorsOf returns the addresses of a mirror's collectors, as the file has them.
func collectorsOf(m *model.Mirror) []netip.Addr {
	if m.VXLAN.ID != 0 {
		return []netip.Addr{m.VXLAN.Remote}
	}
	return m.To
}

// wrongCollector says why the box cannot send copies to a, "" if it can.
func wrongCollector(m *model.Mirror, a netip.Addr) string {
	if ownAddrs()[a] {
		return "it is an address of this machine; want the address of another"
	}
	w := wayTo(a)
	switch {
	case w.Device == "" && m.VXLAN.ID != 0:
		return "no route of this machine leads there"
	case w.Device == "":
		return "no route of this machine leads there; want an address on a network of this machine"
	case !w.OnLink && m.VXLAN.ID == 0:
		return "it is on no network of this machine, but behind a gateway; want an address on a network of this machine, or vxlan"
	}
	if dst, ok := gatewayOf(a); ok {
		return "it is the gateway of " + dst + ", which would send copies on; want an address that takes no part"
	}
	return ""
}

// gatewayOf returns a destination to which the box sends packets by a.
func gatewayOf(a netip.Addr) (dst string, ok bool) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	is := func(gw net.IP) bool {
		ip, valid := netip.AddrFromSlice(gw)
		return valid && ip.Unmap() == a
	}
	_ = netlink.RouteListFilteredIter(family, &netlink.Route{}, 0, func(r netlink.Route) bool {
		ok = is(r.Gw) || slices.ContainsFunc(r.MultiPath, func(n *netlink.NexthopInfo) bool { return is(n.Gw) })
		if dst = "the default route"; ok && r.Dst != nil && r.Dst.String() != "0.0.0.0/0" && r.Dst.String() != "::/0" {
			dst = r.Dst.String()
		}
		return !ok
	})
	return dst, ok
}

// noDevice reports whether the box has no device of that name, for certain.
func noDevice(name string) bool {
	_, err := netlink.LinkByName(name)
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// checkCollectors refuses a configuration with collectors, or devices of mirrors, that the box
// does not have.
func checkCollectors(name string, cfg *model.Config) error {
	var bad config.Errors
	for i, m := range cfg.Mirrors {
		for j, a := range collectorsOf(m) {
			if why := wrongCollector(m, a); why != "" && j < len(m.Said) {
				bad = append(bad, &config.Error{File: name, Line: m.Said[j].Line, Column: m.Said[j].Column,
					Path: fmt.Sprintf("mirrors[%d].to", i), Found: a.String(), Msg: fmt.Sprintf("%s cannot be the collector: %s", a, why)})
			}
		}
		for j, d := range m.Match.Devices {
			if noDevice(d) && j < len(m.Match.Said) {
				key := map[bool]string{false: "in", true: "out"}[m.Backend]
				bad = append(bad, &config.Error{File: name, Line: m.Match.Said[j].Line, Column: m.Match.Said[j].Column,
					Path: fmt.Sprintf("mirrors[%d].match.%s", i, key), Found: d, Msg: fmt.Sprintf("this machine has no device %q", d)})
			}
		}
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}
