package tap

import "time"

// Mirrors that stand on the way in and on the way out show a packet twice, and so do two
// rules at one place. That is told from a packet that was sent twice, by this:
//
// Senders number IPv4 packets, and give a retransmission a number of its own. So what is the
// same in all that no router changes, number included, within numberedWithin, is a copy.
//
// IPv6 packets, and IPv4 ones that are never fragmented (RFC 6864), bear no number. There
// the copy of a TCP segment that takes sequence numbers comes within unnumberedWithin,
// sooner than anybody retransmits. Acknowledgements and datagrams may well be sent twice
// alike; of those only a packet with another hop limit is a copy.
const (
	numberedWithin   = 100 * time.Millisecond
	unnumberedWithin = 2 * time.Millisecond
)

// seenSlots bounds how many packets are remembered, which is a power of two.
const (
	seenBits  = 16
	seenSlots = 1 << seenBits
)

// seen remembers packets: the last one in each slot.
type seen struct{ slots []seenOne }

type seenOne struct {
	print uint64
	at    time.Duration
	ttl   uint8
	used  bool
}

// again reports whether the packet was seen already, and remembers it.
func (s *seen) again(at time.Duration, p *Packet) bool {
	if s.slots == nil {
		s.slots = make([]seenOne, seenSlots)
	}
	one := &s.slots[p.print>>(64-seenBits)]
	if one.used && one.print == p.print && copied(p, (at-one.at).Abs(), one.ttl != p.ttl) {
		return true
	}
	*one = seenOne{p.print, at, p.ttl, true}
	return false
}

func copied(p *Packet, after time.Duration, otherTTL bool) bool {
	switch {
	case p.hasID:
		return after <= numberedWithin
	case otherTTL, p.proto == TCP && p.whole && (p.space() > 0 || p.flags&flagRST != 0):
		return after <= unnumberedWithin
	}
	return false
}

// fragSlots bounds how many fragmented packets are remembered, which is a power of two.
const (
	fragBits   = 12
	fragWithin = 30 * time.Second // as long as the kernel waits for the rest (ipfrag_time)
)

// frags remembers the ports of first fragments, for those that come later.
type frags struct{ slots []fragOne }

type fragOne struct {
	key        uint64
	at         time.Duration
	sport, dst uint16
}

// ports gives a later fragment the ports of the first, if that came before.
func (f *frags) ports(at time.Duration, p *Packet) {
	if f.slots == nil {
		f.slots = make([]fragOne, 1<<fragBits)
	}
	key := mixBytes(mixBytes(uint64(p.id), p.src.ip[:]), p.dst.ip[:]) | 1
	if !p.v6 { // there numbers are counted for each protocol
		key = mix(key, uint64(p.proto)) | 1
	}
	one := &f.slots[key>>(64-fragBits)]
	switch {
	case p.ports:
		*one = fragOne{key, at, p.src.port, p.dst.port}
	case p.later && one.key == key && (at-one.at).Abs() <= fragWithin:
		p.src.port, p.dst.port, p.ports = one.sport, one.dst, true
	}
}
