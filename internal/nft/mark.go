package nft

import (
	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// markExpr returns the expression that has the mark, and its key there.
func markExpr(m ruleset.Mark) (expr string, key uint32) {
	if m.Conn {
		return "ct", unix.NFT_CT_MARK
	}
	return "meta", unix.NFT_META_MARK
}

// loadMark loads all of a mark.
func (r *ruleEnc) loadMark(m ruleset.Mark, word int) {
	expr, key := markExpr(m)
	if expr == "ct" {
		e := r.open(expr)
		r.w.u32(unix.NFTA_CT_KEY, key)
		r.w.u32(unix.NFTA_CT_DREG, reg(word))
		r.close(e)
		return
	}
	e := r.open(expr)
	r.w.u32(unix.NFTA_META_KEY, key)
	r.w.u32(unix.NFTA_META_DREG, reg(word))
	r.close(e)
}

// mark loads the bits of a mark that count.
func (r *ruleEnc) mark(m ruleset.Mark, word int) {
	r.loadMark(m, word)
	r.and(word, host32(m.Mask))
}

func (r *ruleEnc) markIs(s ruleset.MarkIs) {
	if s.Mask == 0 || s.Value&^s.Mask != 0 {
		r.fail("mark 0x%x has bits that the mask 0x%x has not", s.Value, s.Mask)
		return
	}
	r.mark(s.Mark, r.alloc(4))
	op := uint32(unix.NFT_CMP_EQ)
	if s.Not {
		op = unix.NFT_CMP_NEQ
	}
	r.cmp(op, host32(s.Value))
}

func (r *ruleEnc) setMark(s ruleset.SetMark) {
	if s.Mask == 0 || s.Value&^s.Mask != 0 {
		r.fail("mark 0x%x has bits that the mask 0x%x has not", s.Value, s.Mask)
		return
	}
	word := r.alloc(4)
	r.loadMark(s.Mark, word)
	e := r.open("bitwise")
	r.w.u32(unix.NFTA_BITWISE_SREG, reg(word))
	r.w.u32(unix.NFTA_BITWISE_DREG, reg(word))
	r.w.u32(unix.NFTA_BITWISE_LEN, 4)
	r.w.value(unix.NFTA_BITWISE_MASK, host32(^s.Mask))
	r.w.value(unix.NFTA_BITWISE_XOR, host32(s.Value))
	r.close(e)
	expr, key := markExpr(s.Mark)
	e = r.open(expr)
	if s.Conn {
		r.w.u32(unix.NFTA_CT_KEY, key)
		r.w.u32(unix.NFTA_CT_SREG, reg(word))
	} else {
		r.w.u32(unix.NFTA_META_KEY, key)
		r.w.u32(unix.NFTA_META_SREG, reg(word))
	}
	r.close(e)
}
