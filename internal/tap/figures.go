package tap

import (
	"cmp"
	"slices"
	"time"
)

// Figures is what one interval brought. Its names are for programs and stay.
type Figures struct {
	Packets    uint64 `json:"packets"`    // all that was taken in, duplicates too
	Bytes      uint64 `json:"bytes"`      // of their IP packets
	Duplicates uint64 `json:"duplicates"` // copies of a packet that was seen already; they count nowhere below
	Fragments  uint64 `json:"fragments"`  // packets that are a piece of one
	Unreadable uint64 `json:"unreadable"` // with headers that are wrong or cut off

	Flows        uint64 `json:"flows"`         // of which there was a packet
	FlowsNew     uint64 `json:"flows_new"`     // not known before
	FlowsKept    int    `json:"flows_kept"`    // known at the end
	FlowsEvicted uint64 `json:"flows_evicted"` // forgotten for others, since the beginning

	Services        []ServiceFigures `json:"services"`          // with packets in the interval, and those that were named
	ServicesLeftOut uint64           `json:"services_left_out"` // connections of services for which there was no room, since the beginning
}

// ServiceFigures is what one service did in an interval. Nil stands for what can't be known:
// of a direction that was never seen, say.
type ServiceFigures struct {
	Service string `json:"service"`
	// Directions says which were seen since the beginning: both, to (the service), from (it)
	// or none.
	Directions string `json:"directions"`

	PacketsTo   uint64 `json:"packets_to"`
	BytesTo     uint64 `json:"bytes_to"`
	PacketsFrom uint64 `json:"packets_from"`
	BytesFrom   uint64 `json:"bytes_from"`

	Connections *uint64 `json:"connections"` // first SYNs, or UDP flows that began
	Answered    *uint64 `json:"answered"`    // of them: first SYN-ACKs, or UDP flows with an answer
	// From the first SYN of a connection to its SYN-ACK, or the first datagram to the first
	// answer, in milliseconds; nil also where none was answered.
	AnswerP50 *float64 `json:"answer_p50_ms"`
	AnswerP99 *float64 `json:"answer_p99_ms"`

	RetransmissionsTo   *uint64 `json:"retransmissions_to"` // TCP alone, as all below
	RetransmissionsFrom *uint64 `json:"retransmissions_from"`
	OutOfOrderTo        *uint64 `json:"out_of_order_to"`
	OutOfOrderFrom      *uint64 `json:"out_of_order_from"`
	KeepalivesTo        *uint64 `json:"keepalives_to"`
	KeepalivesFrom      *uint64 `json:"keepalives_from"`
	ResetsTo            *uint64 `json:"resets_to"` // connections that were reset by the client
	ResetsFrom          *uint64 `json:"resets_from"`
}

// Figures returns the figures of the interval that ends, and begins another.
func (a *Analysis) Figures() Figures {
	a.flows.forget(a.now - flowIdle)
	out := Figures{
		Packets: a.packets, Bytes: a.bytes, Duplicates: a.duplicates, Fragments: a.fragments, Unreadable: a.unreadable,
		Flows: a.active, FlowsNew: a.begun, FlowsKept: len(a.flows.by), FlowsEvicted: a.flows.evicted,
		Services: []ServiceFigures{}, ServicesLeftOut: a.services.leftOut,
	}
	var list []*service
	for _, s := range a.services.by {
		if s.named || s.dir[to].packets+s.dir[from].packets > 0 {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *service) int {
		return cmp.Or(a.Addr.Addr().Compare(b.Addr.Addr()), cmp.Compare(a.Addr.Port(), b.Addr.Port()), cmp.Compare(a.Proto, b.Proto))
	})
	for _, s := range list {
		out.Services = append(out.Services, s.figures())
		s.tally = tally{}
		if s.times != nil {
			*s.times = hist{}
		}
	}
	a.sums = sums{}
	a.interval++
	return out
}

// figures makes the figures of a service; those of a direction that was not seen stay nil.
func (s *service) figures() ServiceFigures {
	f := ServiceFigures{
		Service: s.String(), Directions: "none",
		PacketsTo: s.dir[to].packets, BytesTo: s.dir[to].bytes,
		PacketsFrom: s.dir[from].packets, BytesFrom: s.dir[from].bytes,
	}
	t, w := s.dir[to], s.dir[from]
	if s.seen[to] {
		f.Directions = "to"
		f.Connections = &s.tally.connections
		if s.Proto == TCP {
			f.RetransmissionsTo, f.OutOfOrderTo = &t.retransmissions, &t.outOfOrder
			f.KeepalivesTo, f.ResetsTo = &t.keepalives, &t.resets
		}
	}
	if s.seen[from] {
		f.Directions = "from"
		f.Answered = &s.tally.answered
		if s.Proto == TCP {
			f.RetransmissionsFrom, f.OutOfOrderFrom = &w.retransmissions, &w.outOfOrder
			f.KeepalivesFrom, f.ResetsFrom = &w.keepalives, &w.resets
		}
	}
	if s.seen[to] && s.seen[from] {
		f.Directions = "both"
		if s.times != nil && s.times.n > 0 {
			p50, p99 := millis(s.times.quantile(0.5)), millis(s.times.quantile(0.99))
			f.AnswerP50, f.AnswerP99 = &p50, &p99
		}
	}
	f.Connections, f.Answered = kept(f.Connections), kept(f.Answered)
	return f
}

// kept copies a number that will change.
func kept(n *uint64) *uint64 {
	if n == nil {
		return nil
	}
	v := *n
	return &v
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
