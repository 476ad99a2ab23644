package blocklist

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"weir/internal/model"
)

// Use is a list and what is done with the packets of its addresses.
type Use struct {
	List   *List
	Action Action // Count, Reject or Drop
}

// Compiled is what lists and allowed prefixes come to. It never changes.
//
// Each family's table is sorted by address, the wider prefix first, and no two are alike.
// A prefix may lie inside another one. Then the most specific one counts, and its action
// is at least that of all around it: an address that a list drops is dropped, even though
// another list only counts a smaller net around it. An allowed prefix is in no prefix of
// the table: those that held it were split around it.
type Compiled struct {
	uses  []Use
	allow []netip.Prefix // as given, masked, never 4-in-6
	sets  [][]uint16     // lists by index in uses, ascending: the first are one list each

	four []cell[v4]
	six  []cell[v6]

	// Allowed is how many entries of lists were left out because an allowed prefix covers
	// them, and Split how many were split around one; each prefix counted once.
	Allowed, Split int
}

// cell is one prefix of a table: 12 bytes for IPv4, 24 for IPv6.
type cell[A number[A]] struct {
	addr   A
	set    uint32 // the lists that hold it
	bits   uint8
	from   uint8 // length of the prefix that it was cut from by an allowed one; else bits
	action Action
	own    Action // the strongest of its own lists
}

func (c cell[A]) prefix() prefix[A] { return prefix[A]{c.addr, c.bits} }

// compare orders cells by prefix, then the one cut from the smallest prefix first.
func (c cell[A]) compare(o cell[A]) int {
	if n := c.addr.cmp(o.addr); n != 0 {
		return n
	}
	if c.bits != o.bits {
		return int(c.bits) - int(o.bits)
	}
	return int(o.from) - int(c.from)
}

func (c cell[A]) digit(i int) byte { return c.addr.byte(i) }
func (c cell[A]) digits() int      { return c.addr.width() / 8 }

// maxCells bounds a table: a list of IPv6 ranges may come to 254 prefixes for each line.
const maxCells = 1 << 26

// maxUses is how many lists there can be.
const maxUses = 1 << 16

// Compile merges lists. allow holds the prefixes that are never blocked; a 4-in-6 one
// is IPv4. The error says that there are too many lists, or too many prefixes in all.
func Compile(uses []Use, allow []netip.Prefix) (*Compiled, error) {
	if len(uses) > maxUses {
		return nil, fmt.Errorf("%d blocklists; at most %d", len(uses), maxUses)
	}
	c := &Compiled{uses: slices.Clone(uses)}
	for i := range uses {
		c.sets = append(c.sets, []uint16{uint16(i)})
	}
	var four []prefix[v4]
	var six []prefix[v6]
	for _, p := range allow {
		p4, p6, is4 := numberPrefix(p)
		if is4 {
			four = append(four, p4)
			c.allow = append(c.allow, p4.netip())
		} else {
			six = append(six, p6)
			c.allow = append(c.allow, p6.netip())
		}
	}
	slices.SortFunc(c.allow, netip.Prefix.Compare)
	c.allow = slices.Compact(c.allow)
	ids := map[string]uint32{}
	var err error
	if c.four, err = compileFamily(c, ids, four, func(l *List) *family[v4] { return &l.four }); err != nil {
		return nil, err
	}
	if c.six, err = compileFamily(c, ids, six, func(l *List) *family[v6] { return &l.six }); err != nil {
		return nil, err
	}
	return c, nil
}

// numberPrefix returns p as one of the two, and which: 4-in-6 prefixes of 96 bits and more
// are IPv4.
func numberPrefix(p netip.Prefix) (four prefix[v4], six prefix[v6], is4 bool) {
	bits := p.Bits()
	if p.Addr().Is4In6() && bits < 96 {
		p = p.Masked() // no longer 4-in-6
	}
	a4, a6, is4 := numberOf(p.Addr())
	if !is4 {
		return four, prefix[v6]{a6.first(bits), uint8(bits)}, false
	}
	if p.Addr().Is4In6() {
		bits -= 96
	}
	return prefix[v4]{a4.first(bits), uint8(bits)}, six, true
}

// compileFamily makes the table of one family; of picks it from a list.
func compileFamily[A number[A]](c *Compiled, ids map[string]uint32, allow []prefix[A], of func(*List) *family[A]) ([]cell[A], error) {
	total := 0
	for _, u := range c.uses {
		total += len(of(u.List).entries)
	}
	cells := make([]cell[A], 0, total)
	for i, u := range c.uses {
		var err error
		if cells, err = listCells(cells, of(u.List), uint32(i), u.Action); err != nil {
			return nil, err
		}
	}
	sortRecords(cells)
	cells = mergeCells(c, ids, cells)
	inherit(cells)
	return exclude(c, cells, allow)
}

