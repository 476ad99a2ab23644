package engine

import (
	"net/netip"
	"slices"

	"weir/internal/model"
	"weir/internal/steer/nfqueue"
	"weir/internal/steer/pickup"
)

// steerEnds is what is done with packets that conntrack knows no connection of. It is immutable.
type steerEnds struct {
	mask, unknown uint32 // which bits of a mark, and what they are of such a packet
	sender        *pickup.Sender
	backends      map[uint32]netip.Addr // by mark
}

// newEnds returns the ends of a service, and opens what they are sent by.
func (s *Steering) newEnds(r *steered) *steerEnds {
	e := &steerEnds{mask: r.marks.Mask, unknown: r.marks.Kernel, backends: map[uint32]netip.Addr{}}
	for _, b := range r.service.Backends {
		e.backends[r.marks.Members[b.ID()]] = b.Addr
	}
	if r.sender == nil && !r.service.Direct() && slices.ContainsFunc(r.service.Listen, func(l model.Listen) bool { return l.Proto == model.TCP }) {
		var err error
		if r.sender, err = pickup.Open(); err != nil {
			s.Log.Warn("steering: a FIN or RST of a connection that conntrack does not know goes untranslated", "service", r.service.Name, "error", err)
		}
	}
	e.sender = r.sender
	return e
}

// decide answers for one packet.
func (r *steered) decide(worker int, data []byte, mark uint32) nfqueue.Verdict {
	chosen := r.steerer.Mark(worker, data, mark)
	e := r.ends.Load()
	if mark&e.mask != e.unknown {
		return nfqueue.Verdict{Mark: chosen}
	}
	if e.sender == nil {
		return nfqueue.Verdict{Mark: mark &^ e.mask}
	}
	if backend, ok := e.backends[chosen&e.mask]; ok {
		e.sender.Send(data, chosen, backend)
	}
	return nfqueue.Verdict{Mark: chosen, Drop: true}
}
