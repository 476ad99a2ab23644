package tap

import (
	"bytes"
	"cmp"
	"time"
)

// flowKey is a flow in either direction: a is the lesser end.
type flowKey struct {
	a, b  end
	proto uint8
}

// keyOf returns the flow of a packet, and which end sent it: 0 for a.
func keyOf(p *Packet) (k flowKey, from int) {
	order := cmp.Or(bytes.Compare(p.src.ip[:], p.dst.ip[:]), cmp.Compare(p.src.port, p.dst.port))
	if order <= 0 {
		return flowKey{p.src, p.dst, p.proto}, 0
	}
	return flowKey{p.dst, p.src, p.proto}, 1
}

// flow is what is kept of a flow. What is to be known one day of single requests (how long
// until the first byte of an answer, say) belongs here.
type flow struct {
	key          flowKey
	older, newer *flow         // by last
	last         time.Duration // when the last packet came
	interval     uint32        // in which that was
	svc          *service      // nil: of none that is looked at
	server       int           // which end the service is

	half     [2]half       // of what each end sent
	asked    time.Duration // when the first SYN, or datagram to the service, came
	open     bool          // that was seen, and no answer yet
	answered bool          // an answer was seen
	reset    bool          // a reset was seen
}

// restart makes the flow that of another connection of the same ports.
func (f *flow) restart() {
	f.half = [2]half{}
	f.open, f.answered, f.reset = false, false, false
}

// flows is a bounded table of flows that forgets the one that was silent for longest.
type flows struct {
	most    int
	by      map[flowKey]*flow
	newest  *flow
	oldest  *flow
	free    *flow // a list by older
	evicted uint64
}

// get returns the flow, which is new or not, and makes it the newest.
func (t *flows) get(k flowKey, at time.Duration) (f *flow, isNew bool) {
	f = t.by[k]
	if f == nil {
		isNew = true
		if len(t.by) >= t.most {
			if at-t.oldest.last <= flowIdle {
				t.evicted++
			}
			t.drop(t.oldest)
		}
		if f = t.free; f != nil {
			t.free = f.older
			*f = flow{}
		} else {
			f = &flow{}
		}
		f.key = k
		t.by[k] = f
	} else if f != t.newest {
		t.unlink(f)
	}
	f.last = at
	if f != t.newest {
		f.older, f.newer = t.newest, nil
		if t.newest != nil {
			t.newest.newer = f
		} else {
			t.oldest = f
		}
		t.newest = f
	}
	return f, isNew
}

func (t *flows) unlink(f *flow) {
	if f.older != nil {
		f.older.newer = f.newer
	} else {
		t.oldest = f.newer
	}
	if f.newer != nil {
		f.newer.older = f.older
	} else {
		t.newest = f.older
	}
}

func (t *flows) drop(f *flow) {
	t.unlink(f)
	delete(t.by, f.key)
	f.older, f.newer = t.free, nil
	f.svc = nil
	t.free = f
}

// forget drops flows of which nothing came since a time.
func (t *flows) forget(since time.Duration) {
	for t.oldest != nil && t.oldest.last < since {
		t.drop(t.oldest)
	}
}
