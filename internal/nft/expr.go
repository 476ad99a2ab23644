package nft

import (
	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// load says how a field gets into a register.
type load struct {
	expr    string // "payload", "meta" or "ct"
	key     uint32 // payload: the header; meta and ct: the key
	off, n  uint32 // payload: offset and length
	dir     int8   // ct: the direction, or noDir
	nfproto uint8  // the family that must have been matched, 0 for any: nft adds the match itself
	l4      bool   // a protocol must have been matched
	l4proto uint8  // and it must have been this one; 0 for any
}

const noDir = -1

var loads = [...]load{
	ruleset.IPSaddr:       {expr: "payload", key: unix.NFT_PAYLOAD_NETWORK_HEADER, off: 12, n: 4, nfproto: unix.NFPROTO_IPV4},
	ruleset.IPDaddr:       {expr: "payload", key: unix.NFT_PAYLOAD_NETWORK_HEADER, off: 16, n: 4, nfproto: unix.NFPROTO_IPV4},
	ruleset.IP6Saddr:      {expr: "payload", key: unix.NFT_PAYLOAD_NETWORK_HEADER, off: 8, n: 16, nfproto: unix.NFPROTO_IPV6},
	ruleset.IP6Daddr:      {expr: "payload", key: unix.NFT_PAYLOAD_NETWORK_HEADER, off: 24, n: 16, nfproto: unix.NFPROTO_IPV6},
	ruleset.SPort:         {expr: "payload", key: unix.NFT_PAYLOAD_TRANSPORT_HEADER, off: 0, n: 2},
	ruleset.DPort:         {expr: "payload", key: unix.NFT_PAYLOAD_TRANSPORT_HEADER, off: 2, n: 2},
	ruleset.L4Proto:       {expr: "meta", key: unix.NFT_META_L4PROTO},
	ruleset.NFProto:       {expr: "meta", key: unix.NFT_META_NFPROTO},
	ruleset.CtDirection:   {expr: "ct", key: unix.NFT_CT_DIRECTION, dir: noDir},
	ruleset.CtStatus:      {expr: "ct", key: unix.NFT_CT_STATUS, dir: noDir},
	ruleset.CtOrigDaddr4:  {expr: "ct", key: unix.NFT_CT_DST_IP, dir: 0},
	ruleset.CtOrigDaddr6:  {expr: "ct", key: unix.NFT_CT_DST_IP6, dir: 0},
	ruleset.CtOrigDPort:   {expr: "ct", key: unix.NFT_CT_PROTO_DST, dir: 0, l4: true},
	ruleset.CtReplySaddr4: {expr: "ct", key: unix.NFT_CT_SRC_IP, dir: 1},
	ruleset.CtReplySaddr6: {expr: "ct", key: unix.NFT_CT_SRC_IP6, dir: 1},
	ruleset.CtReplySPort:  {expr: "ct", key: unix.NFT_CT_PROTO_SRC, dir: 1, l4: true},
	ruleset.IIFName:       {expr: "meta", key: unix.NFT_META_IIFNAME},
	ruleset.OIFName:       {expr: "meta", key: unix.NFT_META_OIFNAME},
	ruleset.TCPFlagBits:   {expr: "payload", key: unix.NFT_PAYLOAD_TRANSPORT_HEADER, off: 13, n: 1, l4proto: unix.IPPROTO_TCP},
	ruleset.ICMPType:      {expr: "payload", key: unix.NFT_PAYLOAD_TRANSPORT_HEADER, off: 0, n: 1, l4proto: unix.IPPROTO_ICMP},
	ruleset.FibDaddrType:  {expr: "fib"},
	ruleset.NextHop4:      {expr: "rt", key: unix.NFT_RT_NEXTHOP4, nfproto: unix.NFPROTO_IPV4},
	ruleset.NextHop6:      {expr: "rt", key: unix.NFT_RT_NEXTHOP6, nfproto: unix.NFPROTO_IPV6},
	ruleset.ICMP6Type:     {expr: "payload", key: unix.NFT_PAYLOAD_TRANSPORT_HEADER, off: 0, n: 1, l4proto: unix.IPPROTO_ICMPV6},
}

// size returns the bytes the value of e takes in registers.
func (r *ruleEnc) size(e ruleset.Expr) int {
	switch e := e.(type) {
	case ruleset.Field:
		return e.Type().Padded()
	case ruleset.Masked:
		return e.Field.Type().Padded()
	case ruleset.MapGet:
		s := r.table.Set(e.Map)
		if s == nil {
			r.fail("map %s is not in the table", e.Map)
			return 4
		}
		return s.Data.Len()
	case ruleset.Concat:
		n := 0
		for _, f := range e {
			n += f.Type().Padded()
		}
		return n
	}
	return 4 // numgen and jhash give 32 bits
}

// keyLen returns the bytes of k in registers.
func (r *ruleEnc) keyLen(k ruleset.Key) int {
	n := 0
	for _, e := range k {
		n += r.size(e)
	}
	return n
}

// newKey loads k into registers of its own and returns the first word.
func (r *ruleEnc) newKey(k ruleset.Key) int {
	word := r.alloc(r.keyLen(k))
	r.key(k, word)
	return word
}

func (r *ruleEnc) key(k ruleset.Key, word int) {
	for _, e := range k {
		if r.err != nil {
			return
		}
		r.expr(e, word)
		word += r.size(e) / 4
	}
}

// expr loads the value of e into the registers from word on.
func (r *ruleEnc) expr(e ruleset.Expr, word int) {
	switch e := e.(type) {
	case ruleset.Field:
		r.field(e, word)
	case ruleset.Numgen:
		r.numgen(e, word)
	case ruleset.Hash:
		r.hash(e, word)
	case ruleset.MapGet:
		low := r.low
		if end := word + r.keyLen(e.Key)/4; end > r.low {
			r.alloc((end - r.low) * 4) // the key may be longer than what it is looked up for
		}
		r.key(e.Key, word)
		r.low = low
		r.lookup(e.Map, word, word, false)
	case ruleset.Concat:
		for _, f := range e {
			r.field(f, word)
			word += f.Type().Padded() / 4
		}
	case ruleset.Masked:
		r.masked(e, word)
	case ruleset.Mark:
		r.mark(e, word)
	case ruleset.FixedPort:
		r.immediate(word, string([]byte{byte(e >> 8), byte(e)}))
	default:
		r.fail("expression %T is unknown", e)
	}
}

func (r *ruleEnc) field(f ruleset.Field, word int) {
	if f == 0 || int(f) >= len(loads) {
		r.fail("field %d is unknown", f)
		return
	}
	l := &loads[f]
	if l.nfproto != 0 && l.nfproto != r.nfproto {
		r.fail("%s needs a match of its family (meta nfproto) before it", ruleset.Key{f})
	}
	if l.l4 && r.l4proto == 0 || l.l4proto != 0 && r.l4proto != l.l4proto {
		r.fail("%s needs a match of the protocol (meta l4proto) before it", ruleset.Key{f})
	}
	e := r.open(l.expr)
	switch l.expr {
	case "payload":
		r.w.u32(unix.NFTA_PAYLOAD_DREG, reg(word))
		r.w.u32(unix.NFTA_PAYLOAD_BASE, l.key)
		r.w.u32(unix.NFTA_PAYLOAD_OFFSET, l.off)
		r.w.u32(unix.NFTA_PAYLOAD_LEN, l.n)
	case "meta":
		r.w.u32(unix.NFTA_META_KEY, l.key)
		r.w.u32(unix.NFTA_META_DREG, reg(word))
	case "rt":
		r.w.u32(rtKey, l.key)
		r.w.u32(rtDreg, reg(word))
	case "fib":
		r.w.u32(fibDreg, reg(word))
		r.w.u32(fibResult, fibAddrType)
		r.w.u32(fibFlags, fibDaddr)
	case "ct":
		r.w.u32(unix.NFTA_CT_KEY, l.key)
		r.w.u32(unix.NFTA_CT_DREG, reg(word))
		if l.dir != noDir {
			r.w.u8(unix.NFTA_CT_DIRECTION, uint8(l.dir))
		}
	}
	r.close(e)
}

func (r *ruleEnc) numgen(n ruleset.Numgen, word int) {
	kind := uint32(unix.NFT_NG_INCREMENTAL)
	if n.Random {
		kind = unix.NFT_NG_RANDOM
	}
	e := r.open("numgen")
	r.w.u32(unix.NFTA_NG_DREG, reg(word))
	r.w.u32(unix.NFTA_NG_MODULUS, n.Mod)
	r.w.u32(unix.NFTA_NG_TYPE, kind)
	r.w.u32(unix.NFTA_NG_OFFSET, n.Offset)
	r.close(e)
}

// hash writes jhash. Like nft it hashes a concatenation with the zeros that pad its
// fields, and a single field without.
func (r *ruleEnc) hash(h ruleset.Hash, word int) {
	if len(h.Key) == 0 {
		r.fail("jhash of nothing")
		return
	}
	low := r.low
	n := r.keyLen(h.Key)
	if f, ok := h.Key[0].(ruleset.Field); ok && len(h.Key) == 1 {
		n = f.Type().Size()
	}
	src := r.newKey(h.Key)
	r.low = low
	e := r.open("hash")
	r.w.u32(unix.NFTA_HASH_SREG, reg(src))
	r.w.u32(unix.NFTA_HASH_DREG, reg(word))
	r.w.u32(unix.NFTA_HASH_LEN, uint32(n))
	r.w.u32(unix.NFTA_HASH_MODULUS, h.Mod)
	r.w.u32(unix.NFTA_HASH_SEED, h.Seed)
	r.w.u32(unix.NFTA_HASH_OFFSET, h.Offset)
	r.w.u32(unix.NFTA_HASH_TYPE, unix.NFT_HASH_JENKINS)
	r.close(e)
}
