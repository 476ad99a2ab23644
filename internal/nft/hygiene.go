package nft

import (
	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// What nf_tables.h has and golang.org/x/sys/unix lacks.
const (
	rtDreg   = 1 // NFTA_RT_DREG
	rtKey    = 2 // NFTA_RT_KEY
	rtTCPMSS = 3 // NFT_RT_TCPMSS

	exthdrFlags  = 5 // NFTA_EXTHDR_FLAGS
	exthdrOp     = 6 // NFTA_EXTHDR_OP
	exthdrSreg   = 7 // NFTA_EXTHDR_SREG
	exthdrTCPOpt = 1 // NFT_EXTHDR_OP_TCPOPT
)

// The option that says the maximum segment size, and where its two bytes are (RFC 9293
// section 3.2).
const (
	optMSS   = 2
	optMSSAt = 2
	mssLen   = 2
)

// clampMSS writes the smaller of what is announced and what the routes bear, which the kernel
// gives in the order of the host.
func (r *ruleEnc) clampMSS() {
	if r.l4proto != unix.IPPROTO_TCP {
		r.fail("tcp options need a match of the protocol (meta l4proto tcp) before them")
	}
	word := r.alloc(mssLen)
	e := r.open("rt")
	r.w.u32(rtDreg, reg(word))
	r.w.u32(rtKey, rtTCPMSS)
	r.close(e)
	e = r.open("byteorder")
	r.w.u32(unix.NFTA_BYTEORDER_SREG, reg(word))
	r.w.u32(unix.NFTA_BYTEORDER_DREG, reg(word))
	r.w.u32(unix.NFTA_BYTEORDER_OP, unix.NFT_BYTEORDER_HTON)
	r.w.u32(unix.NFTA_BYTEORDER_LEN, mssLen)
	r.w.u32(unix.NFTA_BYTEORDER_SIZE, 2)
	r.close(e)
	e = r.open("exthdr")
	r.w.u32(exthdrSreg, reg(word))
	r.w.u8(unix.NFTA_EXTHDR_TYPE, optMSS)
	r.w.u32(unix.NFTA_EXTHDR_OFFSET, optMSSAt)
	r.w.u32(unix.NFTA_EXTHDR_LEN, mssLen)
	r.w.u32(exthdrOp, exthdrTCPOpt)
	r.close(e)
}

// sourceKept wants a status without the bit of translated sources.
func (r *ruleEnc) sourceKept() {
	r.field(ruleset.CtStatus, r.alloc(4))
	r.and(0, host32(ipsSrcNAT))
	r.cmp(unix.NFT_CMP_EQ, zeros)
}

func (r *ruleEnc) cameIn() {
	e := r.open("meta")
	r.w.u32(unix.NFTA_META_DREG, reg(r.alloc(4)))
	r.w.u32(unix.NFTA_META_KEY, unix.NFT_META_IIF)
	r.close(e)
	r.cmp(unix.NFT_CMP_NEQ, zeros)
}
