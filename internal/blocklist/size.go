package blocklist

import "weir/internal/model"

// Shape says what a table is made of, for choosing its layout in the kernel.
type Shape struct {
	Lengths map[int]int    // prefix length to how many prefixes have it
	Actions map[Action]int // how many there are of each action
	Inside  int            // prefixes that lie inside another one of the table
	Shared  int            // prefixes that several lists hold
	Cut     int            // pieces of entries that were split
	// Addresses are covered by drop and reject: single addresses for IPv4, /48 networks
	// of which any part is covered for IPv6.
	Addresses uint64
}

// Shape counts the table of a family.
func (c *Compiled) Shape(f model.Family) Shape {
	if f == model.IPv4 {
		return shapeOf(c, c.four)
	}
	return shapeOf(c, c.six)
}

func shapeOf[A number[A]](c *Compiled, cells []cell[A]) Shape {
	s := Shape{Lengths: map[int]int{}, Actions: map[Action]int{}}
	var lengths [129]int
	var actions [Drop + 1]int
	var reach, blocked A
	any := false
	for i, one := range cells {
		lengths[one.bits]++
		actions[one.action]++
		last := one.prefix().last()
		if i > 0 && last.cmp(reach) <= 0 {
			s.Inside++
		} else {
			reach = last
		}
		if len(c.sets[one.set]) > 1 {
			s.Shared++
		}
		if one.bits != one.from {
			s.Cut++
		}
		if one.action > Count {
			s.Addresses += grow(&blocked, &any, one.addr, last)
		}
	}
	for n, count := range lengths {
		if count > 0 {
			s.Lengths[n] = count
		}
	}
	for a, count := range actions {
		if count > 0 {
			s.Actions[Action(a)] = count
		}
	}
	return s
}

// grow returns how many addresses (IPv6: /48 networks) first to last has beyond reach,
// and takes reach on to last. Intervals come sorted by first; any is false before them.
func grow[A number[A]](reach *A, any *bool, first, last A) uint64 {
	if !*any {
		*any, *reach = true, last
		return first.networks(last)
	}
	if last.cmp(*reach) <= 0 {
		return 0
	}
	n := (*reach).networks(last) - 1
	if first.cmp(*reach) > 0 {
		// The network that reach ends in was counted; first may be in it too.
		n = min(n, first.networks(last))
	}
	*reach = last
	return n
}

// Size is how much a list holds: what MaxChange compares.
type Size struct {
	Entries int `json:"entries"` // in normal form, both families, exceptions left out
	// Addresses are single IPv4 addresses, and Networks are /48 networks of IPv6, each
	// counted once and when any part of it is listed. Exceptions are not taken off.
	Addresses uint64 `json:"addresses"`
	Networks  uint64 `json:"networks"`
}

// Size measures the list.
func (l *List) Size() Size {
	return Size{Entries: l.Len(), Addresses: sizeOf(l.four.entries), Networks: sizeOf(l.six.entries)}
}

func sizeOf[A number[A]](list []entry[A]) (n uint64) {
	var reach A
	any := false
	for _, e := range list {
		n += grow(&reach, &any, e.first, e.last)
	}
	return n
}
