package tap

import (
	"fmt"
	"net/netip"
	"time"
)

// Service is an address that figures are made for.
type Service struct {
	Addr  netip.AddrPort
	Proto uint8 // TCP or UDP
}

// String returns the service as it is written: "198.51.100.10:80/tcp".
func (s Service) String() string {
	name, ok := map[uint8]string{TCP: "tcp", UDP: "udp"}[s.Proto]
	if !ok {
		name = fmt.Sprint(s.Proto)
	}
	return s.Addr.String() + "/" + name
}

type serviceKey struct {
	end
	proto uint8
}

// service is what is counted for one.
type service struct {
	Service
	key   serviceKey
	named bool          // by the user; others are learnt from SYNs
	gone  bool          // forgotten
	last  time.Duration // when the last packet came

	seen [2]bool // since the beginning: packets to it, packets from it
	tally
	times *hist // nil before the first
}

// tally is what is counted anew in each interval.
type tally struct {
	dir                   [2]direction // to the service, from it
	connections, answered uint64
}

// direction is what came in one direction.
type direction struct {
	packets, bytes                                  uint64
	retransmissions, outOfOrder, keepalives, resets uint64
}

// The indexes of a service's directions.
const (
	to = iota
	from
)

func (s *service) took(d time.Duration) {
	if s.times == nil {
		s.times = &hist{}
	}
	s.times.add(d)
}

// count counts for the flow's service, if it has one, in the direction of what one end sent.
func (f *flow) count(sender int, fn func(*direction)) {
	if f.svc == nil {
		return
	}
	if sender == f.server {
		fn(&f.svc.dir[from])
	} else {
		fn(&f.svc.dir[to])
	}
}

// services is a bounded table. One that was learnt and is silent makes room for another.
type services struct {
	most    int
	by      map[serviceKey]*service
	leftOut uint64 // packets that would have been the first of a service without room

	fullUntil time.Duration // no service will have been silent for long enough before
}

// silentFor is how long a learnt service must have been silent to be forgotten for another.
const silentFor = 10 * time.Second

func (t *services) add(s Service, named bool, at time.Duration) *service {
	k := serviceKey{endOf(s.Addr), s.Proto}
	if have := t.by[k]; have != nil {
		return have
	}
	n := &service{Service: s, key: k, named: named, last: at}
	t.by[k] = n
	return n
}

// learn adds a service, if there is room.
func (t *services) learn(e end, v6 bool, proto uint8, at time.Duration) *service {
	if len(t.by) >= t.most && !t.makeRoom(at) {
		t.leftOut++
		return nil
	}
	return t.add(Service{e.addrPort(v6), proto}, false, at)
}

func (t *services) makeRoom(at time.Duration) bool {
	if at < t.fullUntil { // a scan must not cost a walk for each SYN
		return false
	}
	var silent *service
	for _, s := range t.by {
		if !s.named && (silent == nil || s.last < silent.last) {
			silent = s
		}
	}
	switch {
	case silent == nil:
		return false
	case at-silent.last < silentFor:
		t.fullUntil = silent.last + silentFor
		return false
	}
	silent.gone = true
	delete(t.by, silent.key)
	return true
}

// find gives the flow its service, by whom the packet is to or from. A SYN, or a SYN-ACK
// where no SYN was seen, is of a service that may be learnt.
func (t *services) find(at time.Duration, f *flow, p *Packet, sender int, learn bool) {
	if s := t.by[serviceKey{p.dst, p.proto}]; s != nil {
		f.svc, f.server = s, 1-sender
		return
	}
	if s := t.by[serviceKey{p.src, p.proto}]; s != nil {
		f.svc, f.server = s, sender
		return
	}
	if !learn || p.proto != TCP || !p.whole || p.flags&(flagSYN|flagRST|flagFIN) != flagSYN {
		return
	}
	if p.flags&flagACK == 0 {
		f.svc, f.server = t.learn(p.dst, p.v6, p.proto, at), 1-sender
	} else {
		f.svc, f.server = t.learn(p.src, p.v6, p.proto, at), sender
	}
}
