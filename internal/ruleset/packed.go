package ruleset

import (
	"encoding/binary"
	"slices"
	"sort"
	"strings"
)

// Packed is many elements of a set in little room: single keys of one length and, in a
// verdict map, one of a few verdicts each. A million IPv4 addresses take 5 MB. It is
// immutable, and Diff takes the same pointer for the same content.
type Packed struct {
	Stride int    // bytes of a key
	Keys   string // the keys, one after the other, ascending, none twice
	Jumps  []Jump // a verdict map's verdicts, at most 256; nil in a set
	Which  string // by element: an index in Jumps; "": all have the first
}

// Len returns the number of elements.
func (p *Packed) Len() int { return len(p.Keys) / p.Stride }

// Key returns the key of the i-th element. It shares the memory of all.
func (p *Packed) Key(i int) string { return p.Keys[i*p.Stride : (i+1)*p.Stride] }

// Jump returns the verdict of the i-th element.
func (p *Packed) Jump(i int) Jump {
	switch {
	case len(p.Jumps) == 0:
		return Jump{}
	case p.Which == "":
		return p.Jumps[0]
	}
	return p.Jumps[p.Which[i]]
}

// Elem returns the i-th element.
func (p *Packed) Elem(i int) Element { return Element{Key: p.Key(i), Jump: p.Jump(i)} }

// Slice returns elements lo to hi-1; it shares their memory.
func (p *Packed) Slice(lo, hi int) *Packed {
	out := &Packed{Stride: p.Stride, Keys: p.Keys[lo*p.Stride : hi*p.Stride], Jumps: p.Jumps}
	if p.Which != "" {
		out.Which = p.Which[lo:hi]
	}
	return out
}

// Find returns the place of key, or where it would be.
func (p *Packed) Find(key string) (int, bool) {
	return sort.Find(p.Len(), func(i int) int { return strings.Compare(key, p.Key(i)) })
}

func (p *Packed) equal(o *Packed) bool {
	return p == o || p.Stride == o.Stride && p.Keys == o.Keys && p.Which == o.Which && slices.Equal(p.Jumps, o.Jumps)
}

// findPacked returns the element of that key among pieces in ascending order.
func findPacked(pieces []*Packed, key string) (Element, bool) {
	i := sort.Search(len(pieces), func(i int) bool { return pieces[i].Key(0) > key }) - 1
	if i < 0 {
		return Element{}, false
	}
	k, ok := pieces[i].Find(key)
	if !ok {
		return Element{}, false
	}
	return pieces[i].Elem(k), true
}

// Packer makes the pieces of a set's Packed out of elements in ascending order. A piece
// ends where a key says so, on average every pieceLen elements, so that the same keys give
// the same pieces wherever others come or go.
type Packer struct {
	stride int
	jumps  []Jump
	old    []*Packed
	keys   []byte
	which  []byte
	mixed  bool
	out    []*Packed
}

const (
	pieceLen = 1 << 10 // elements of a piece, on average
	pieceMax = 1 << 14
)

// NewPacker returns a Packer for keys of stride bytes and these verdicts (nil in a set).
// Pieces that are as in old, which is in ascending order too, are taken from there.
func NewPacker(stride int, jumps []Jump, old []*Packed) *Packer {
	return &Packer{stride: stride, jumps: jumps, old: old}
}

// Add adds the element after the last; which is the place of its verdict, 0 in a set.
func (p *Packer) Add(key []byte, which uint8) {
	p.keys = append(p.keys, key...)
	p.which = append(p.which, which)
	p.mixed = p.mixed || which != 0
	if endsPiece(key) || len(p.which) >= pieceMax {
		p.cut()
	}
}

// Pieces returns what was added.
func (p *Packer) Pieces() []*Packed {
	p.cut()
	return p.out
}

