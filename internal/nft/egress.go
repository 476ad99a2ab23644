package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// natRegs are the words at which a translation finds what it needs; -1 where there is none.
type natRegs struct{ addr, portLo, portHi int }

func (r *ruleEnc) nat(kind uint32, f model.Family, at natRegs, flags uint32) {
	e := r.open("nat")
	r.w.u32(unix.NFTA_NAT_TYPE, kind)
	r.w.u32(unix.NFTA_NAT_FAMILY, uint32(nfprotoOf(f)))
	r.w.u32(unix.NFTA_NAT_REG_ADDR_MIN, reg(at.addr))
	if at.portLo >= 0 {
		r.w.u32(unix.NFTA_NAT_REG_PROTO_MIN, reg(at.portLo))
	}
	if at.portHi >= 0 {
		r.w.u32(unix.NFTA_NAT_REG_PROTO_MAX, reg(at.portHi))
	}
	if flags != 0 {
		r.w.u32(unix.NFTA_NAT_FLAGS, flags)
	}
	r.close(e)
}

// ports loads a range of ports; lo is -1 for none, hi for a single one.
func (r *ruleEnc) ports(p model.PortRange) (lo, hi int, flags uint32) {
	if p.IsZero() {
		return -1, -1, 0
	}
	if r.l4proto == 0 {
		r.fail("ports need a match of the protocol (meta l4proto) before them")
	}
	load := func(v uint16) int {
		word := r.alloc(16)
		r.immediate(word, string([]byte{byte(v >> 8), byte(v)}))
		return word
	}
	lo, hi = load(p.Lo), -1
	if !p.Single() {
		hi = load(p.Hi)
	}
	return lo, hi, natProtoSpecified
}

func (r *ruleEnc) snat(s ruleset.SNAT) {
	at := natRegs{addr: r.alloc(16)}
	if s.Via != nil {
		r.expr(s.Via, at.addr)
	} else {
		r.immediate(at.addr, string(s.To.AsSlice()))
	}
	var flags uint32
	at.portLo, at.portHi, flags = r.ports(s.Ports)
	r.nat(unix.NFT_NAT_SNAT, s.Family, at, flags)
}

func (r *ruleEnc) masquerade(m ruleset.Masquerade) {
	lo, hi, flags := r.ports(m.Ports)
	e := r.open("masq")
	if flags != 0 { // net/netfilter/nft_masq.c does not set it itself
		r.w.u32(unix.NFTA_MASQ_FLAGS, flags)
	}
	if lo >= 0 {
		r.w.u32(unix.NFTA_MASQ_REG_PROTO_MIN, reg(lo))
	}
	if hi >= 0 {
		r.w.u32(unix.NFTA_MASQ_REG_PROTO_MAX, reg(hi))
	}
	r.close(e)
}

// Bits of a connection's status (enum ip_conntrack_status of nf_conntrack_common.h).
const (
	ipsConfirmed = 1 << 3
	ipsSrcNAT    = 1 << 4
)

func (r *ruleEnc) firstSNAT() {
	word := r.alloc(4)
	r.field(ruleset.CtStatus, word)
	native := func(v uint32) string { return string(binary.NativeEndian.AppendUint32(nil, v)) }
	r.and(word, native(ipsSrcNAT|ipsConfirmed))
	r.cmp(unix.NFT_CMP_EQ, native(ipsSrcNAT))
}
