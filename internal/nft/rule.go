package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// ruleEnc writes the expressions of one rule. Registers are counted in words of four
// bytes; like nft it gives every operand whole registers of 16 bytes.
type ruleEnc struct {
	w       *buf
	table   *ruleset.Table
	low     int   // the first free word
	nfproto uint8 // what the rule has matched so far, 0 for nothing
	l4proto uint8
	counted Counter // at which a counter of the rule begins
	err     error
}

const registerWords = 16

func (r *ruleEnc) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// reg returns the kernel's number of the register that starts at word: NFT_REG_1 to 4
// for whole ones, NFT_REG32_01 and so on for their parts.
func reg(word int) uint32 {
	if word%4 == 0 {
		return unix.NFT_REG_1 + uint32(word/4)
	}
	return unix.NFT_REG32_00 + uint32(word)
}

// alloc returns the first word of registers for n bytes.
func (r *ruleEnc) alloc(n int) int {
	word := r.low
	r.low += (n + 15) / 16 * 4
	if r.low > registerWords {
		r.fail("more than %d bytes of registers needed", 4*registerWords)
	}
	return word
}

type exprAt struct{ elem, data int }

func (r *ruleEnc) open(name string) exprAt {
	var e exprAt
	e.elem = r.w.nest(unix.NFTA_LIST_ELEM)
	r.w.str(unix.NFTA_EXPR_NAME, name)
	e.data = r.w.nest(unix.NFTA_EXPR_DATA)
	return e
}

func (r *ruleEnc) close(e exprAt) {
	r.w.close(e.data)
	r.w.close(e.elem)
}

func (r *ruleEnc) stmt(s ruleset.Stmt) {
	r.low = 0
	switch s := s.(type) {
	case ruleset.Match:
		r.match(s)
	case ruleset.StatusDNAT:
		r.statusDNAT()
	case ruleset.NotLoopback:
		r.notLoopback()
	case ruleset.NoSYN:
		r.noSYN()
	case ruleset.Notrack:
		r.close(r.open("notrack"))
	case ruleset.CtState:
		r.ctState(s)
	case ruleset.OnLoopback:
		r.onLoopback(s)
	case ruleset.IsEther:
		r.isEther(s)
	case ruleset.ToThisHost:
		r.toThisHost()
	case ruleset.Whole:
		r.whole(s)
	case ruleset.Counting:
		r.counting()
	case ruleset.Fwd:
		r.fwd(s)
	case ruleset.HopsLeft:
		r.hopsLeft(s)
	case ruleset.SendOn:
		r.sendOn(s)
	case ruleset.OutDevice:
		r.field(ruleset.OIFName, r.alloc(16))
		r.cmp(unix.NFT_CMP_EQ, string(ruleset.AppendDevice(nil, s.Name)))
	case ruleset.RateUnder:
		r.rateUnder(s)
	case ruleset.InDevice:
		r.field(ruleset.IIFName, r.alloc(16))
		r.cmp(unix.NFT_CMP_EQ, string(ruleset.AppendDevice(nil, s.Name)))
	case ruleset.NotInSet:
		r.notInSet(s)
	case ruleset.IsSYN:
		r.isSYN()
	case ruleset.SynProxy:
		r.synProxy(s)
	case ruleset.MarkIs:
		r.markIs(s)
	case ruleset.SetMark:
		r.setMark(s)
	case ruleset.Queue:
		r.queue(s)
	case ruleset.SetTimeouts:
		r.setTimeouts(s)
	case ruleset.ClampMSS:
		r.clampMSS()
	case ruleset.SourceKept:
		r.sourceKept()
	case ruleset.CameIn:
		r.cameIn()
	case ruleset.InSet:
		r.lookup(s.Set, r.newKey(s.Key), -1, false)
	case ruleset.VMap:
		r.lookup(s.Map, r.newKey(s.Key), 0, true)
	case ruleset.Update:
		r.update(s)
	case ruleset.CountOver:
		r.countOver(s)
	case ruleset.Expires:
		r.expires(s)
	case ruleset.TCPFlags:
		r.tcpFlags(s)
	case ruleset.DNAT:
		r.dnat(s)
	case ruleset.SNAT:
		r.snat(s)
	case ruleset.Masquerade:
		r.masquerade(s)
	case ruleset.FirstSNAT:
		r.firstSNAT()
	case ruleset.RejectWith:
		r.reject(s)
	case ruleset.Verdict:
		r.verdict(s)
	default:
		if !r.mirror(s) {
			r.fail("statement %T is unknown", s)
		}
	}
}

