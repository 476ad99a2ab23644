package blocklist

import (
	"cmp"
	"slices"
	"sort"
)

// within returns those of holes that lie in p, or are p. holes are sorted; they may lie
// inside each other.
func within[A number[A]](holes []prefix[A], p prefix[A]) []prefix[A] {
	if len(holes) == 0 {
		return nil
	}
	// Those that lie in p stand together, for what is wider and begins there stands before p.
	from, _ := slices.BinarySearchFunc(holes, p, prefix[A].compare)
	last := p.last()
	n := sort.Search(len(holes)-from, func(i int) bool { return holes[from+i].addr.cmp(last) > 0 })
	return holes[from : from+n]
}

// covered reports whether one of the prefixes, which are sorted and do not overlap, holds
// p as a whole.
func covered[A number[A]](by []prefix[A], p prefix[A]) bool {
	n := sort.Search(len(by), func(i int) bool { return by[i].addr.cmp(p.addr) > 0 })
	return n > 0 && by[n-1].last().cmp(p.last()) >= 0
}

// cut appends what is left of p without holes, as few prefixes as can be, in order. The
// holes lie in p and are sorted.
func cut[A number[A]](to []prefix[A], p prefix[A], holes []prefix[A]) []prefix[A] {
	if len(holes) == 0 {
		return append(to, p)
	}
	if holes[0].bits <= p.bits {
		return to // the widest of those that begin here comes first
	}
	left := prefix[A]{p.addr, p.bits + 1}
	right := prefix[A]{left.last().next(), p.bits + 1}
	n := sort.Search(len(holes), func(i int) bool { return holes[i].addr.cmp(right.addr) >= 0 })
	return cut(cut(to, left, holes[:n]), right, holes[n:])
}

// disjoint sorts prefixes and takes out those that lie in others.
func disjoint[A number[A]](list []prefix[A]) []prefix[A] {
	slices.SortFunc(list, prefix[A].compare)
	out := list[:0]
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].last().cmp(p.last()) >= 0 {
			continue
		}
		out = append(out, p)
	}
	return out
}

// interval is a run of addresses.
type interval[A number[A]] struct{ first, last A }

// union sorts intervals and joins those that overlap.
func union[A number[A]](list []interval[A]) []interval[A] {
	slices.SortFunc(list, func(a, b interval[A]) int {
		return cmp.Or(a.first.cmp(b.first), b.last.cmp(a.last))
	})
	out := list[:0]
	for _, i := range list {
		if n := len(out); n > 0 && out[n-1].last.cmp(i.first) >= 0 {
			if out[n-1].last.cmp(i.last) < 0 {
				out[n-1].last = i.last
			}
			continue
		}
		out = append(out, i)
	}
	return out
}
