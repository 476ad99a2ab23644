package engine

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"weir/internal/model"
	"weir/internal/sockets"
)

// Times and bounds of ports on which the box listens.
const (
	// settled is how long a UDP socket must be there whose port the kernel may have chosen:
	// one that asks for a name and is gone is no listener.
	settled = 5 * time.Second
	// released is how long a port stays taken after its listener has gone, which may come
	// back: each change is a commit.
	released = 30 * time.Second
	// mostTaken is how many ports are taken from one pool: each cuts a range in two.
	mostTaken = 1024
)

// takenPorts remembers who listens, and since when.
type takenPorts struct {
	at   time.Time // of the last look
	seen map[sockets.Listener]*sighting
	held map[netip.Addr]bool // addresses of the box
}

type sighting struct {
	first, last time.Time
	hint        bool // it may be no listener: it counts when it has stayed
}

func newTakenPorts() *takenPorts { return &takenPorts{seen: map[sockets.Listener]*sighting{}} }

// see takes what there is now. ephemeral are the ports that the kernel chooses from, held the
// addresses of the box.
func (t *takenPorts) see(now time.Time, list []sockets.Listener, ephemeral model.PortRange, held []netip.Addr) {
	for _, li := range list {
		s := t.seen[li]
		if s == nil {
			s = &sighting{first: now, hint: li.Proto == model.UDP && ephemeral.Contains(li.Port)}
			t.seen[li] = s
		}
		s.last = now
	}
	for li, s := range t.seen {
		if gone := now.Sub(s.last); gone >= released || gone > 0 && !s.counts() {
			delete(t.seen, li)
		}
	}
	t.held = map[netip.Addr]bool{}
	for _, a := range held {
		t.held[a] = true
	}
}

func (s *sighting) counts() bool { return !s.hint || s.last.Sub(s.first) >= settled }

// of returns the ports that are taken from each pool: those of listeners on its addresses, and
// of those on all addresses, if the box has the pool's.
func (t *takenPorts) of(pools []*model.Pool) map[string][]model.TakenPort {
	out := map[string][]model.TakenPort{}
	for _, p := range pools {
		list := t.ofPool(p)
		if len(list) > mostTaken {
			list = list[:mostTaken]
		}
		if len(list) > 0 {
			out[p.Name] = list
		}
	}
	return out
}

func (t *takenPorts) ofPool(p *model.Pool) []model.TakenPort {
	mine, all := t.mine(p)
	set := map[model.TakenPort]bool{}
	for li, s := range t.seen {
		if !s.counts() || !slices.ContainsFunc(p.Ports, func(r model.PortRange) bool { return r.Contains(li.Port) }) {
			continue
		}
		switch {
		case !li.Addr.IsUnspecified():
			if p.Masquerade && t.held[li.Addr] && !li.Addr.IsLoopback() || holds(p, li.Addr) {
				set[model.TakenPort{Addr: li.Addr, Port: li.Port}] = true
			}
		case all:
			set[model.TakenPort{Port: li.Port}] = true
		default:
			for _, a := range mine {
				if li.Addr.Is6() || a.Is4() {
					set[model.TakenPort{Addr: a, Port: li.Port}] = true
				}
			}
		}
	}
	out := make([]model.TakenPort, 0, len(set))
	for k := range set {
		if k.Addr.IsValid() && set[model.TakenPort{Port: k.Port}] {
			continue // said of all
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b model.TakenPort) int { return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port)) })
	return out
}

// mine returns the addresses of the pool that the box has; all says that these are all of
// them. What masquerades has the addresses of devices, which are the box's.
func (t *takenPorts) mine(p *model.Pool) (mine []netip.Addr, all bool) {
	if p.Masquerade {
		return nil, true
	}
	n := 0
	for _, r := range p.Addresses {
		n += sizeOf(&model.Pool{Addresses: []model.AddrRange{r}}, r.Lo)
	}
	for a := range t.held {
		if holds(p, a) {
			mine = append(mine, a)
		}
	}
	return mine, len(mine) == n
}
