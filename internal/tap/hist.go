package tap

import (
	"math/bits"
	"time"
)

// hist is a histogram of durations: exact up to 64 µs, then 32 steps for each doubling, so
// that what is read out is at most 3.2% too long. Longer than 71 minutes is taken for that.
type hist struct {
	n      uint64
	counts [histLen]uint32
}

const (
	histExact = 64
	histSteps = 32 // of a doubling
	histBits  = 32 // of the longest duration, in microseconds
	histLen   = histExact + (histBits-6)*histSteps
)

func histIndex(us uint64) int {
	us = min(us, 1<<histBits-1)
	if us < histExact {
		return int(us)
	}
	shift := bits.Len64(us) - 6 // leaves 32 to 63
	return histExact + (shift-1)*histSteps + int(us>>shift) - histSteps
}

// histUpper returns the longest duration that is counted at an index, in microseconds.
func histUpper(i int) uint64 {
	if i < histExact {
		return uint64(i)
	}
	shift := (i-histExact)/histSteps + 1
	return (uint64((i-histExact)%histSteps)+histSteps+1)<<shift - 1
}

func (h *hist) add(d time.Duration) {
	h.n++
	h.counts[histIndex(uint64(max(d, 0)/time.Microsecond))]++
}

// quantile returns the duration that the part q of all, 0 < q ≤ 1, did not exceed.
func (h *hist) quantile(q float64) time.Duration {
	want := max(uint64(q*float64(h.n)+0.999999), 1)
	sum := uint64(0)
	for i, n := range h.counts {
		if sum += uint64(n); sum >= want {
			return time.Duration(histUpper(i)) * time.Microsecond
		}
	}
	return 0
}
