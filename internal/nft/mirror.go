package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// What nf_tables.h has and golang.org/x/sys/unix lacks.
const (
	dupAddr = 1 // NFTA_DUP_SREG_ADDR
	dupDev  = 2 // NFTA_DUP_SREG_DEV

	payloadCsumType   = 6 // NFTA_PAYLOAD_CSUM_TYPE
	payloadCsumOffset = 7 // NFTA_PAYLOAD_CSUM_OFFSET
	csumInet          = 1 // NFT_PAYLOAD_CSUM_INET
)

// mirror writes the statements of mirrors; it reports false for others.
func (r *ruleEnc) mirror(s ruleset.Stmt) bool {
	switch s := s.(type) {
	case ruleset.Dup:
		word := r.alloc(16)
		r.immediate(word, string(s.To.AsSlice()))
		e := r.open("dup")
		r.w.u32(dupAddr, reg(word))
		r.close(e)
	case ruleset.IsCopy:
		r.isCopy(s)
	case ruleset.MarkCopy:
		r.markCopy(s)
	case ruleset.AboutCopy:
		r.aboutCopy(s)
	case ruleset.Translated:
		r.field(ruleset.CtStatus, r.alloc(4))
		r.anyOf(host32(ipsSrcNAT | ipsDstNAT))
	case ruleset.Below:
		r.below(s)
	default:
		return false
	}
	return true
}

// loadPayload loads n bytes of a header into the first register.
func (r *ruleEnc) loadPayload(base uint32, off, n uint32) {
	r.low = 0
	e := r.open("payload")
	r.w.u32(unix.NFTA_PAYLOAD_DREG, reg(r.alloc(int(n))))
	r.w.u32(unix.NFTA_PAYLOAD_BASE, base)
	r.w.u32(unix.NFTA_PAYLOAD_OFFSET, off)
	r.w.u32(unix.NFTA_PAYLOAD_LEN, n)
	r.close(e)
}

// copyMark is where copies are marked: offset in the IP header, and the bits there.
func copyMark(f model.Family) (off uint32, mask, value string) {
	if f == model.IPv4 {
		return 6, "\x80\x00", "\x80\x00"
	}
	// Version, DSCP, ECN and flow label (RFC 8200 section 3).
	return 0, "\x0f\xcf\xff\xff", string(binary.BigEndian.AppendUint32(nil, ruleset.CopyDSCP<<22|ruleset.CopyLabel))
}

func (r *ruleEnc) hasCopyMark(base, at uint32, f model.Family) {
	off, mask, value := copyMark(f)
	r.loadPayload(base, at+off, uint32(len(mask)))
	r.and(0, mask)
	r.cmp(unix.NFT_CMP_EQ, value)
}

func (r *ruleEnc) isCopy(s ruleset.IsCopy) {
	r.hasCopyMark(unix.NFT_PAYLOAD_NETWORK_HEADER, 0, s.Family)
}

func (r *ruleEnc) markCopy(s ruleset.MarkCopy) {
	off, mask, value := copyMark(s.Family)
	r.loadPayload(unix.NFT_PAYLOAD_NETWORK_HEADER, off, uint32(len(mask)))
	keep := []byte(mask)
	for i := range keep {
		keep[i] = ^keep[i]
	}
	e := r.open("bitwise")
	r.w.u32(unix.NFTA_BITWISE_SREG, reg(0))
	r.w.u32(unix.NFTA_BITWISE_DREG, reg(0))
	r.w.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
	r.w.value(unix.NFTA_BITWISE_MASK, string(keep))
	r.w.value(unix.NFTA_BITWISE_XOR, value)
	r.close(e)
	e = r.open("payload")
	r.w.u32(unix.NFTA_PAYLOAD_SREG, reg(0))
	r.w.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
	r.w.u32(unix.NFTA_PAYLOAD_OFFSET, off)
	r.w.u32(unix.NFTA_PAYLOAD_LEN, uint32(len(mask)))
	if s.Family == model.IPv4 {
		r.w.u32(payloadCsumType, csumInet)
		r.w.u32(payloadCsumOffset, 10) // of the checksum in the header
	}
	r.close(e)
}

// icmpHeader is the length of the header before the packet that an ICMP error is about, in
// bytes (RFC 792, RFC 4443).
const icmpHeader = 8

func (r *ruleEnc) aboutCopy(s ruleset.AboutCopy) {
	const th = unix.NFT_PAYLOAD_TRANSPORT_HEADER
	proto := uint8(unix.IPPROTO_ICMP)
	if s.Family == model.IPv6 {
		proto = unix.IPPROTO_ICMPV6
	}
	r.match(ruleset.IsProto(model.Proto(proto)))
	switch {
	case s.Family == model.IPv4 && s.TooBig:
		r.loadPayload(th, 0, 2)
		r.cmp(unix.NFT_CMP_EQ, "\x03\x04") // RFC 1191
	case s.Family == model.IPv4: // queries have types of 8 and from 13 on, and a redirect is 5
		r.loadPayload(th, 0, 1)
		r.cmp(unix.NFT_CMP_GTE, "\x03")
		r.cmp(unix.NFT_CMP_LTE, "\x0c")
		r.cmp(unix.NFT_CMP_NEQ, "\x08")
	case s.TooBig:
		r.loadPayload(th, 0, 1)
		r.cmp(unix.NFT_CMP_EQ, "\x02")
	default: // errors are below 128 (RFC 4443 section 2.1)
		r.loadPayload(th, 0, 1)
		r.cmp(unix.NFT_CMP_LT, "\x80")
	}
	r.hasCopyMark(th, icmpHeader, s.Family)
}

// below compares the value of an expression with a number.
func (r *ruleEnc) below(s ruleset.Below) {
	word := r.alloc(4)
	r.expr(s.Expr, word)
	r.compare(word, s.N, s.AtLeast)
}

// compare holds a number in the order of the host against n, byte by byte and so turned before.
func (r *ruleEnc) compare(word int, n uint32, atLeast bool) {
	e := r.open("byteorder")
	r.w.u32(unix.NFTA_BYTEORDER_SREG, reg(word))
	r.w.u32(unix.NFTA_BYTEORDER_DREG, reg(word))
	r.w.u32(unix.NFTA_BYTEORDER_OP, unix.NFT_BYTEORDER_HTON)
	r.w.u32(unix.NFTA_BYTEORDER_LEN, 4)
	r.w.u32(unix.NFTA_BYTEORDER_SIZE, 4)
	r.close(e)
	op := uint32(unix.NFT_CMP_LT)
	if atLeast {
		op = unix.NFT_CMP_GTE
	}
	r.cmp(op, string(binary.BigEndian.AppendUint32(nil, n)))
}
