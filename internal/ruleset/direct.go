package ruleset

import (
	"fmt"
	"net/netip"

	"weir/internal/model"
)

// What follows is for tables of the family netdev, which see frames as a device hands them
// over.

// IsEther matches frames that carry a packet of the family. In tables of the family netdev
// it has to be there before fields of the packet are read, as IsFamily has to elsewhere.
type IsEther struct{ Family model.Family }

// ToThisHost matches frames that are addressed to the device's own link-layer address: no
// broadcast, no multicast, and nothing that only a promiscuous device sees.
type ToThisHost struct{}

// Whole matches packets that are no fragments, the first of some included; the family must be
// matched before it. The kernel reads ports of up to four bytes even where a fragment has none
// (nft_payload_fast_eval in net/netfilter/nf_tables_core.c). In IPv6, a fragment header behind
// another extension header is not seen.
type Whole struct{ Family model.Family }

// Counting counts the packets that get there, and their bytes (layer 3).
type Counting struct{}

// Fwd sends the packet out by a device, to the link-layer address of the neighbour To, and
// ends its way (net/netfilter/nft_fwd_netdev.c). Only the two link-layer addresses change,
// and the time to live (hop limit), which becomes one less; where it was 1, the packet is
// dropped. A neighbour that is not resolved is asked for, and the packet waits for it.
type Fwd struct {
	Family model.Family
	To     netip.Addr
	Device string
	// Index is the device's. The kernel keeps that, not the name, and the text does not have
	// it: what differs in nothing else needs another comment.
	Index int
}

// HopsLeft matches packets whose time to live, or hop limit, is more than 1, so that they may be
// sent on. In tables of the family alone.
type HopsLeft struct{ Family model.Family }

// SendOn sends the packet out by a device to the neighbour To, and ends its way, in tables of the
// families ip and ip6, which have queues but no fwd. What is sent is a copy: the kernel's dup
// (nft_dup_ipv4.c, nf_dup_ipv4.c), with the packet itself dropped. Only the two link-layer addresses
// change, and the time to live (hop limit), which becomes one less and must have been more than 1
// (HopsLeft); in IPv4 the copy must not be fragmented (DF). It belongs to no connection, and goes through output and postrouting.
type SendOn struct {
	To     netip.Addr
	Device string
	Index  int // as Fwd has it
}

func (IsEther) stmt()    {}
func (ToThisHost) stmt() {}
func (Whole) stmt()      {}
func (Counting) stmt()   {}
func (Fwd) stmt()        {}
func (SendOn) stmt()     {}
func (HopsLeft) stmt()   {}

func directText(s Stmt) string {
	switch s := s.(type) {
	case IsEther:
		return "meta protocol " + s.Family.String()
	case ToThisHost:
		return "meta pkttype host"
	case Whole:
		if s.Family == model.IPv4 {
			return "ip frag-off & 0x3fff == 0"
		}
		return "ip6 nexthdr != 44"
	case Counting:
		return "counter"
	case Fwd:
		return fmt.Sprintf("fwd %s to %s device \"%s\"", s.Family, s.To, s.Device)
	case HopsLeft:
		if s.Family == model.IPv4 {
			return "ip ttl > 1"
		}
		return "ip6 hoplimit > 1"
	case SendOn:
		return fmt.Sprintf("dup to %s device \"%s\" drop", s.To, s.Device)
	}
	panic(fmt.Sprintf("ruleset: statement %T has no text", s))
}

// sendOn ends the packet's way through the rules: it does not come back.
func (x *ruleRun) sendOn(to netip.Addr, device string) (bool, Verdict) {
	x.trace.Fwd = to
	return x.decide(Verdict{Kind: DropPacket}, "leaves by %s as it is, to the link-layer address of %s", device, to)
}
