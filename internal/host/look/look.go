// Package look sees what a box provides (host.Facts), once or as it changes. It only ever
// reads, and needs no rights for that.
package look

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/host"
	"weir/internal/model"
)

// Looker looks at the network namespace in which it was opened; its methods must be called
// by threads in that, for the sysctls are those of the thread, and not at the same time.
type Looker struct {
	r      *rtnl
	routes map[routeKey]*host.Route // the same one for all destinations that share it
	names  map[int]string           // of devices, by index, as seen last
	wires  []host.HeldPrefix        // addresses with a network, as seen last
}

// routeKey tells routes apart.
type routeKey struct {
	way  host.Way
	dst  netip.Prefix
	own  netip.Prefix
	hops string
}

// Open returns a Looker for the network namespace of the calling thread.
func Open() (*Looker, error) {
	r, err := openRTNL()
	if err != nil {
		return nil, err
	}
	return &Looker{r: r, routes: map[routeKey]*host.Route{}}, nil
}

// Close frees the socket.
func (l *Looker) Close() { l.r.close() }

// Look returns all that is to be known for n, but for Facts.Last. Where most is not 0, it
// looks for the routes to about as many backends at most, spread over all of them.
func (l *Looker) Look(n *host.Needs, most int) (*host.Facts, error) {
	f := &host.Facts{}
	l.sysctls(f)
	if err := l.links(f); err != nil {
		return nil, err
	}
	if err := l.held(f); err != nil {
		return nil, err
	}
	if err := l.defaults(f); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		addrs []netip.Addr
		to    *[]*host.Route
	}{{n.Backends, &f.Routes}, {n.Sources, &f.SourceRoutes}, {n.Listens, &f.ListenRoutes}} {
		*part.to = make([]*host.Route, len(part.addrs))
		for at := 0; at < len(part.addrs); {
			end, next := len(part.addrs), len(part.addrs)
			if most > 0 && len(part.addrs) > most { // a bunch of questions, and a gap
				end, next = min(at+asked, end), at+asked*len(part.addrs)/most
			}
			if err := l.ways(part.addrs, *part.to, at, end); err != nil {
				return nil, err
			}
			at = next
		}
	}
	return f, nil
}

// sysctls reads what is the whole box's.
func (l *Looker) sysctls(f *host.Facts) {
	f.Forward = map[model.Family]int{}
	for family, key := range map[model.Family]string{model.IPv4: "ipv4/ip_forward", model.IPv6: "ipv6/conf/all/forwarding"} {
		if v, ok := sysctl(key); ok {
			f.Forward[family] = v
		}
	}
	f.RPFilterAll, _ = sysctl("ipv4/conf/all/rp_filter")
	f.TCPLoose, f.TCPLiberal = -1, -1
	if v, ok := sysctl("netfilter/nf_conntrack_tcp_loose"); ok {
		f.TCPLoose = v
	}
	if v, ok := sysctl("netfilter/nf_conntrack_tcp_be_liberal"); ok {
		f.TCPLiberal = v
	}
	level := f.Conntrack.Level
	f.Conntrack = host.Conntrack{Level: level}
	f.Conntrack.Max, _ = sysctl("netfilter/nf_conntrack_max")
	f.Conntrack.Count, _ = sysctl("netfilter/nf_conntrack_count")
	f.Conntrack.Buckets, _ = sysctl("netfilter/nf_conntrack_buckets")
	events, ok := sysctl("netfilter/nf_conntrack_events")
	f.Conntrack.NoEvents = ok && events == 0
	f.Conntrack.Level = f.Conntrack.Fill()
}

