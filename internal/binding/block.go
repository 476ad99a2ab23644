package binding

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/internal/conntrack"
	"weir/internal/model"
)

// tellBlocks writes the parameters of all pools with blocks.
func (b *Book) tellBlocks(at time.Time, emit func(Line)) {
	b.told = nil
	b.TellBlocks(at, emit)
}

// TellBlocks writes the parameters of the pools with blocks whose clients have others than
// was written before, and of those that give none any more.
func (b *Book) TellBlocks(at time.Time, emit func(Line)) {
	now := map[string]string{}
	for _, p := range b.blocks {
		l := blocksLine(time.Time{}, p)
		now[p.Name] = l.String()
		if b.told[p.Name] != now[p.Name] {
			l.Time = at
			emit(l)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.told)) {
		if _, still := now[name]; !still {
			emit(Line{Time: at, Event: Blocks, Pool: name})
		}
	}
	b.told = now
}

func blocksLine(at time.Time, p *model.Pool) Line {
	l := Line{Time: at, Event: Blocks, Pool: p.Name, Size: p.Block}
	for _, x := range p.From {
		l.Clients = append(l.Clients, x.String())
	}
	for _, x := range p.Addresses {
		l.Addresses = append(l.Addresses, addrsText(x))
	}
	for _, x := range p.Ports {
		l.Ranges = append(l.Ranges, x.String())
	}
	for _, x := range p.Drained {
		l.Drained = append(l.Drained, x.String())
	}
	return l
}

// poolOf returns a pool that gives the same blocks as the one that the line is about.
func (l *Line) poolOf() (*model.Pool, bool) {
	p := &model.Pool{Name: l.Pool, Block: l.Size, Log: true}
	ok := l.Event == Blocks && l.Size > 0
	for _, s := range l.Clients {
		x, err := netip.ParsePrefix(s)
		ok = ok && err == nil
		p.From = append(p.From, x)
	}
	for _, s := range l.Addresses {
		x, err := parseAddrs(s)
		ok = ok && err
		p.Addresses = append(p.Addresses, x)
	}
	for _, s := range l.Ranges {
		x, err := parsePorts(s)
		ok = ok && err
		p.Ports = append(p.Ports, x)
	}
	for _, s := range l.Drained {
		x, err := netip.ParseAddr(s)
		ok = ok && err == nil
		p.Drained = append(p.Drained, x)
	}
	return p, ok
}

// useBlock writes that a client uses its block, once for each file.
func (b *Book) useBlock(at time.Time, p *model.Pool, f *conntrack.Flow, emit func(Line)) {
	u := use{p.Name, f.Orig.Src.Addr()}
	if b.used[u] {
		return
	}
	have, ok := p.BlockOf(u.client)
	if !ok || have.Addr != f.Reply.Dst.Addr() {
		return // a connection from before the pool was as it is
	}
	if b.used == nil {
		b.used = map[use]bool{}
	}
	b.used[u] = true
	emit(Line{Time: at, Event: Block, Pool: p.Name, Inside: u.client.String(), Outside: have.Addr.String(), Ports: have.Ports.String()})
}

// addrsText returns "192.0.2.1", or "192.0.2.0-192.0.2.5".
func addrsText(r model.AddrRange) string {
	if r.Lo == r.Hi {
		return r.Lo.String()
	}
	return r.Lo.String() + "-" + r.Hi.String()
}

func parseAddrs(s string) (model.AddrRange, bool) {
	lo, hi, many := strings.Cut(s, "-")
	if !many {
		hi = lo
	}
	a, errLo := netip.ParseAddr(lo)
	b, errHi := netip.ParseAddr(hi)
	return model.AddrRange{Lo: a, Hi: b}, errLo == nil && errHi == nil && a.BitLen() == b.BitLen() && !b.Less(a)
}

func parsePorts(s string) (model.PortRange, bool) {
	lo, hi, many := strings.Cut(s, "-")
	if !many {
		hi = lo
	}
	a, errLo := strconv.ParseUint(lo, 10, 16)
	b, errHi := strconv.ParseUint(hi, 10, 16)
	return model.PortRange{Lo: uint16(a), Hi: uint16(b)}, errLo == nil && errHi == nil && a <= b
}