func (r *ruleEnc) match(m ruleset.Match) {
	switch m.Field {
	case ruleset.NFProto:
		r.nfproto = m.Value
	case ruleset.L4Proto:
		r.l4proto = m.Value
	case ruleset.CtDirection:
	default:
		r.fail("field %d can't be matched with a value", m.Field)
		return
	}
	r.field(m.Field, r.alloc(4))
	r.cmp(unix.NFT_CMP_EQ, string([]byte{m.Value}))
}

// cmp compares the first register.
func (r *ruleEnc) cmp(op uint32, v string) {
	e := r.open("cmp")
	r.w.u32(unix.NFTA_CMP_SREG, reg(0))
	r.w.u32(unix.NFTA_CMP_OP, op)
	r.w.value(unix.NFTA_CMP_DATA, v)
	r.close(e)
}

// ipsDstNAT is IPS_DST_NAT of nf_conntrack_common.h.
const ipsDstNAT = 1 << 5

func (r *ruleEnc) statusDNAT() {
	r.field(ruleset.CtStatus, r.alloc(4))
	var mask [4]byte
	binary.NativeEndian.PutUint32(mask[:], ipsDstNAT)
	r.anyOf(string(mask[:]))
}

// and leaves those bits of the register at word that mask has.
func (r *ruleEnc) and(word int, mask string) {
	e := r.open("bitwise")
	r.w.u32(unix.NFTA_BITWISE_SREG, reg(word))
	r.w.u32(unix.NFTA_BITWISE_DREG, reg(word))
	r.w.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
	r.w.value(unix.NFTA_BITWISE_MASK, mask)
	r.w.value(unix.NFTA_BITWISE_XOR, strings.Repeat("\x00", len(mask)))
	r.close(e)
}

// anyOf compares bits of the first register: one that is in the mask must be set.
func (r *ruleEnc) anyOf(mask string) {
	r.and(0, mask)
	r.cmp(unix.NFT_CMP_NEQ, zeros[:len(mask)])
}

// tcpFlagsAt is where the flags are in the TCP header (RFC 9293 section 3.1), in bytes.
const tcpFlagsAt = 13

// loadFlags loads the flags of a TCP segment into the first register.
func (r *ruleEnc) loadFlags() {
	if r.l4proto != unix.IPPROTO_TCP {
		r.fail("tcp flags need a match of the protocol (meta l4proto tcp) before them")
	}
	e := r.open("payload")
	r.w.u32(unix.NFTA_PAYLOAD_DREG, reg(r.alloc(4)))
	r.w.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER)
	r.w.u32(unix.NFTA_PAYLOAD_OFFSET, tcpFlagsAt)
	r.w.u32(unix.NFTA_PAYLOAD_LEN, 1)
	r.close(e)
}

// noSYN wants a segment without SYN.
func (r *ruleEnc) noSYN() {
	const syn = "\x02"
	r.loadFlags()
	r.and(0, syn)
	r.cmp(unix.NFT_CMP_EQ, zeros[:1])
}

func (r *ruleEnc) tcpFlags(f ruleset.TCPFlags) {
	r.loadFlags()
	r.anyOf(string([]byte{byte(f)}))
}

// expires compares milliseconds, which the kernel gives in the order of the host.
func (r *ruleEnc) expires(x ruleset.Expires) {
	word := r.alloc(4)
	e := r.open("ct")
	r.w.u32(unix.NFTA_CT_KEY, unix.NFT_CT_EXPIRATION)
	r.w.u32(unix.NFTA_CT_DREG, reg(word))
	r.close(e)
	r.compare(word, uint32(x.Time.Milliseconds()), x.AtLeast)
}

// masked loads the first bits of a field.
func (r *ruleEnc) masked(m ruleset.Masked, word int) {
	r.field(m.Field, word)
	if m.Bits < 0 || m.Bits > 8*m.Field.Type().Size() {
		r.fail("%s has no first %d bits", ruleset.Key{m.Field}, m.Bits)
		return
	}
	r.and(word, m.Mask())
}

// loopbackIndex is the index of lo in every network namespace (drivers/net/loopback.c).
const loopbackIndex = 1

func (r *ruleEnc) notLoopback() {
	e := r.open("meta")
	r.w.u32(unix.NFTA_META_DREG, reg(r.alloc(4)))
	r.w.u32(unix.NFTA_META_KEY, unix.NFT_META_IIF)
	r.close(e)
	var v [4]byte
	binary.NativeEndian.PutUint32(v[:], loopbackIndex)
	r.cmp(unix.NFT_CMP_NEQ, string(v[:]))
}

const zeros = "\x00\x00\x00\x00"

