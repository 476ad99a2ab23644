package flow

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
)

// Rendezvous returns a table of m slots, each the index of the member that owns it: the one
// with the highest hash of slot and ID (Thaler and Ravishankar, "Using name-based mappings
// to increase hit rates", 1998). So a member that comes takes slots for itself and moves no
// other, and one that goes gives away its own alone, to all the others alike. Shares are
// those of a random choice: with s slots a member, one deviation is 1/√s of a share. (Maglev
// shares more evenly, and moves a few more slots.) second is who would own the slot without
// its owner, -1 where there is one member.
//
// The tables depend on the IDs, not on their order. They are empty where there is no member.
// Every node and every version must make the same table: a member's number is the first
// 8 bytes, big-endian, of the SHA-256 of "weir rendezvous 1", a zero byte and the ID.
func Rendezvous(ids []string, m int) (first, second []int32) {
	if len(ids) == 0 {
		return nil, nil
	}
	order := make([]int32, len(ids)) // of two hashes that are alike the lower ID's is taken for the higher
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return strings.Compare(ids[a], ids[b]) })
	numbers := make([]uint64, len(ids))
	for i, index := range order {
		s := sha256.Sum256(append([]byte("weir rendezvous 1\x00"), ids[index]...))
		numbers[i] = binary.BigEndian.Uint64(s[:])
	}
	first, second = make([]int32, m), make([]int32, m)
	for slot := range first {
		best, next := top(numbers, mix64(uint64(slot)+0x9e3779b97f4a7c15))
		first[slot], second[slot] = order[best], -1
		if next >= 0 {
			second[slot] = order[next]
		}
	}
	return first, second
}

// top returns which two of the numbers have the highest hashes with salt; -1 where there is
// no second.
func top(numbers []uint64, salt uint64) (best, next int) {
	best, next = 0, -1
	high, second := mix64(numbers[0]^salt), uint64(0)
	for i := 1; i < len(numbers); i++ {
		switch h := mix64(numbers[i] ^ salt); {
		case h > high:
			best, high, next, second = i, h, best, high
		case next < 0 || h > second:
			next, second = i, h
		}
	}
	return best, next
}

// mix64 spreads the bits of a number (the finalizer of MurmurHash3).
func mix64(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