func (p *Packer) cut() {
	if len(p.which) == 0 {
		return
	}
	first := string(p.keys[:p.stride])
	for len(p.old) > 0 && p.old[0].Key(0) < first {
		p.old = p.old[1:]
	}
	if len(p.old) > 0 && p.same(p.old[0]) {
		p.out = append(p.out, p.old[0])
	} else {
		piece := &Packed{Stride: p.stride, Keys: string(p.keys), Jumps: p.jumps}
		if p.mixed {
			piece.Which = string(p.which)
		}
		p.out = append(p.out, piece)
	}
	p.keys, p.which, p.mixed = p.keys[:0], p.which[:0], false
}

// same reports whether o is what was added since the last cut. It makes no garbage.
func (p *Packer) same(o *Packed) bool {
	return o.Stride == p.stride && o.Keys == string(p.keys) && (o.Which != "") == p.mixed &&
		(!p.mixed || o.Which == string(p.which)) && slices.Equal(o.Jumps, p.jumps)
}

// endsPiece mixes the key's last bytes (the finalizer of MurmurHash3) and looks at some of
// the bits.
func endsPiece(key []byte) bool {
	var h uint64
	for i := 0; i < len(key); i += 4 { // keys are in register layout: words of four bytes
		h = h*0x9e3779b97f4a7c15 + uint64(binary.LittleEndian.Uint32(key[i:]))
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return h&(pieceLen-1) == 0
}

// diffPacked compares two sets whose elements are packed. Pieces that both hold are not
// looked at: elements of other pieces can't be in them.
func diffPacked(old, want *Set) (del, add []*Packed) {
	was, now := onlyIn(old.Packed, want.Packed), onlyIn(want.Packed, old.Packed)
	if len(was) == 0 {
		return nil, now
	}
	if len(now) == 0 {
		return was, nil
	}
	d, a := collector{like: was[0]}, collector{like: now[0]}
	x, y := cursor{pieces: was}, cursor{pieces: now}
	for x.more() || y.more() {
		c := 0
		switch {
		case !x.more():
			c = 1
		case !y.more():
			c = -1
		default:
			c = strings.Compare(x.key(), y.key())
		}
		switch {
		case c < 0:
			d.add(x.key(), x.jump())
		case c > 0:
			a.add(y.key(), y.jump())
		case x.jump() != y.jump():
			d.add(x.key(), x.jump())
			a.add(y.key(), y.jump())
		}
		if c <= 0 {
			x.next()
		}
		if c >= 0 {
			y.next()
		}
	}
	return d.done(), a.done()
}

func packedLen(pieces []*Packed) int {
	n := 0
	for _, p := range pieces {
		n += p.Len()
	}
	return n
}

// onlyIn returns the pieces of a that b has not. Both are in ascending order.
func onlyIn(a, b []*Packed) []*Packed {
	a, b = trim(a, b)
	var out []*Packed
	for _, p := range a {
		for len(b) > 0 && b[0].Key(0) < p.Key(0) {
			b = b[1:]
		}
		if len(b) == 0 || !p.equal(b[0]) {
			out = append(out, p)
		}
	}
	return out
}

// cursor walks the elements of pieces.
type cursor struct {
	pieces []*Packed
	i      int
}

func (c *cursor) more() bool  { return len(c.pieces) > 0 }
func (c *cursor) key() string { return c.pieces[0].Key(c.i) }
func (c *cursor) jump() Jump  { return c.pieces[0].Jump(c.i) }

func (c *cursor) next() {
	if c.i++; c.i == c.pieces[0].Len() {
		c.pieces, c.i = c.pieces[1:], 0
	}
}

// collector packs elements that come in ascending order.
type collector struct {
	like  *Packed
	jumps []Jump
	keys  []byte
	which []byte
}

func (c *collector) add(key string, j Jump) {
	c.keys = append(c.keys, key...)
	if c.like.Jumps == nil {
		return
	}
	i := slices.Index(c.jumps, j)
	if i < 0 {
		i = len(c.jumps)
		c.jumps = append(c.jumps, j)
	}
	c.which = append(c.which, byte(i))
}

func (c *collector) done() []*Packed {
	if len(c.keys) == 0 {
		return nil
	}
	p := &Packed{Stride: c.like.Stride, Keys: string(c.keys), Jumps: c.jumps}
	if len(c.jumps) > 1 {
		p.Which = string(c.which)
	}
	return []*Packed{p}
}
