// Package conntrack reads and prunes the kernel's connection table.
//
// Its one idea: a connection is a [Flow], the two tuples the kernel keeps for it, and
// everything weir wants to know of live traffic (which backend carries a connection,
// how full the table is, whether NAT ran out of ports) is a walk over flows or a
// handful of counters. It speaks NETLINK_NETFILTER, subsystem NFNL_SUBSYS_CTNETLINK
// (include/uapi/linux/netfilter/nfnetlink_conntrack.h), on sockets of its own. A
// socket belongs to one network namespace for life, so a [Conn] answers for the
// namespace it was opened in, whichever thread asks.
//
// A dump is the truth. [Events], which the kernel loses under load, tell when connections
// begin and end; nothing but the log of bindings depends on them.
package conntrack

import (
	"fmt"
	"net/netip"
	"time"

	"weir/internal/model"
)

// Status bits of a flow: enum ip_conntrack_status of
// include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	StatusExpected    uint32 = 1 << 0 // an expectation of a helper led to it
	StatusSeenReply   uint32 = 1 << 1 // packets went both ways
	StatusAssured     uint32 = 1 << 2 // not dropped early when the table is full
	StatusConfirmed   uint32 = 1 << 3 // its first packet has left the box
	StatusSNAT        uint32 = 1 << 4 // its source is translated
	StatusDNAT        uint32 = 1 << 5 // its destination is translated
	StatusDying       uint32 = 1 << 9 // deleted, not yet freed
	StatusHWOffloaded uint32 = 1 << 15
	StatusOffloaded   uint32 = 1 << 14
)

// Protocol numbers beyond those a service may listen on.
const (
	ICMP   model.Proto = 1
	ICMPv6 model.Proto = 58
)

// Tuple is one direction of a flow.
type Tuple struct {
	// Src and Dst are the addresses and, for TCP, UDP, SCTP and their like, the ports.
	// ICMP has no ports: both are 0.
	Src, Dst netip.AddrPort
	// ICMPID, ICMPType and ICMPCode stand for the ports of ICMP and ICMPv6.
	ICMPID             uint16
	ICMPType, ICMPCode uint8
}

// IsValid reports whether the tuple has two addresses of one family.
func (t Tuple) IsValid() bool {
	return t.Src.IsValid() && t.Dst.IsValid() && t.Src.Addr().Is4() == t.Dst.Addr().Is4()
}

// Family returns the family of a valid tuple.
func (t Tuple) Family() model.Family { return model.FamilyOf(t.Src.Addr()) }

// Counters are the packets and bytes of one direction, headers of layer 3 included.
type Counters struct{ Packets, Bytes uint64 }

// Flow is one connection as the kernel tracks it.
type Flow struct {
	Proto       model.Proto
	Orig, Reply Tuple  // as the first packet came; as answers come. NAT is the difference
	Status      uint32 // Status bits
	Mark        uint32 // the connection mark
	// ID tells a flow from a later one with the same tuple; 0 when the kernel gave none.
	ID       uint32
	Zone     uint16        // zone of the original direction; 0 is the default one
	TCPState uint8         // enum tcp_conntrack (3 is ESTABLISHED); 0 for other protocols
	Timeout  time.Duration // what is left of its life, in whole seconds
	// OrigCount and ReplyCount stay 0 unless net.netfilter.nf_conntrack_acct is on.
	OrigCount, ReplyCount Counters
}

// DNATed reports whether the destination of the flow is translated.
func (f *Flow) DNATed() bool { return f.Status&StatusDNAT != 0 }

// String returns the original direction, and where it really goes under NAT:
// "tcp 203.0.113.9:40000 > 198.51.100.10:80 (10.1.1.1:8080)".
func (f *Flow) String() string {
	s := fmt.Sprintf("%s %s > %s", protoName(f.Proto), endpoint(f.Proto, f.Orig.Src), endpoint(f.Proto, f.Orig.Dst))
	if f.DNATed() {
		s += fmt.Sprintf(" (%s)", endpoint(f.Proto, f.Reply.Src))
	}
	return s
}

func isICMP(p model.Proto) bool { return p == ICMP || p == ICMPv6 }

func protoName(p model.Proto) string {
	switch p {
	case ICMP:
		return "icmp"
	case ICMPv6:
		return "icmpv6"
	}
	return p.String()
}

func endpoint(p model.Proto, a netip.AddrPort) string {
	if isICMP(p) {
		return a.Addr().String()
	}
	return a.String()
}

// Filter says which flows a dump is to give. The zero value is all of them. What the
// kernel can check it is asked to check (mark since 3.x, status since 5.15), and what
// it may have let pass is checked again here, so the result is the same on each kernel.
type Filter struct {
	Family model.Family // 0: both
	// Mark is compared under MarkMask; a mask of 0 takes every mark.
	Mark, MarkMask uint32
	// Status is compared under StatusMask; a mask of 0 takes every status.
	Status, StatusMask uint32
	// Match, if not nil, sees what passed the rest. It must not keep the pointer.
	Match func(*Flow) bool
}

func (f *Filter) matches(fl *Flow) bool {
	return (f.Family == 0 || f.Family == fl.Orig.Family()) &&
		fl.Mark&f.MarkMask == f.Mark&f.MarkMask &&
		fl.Status&f.StatusMask == f.Status&f.StatusMask &&
		(f.Match == nil || f.Match(fl))
}

// Stats are the counters of the connection table, summed over processors. They start
// at 0 with the network namespace and each processor's share wraps at 2^32.
type Stats struct {
	Found         uint64 // look-ups that found a flow
	Invalid       uint64 // packets that fit no flow and may not start one
	InsertFailed  uint64 // flows that could not be entered: a tuple taken, NAT out of ports
	Drop          uint64 // packets dropped for it, or because the table was full
	EarlyDrop     uint64 // unassured flows thrown out to make room
	SearchRestart uint64 // look-ups that had to start again after a resize
}
