package blocklist

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// Protected is something that no list may cut off: an address of the machine itself, a
// backend, a gateway, a management net.
type Protected struct {
	Prefix netip.Prefix
	What   string // for people: "backend 10.1.1.1:80 of service web"
}

const (
	namedProtected = 3 // how many protected things a problem names
	namedAllow     = 8 // how many prefixes it tells to allow
)

// CheckProtected returns the entries of lists that would drop or reject packets from what
// is protected, each with its place and with what to do: at most MaxProblems of them, and
// one that says so. What an allowed prefix covers is in no danger, so that is how a list
// with private nets in it (FireHOL level 1 has 10.0.0.0/8) is used beside inside nets of
// one's own: they are allowed.
//
// Whatever is protected, it objects to an entry that holds all of IPv4, or all of IPv6's
// global addresses (2000::/3), and to more than half of IPv4 in all lists together.
func CheckProtected(c *Compiled, protected []Protected) []*Problem {
	g := guard{c: c}
	four, six := guarded[v4]{}, guarded[v6]{}
	for _, p := range protected {
		p4, p6, is4 := numberPrefix(p.Prefix)
		if is4 {
			four.things = append(four.things, thing[v4]{p4, p.What})
		} else {
			six.things = append(six.things, thing[v6]{p6, p.What})
		}
	}
	for _, a := range c.allow {
		a4, a6, is4 := numberPrefix(a)
		if is4 {
			four.allow = append(four.allow, a4)
		} else {
			six.allow = append(six.allow, a6)
		}
	}
	four.prepare()
	six.prepare()
	for _, u := range c.uses {
		if u.Action > Count {
			checkList(&g, u, &u.List.four, &four, prefix[v4]{0, 0}, "all of IPv4")
			checkList(&g, u, &u.List.six, &six, prefix[v6]{v6{hi: 0x20 << 56}, 3}, "all global addresses of IPv6")
		}
	}
	const half = 1 << 31
	if n := shapeOf(c, c.four).Addresses; n > half && !g.everything {
		g.add(&Problem{Msg: fmt.Sprintf("the lists together would cut %d %% of all IPv4 addresses; allowed: 50 %%: is one of them a list of addresses to let in?", n*100>>32)})
	}
	if g.more > 0 {
		g.problems = append(g.problems, &Problem{Msg: fmt.Sprintf("up to %d more entries would cut what is protected", g.more)})
	}
	return g.problems
}

// guard collects the problems.
type guard struct {
	c          *Compiled
	problems   []*Problem
	more       int
	everything bool // an entry that holds all was found
}

func (g *guard) add(p *Problem) {
	if len(g.problems) == MaxProblems {
		g.more++
		return
	}
	g.problems = append(g.problems, p)
}

// thing is something protected.
type thing[A number[A]] struct {
	prefix prefix[A]
	what   string
}

// guarded is what is protected in one family.
type guarded[A number[A]] struct {
	things []thing[A]
	allow  []prefix[A]
	danger []interval[A] // all that is protected and not allowed: sorted, apart
}

func (g *guarded[A]) prepare() {
	g.allow = disjoint(g.allow)
	slices.SortStableFunc(g.things, func(a, b thing[A]) int { return a.prefix.compare(b.prefix) })
	for _, t := range g.things {
		for _, p := range g.left(t.prefix) {
			g.danger = append(g.danger, interval[A]{p.addr, p.last()})
		}
	}
	g.danger = union(g.danger)
}

// left returns what of p is not allowed.
func (g *guarded[A]) left(p prefix[A]) []prefix[A] {
	if covered(g.allow, p) {
		return nil
	}
	return cut(nil, p, within(g.allow, p))
}

// touches reports whether anything in danger lies between first and last.
func (g *guarded[A]) touches(first, last A) bool {
	n := sort.Search(len(g.danger), func(i int) bool { return g.danger[i].last.cmp(first) >= 0 })
	return n < len(g.danger) && g.danger[n].first.cmp(last) <= 0
}

// checkList looks for entries of a list that cut what is protected. all is what no entry
// may hold as a whole.
func checkList[A number[A]](g *guard, u Use, f *family[A], by *guarded[A], all prefix[A], allWords string) {
	var holes []prefix[A]
	for _, h := range f.holes {
		holes = split(holes, h.first, h.last)
	}
	slices.SortFunc(holes, prefix[A].compare)
	for _, e := range f.entries {
		p := &Problem{List: u.List.Name, File: u.List.Files[e.file].Name, Line: int(e.line), Found: e.String()}
		if e.first.cmp(all.addr) <= 0 && e.last.cmp(all.last()) >= 0 {
			p.Msg = fmt.Sprintf("%s of list %s would %s %s; take it out of the list", p.Found, printable(u.List.Name), u.Action, allWords)
			g.everything = true
			g.add(p)
			continue
		}
		if !by.touches(e.first, e.last) {
			continue
		}
		if len(g.problems) == MaxProblems {
			g.more++ // enough is said: no need to look closer
			continue
		}
		if hit := by.hits(e, holes); len(hit) > 0 {
			p.Msg = fmt.Sprintf("%s of list %s would %s packets from %s", p.Found, printable(u.List.Name), u.Action, hitWords(e, hit))
			g.add(p)
		}
	}
}

