package blocklist

import "slices"

// sortable is a record that is sorted by its digits first, and by compare where they are
// the same. compare agrees with the digits.
type sortable[T any] interface {
	digit(i int) byte // i from 0, the first being the most significant
	digits() int
	compare(T) int
}

// few is how many records are sorted by comparing them.
const few = 24

// sortRecords sorts in place, by buckets: a list of millions is sorted several times
// faster than by comparing, and without a second copy of it. Lists that come sorted, as
// many do, are only looked at.
func sortRecords[T sortable[T]](list []T) {
	for i := 1; i < len(list); i++ {
		if list[i].compare(list[i-1]) < 0 {
			sortBucket(list, 0)
			return
		}
	}
}

// sortBucket sorts records that are alike in the digits before the one at place.
func sortBucket[T sortable[T]](list []T, place int) {
	if len(list) <= few {
		for i := 1; i < len(list); i++ {
			one := list[i]
			j := i
			for ; j > 0 && one.compare(list[j-1]) < 0; j-- {
				list[j] = list[j-1]
			}
			list[j] = one
		}
		return
	}
	if place == list[0].digits() {
		slices.SortFunc(list, T.compare)
		return
	}
	var end [256]int // of each bucket
	for i := range list {
		end[list[i].digit(place)]++
	}
	var begin [256]int
	sum := 0
	for d, n := range end {
		begin[d] = sum
		sum += n
		end[d] = sum
	}
	free := begin
	for d := range free {
		for free[d] < end[d] {
			one := list[free[d]]
			for to := one.digit(place); int(to) != d; to = one.digit(place) {
				one, list[free[to]] = list[free[to]], one
				free[to]++
			}
			list[free[d]] = one
			free[d]++
		}
	}
	for d := range begin {
		if end[d]-begin[d] > 1 {
			sortBucket(list[begin[d]:end[d]], place+1)
		}
	}
}
