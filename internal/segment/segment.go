// Package segment sees on which of the box's segments backends are that answer clients past
// the box, and has the kernel keep their link-layer addresses.
//
// Its one idea: the kernel resolves neighbours itself when packets go to them, also packets
// that nftables forwards from the ingress hook (neigh_xmit in net/core/neighbour.c): one that
// it does not know is asked for, and up to some hundred packets wait for the answer. So
// nothing has to be kept here, and nothing ends with weir. Refresh only asks before packets
// do, so that the first of them does not wait, and goes on asking where no packet comes.
package segment

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// Keeper belongs to one network namespace. Its methods must not be called at the same time.
type Keeper struct{ h *netlink.Handle }

// Open returns a Keeper for the network namespace of the calling thread. To look needs no
// rights; Refresh needs CAP_NET_ADMIN.
func Open() (*Keeper, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("segment: %w", err)
	}
	return &Keeper{h}, nil
}

// Close frees the socket.
func (k *Keeper) Close() { k.h.Close() }

// See returns the devices by which clients of cfg's services with direct return come in, and
// those on whose segments their backends are, as the routes of the box say.
func (k *Keeper) See(cfg *model.Config) (*model.Wires, error) {
	names, indices, err := k.devices()
	if err != nil {
		return nil, err
	}
	w := &model.Wires{Devices: map[string]int{}, Ways: map[netip.Addr]string{}}
	for _, s := range cfg.DirectServices() {
		for _, dev := range s.In {
			if index := indices[dev]; index != 0 {
				w.Devices[dev] = index
			}
		}
		for _, b := range s.Backends {
			if _, seen := w.Ways[b.Addr]; seen {
				continue
			}
			if dev := names[k.segmentOf(b.Addr)]; dev != "" {
				w.Ways[b.Addr], w.Devices[dev] = dev, indices[dev]
			}
		}
	}
	return w, nil
}

// dumpTries is how often a list is asked for that was not consistent.
const dumpTries = 5

func (k *Keeper) devices() (names map[int]string, indices map[string]int, err error) {
	var links []netlink.Link
	for range dumpTries {
		if links, err = k.h.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("segment: list devices: %w", err)
	}
	names, indices = map[int]string{}, map[string]int{}
	for _, l := range links {
		names[l.Attrs().Index], indices[l.Attrs().Name] = l.Attrs().Name, l.Attrs().Index
	}
	return names, indices, nil
}

// segmentOf returns the index of the device on whose segment a is, 0 if it is on none: no
// route leads there, or one by a router, or a is the box's own.
func (k *Keeper) segmentOf(a netip.Addr) int {
	routes, err := k.h.RouteGet(a.AsSlice())
	if err != nil || len(routes) != 1 {
		return 0
	}
	r := routes[0]
	if r.Type != unix.RTN_UNICAST || r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0 {
		return 0
	}
	return r.LinkIndex
}

// settled are the states of neighbours for which nothing has to be done: they are known, or
// being asked for.
const settled = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_INCOMPLETE

// Refresh has the kernel ask for the neighbours of w that it does not know, and confirm those
// that it has not heard of for a while, as packets to them would (NTF_USE). It does not wait.
// What others have set by hand stays.
func (k *Keeper) Refresh(w *model.Wires) error {
	states, err := k.neighbours()
	if err != nil {
		return err
	}
	var errs []error
	for a, dev := range w.Ways {
		at := neighbour{w.Devices[dev], a}
		if states[at]&settled != 0 {
			continue
		}
		err := k.h.NeighSet(&netlink.Neigh{LinkIndex: at.index, IP: a.AsSlice(), Flags: netlink.NTF_USE})
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENETDOWN) { // findings tell of those
			errs = append(errs, fmt.Errorf("segment: ask for %s by %s: %w", a, dev, err))
		}
	}
	return errors.Join(errs...)
}

type neighbour struct {
	index int
	addr  netip.Addr
}

// neighbours returns the states (NUD_*) of those that the kernel has.
func (k *Keeper) neighbours() (map[neighbour]int, error) {
	var list []netlink.Neigh
	var err error
	for range dumpTries {
		if list, err = k.h.NeighList(0, unix.AF_UNSPEC); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("segment: list neighbours: %w", err)
	}
	out := make(map[neighbour]int, len(list))
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			out[neighbour{n.LinkIndex, a.Unmap()}] = n.State
		}
	}
	return out, nil
}
