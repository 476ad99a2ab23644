package plan

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// blocked is the entries of one family: six bytes for each of IPv4.
type blocked struct {
	family model.Family
	width  int      // bits of an address
	sorts  []sortOf // those that occur, the longest first
	count  []int    // entries of each sort

	addr []byte   // of the entries, by address, the wider first
	sort []uint16 // index in sorts
}

// sortOf is what the entries of one set have in common.
type sortOf struct {
	bits   int // of the prefix
	action blocklist.Action
}

// sortSet is some of the sorts, by their index.
type sortSet [7]uint64 // 129 lengths, 3 actions

func (s sortSet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s *sortSet) put(i int)     { s[i/64] |= 1 << (i % 64) }

func (t *blocked) all() (s sortSet) {
	for i := range t.sorts {
		s.put(i)
	}
	return s
}

func newBlocked(f model.Family, c *blocklist.Compiled) *blocked {
	t := &blocked{family: f, width: 8 * ruleset.AddrType(f).Size()}
	n := c.Len(f)
	t.addr, t.sort = make([]byte, 0, n*t.width/8), make([]uint16, 0, n)
	var counts [129 * actions]int
	for e := range c.Entries(f) {
		code := e.Prefix.Bits()*actions + int(e.Action)
		t.addr = ruleset.AppendAddr(t.addr, e.Prefix.Addr())
		t.sort = append(t.sort, uint16(code))
		counts[code]++
	}
	var at [129 * actions]uint16
	for code := len(counts) - 1; code >= 0; code-- {
		if counts[code] > 0 {
			at[code] = uint16(len(t.sorts))
			t.sorts = append(t.sorts, sortOf{code / actions, blocklist.Action(code % actions)})
			t.count = append(t.count, counts[code])
		}
	}
	for i, code := range t.sort {
		t.sort[i] = at[code]
	}
	return t
}

// actions is one more than the largest action.
const actions = int(blocklist.Drop) + 1

func (t *blocked) key(i int) []byte { n := t.width / 8; return t.addr[i*n : (i+1)*n] }

// top returns the first 64 bits of an address; those of IPv4 are the first 32 of them.
func (t *blocked) top(i int) uint64 {
	if t.width == 32 {
		return uint64(binary.BigEndian.Uint32(t.addr[4*i:])) << 32
	}
	return binary.BigEndian.Uint64(t.addr[16*i:])
}

// pack returns the elements of each sort. old gives what its set held before.
func (t *blocked) pack(old func(sortOf) []*ruleset.Packed) [][]*ruleset.Packed {
	packers := make([]*ruleset.Packer, len(t.sorts))
	for i, s := range t.sorts {
		packers[i] = ruleset.NewPacker(t.width/8, nil, old(s))
	}
	for i, s := range t.sort {
		packers[s].Add(t.key(i), 0)
	}
	out := make([][]*ruleset.Packed, len(packers))
	for i, p := range packers {
		out[i] = p.Pieces()
	}
	return out
}

// buckets walks the buckets of that many bits (64 at most) in which there are entries, in
// ascending order, each with the sorts that occur in it. A prefix that is wider than a
// bucket occurs in all that it holds.
func (t *blocked) buckets(bucketBits int, each func(bucket uint64, asked sortSet)) {
	shift := 64 - bucketBits
	w := sweep{each: each}
	for i, l := range t.sort {
		bucket := t.top(i) >> shift
		w.to(bucket)
		last := bucket
		if n := bucketBits - t.sorts[l].bits; n > 0 {
			last += 1<<n - 1
		}
		w.open = append(w.open, stretch{last, int(l)})
	}
	w.to(math.MaxUint64)
}

// stretch is a prefix that the sweep is in, up to bucket last.
type stretch struct {
	last uint64
	sort int
}

// sweep goes through the buckets. The prefixes that it is in lie inside each other, but for
// those that are smaller than a bucket: these end with it.
type sweep struct {
	each func(uint64, sortSet)
	next uint64 // the first bucket not yet said
	open []stretch
}

// to says all buckets before limit.
func (w *sweep) to(limit uint64) {
	for len(w.open) > 0 && w.next < limit {
		var set sortSet
		end := limit - 1
		for _, s := range w.open {
			set.put(s.sort)
			end = min(end, s.last)
		}
		for ; w.next <= end; w.next++ {
			w.each(w.next, set)
		}
		w.open = slices.DeleteFunc(w.open, func(s stretch) bool { return s.last < w.next })
	}
	w.next = max(w.next, limit)
}

// maxCombos bounds the chains of a summary, and verdicts in one map are 256 at most: what
// is rare beyond that asks for all sorts.
const maxCombos = 255

