package binding

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/internal/conntrack"
	"weir/internal/model"
)

// Book knows which connections of the pools are open, and turns what is heard of them into
// lines. It takes some 150 bytes for each that is open. The zero value has no pools.
type Book struct {
	ranges []poolRange   // of the pools with addresses, ascending
	masq   []*model.Pool // of those without, in the order of the file
	blocks []*model.Pool // those that log their blocks, in the order of the file
	open   map[conn]state
	used   map[use]bool      // blocks that were written
	unsure int               // open connections whose end the kernel may not tell
	sure   time.Time         // when all that is open was surely there
	told   map[string]string // the line about the blocks of each pool
}

type poolRange struct {
	model.AddrRange
	pool *model.Pool
}

// conn is a connection, small enough to keep many.
type conn struct {
	proto               model.Proto
	v6                  bool
	inside, outside, to place
}

type place struct {
	addr [16]byte
	port uint16
}

// state is what is known of an open connection.
type state struct {
	pool  string
	start time.Time // zero: before it was looked
	heard bool      // the kernel told of its beginning, so it will of its end
}

// use is a client that uses its block.
type use struct {
	pool   string
	client netip.Addr
}

func placeOf(a netip.Addr, port uint16) place { return place{a.As16(), port} }

func (c conn) text(p place, bare bool) string {
	a := netip.AddrFrom16(p.addr)
	if !c.v6 {
		a = a.Unmap()
	}
	if bare {
		return a.String()
	}
	return netip.AddrPortFrom(a, p.port).String()
}

// ported reports whether the protocol has something like ports.
func ported(p model.Proto) bool {
	const udplite, dccp = 136, 33
	switch p {
	case model.TCP, model.UDP, model.SCTP, udplite, dccp, conntrack.ICMP, conntrack.ICMPv6:
		return true
	}
	return false
}

// Protocol returns the word of a protocol in lines: tcp, udp, icmp, or its number.
func Protocol(p model.Proto) string {
	switch p {
	case conntrack.ICMP:
		return "icmp"
	case conntrack.ICMPv6:
		return "icmpv6"
	}
	return p.String()
}

// connOf returns the connection of a flow.
func connOf(f *conntrack.Flow) conn {
	inside, outside := f.Orig.Src.Port(), f.Reply.Dst.Port()
	if f.Proto == conntrack.ICMP || f.Proto == conntrack.ICMPv6 {
		inside, outside = f.Orig.ICMPID, f.Reply.ICMPID
	}
	return conn{proto: f.Proto, v6: f.Orig.Src.Addr().Is6(), inside: placeOf(f.Orig.Src.Addr(), inside),
		outside: placeOf(f.Reply.Dst.Addr(), outside), to: placeOf(f.Reply.Src.Addr(), f.Reply.Src.Port())}
}

// line returns a line about the connection.
func (c conn) line(at time.Time, event, pool string) Line {
	bare := !ported(c.proto)
	icmp := c.proto == conntrack.ICMP || c.proto == conntrack.ICMPv6
	return Line{Time: at, Event: event, Pool: pool, Proto: Protocol(c.proto), Inside: c.text(c.inside, bare),
		Outside: c.text(c.outside, bare), To: c.text(c.to, bare || icmp)}
}

// SetPools says which pools there are. Of those without Log nothing is written; what is open
// is followed to its end.
func (b *Book) SetPools(pools []*model.Pool) {
	b.ranges, b.masq, b.blocks = nil, nil, nil
	for _, p := range pools {
		for _, r := range p.Addresses {
			b.ranges = append(b.ranges, poolRange{r, p})
		}
		if p.Masquerade {
			b.masq = append(b.masq, p)
		}
		if p.Log && p.Block > 0 {
			b.blocks = append(b.blocks, p)
		}
	}
	slices.SortFunc(b.ranges, func(x, y poolRange) int { return x.Lo.Compare(y.Lo) })
}

// Logs reports whether some pool is to be logged.
func Logs(pools []*model.Pool) bool {
	return slices.ContainsFunc(pools, func(p *model.Pool) bool { return p.Log })
}

// pool returns the pool that gave the flow its source, or nil. A pool without addresses is
// known by what it matches; by which device a flow left is not known.
func (b *Book) pool(f *conntrack.Flow) *model.Pool {
	outside := f.Reply.Dst
	if !f.Orig.IsValid() || !f.Reply.IsValid() || outside == f.Orig.Src && f.Status&conntrack.StatusSNAT == 0 {
		return nil
	}
	i, found := slices.BinarySearchFunc(b.ranges, outside.Addr(), func(r poolRange, a netip.Addr) int { return r.Lo.Compare(a) })
	if !found {
		i--
	}
	if i >= 0 && b.ranges[i].Hi.Compare(outside.Addr()) >= 0 {
		return b.ranges[i].pool
	}
	for _, p := range b.masq {
		if matches(p, f) {
			return p
		}
	}
	return nil
}

// matches reports whether the pool's words fit the flow, but for devices.
func matches(p *model.Pool, f *conntrack.Flow) bool {
	src, dst := f.Orig.Src.Addr(), f.Reply.Src
	within := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(x netip.Prefix) bool { return x.Contains(a) })
	}
	return !f.DNATed() && (len(p.From) == 0 || within(p.From, src)) && (len(p.To) == 0 || within(p.To, dst.Addr())) && !within(p.Except, dst.Addr()) &&
		(len(p.Traffic) == 0 || slices.ContainsFunc(p.Traffic, func(t model.Traffic) bool {
			return t.Proto == f.Proto && (t.Ports.IsZero() || t.Ports.Lo <= dst.Port() && dst.Port() <= t.Ports.Hi)
		}))
}

