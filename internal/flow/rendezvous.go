package flow

import (
	"crypto/sha256"
	"encoding/binary"
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
	numbers := make([]uint64, len(ids))
	for i, id := range ids {
		s := sha256.Sum256(append([]byte("weir rendezvous 1\x00"), id...))
		numbers[i] = binary.BigEndian.Uint64(s[:])
	}
	first, second = make([]int32, m), make([]int32, m)
	for slot := range first {
		salt := mix64(uint64(slot) + 0x9e3779b97f4a7c15)
		var best, next ranked
		best.i, next.i = -1, -1
		for i, n := range numbers {
			r := ranked{mix64(n ^ salt), i}
			switch {
			case r.before(best, ids):
				best, next = r, best
			case r.before(next, ids):
				next = r
			}
		}
		first[slot], second[slot] = int32(best.i), int32(next.i)
	}
	return first, second
}

// ranked is a member's hash for a slot.
type ranked struct {
	hash uint64
	i    int // -1: nobody
}

func (r ranked) before(o ranked, ids []string) bool {
	return o.i < 0 || r.hash > o.hash || r.hash == o.hash && ids[r.i] < ids[o.i]
}

// mix64 spreads the bits of a number (the finalizer of MurmurHash3).
func mix64(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
