package tap

import "time"

// reorderWithin is how late a segment may fill a gap and still be taken for one that was
// overtaken. Later it was sent again, and the first one lost before the mirror.
const reorderWithin = 3 * time.Millisecond

// gapsKept is how many gaps are remembered for each direction.
const gapsKept = 4

// implausible is a jump in sequence numbers that no window allows (RFC 7323 section 2.3).
const implausible = 1 << 30

// half is what is known of one direction of a TCP connection.
type half struct {
	begun bool
	isn   uint32 // where a SYN was seen
	syn   bool
	next  uint32 // the sequence number after the highest seen
	start uint32 // of the last segment with data
	gaps  [gapsKept]gap
	ngaps int
}

// gap is a stretch of sequence numbers, up to to, that was not seen when later ones were.
type gap struct {
	from, to uint32
	at       time.Duration
}

// judgement is what a segment is.
type judgement uint8

const (
	asExpected    judgement = iota
	retransmitted           // was sent before, or its first copy was lost before the mirror
	overtaken               // out of order
	keepalive               // or a probe of a closed window, which looks the same
)

// segment judges a segment without SYN and RST.
func (h *half) segment(at time.Duration, p *Packet) judgement {
	n := p.space()
	if !h.begun {
		h.begun, h.next, h.start = true, p.seq+n, p.seq
		return asExpected
	}
	ahead := int32(p.seq - h.next)
	// RFC 9293 section 3.8.4: a keep-alive has the number before the next, and no data or
	// one byte of garbage.
	if ahead == -1 && p.flags&flagFIN == 0 && (n == 0 || n == 1 && h.start != p.seq) {
		return keepalive
	}
	if n == 0 {
		return asExpected
	}
	defer func() { h.start = p.seq }()
	last := p.seq + n
	switch {
	case ahead >= implausible, ahead <= -implausible:
		h.next, h.ngaps = last, 0 // another connection, or a long silence of the mirror
		return asExpected
	case ahead == 0:
		h.next = last
		return asExpected
	case ahead > 0:
		h.missing(gap{h.next, p.seq, at})
		h.next = last
		return asExpected
	}
	j := h.behind(at, p.seq, last)
	if int32(last-h.next) > 0 {
		h.next = last
	}
	return j
}

func (h *half) missing(g gap) {
	if h.ngaps == gapsKept {
		copy(h.gaps[:], h.gaps[1:])
		h.ngaps--
	}
	h.gaps[h.ngaps] = g
	h.ngaps++
}

// behind judges a segment that begins before the highest number seen, and closes what it
// fills of a gap.
func (h *half) behind(at time.Duration, from, to uint32) judgement {
	for i := range h.ngaps {
		g := &h.gaps[i]
		if int32(from-g.to) >= 0 || int32(to-g.from) <= 0 {
			continue
		}
		late := at-g.at > reorderWithin
		switch fromStart, toEnd := int32(from-g.from) <= 0, int32(to-g.to) >= 0; {
		case fromStart && toEnd:
			copy(h.gaps[i:], h.gaps[i+1:h.ngaps])
			h.ngaps--
		case fromStart:
			g.from = to
		case toEnd:
			g.to = from
		default: // in the middle
			rest := gap{to, g.to, g.at}
			g.to = from
			h.missing(rest)
		}
		if late {
			return retransmitted
		}
		return overtaken
	}
	return retransmitted
}

// tcp looks at a TCP segment of a flow, from one of its ends.
func (a *Analysis) tcp(at time.Duration, f *flow, p *Packet, from int) {
	h := &f.half[from]
	switch {
	case p.flags&flagRST != 0:
		if !f.reset {
			f.reset, f.open = true, false
			f.count(from, func(d *direction) { d.resets++ })
		}
	case p.flags&flagSYN != 0:
		a.syn(at, f, p, from)
	default:
		switch h.segment(at, p) {
		case retransmitted:
			f.count(from, func(d *direction) { d.retransmissions++ })
		case overtaken:
			f.count(from, func(d *direction) { d.outOfOrder++ })
		case keepalive:
			f.count(from, func(d *direction) { d.keepalives++ })
		}
	}
}

// syn looks at a SYN or SYN-ACK.
func (a *Analysis) syn(at time.Duration, f *flow, p *Packet, from int) {
	h := &f.half[from]
	if h.syn && h.isn == p.seq {
		f.count(from, func(d *direction) { d.retransmissions++ })
		return
	}
	answer := p.flags&flagACK != 0
	if !answer && (f.half[0].begun || f.half[1].begun) {
		f.restart()
	}
	*h = half{begun: true, syn: true, isn: p.seq, start: p.seq, next: p.seq + p.space()}
	if !answer {
		f.asked, f.open = at, true
		if f.svc != nil {
			f.svc.connections++
		}
		return
	}
	if f.answered || f.svc == nil {
		return
	}
	f.answered = true
	f.svc.answered++
	if f.open {
		f.open = false
		f.svc.took(at - f.asked)
	}
}