// Begin takes a connection that the kernel says began.
func (b *Book) Begin(at time.Time, f *conntrack.Flow, emit func(Line)) {
	p := b.pool(f)
	switch {
	case p == nil || !p.Log:
	case p.Block > 0:
		b.useBlock(at, p, f, emit)
	default:
		c := connOf(f)
		if old, ok := b.open[c]; ok { // its end was not heard
			b.close(c, old)
			emit(c.ended(at, old, b.surely(old)))
		}
		b.put(c, state{p.Name, at, true})
		emit(c.line(at, Start, p.Name))
	}
}

// End takes a connection that the kernel says ended.
func (b *Book) End(at time.Time, f *conntrack.Flow, emit func(Line)) {
	c := connOf(f)
	if s, ok := b.open[c]; ok {
		b.close(c, s)
		emit(c.ended(at, s, time.Time{}))
		return
	}
	if p := b.pool(f); p != nil && p.Log && p.Block == 0 {
		emit(c.line(at, End, p.Name))
	}
}

// ended is the line of a connection's end. after is given where the end was not heard.
func (c conn) ended(at time.Time, s state, after time.Time) Line {
	l := c.line(at, End, s.pool)
	l.Start, l.After = s.start, after
	return l
}

func (b *Book) put(c conn, s state) {
	if b.open == nil {
		b.open = map[conn]state{}
	}
	if !s.heard {
		b.unsure++
	}
	b.open[c] = s
}

func (b *Book) close(c conn, s state) {
	if !s.heard {
		b.unsure--
	}
	delete(b.open, c)
}

// Len returns how many connections are open.
func (b *Book) Len() int { return len(b.open) }

// Unsure returns of how many of them the end may not be heard.
func (b *Book) Unsure() int { return b.unsure }

// Compared is what differs between the book and what the kernel had.
type Compared struct {
	gone  []conn               // in the book, not in the kernel
	fresh map[conn]*model.Pool // in the kernel, not in the book
}

// Compare looks for differences. dump calls its function for every flow of the kernel whose
// source is translated. What the kernel had to tell until the dump's end may not have been
// heard yet: Settle decides after it was.
func (b *Book) Compare(at time.Time, dump func(func(conntrack.Flow) bool) error, emit func(Line)) (Compared, error) {
	d := Compared{fresh: map[conn]*model.Pool{}}
	there := make(map[conn]bool, len(b.open))
	err := dump(func(f conntrack.Flow) bool {
		c := connOf(&f)
		if _, ok := b.open[c]; ok {
			there[c] = true
			return true
		}
		switch p := b.pool(&f); {
		case p == nil || !p.Log:
		case p.Block > 0:
			b.useBlock(at, p, &f, emit)
		default:
			d.fresh[c] = p
		}
		return true
	})
	if err != nil {
		return Compared{}, err
	}
	for c := range b.open {
		if !there[c] {
			d.gone = append(d.gone, c)
		}
	}
	return d, nil
}

// Ended says that the end of a connection was heard after the dump.
func (d *Compared) Ended(f *conntrack.Flow) { delete(d.fresh, connOf(f)) }

// surely returns when an open connection was surely there last.
func (b *Book) surely(s state) time.Time {
	if s.start.After(b.sure) {
		return s.start
	}
	return b.sure
}

// Settle writes what is left of the differences once all that was to be heard is. at is when
// the dump began.
func (b *Book) Settle(at time.Time, d Compared, emit func(Line)) {
	slices.SortFunc(d.gone, compareConns)
	for _, c := range d.gone {
		if s, ok := b.open[c]; ok && !s.start.After(at) {
			b.close(c, s)
			emit(c.ended(at, s, b.surely(s)))
		}
	}
	b.sure = at
	fresh := make([]conn, 0, len(d.fresh))
	for c := range d.fresh {
		fresh = append(fresh, c)
	}
	slices.SortFunc(fresh, compareConns)
	for _, c := range fresh {
		if _, ok := b.open[c]; !ok {
			b.put(c, state{pool: d.fresh[c].Name})
			emit(c.line(at, Open, d.fresh[c].Name))
		}
	}
}

func compareConns(x, y conn) int {
	return cmp.Or(cmp.Compare(x.proto, y.proto), strings.Compare(string(x.outside.addr[:]), string(y.outside.addr[:])),
		cmp.Compare(x.outside.port, y.outside.port), strings.Compare(string(x.to.addr[:]), string(y.to.addr[:])),
		cmp.Compare(x.to.port, y.to.port), strings.Compare(string(x.inside.addr[:]), string(y.inside.addr[:])),
		cmp.Compare(x.inside.port, y.inside.port))
}

// Resume takes over connections that were open when a log ended, at. What the book has heard
// of since stays; ended are those whose end was heard since.
func (b *Book) Resume(at time.Time, open map[conn]state, ended map[conn]bool) {
	b.sure = at
	for c, s := range open {
		if _, known := b.open[c]; !known && !ended[c] {
			b.put(c, s)
		}
	}
}

// Snapshot writes all that is open, and all parameters of blocks.
func (b *Book) Snapshot(at time.Time, emit func(Line)) {
	b.used = nil // what follows says which blocks are in use
	emit(Line{Time: at, Event: All, Lines: len(b.blocks) + len(b.open)})
	b.tellBlocks(at, emit)
	for c, s := range b.open {
		l := c.line(at, Open, s.pool)
		l.Start = s.start
		emit(l)
	}
}
