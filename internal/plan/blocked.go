package plan

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// blocked is the entries of one family, six bytes for each of IPv4.
type blocked struct {
	family  model.Family
	width   int   // bits of an address
	lengths []int // of prefixes, the longest first
	count   []int // entries of each length
	jumps   []ruleset.Jump

	addr   []byte  // of the entries, by address, the wider first
	length []uint8 // index in lengths
	which  []uint8 // index in jumps
}

// lengthSet is some of the lengths, by their index.
type lengthSet [3]uint64 // 129 lengths at most

func (s lengthSet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s *lengthSet) put(i int)     { s[i/64] |= 1 << (i % 64) }

func (t *blocked) all() (s lengthSet) {
	for i := range t.lengths {
		s.put(i)
	}
	return s
}

func newBlocked(f model.Family, c *blocklist.Compiled) *blocked {
	t := &blocked{family: f, width: 8 * ruleset.AddrType(f).Size()}
	n := c.Len(f)
	t.addr = make([]byte, 0, n*t.width/8)
	t.length, t.which = make([]uint8, 0, n), make([]uint8, 0, n)
	var counts [129]int
	var actions [len(verdicts)]bool
	add := func(p netip.Prefix, a blocklist.Action) {
		t.addr = ruleset.AppendAddr(t.addr, p.Addr())
		t.length, t.which = append(t.length, uint8(p.Bits())), append(t.which, uint8(a))
		counts[p.Bits()]++
		actions[a] = true
	}
	for e := range c.Entries(f) {
		add(e.Prefix, e.Action)
	}
	t.index(&counts, &actions)
	return t
}

// index turns lengths and actions into places in the lists of those that occur.
func (t *blocked) index(counts *[129]int, actions *[len(verdicts)]bool) {
	var lengthAt [129]uint8
	for n := 128; n >= 0; n-- {
		if counts[n] > 0 {
			lengthAt[n] = uint8(len(t.lengths))
			t.lengths, t.count = append(t.lengths, n), append(t.count, counts[n])
		}
	}
	var whichAt [len(verdicts)]uint8
	for a := len(verdicts) - 1; a > 0; a-- {
		if actions[a] {
			whichAt[a] = uint8(len(t.jumps))
			t.jumps = append(t.jumps, verdicts[a])
		}
	}
	for i := range t.length {
		t.length[i], t.which[i] = lengthAt[t.length[i]], whichAt[t.which[i]]
	}
}

func (t *blocked) key(i int) []byte { n := t.width / 8; return t.addr[i*n : (i+1)*n] }

// top returns the first 64 bits of an address; those of IPv4 are the first 32 of them.
func (t *blocked) top(i int) uint64 {
	if t.width == 32 {
		return uint64(binary.BigEndian.Uint32(t.addr[4*i:])) << 32
	}
	return binary.BigEndian.Uint64(t.addr[16*i:])
}

// pack returns the elements of the i-th length.
func (t *blocked) pack(length int, old []*ruleset.Packed) []*ruleset.Packed {
	p := ruleset.NewPacker(t.width/8, t.jumps, old)
	for i, l := range t.length {
		if int(l) == length {
			p.Add(t.key(i), t.which[i])
		}
	}
	return p.Pieces()
}

// buckets walks the buckets of that many bits (64 at most) in which there are entries, in
// ascending order, each with the lengths that occur in it. A prefix that is wider than a
// bucket occurs in all that it holds.
func (t *blocked) buckets(bucketBits int, each func(bucket uint64, lengths lengthSet)) {
	shift := 64 - bucketBits
	w := sweep{each: each}
	for i, l := range t.length {
		bucket := t.top(i) >> shift
		w.to(bucket)
		last := bucket
		if n := bucketBits - t.lengths[l]; n > 0 {
			last += 1<<n - 1
		}
		w.open = append(w.open, span{last, int(l)})
	}
	w.to(math.MaxUint64)
}

// span is a prefix that the sweep is in, up to bucket last.
type span struct {
	last   uint64
	length int
}

// sweep goes through the buckets. The prefixes that it is in lie inside each other, but for
// those that are smaller than a bucket: these end with it.
type sweep struct {
	each func(uint64, lengthSet)
	next uint64 // the first bucket not yet said
	open []span
}

// to says all buckets before limit.
func (w *sweep) to(limit uint64) {
	for len(w.open) > 0 && w.next < limit {
		var set lengthSet
		end := limit - 1
		for _, s := range w.open {
			set.put(s.length)
			end = min(end, s.last)
		}
		for ; w.next <= end; w.next++ {
			w.each(w.next, set)
		}
		w.open = slices.DeleteFunc(w.open, func(s span) bool { return s.last < w.next })
	}
	w.next = max(w.next, limit)
}

// maxCombos bounds the chains of a summary, and verdicts in one map are 256 at most: what
// is rare beyond that asks for all lengths.
const maxCombos = 255

// summary returns the elements of the summary of buckets of that many bits, and the sets of
// lengths that they lead to.
func (t *blocked) summary(bucketBits int, old []*ruleset.Packed) ([]*ruleset.Packed, []lengthSet) {
	often := map[lengthSet]int{}
	t.buckets(bucketBits, func(_ uint64, s lengthSet) { often[s]++ })
	combos := make([]lengthSet, 0, len(often))
	for s := range often {
		combos = append(combos, s)
	}
	slices.SortFunc(combos, func(a, b lengthSet) int {
		return cmp.Or(often[b]-often[a], slices.Compare(a[:], b[:]))
	})
	all := t.all()
	if len(combos) > maxCombos {
		combos = append(combos[:maxCombos-1], all)
	}
	slices.SortFunc(combos, func(a, b lengthSet) int { return slices.Compare(a[:], b[:]) })
	combos = slices.Compact(combos)
	at := map[lengthSet]uint8{}
	jumps := make([]ruleset.Jump, len(combos))
	for i, s := range combos {
		at[s] = uint8(i)
		jumps[i] = ruleset.Jump{Chain: t.chainName(s), Goto: true}
	}
	p := ruleset.NewPacker(t.width/8, jumps, old)
	var key [16]byte
	t.buckets(bucketBits, func(bucket uint64, s lengthSet) {
		binary.BigEndian.PutUint64(key[:], bucket<<(64-bucketBits))
		which, ok := at[s]
		if !ok {
			which = at[all]
		}
		p.Add(key[:t.width/8], which)
	})
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
	if len(t.lengths) == 1 {
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
	if most := max(1<<16, 2*len(t.length)); buckets > most {
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

// occupied returns how many buckets have entries, and how many have those of each length.
func (t *blocked) occupied(bucketBits int) (buckets int, ask []int) {
	ask = make([]int, len(t.lengths))
	shift := 64 - bucketBits
	lastOf := make([]uint64, len(t.lengths))
	covered, last, any := uint64(0), uint64(0), false // covered: the first bucket behind wide prefixes
	for i, l := range t.length {
		bucket := t.top(i) >> shift
		if n := bucketBits - t.lengths[l]; n > 0 {
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
