package ruleset

import "strings"

// Merge returns the elements of base without those under the keys of del, and with those of
// add, whose keys base has not, or del has too. Each is in ascending order, and so is what is
// returned.
func Merge(base, del, add []*Packed) []*Packed {
	if len(del) == 0 && len(add) == 0 {
		return base
	}
	like := append(append([]*Packed(nil), base...), add...)
	if len(like) == 0 {
		return nil
	}
	out := collector{like: like[0]}
	x, gone, y := cursor{pieces: base}, cursor{pieces: del}, cursor{pieces: add}
	for x.more() || y.more() {
		if y.more() && (!x.more() || y.key() <= x.key()) {
			if x.more() && x.key() == y.key() {
				x.next() // it comes in the place of the other
			}
			out.add(y.key(), y.jump())
			y.next()
			continue
		}
		for gone.more() && strings.Compare(gone.key(), x.key()) < 0 {
			gone.next()
		}
		if !gone.more() || gone.key() != x.key() {
			out.add(x.key(), x.jump())
		}
		x.next()
	}
	return out.done()
}