// listCells appends the prefixes of one list.
func listCells[A number[A]](to []cell[A], f *family[A], set uint32, action Action) ([]cell[A], error) {
	var holes []prefix[A]
	for _, h := range f.holes {
		holes = split(holes, h.first, h.last)
	}
	slices.SortFunc(holes, prefix[A].compare)
	var parts, pieces []prefix[A]
	for _, e := range f.entries {
		parts = split(parts[:0], e.first, e.last)
		for _, p := range parts {
			pieces = cut(pieces[:0], p, within(holes, p))
			for _, piece := range pieces {
				to = append(to, cell[A]{addr: piece.addr, bits: piece.bits, from: piece.bits, set: set, own: action, action: action})
			}
		}
		if len(to) > maxCells {
			return nil, tooMany()
		}
	}
	return to, nil
}

func tooMany() error {
	return fmt.Errorf("the blocklists come to more than %d prefixes of one family; are there wide ranges in them, or many allowed addresses inside?", maxCells)
}

// mergeCells makes one of cells with the same prefix. It knows all their lists.
func mergeCells[A number[A]](c *Compiled, ids map[string]uint32, cells []cell[A]) []cell[A] {
	out := cells[:0]
	for i := 0; i < len(cells); {
		one := cells[i]
		end := i + 1
		for end < len(cells) && cells[end].prefix() == one.prefix() {
			one.own = max(one.own, cells[end].own)
			end++
		}
		if end > i+1 {
			one.set = setOf(c, ids, cells[i:end])
		}
		out = append(out, one)
		i = end
	}
	return out
}

// setOf returns the number of the set of lists of these cells, which have one each.
func setOf[A number[A]](c *Compiled, ids map[string]uint32, cells []cell[A]) uint32 {
	slices.SortFunc(cells, func(a, b cell[A]) int { return cmp.Compare(a.set, b.set) })
	var buf [64]byte
	key := binary.BigEndian.AppendUint16(buf[:0], uint16(cells[0].set))
	for i, one := range cells[1:] {
		if one.set != cells[i].set {
			key = binary.BigEndian.AppendUint16(key, uint16(one.set))
		}
	}
	if len(key) == 2 {
		return cells[0].set
	}
	id, ok := ids[string(key)]
	if !ok {
		id = uint32(len(c.sets))
		set := make([]uint16, len(key)/2)
		for i := range set {
			set[i] = binary.BigEndian.Uint16(key[2*i:])
		}
		c.sets = append(c.sets, set)
		ids[string(key)] = id
	}
	return id
}

// inherit gives each cell the strongest action of its own and those around it.
func inherit[A number[A]](cells []cell[A]) {
	type around struct {
		last   A
		action Action
	}
	var stack []around
	for i := range cells {
		c := &cells[i]
		for len(stack) > 0 && stack[len(stack)-1].last.cmp(c.addr) < 0 {
			stack = stack[:len(stack)-1]
		}
		c.action = c.own
		if len(stack) > 0 {
			c.action = max(c.action, stack[len(stack)-1].action)
		}
		stack = append(stack, around{c.prefix().last(), c.action})
	}
}

// exclude takes the allowed prefixes out: what they cover goes, what holds them is split.
func exclude[A number[A]](c *Compiled, cells []cell[A], allow []prefix[A]) ([]cell[A], error) {
	if len(allow) == 0 {
		return cells, nil
	}
	allow = disjoint(allow)
	out := cells[:0]
	var extra []cell[A]
	var pieces []prefix[A]
	for _, one := range cells {
		p := one.prefix()
		if covered(allow, p) {
			c.Allowed++
			continue
		}
		in := within(allow, p)
		if len(in) == 0 {
			out = append(out, one)
			continue
		}
		c.Split++
		pieces = cut(pieces[:0], p, in)
		for _, piece := range pieces {
			one.addr, one.bits = piece.addr, piece.bits
			extra = append(extra, one)
		}
		if len(out)+len(extra) > maxCells {
			return nil, tooMany()
		}
	}
	if len(extra) == 0 {
		return out, nil
	}
	// A piece may be there already, as a prefix of its own or a piece of a smaller one:
	// what is cut from the smallest stays, for its action is at least that of all around.
	out = append(out, extra...)
	sortRecords(out)
	return slices.CompactFunc(out, func(a, b cell[A]) bool { return a.prefix() == b.prefix() }), nil
}

// Allow returns the allowed prefixes, sorted.
func (c *Compiled) Allow() []netip.Prefix { return c.allow }

// Len returns the number of prefixes in the table of a family.
func (c *Compiled) Len(f model.Family) int {
	if f == model.IPv4 {
		return len(c.four)
	}
	return len(c.six)
}