// hit is a protected thing that an entry cuts, and the part of it that is cut first.
type hit[A number[A]] struct {
	thing[A]
	part prefix[A]
}

// hits returns what entry e cuts, in a list with those exceptions.
func (g *guarded[A]) hits(e entry[A], holes []prefix[A]) []hit[A] {
	var out []hit[A]
	parts := split(nil, e.first, e.last)
	for _, t := range g.things {
		if t.prefix.addr.cmp(e.last) > 0 {
			break
		}
		if t.prefix.last().cmp(e.first) < 0 {
			continue
		}
		if part, ok := g.firstCut(t.prefix, parts, holes); ok {
			out = append(out, hit[A]{t, part})
		}
	}
	return out
}

// firstCut returns the first prefix that a protected one and an entry, split into parts,
// have in common, and that is neither allowed nor one of the list's exceptions.
func (g *guarded[A]) firstCut(protected prefix[A], parts, holes []prefix[A]) (part prefix[A], ok bool) {
	for _, part := range parts {
		common := protected
		if part.bits > common.bits {
			common = part
		}
		if common.addr.first(int(part.bits)) != part.addr || common.addr.first(int(protected.bits)) != protected.addr {
			continue // they lie apart
		}
		except := disjoint(slices.Clone(within(holes, part)))
		for _, left := range g.left(common) {
			if !covered(except, left) && len(cut(nil, left, within(except, left))) > 0 {
				return common, true
			}
		}
	}
	return part, false
}

// hitWords says what is cut and what to do about it.
func hitWords[A number[A]](e entry[A], hits []hit[A]) string {
	var names, allow []string
	for _, h := range hits {
		names = append(names, printable(h.what))
		if p := prefixText(h.part.netip()); !slices.Contains(allow, p) {
			allow = append(allow, p)
		}
	}
	which := strings.Join(names[:min(len(names), namedProtected)], ", ")
	if n := len(names) - namedProtected; n > 0 {
		which += fmt.Sprintf(" and %d more", n)
	}
	way := strings.Join(allow[:min(len(allow), namedAllow)], ", ")
	if len(allow) > namedAllow {
		way += ", …"
	}
	text := which + "; to keep them write allow: [" + way + "]"
	if a := e.first.addr(); len(allow) > 1 && (a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast()) && take(e.first, e.last).last() == e.last {
		text += ", or all of it, if it is a net of your own: allow: [" + e.String() + "]"
	}
	return text + ", or take the entry out of the list"
}

// Changes of a list that are smaller than these are always fine: small lists change by
// large parts of themselves.
const (
	SmallEntries   = 100     // entries
	SmallAddresses = 1 << 20 // IPv4 addresses: a /12
	SmallNetworks  = 1 << 20 // /48 networks of IPv6: a /28
	// SmallList is how many entries a list may lose when nothing is left of it.
	SmallList = 10
)

// CheckChange compares a list with the last good one of that name, and returns what grew
// or shrank by more than percent of what it was. 0 or less asks for nothing.
//
// Entries and addresses are compared each for itself: a file that was cut off has fewer
// entries, though a few wide ones may hold most of the addresses; and one wide prefix that
// came is one entry, but many addresses. A feed that begins to write its entries otherwise
// (as wider prefixes, say) is held back by this too, once.
func CheckChange(list string, last, now Size, percent float64) []*Problem {
	if percent <= 0 {
		return nil
	}
	if now.Entries == 0 && last.Entries >= SmallList {
		return []*Problem{{List: list, Msg: fmt.Sprintf("the list has no entries any more; there were %d", last.Entries)}}
	}
	var out []*Problem
	for _, c := range []struct {
		was, is uint64
		small   uint64
		what    string
	}{
		{uint64(last.Entries), uint64(now.Entries), SmallEntries, "entries"},
		{last.Addresses, now.Addresses, SmallAddresses, "IPv4 addresses"},
		{last.Networks, now.Networks, SmallNetworks, "/48 networks of IPv6"},
	} {
		change := max(c.was, c.is) - min(c.was, c.is)
		if last.Entries == 0 || change < c.small || float64(change) <= float64(c.was)*percent/100 {
			continue
		}
		verb, by := "shrank", ""
		if c.is > c.was {
			verb = "grew"
		}
		if c.was > 0 {
			by = fmt.Sprintf(" (%.1f %%)", float64(change)*100/float64(c.was))
		}
		out = append(out, &Problem{List: list, Msg: fmt.Sprintf("the list %s from %d to %d %s%s; max_change allows %g %%", verb, c.was, c.is, c.what, by, percent)})
	}
	return out
}
