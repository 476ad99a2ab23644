package ruleset

import (
	"fmt"
	"net/netip"
	"strconv"

	"weir/internal/model"
)

// The families whose tables can copy packets: an inet table has no dup (net/netfilter/nft_dup_ipv4.c,
// nft_dup_ipv6.c).
const (
	IP  Family = "ip"
	IP6 Family = "ip6"
)

// TableFamily returns the family of tables that see only packets of f.
func TableFamily(f model.Family) Family {
	if f == model.IPv4 {
		return IP
	}
	return IP6
}

// IP returns the family whose packets alone the tables of f see; 0 for inet.
func (f Family) IP() model.Family {
	switch f {
	case IP:
		return model.IPv4
	case IP6:
		return model.IPv6
	}
	return 0
}

// The marks of IPv6 copies. Hosts make flow labels out of a flow's hash, so one in a million has
// this one; DSCP 55 is for local use (RFC 2474 section 6), and nobody's with it.
const (
	CopyLabel uint32 = 0x77656 // the flow label, 20 bits
	CopyDSCP  uint32 = 55      // 6 bits; ECN stays
)

// Dup sends a copy of the packet to a neighbour, and lets the packet go on. The kernel copies no
// packet while it sends a copy. What it cannot copy or has no route for is not copied, in silence.
// A copy belongs to no connection, and goes through output and postrouting.
type Dup struct{ To netip.Addr }

// IsCopy matches packets that bear the mark of a copy, here or from another box: in IPv4 the
// bit of the header that has no use (RFC 791 section 3.1), in IPv6 CopyDSCP with CopyLabel.
type IsCopy struct{ Family model.Family }

// MarkCopy gives a packet that mark. It is for copies alone.
type MarkCopy struct{ Family model.Family }

// AboutCopy matches ICMP errors that are about a packet with that mark.
type AboutCopy struct {
	Family model.Family
	TooBig bool // that it was too big for a link, and not any other
}

// Translated matches packets of connections whose source or destination was translated.
type Translated struct{}

// Below matches when a number is below N.
type Below struct {
	Expr    Expr // a Numgen or a Hash
	N       uint32
	AtLeast bool // at least N instead
}

func (Dup) stmt()        {}
func (IsCopy) stmt()     {}
func (MarkCopy) stmt()   {}
func (AboutCopy) stmt()  {}
func (Translated) stmt() {}
func (Below) stmt()      {}

// NextHop returns the field that holds the neighbour that a packet is sent to, of family f.
func NextHop(f model.Family) Field { return pick(f, NextHop4, NextHop6) }

func mirrorText(s Stmt) (text string, ok bool) {
	switch s := s.(type) {
	case Dup:
		return "dup to " + s.To.String(), true
	case IsCopy:
		if s.Family == model.IPv4 {
			return "ip frag-off & 0x8000 == 0x8000", true
		}
		return fmt.Sprintf("ip6 dscp %d ip6 flowlabel %d", CopyDSCP, CopyLabel), true
	case MarkCopy:
		if s.Family == model.IPv4 {
			return "ip frag-off set ip frag-off & 0x7fff | 0x8000", true
		}
		return fmt.Sprintf("ip6 dscp set %d ip6 flowlabel set %d", CopyDSCP, CopyLabel), true
	case AboutCopy:
		return s.text(), true
	case Translated:
		return "ct status snat,dnat", true
	case Below:
		op := "<"
		if s.AtLeast {
			op = ">="
		}
		return exprText(s.Expr) + " " + op + " " + strconv.FormatUint(uint64(s.N), 10), true
	}
	return "", false
}

func (s AboutCopy) text() string {
	if s.Family == model.IPv4 {
		text := "@th,0,8 >= 3 @th,0,8 <= 12 @th,0,8 != 8"
		if s.TooBig {
			text = "@th,0,16 0x304"
		}
		return "meta l4proto icmp " + text + " @th,112,16 & 0x8000 == 0x8000"
	}
	text := "@th,0,8 < 128"
	if s.TooBig {
		text = "@th,0,8 2"
	}
	return fmt.Sprintf("meta l4proto ipv6-icmp %s @th,64,32 & 0xfcfffff == 0x%x", text, CopyDSCP<<22|CopyLabel)
}