// sysctl reads a number below /proc/sys/net.
func sysctl(key string) (int, bool) {
	b, err := os.ReadFile("/proc/sys/net/" + key)
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

func (l *Looker) links(f *host.Facts) error {
	f.Links = nil
	names := map[int]string{}
	err := l.r.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg), func(b []byte) error {
		if d, ok := parseLink(b); ok && names[d.Index] == "" { // an interrupted dump begins anew
			names[d.Index] = d.Name
			f.Links = append(f.Links, d)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	l.names = names
	return nil
}

func (l *Looker) held(f *host.Facts) error {
	f.Held = nil
	err := l.r.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, make([]byte, unix.SizeofIfAddrmsg), func(b []byte) error {
		if p, index := parseAddress(b); p.IsValid() && l.names[index] != "" {
			f.Held = append(f.Held, host.HeldPrefix{Dev: l.names[index], Prefix: p})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	slices.SortFunc(f.Held, func(a, b host.HeldPrefix) int {
		return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	f.Held = slices.Compact(f.Held)
	l.wires = slices.DeleteFunc(slices.Clone(f.Held), func(h host.HeldPrefix) bool { return h.Prefix.IsSingleIP() })
	return nil
}

// probes are destinations that no route but a default one leads to: networks for
// documentation and discarding (RFC 5737, RFC 6666). Where one does, that device's default
// routes stay unknown.
var probes = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("100::1")}

// defaults asks, device by device, for the default route over it. Reading the tables
// instead would take seconds where they hold the whole Internet.
func (l *Looker) defaults(f *host.Facts) error {
	f.Defaults = nil
	var list []lookUp
	for _, d := range f.Links {
		if d.Up && !d.Loop {
			list = append(list, lookUp{probes[0], d.Index}, lookUp{probes[1], d.Index})
		}
	}
	err := l.r.routes(list, func(i int, body []byte, errno unix.Errno) {
		if errno != 0 {
			return
		}
		e, ok := parseRoute(body)
		if ok && e.way() == host.Forwarded && e.dst.Bits() == 0 && len(e.hops) == 1 && e.hops[0].index == list[i].oif {
			f.Defaults = append(f.Defaults, host.Default{Family: familyOf(e.dst), Dev: l.names[list[i].oif],
				Metric: e.metric, RA: e.proto == unix.RTPROT_RA})
		}
	})
	if err != nil {
		return fmt.Errorf("look for default routes: %w", err)
	}
	return nil
}

// ways looks up the routes to addrs[from:to] and puts them at the same place of out. One
// whose device was not there when the devices were listed stays nil, for the next look.
func (l *Looker) ways(addrs []netip.Addr, out []*host.Route, from, to int) error {
	list := make([]lookUp, to-from)
	for i := range list {
		list[i].dst = addrs[from+i]
	}
	err := l.r.routes(list, func(i int, body []byte, errno unix.Errno) {
		if errno != 0 {
			out[from+i] = l.intern(routeKey{way: wayOf(errno)}, nil)
			return
		}
		e, ok := parseRoute(body)
		if ok {
			out[from+i] = l.route(e)
		}
	})
	if err != nil {
		return fmt.Errorf("look for routes: %w", err)
	}
	return nil
}

// route returns the shared route of an entry, nil if its devices are not known.
func (l *Looker) route(e entry) *host.Route {
	key := routeKey{way: e.way(), dst: e.dst}
	if key.way != host.Forwarded {
		if key.way != host.Local {
			key.dst = netip.Prefix{}
		}
		return l.intern(key, nil)
	}
	var hops []host.Hop
	var text strings.Builder
	for _, h := range e.hops {
		name := l.names[h.index]
		if name == "" {
			return nil
		}
		hops = append(hops, host.Hop{Dev: name, Gateway: h.gateway})
		text.WriteString(name + "/")
		text.Write(h.gateway.AsSlice())
	}
	if len(hops) > 0 {
		key.own = own(l.wires, e.dst, hops[0])
	}
	key.hops = text.String()
	return l.intern(key, hops)
}

// mostRoutes is how many routes are shared at most; then sharing begins anew.
const mostRoutes = 1 << 18

func (l *Looker) intern(key routeKey, hops []host.Hop) *host.Route {
	if r := l.routes[key]; r != nil {
		return r
	}
	if len(l.routes) >= mostRoutes {
		clear(l.routes)
	}
	r := &host.Route{Way: key.way, Dst: key.dst, Own: key.own, Hops: hops}
	l.routes[key] = r
	return r
}