// summary returns the elements of the summary of buckets of that many bits, and the sets of
// sorts that they lead to.
func (t *blocked) summary(bucketBits int, old []*ruleset.Packed) ([]*ruleset.Packed, []sortSet) {
	number := map[sortSet]uint32{} // of what was met so far, in the order in which it was
	var met []sortSet
	var often []int
	var buckets []uint64
	var has []uint32 // by bucket: the number of what is in it
	t.buckets(bucketBits, func(bucket uint64, s sortSet) {
		n, ok := number[s]
		if !ok {
			n = uint32(len(met))
			number[s] = n
			met, often = append(met, s), append(often, 0)
		}
		often[n]++
		buckets, has = append(buckets, bucket), append(has, n)
	})
	combos := slices.Clone(met)
	slices.SortFunc(combos, func(a, b sortSet) int {
		return cmp.Or(often[number[b]]-often[number[a]], slices.Compare(a[:], b[:]))
	})
	all := t.all()
	if len(combos) > maxCombos {
		combos = append(combos[:maxCombos-1], all)
	}
	slices.SortFunc(combos, func(a, b sortSet) int { return slices.Compare(a[:], b[:]) })
	combos = slices.Compact(combos)
	at := map[sortSet]uint8{}
	jumps := make([]ruleset.Jump, len(combos))
	for i, s := range combos {
		at[s] = uint8(i)
		jumps[i] = ruleset.Jump{Chain: t.chainName(s), Goto: true}
	}
	which := make([]uint8, len(met))
	for n, s := range met {
		w, ok := at[s]
		if !ok {
			w = at[all]
		}
		which[n] = w
	}
	p := ruleset.NewPacker(t.width/8, jumps, old)
	var key [16]byte
	for i, bucket := range buckets {
		binary.BigEndian.PutUint64(key[:], bucket<<(64-bucketBits))
		p.Add(key[:t.width/8], which[has[i]])
	}
	return p.Pieces(), combos
}

// bucketChoices are the bits that a bucket may have.
var bucketChoices = map[model.Family][]int{
	model.IPv4: {12, 14, 16, 18, 20, 22, 24},
	model.IPv6: {24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64},
}

// lookupCost estimates a look-up that finds nothing, in nanoseconds, in a hash of n
// elements: what counts is in which of the processor's caches its buckets are. From
// measurements, see internal/bench.
func lookupCost(n int) float64 {
	return 16 + 9*math.Max(0, math.Log2(float64(n)/1024))
}

// keepCost is how much dearer than the best a layout may be before it is left.
const keepCost = 1.25

// bucketBits returns the bits of a bucket with which a packet that meets no entry costs the
// least, 0 if that is without a summary. had is what is in use.
func (t *blocked) bucketBits(had int) int {
	direct := 0.0
	for _, n := range t.count {
		direct += lookupCost(n)
	}
	if len(t.sorts) == 1 {
		return 0
	}
	best, least, kept := 0, direct, math.Inf(1)
	if had == 0 {
		kept = direct
	}
	for _, b := range bucketChoices[t.family] {
		c := t.summaryCost(b)
		if c < least {
			best, least = b, c
		}
		if b == had {
			kept = c
		}
	}
	if kept <= keepCost*least {
		return had
	}
	return best
}

// summaryCost estimates the look-ups of a packet that meets no entry: one in the summary,
// and those that are asked for in its bucket, if it is in one.
func (t *blocked) summaryCost(bucketBits int) float64 {
	buckets, ask := t.occupied(bucketBits)
	if most := max(1<<16, 2*len(t.sort)); buckets > most {
		return math.Inf(1)
	}
	cost := 0.0
	for i, n := range ask {
		cost += float64(n) * lookupCost(t.count[i])
	}
	// Of IPv4, sources may be all over. Of IPv6, every second bit or so is used.
	used := float64(bucketBits)
	if t.family == model.IPv6 {
		used /= 2
	}
	return lookupCost(buckets) + 10 + cost/math.Exp2(used)
}

// occupied returns how many buckets have entries, and how many have those of each sort.
func (t *blocked) occupied(bucketBits int) (buckets int, ask []int) {
	ask = make([]int, len(t.sorts))
	shift := 64 - bucketBits
	lastOf := make([]uint64, len(t.sorts))
	covered, last, any := uint64(0), uint64(0), false // covered: the first bucket behind wide prefixes
	for i, l := range t.sort {
		bucket := t.top(i) >> shift
		if n := bucketBits - t.sorts[l].bits; n > 0 {
			ask[l] += 1 << min(n, 40)
			if end := bucket + 1<<n; end > covered {
				buckets += 1 << min(n, 40)
				covered = end
			}
			continue
		}
		if lastOf[l] != bucket+1 {
			lastOf[l] = bucket + 1
			ask[l]++
		}
		if bucket >= covered && (!any || bucket != last) {
			buckets++
		}
		last, any = bucket, true
	}
	return buckets, ask
}
