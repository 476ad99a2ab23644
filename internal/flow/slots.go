package flow

// Slots returns the order of one weighted round: index i appears weights[i] times,
// after all weights have been divided by their greatest common divisor. Negative
// weights count as 0; the result is empty when no weight is positive.
//
// The round is as smooth as whole slots can be, also where it starts over: of the
// first t slots of a round of n, an index of (divided) weight w has more than
// t*w/n - 1 and less than t*w/n + 1, and from one of its slots to its next is less
// than 2n/w + 1 steps. Equal weights simply take turns in the order given.
//
// The k-th slot of an index (k from 0) lies in the window from k*n/w, rounded down,
// to (k+1)*n/w, rounded up; of the indices whose window is open the one that closes
// first goes first, the lower of two alike. That this never misses a window is known from fair scheduling:
// Baruah et al., "Proportionate Progress", Algorithmica 15, 1996.
func Slots(weights []int) []int32 {
	w, n := reduce(weights)
	slots := make([]int32, 0, n)
	given := make([]int, len(w)) // slots given so far, per index
	// opening[t] lists the indices whose next window opens at slot t. Each index
	// waits in one list at most, so links between indices are enough.
	opening := make([]int32, n)
	link := make([]int32, len(w))
	for t := range opening {
		opening[t] = -1
	}
	for i := range w {
		if w[i] > 0 {
			link[i], opening[0] = opening[0], int32(i)
		}
	}
	var open deadlines
	for t := range n {
		for i := opening[t]; i >= 0; i = link[i] {
			closes := ((given[i]+1)*n + w[i] - 1) / w[i]
			open.push(uint64(closes)<<32 | uint64(i))
		}
		i := int32(uint32(open.pop()))
		slots = append(slots, i)
		given[i]++
		if given[i] == w[i] {
			continue
		}
		// The next window may be open already; then the index is back at the next slot.
		at := max(given[i]*n/w[i], t+1)
		link[i], opening[at] = opening[at], i
	}
	return slots
}

// reduce returns the weights divided by their greatest common divisor, negative ones
// as 0, and their sum.
func reduce(weights []int) (w []int, sum int) {
	divisor := 0
	for _, x := range weights {
		for a := max(x, 0); a != 0; {
			divisor, a = a, divisor%a
		}
	}
	w = make([]int, len(weights))
	if divisor == 0 {
		return w, 0
	}
	for i, x := range weights {
		w[i] = max(x, 0) / divisor
		sum += w[i]
	}
	return w, sum
}

// deadlines is a binary heap, the least at the top: where a window closes in the
// upper 32 bits, the index it belongs to in the lower. (container/heap would allocate
// for every slot.)
type deadlines []uint64

func (d *deadlines) push(x uint64) {
	*d = append(*d, x)
	h := *d
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if h[parent] <= h[i] {
			return
		}
		h[parent], h[i] = h[i], h[parent]
		i = parent
	}
}

func (d *deadlines) pop() uint64 {
	h := *d
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	*d = h
	for i := 0; ; {
		child := 2*i + 1
		if child+1 < len(h) && h[child+1] < h[child] {
			child++
		}
		if child >= len(h) || h[i] <= h[child] {
			return top
		}
		h[child], h[i] = h[i], h[child]
		i = child
	}
}
