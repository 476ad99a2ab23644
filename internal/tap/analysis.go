package tap

import "time"

// Bounds of what is kept, unless Options say otherwise.
const (
	MaxFlows    = 131_072 // some 40 MB
	MaxServices = 1_024   // at most 4 MB
)

// flowIdle is how long a flow is kept of which nothing comes.
const flowIdle = 5 * time.Minute

// Options are what an analysis looks for. The zero value learns services by themselves.
type Options struct {
	// Services are those to look at; none: those that SYNs go to.
	Services []Service
	// MaxFlows and MaxServices bound what is kept; 0: the constants of these names. Services
	// that are named count, but are never left out.
	MaxFlows, MaxServices int
}

// Analysis makes figures out of packets. It is for one goroutine.
type Analysis struct {
	flows    flows
	services services
	seen     seen
	frags    frags
	interval uint32 // counts from 1
	learns   bool
	now      time.Duration
	sums
}

// sums is what is counted anew in each interval.
type sums struct {
	packets, bytes, duplicates, fragments, unreadable uint64
	active, begun                                     uint64
}

// New returns an analysis that has seen nothing.
func New(o Options) *Analysis {
	a := &Analysis{interval: 1, learns: len(o.Services) == 0}
	a.flows = flows{most: o.MaxFlows, by: map[flowKey]*flow{}}
	a.services = services{most: o.MaxServices, by: map[serviceKey]*service{}}
	if a.flows.most <= 0 {
		a.flows.most = MaxFlows
	}
	if a.services.most <= 0 {
		a.services.most = MaxServices
	}
	for _, s := range o.Services {
		a.services.add(s, true, 0)
	}
	return a
}

// Add takes a packet that came at a time, counted from any moment that is the same for all.
// ok is what Decode said of it.
func (a *Analysis) Add(at time.Duration, p *Packet, ok bool) {
	a.now = max(a.now, at)
	a.packets++
	a.bytes += uint64(p.length)
	if p.fragment {
		a.fragments++
	}
	if !ok {
		a.unreadable++
		return
	}
	if a.seen.again(at, p) {
		a.duplicates++
		return
	}
	if p.fragment {
		a.frags.ports(at, p)
		if !p.ports {
			return // whose it is can't be known
		}
	}
	a.inFlow(at, p)
}

func (a *Analysis) inFlow(at time.Duration, p *Packet) {
	key, sender := keyOf(p)
	f, isNew := a.flows.get(key, at)
	if isNew {
		a.begun++
	}
	if f.interval != a.interval {
		f.interval = a.interval
		a.active++
	}
	if f.svc == nil || f.svc.gone {
		a.findService(at, f, p, sender)
	}
	if s := f.svc; s != nil {
		way := to
		if sender == f.server {
			way = from
		}
		s.last = at
		s.seen[way] = true
		s.dir[way].packets++
		s.dir[way].bytes += uint64(p.length)
	}
	switch {
	case p.fragment || !p.whole:
	case p.proto == TCP:
		a.tcp(at, f, p, sender)
	case p.proto == UDP && f.svc != nil:
		f.datagram(at, sender, isNew)
	}
}

// findService looks for the flow's service: one that is there, or one that can be learnt.
func (a *Analysis) findService(at time.Duration, f *flow, p *Packet, sender int) {
	f.svc = nil
	if len(a.services.by) == 0 && !a.learns {
		return
	}
	a.services.find(at, f, p, sender, a.learns)
}

// datagram takes the first datagram to a service for a connection, and the first from it
// for the answer.
func (f *flow) datagram(at time.Duration, sender int, isNew bool) {
	switch {
	case sender != f.server && isNew:
		f.asked, f.open = at, true
		f.svc.connections++
	case sender == f.server && f.open:
		f.open, f.answered = false, true
		f.svc.answered++
		f.svc.took(at - f.asked)
	}
}
