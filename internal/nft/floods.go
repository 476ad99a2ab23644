package nft

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// What nf_tables.h and nf_synproxy.h have and golang.org/x/sys/unix lacks.
const (
	lookupInverted = 1 // NFT_LOOKUP_F_INV

	synproxyMSS    = 1 // NFTA_SYNPROXY_MSS
	synproxyWScale = 2 // NFTA_SYNPROXY_WSCALE
	synproxyFlags  = 3 // NFTA_SYNPROXY_FLAGS

	// The options of the client that the server gets: NF_SYNPROXY_OPT_MSS, _WSCALE, _SACK_PERM
	// and _TIMESTAMP.
	synproxyOptions = 0x01 | 0x02 | 0x04 | 0x08
)

func (r *ruleEnc) rateUnder(s ruleset.RateUnder) {
	if s.Rate == 0 || s.Burst == 0 || s.Timeout < time.Millisecond || s.Unit < time.Second {
		r.fail("a rate of %d in %s, %d at once, for %s, is none", s.Rate, s.Unit, s.Burst, s.Timeout)
		return
	}
	key := r.newKey(s.Key)
	e := r.open("dynset")
	r.w.u32(unix.NFTA_DYNSET_SREG_KEY, reg(key))
	r.w.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
	r.w.u64(unix.NFTA_DYNSET_TIMEOUT, uint64(s.Timeout.Milliseconds()))
	r.w.str(unix.NFTA_DYNSET_SET_NAME, s.Set)
	x := r.w.nest(unix.NFTA_DYNSET_EXPR)
	r.w.str(unix.NFTA_EXPR_NAME, "limit")
	d := r.w.nest(unix.NFTA_EXPR_DATA)
	r.w.u64(unix.NFTA_LIMIT_RATE, uint64(s.Rate))
	r.w.u64(unix.NFTA_LIMIT_UNIT, uint64(s.Unit/time.Second))
	r.w.u32(unix.NFTA_LIMIT_BURST, s.Burst)
	r.w.u32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
	r.w.u32(unix.NFTA_LIMIT_FLAGS, 0) // what is under the rate matches
	r.w.close(d)
	r.w.close(x)
	r.close(e)
}

func (r *ruleEnc) notInSet(s ruleset.NotInSet) {
	key := r.newKey(s.Key)
	e := r.open("lookup")
	r.w.u32(unix.NFTA_LOOKUP_SREG, reg(key))
	r.w.str(unix.NFTA_LOOKUP_SET, s.Set)
	r.w.u32(unix.NFTA_LOOKUP_FLAGS, lookupInverted)
	r.close(e)
}

func (r *ruleEnc) isSYN() {
	r.loadFlags()
	r.and(0, string([]byte{byte(ruleset.FIN | ruleset.SYN | ruleset.RST | ruleset.ACK)}))
	r.cmp(unix.NFT_CMP_EQ, string([]byte{byte(ruleset.SYN)}))
}

func (r *ruleEnc) synProxy(s ruleset.SynProxy) {
	if r.l4proto != unix.IPPROTO_TCP {
		r.fail("synproxy needs a match of the protocol (meta l4proto tcp) before it")
	}
	e := r.open("synproxy")
	r.w.raw(synproxyMSS, string(binary.BigEndian.AppendUint16(nil, s.MSS)))
	r.w.u8(synproxyWScale, s.WScale)
	r.w.u32(synproxyFlags, synproxyOptions)
	r.close(e)
}