// lookup looks the key at word up. The result goes to word dreg, or is the verdict, or
// (dreg < 0) is nothing but whether the key is there.
func (r *ruleEnc) lookup(set string, word, dreg int, verdict bool) {
	e := r.open("lookup")
	r.w.u32(unix.NFTA_LOOKUP_SREG, reg(word))
	switch {
	case verdict:
		r.w.u32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
	case dreg >= 0:
		r.w.u32(unix.NFTA_LOOKUP_DREG, reg(dreg))
	}
	r.w.str(unix.NFTA_LOOKUP_SET, set)
	r.close(e)
}

func (r *ruleEnc) update(u ruleset.Update) {
	key := r.newKey(u.Key)
	data := -1
	if u.Data != nil {
		data = r.newKey(ruleset.Key{u.Data})
	}
	e := r.open("dynset")
	r.w.u32(unix.NFTA_DYNSET_SREG_KEY, reg(key))
	if data >= 0 {
		r.w.u32(unix.NFTA_DYNSET_SREG_DATA, reg(data))
	}
	r.w.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
	if u.Timeout > 0 {
		r.w.u64(unix.NFTA_DYNSET_TIMEOUT, uint64(u.Timeout.Milliseconds()))
	}
	r.w.str(unix.NFTA_DYNSET_SET_NAME, u.Set)
	r.close(e)
}

func (r *ruleEnc) countOver(c ruleset.CountOver) {
	key := r.newKey(c.Key)
	e := r.open("dynset")
	r.w.u32(unix.NFTA_DYNSET_SREG_KEY, reg(key))
	r.w.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_ADD)
	r.w.str(unix.NFTA_DYNSET_SET_NAME, c.Set)
	x := r.w.nest(unix.NFTA_DYNSET_EXPR)
	r.w.str(unix.NFTA_EXPR_NAME, "connlimit")
	d := r.w.nest(unix.NFTA_EXPR_DATA)
	r.w.u32(connlimitCount, c.Limit)
	r.w.u32(connlimitFlags, connlimitInverted)
	r.w.close(d)
	r.w.close(x)
	r.close(e)
}

func nfprotoOf(f model.Family) uint8 {
	if f == model.IPv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

func (r *ruleEnc) dnat(d ruleset.DNAT) {
	addr := r.alloc(16)
	r.expr(d.To, addr)
	port := -1
	switch {
	case d.Port != nil:
		port = r.alloc(16)
		r.expr(d.Port, port)
	case d.WithPort:
		port = addr + ruleset.AddrType(d.Family).Padded()/4
	}
	flags := uint32(0)
	if d.Port != nil { // nft leaves the flag to the kernel where one map gives both
		flags = natProtoSpecified
	}
	r.nat(unix.NFT_NAT_DNAT, d.Family, natRegs{addr, port, -1}, flags)
}

// immediate loads a constant into the registers from word on.
func (r *ruleEnc) immediate(word int, v string) {
	e := r.open("immediate")
	r.w.u32(unix.NFTA_IMMEDIATE_DREG, reg(word))
	r.w.value(unix.NFTA_IMMEDIATE_DATA, v)
	r.close(e)
}

func (r *ruleEnc) reject(s ruleset.RejectWith) {
	kind, code := uint32(unix.NFT_REJECT_ICMPX_UNREACH), uint8(unix.NFT_REJECT_ICMPX_PORT_UNREACH)
	if s.Prohibited {
		code = unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED
	}
	if s.TCPReset {
		kind, code = unix.NFT_REJECT_TCP_RST, 0
		if r.l4proto != unix.IPPROTO_TCP {
			r.fail("reject with tcp reset needs a match of the protocol (meta l4proto tcp) before it")
		}
	}
	e := r.open("reject")
	r.w.u32(unix.NFTA_REJECT_TYPE, kind)
	r.w.u8(unix.NFTA_REJECT_ICMP_CODE, code)
	r.close(e)
}

func (r *ruleEnc) verdict(v ruleset.Verdict) {
	var code int32
	switch v.Kind {
	case ruleset.AcceptPacket:
		code = 1 // NF_ACCEPT
	case ruleset.DropPacket:
		code = 0 // NF_DROP
	case ruleset.JumpTo:
		code = verdictJump
	case ruleset.GotoChain:
		code = verdictGoto
	case ruleset.ReturnBack:
		code = verdictReturn
	default:
		r.fail("verdict %q is unknown", v.Kind)
	}
	e := r.open("immediate")
	r.w.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
	r.w.verdict(unix.NFTA_IMMEDIATE_DATA, code, v.Chain)
	r.close(e)
}
