package lab

import (
	"fmt"
	"math"
	"math/bits"
	"time"
)

// Latency summarises waits: half, 90 % and 99 % of them were at most this long, and
// Max is the longest. Percentiles are right to 1/16 upwards; Max is exact.
type Latency struct{ P50, P90, P99, Max time.Duration }

// String returns the four figures.
func (l Latency) String() string {
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %s p90 %s p99 %s max %s", round(l.P50), round(l.P90), round(l.P99), round(l.Max))
}

// histogram counts durations in microseconds, in 16 buckets to the power of two:
// constant space and a bounded relative error however long the load runs.
type histogram struct {
	counts [1024]uint64
	total  uint64
	max    time.Duration
}

const subBits = 4 // 1<<subBits buckets to the power of two

// bucket returns the index for a number of microseconds: itself below 32, then the
// exponent and the subBits bits after the leading one.
func bucket(us uint64) int {
	if us < 2<<subBits {
		return int(us)
	}
	shift := bits.Len64(us) - 1 - subBits
	return shift<<subBits + int(us>>shift)
}

// upper returns the largest number of microseconds in a bucket.
func upper(index int) uint64 {
	if index < 2<<subBits {
		return uint64(index)
	}
	shift := index>>subBits - 1
	return (uint64(index-shift<<subBits)+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(uint64(max(d.Microseconds(), 0)))]++
	h.total++
	h.max = max(h.max, d)
}

func (h *histogram) summary() Latency {
	return Latency{P50: h.percentile(0.5), P90: h.percentile(0.9), P99: h.percentile(0.99), Max: h.max}
}

func (h *histogram) percentile(p float64) time.Duration {
	rank := uint64(math.Ceil(p * float64(h.total)))
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= rank && c > 0 {
			return min(time.Duration(upper(i)+1)*time.Microsecond, h.max)
		}
	}
	return 0
}
