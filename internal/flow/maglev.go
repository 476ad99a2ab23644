package flow

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// Member is one that slots are given to.
type Member struct {
	ID     string // what the hash knows it by, such as "10.1.1.1:8080"; unique in a table
	Weight int    // share of the slots, relative to the others'; 0 or less gets none
}

// tableSizes are the sizes TableSize chooses from: the largest primes below 2^10,
// 2^11, … 2^20.
var tableSizes = [...]int{
	1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139, 524287, 1048573,
}

// TableSize returns the size of a Maglev table for n members: a prime of at least
// 100 n, as the paper advises, so that shares are even to 1 %.
//
// Another size moves nearly every slot, so the size must not follow each member
// that comes or goes. It is one of the largest primes below powers of two, and
// changes only when n outgrows its band: 1021 up to 10 members, 2039 up to 20, 4093
// up to 40, 8191 up to 81, and so on to 1048573 up to 10485. Count the members that
// are configured, whether they are up or not, weighted or not. TableSize panics
// above 10485 members.
func TableSize(n int) int {
	for _, m := range tableSizes {
		if m >= 100*n {
			return m
		}
	}
	panic(fmt.Sprintf("flow: no table size for %d members", n))
}

// Maglev returns a table of m slots, each the index of the member that owns it, or
// -1 everywhere when no member has weight. It is the consistent hash of Eisenbud et
// al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
// section 3.4. m must be a prime (see TableSize); Maglev panics if it is not.
//
// The table depends on the members' IDs and weights, not on their order: members
// given in another order own the same slots under their new indices. A member that
// leaves gives its slots to the others, and few other slots move. With m of at
// least 100 per member, each member's share is in proportion to its weight to
// within 1 % of that share and one slot, and a member with weight owns at least one
// slot, however small its share.
//
// Every node and every version must make the same table, so how an ID becomes a
// permutation is fixed for good; see permutation.
func Maglev(members []Member, m int) []int32 {
	mustBePrime(m)
	order := make([]int32, len(members))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(members[a].ID, members[b].ID) })

	offsets := make([]uint32, len(order))
	skips := make([]uint32, len(order))
	weights := make([]int, len(order))
	for i, index := range order {
		offsets[i], skips[i] = permutation(members[index].ID, m)
		weights[i] = members[index].Weight
	}
	table := Fill(offsets, skips, weights, m)
	for slot, i := range table {
		if i >= 0 {
			table[slot] = order[i]
		}
	}
	return table
}

// permutation returns where the member's walk over the table starts and how far it
// steps: with s the SHA-256 of "weir maglev 1", a zero byte and the ID, the offset is
// the first 8 bytes of s, big-endian, modulo m; the skip is 1 plus the next 8 bytes
// modulo m-1. The two halves of one strong hash are as independent as two hashes,
// and the standard library has it on every platform.
func permutation(id string, m int) (offset, skip uint32) {
	s := sha256.Sum256(append([]byte("weir maglev 1\x00"), id...))
	offset = uint32(binary.BigEndian.Uint64(s[0:]) % uint64(m))
	skip = uint32(binary.BigEndian.Uint64(s[8:])%uint64(m-1)) + 1
	return offset, skip
}

// class is the members of one weight; they take their turns in the same rounds.
type class struct {
	members []int32
	weight  int64
	turns   int64 // turns each of them has taken
}

// due reports whether the class takes a turn in this round (1, 2, …), where the
// heaviest class takes one in each. A class of weight w has a right to round ×
// w/heaviest turns; that number is rounded to the nearest, because always rounding
// one way would favour the heaviest or the lightest when there are many of a kind.
// The first turn comes in the first round, so that no one who has weight goes
// without a slot.
func (c *class) due(round, heaviest int64) bool {
	return c.turns == 0 || 2*round*c.weight >= (2*c.turns+1)*heaviest
}

// Fill is the table-filling step of Maglev for members whose permutations are given:
// member i prefers the slots offsets[i], offsets[i]+skips[i], offsets[i]+2 skips[i],
// … modulo m. In rounds, and by falling weight and rising index within a round, the
// members take turns to own the first slot of their preference that is free; one of
// the largest weight takes a turn in every round, one of weight w in w/largest of
// the rounds. Weights of 0 and less take none.
//
// The table holds indices, or -1 everywhere when no member has weight. Fill panics
// unless the three slices are of the same length, m is a prime, offsets are below m
// and skips from 1 to m-1.
func Fill(offsets, skips []uint32, weights []int, m int) []int32 {
	mustBePrime(m)
	for i := range weights {
		if offsets[i] >= uint32(m) || skips[i] < 1 || skips[i] >= uint32(m) {
			panic(fmt.Sprintf("flow: offset %d or skip %d does not fit a table of %d", offsets[i], skips[i], m))
		}
	}
	table := make([]int32, m)
	for slot := range table {
		table[slot] = -1
	}
	classes := byWeight(weights)
	if len(classes) == 0 {
		return table
	}
	next := slices.Clone(offsets)
	heaviest := classes[0].weight
	free := m
	for round := int64(1); ; round++ {
		for k := range classes {
			c := &classes[k]
			if !c.due(round, heaviest) {
				continue
			}
			c.turns++
			for _, i := range c.members {
				next[i] = take(table, next[i], skips[i], i)
				if free--; free == 0 {
					return table
				}
			}
		}
	}
}

// take gives member i the first free slot from slot at on, in steps of skip, and
// returns the slot to look at in its next turn. The table must have a free slot; its
// length is prime, so the walk meets it.
func take(table []int32, at, skip uint32, i int32) uint32 {
	m := uint32(len(table))
	for {
		slot := at
		if at += skip; at >= m {
			at -= m
		}
		if table[slot] < 0 {
			table[slot] = i
			return at
		}
	}
}

// byWeight groups the indices of positive weights by weight, the heaviest first and
// rising within a class. Fill asks a class, not each member, whether it is due:
// beside one heavy member, thousands of light ones sit out most rounds.
func byWeight(weights []int) []class {
	var order []int32
	for i, w := range weights {
		if w > 0 {
			order = append(order, int32(i))
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(weights[b], weights[a]) })
	var classes []class
	for lo := 0; lo < len(order); {
		w := weights[order[lo]]
		hi := lo + 1
		for hi < len(order) && weights[order[hi]] == w {
			hi++
		}
		classes = append(classes, class{members: order[lo:hi], weight: int64(w)})
		lo = hi
	}
	return classes
}

// mustBePrime panics unless m is a prime that fits a slot number. With another m a
// walk may never meet a free slot, and filling would not end.
func mustBePrime(m int) {
	ok := m >= 2 && m <= math.MaxInt32
	for d := 2; ok && d <= m/d; d++ {
		ok = m%d != 0
	}
	if !ok {
		panic(fmt.Sprintf("flow: table size %d is not a prime below 2^31", m))
	}
}
