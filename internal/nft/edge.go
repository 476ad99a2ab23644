package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// host32 returns a number as the kernel keeps it in a register.
func host32(n uint32) string {
	var v [4]byte
	binary.NativeEndian.PutUint32(v[:], n)
	return string(v[:])
}

// ctState writes: one of those bits of the state is set.
func (r *ruleEnc) ctState(s ruleset.CtState) {
	word := r.alloc(4)
	e := r.open("ct")
	r.w.u32(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
	r.w.u32(unix.NFTA_CT_DREG, reg(word))
	r.close(e)
	e = r.open("bitwise")
	r.w.u32(unix.NFTA_BITWISE_SREG, reg(word))
	r.w.u32(unix.NFTA_BITWISE_DREG, reg(word))
	r.w.u32(unix.NFTA_BITWISE_LEN, 4)
	r.w.value(unix.NFTA_BITWISE_MASK, host32(uint32(s.States)))
	r.w.value(unix.NFTA_BITWISE_XOR, zeros)
	r.close(e)
	r.cmp(unix.NFT_CMP_NEQ, zeros)
}

func (r *ruleEnc) onLoopback(s ruleset.OnLoopback) {
	key := uint32(unix.NFT_META_IIF)
	if s.Out {
		key = unix.NFT_META_OIF
	}
	e := r.open("meta")
	r.w.u32(unix.NFTA_META_DREG, reg(r.alloc(4)))
	r.w.u32(unix.NFTA_META_KEY, key)
	r.close(e)
	r.cmp(unix.NFT_CMP_EQ, host32(loopbackIndex))
}
