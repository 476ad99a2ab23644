package nft

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// verifier tells whether rules that the kernel has are those that the driver would send,
// whatever their comments claim. Its buffers serve one rule after the other.
type verifier struct {
	w          buf
	have, want []byte
}

// same reports whether a rule's attributes, as the kernel gives them, mean what the
// driver would send for r, whose fingerprint it doesn't look at.
func (v *verifier) same(kernel string, t *ruleset.Table, r *ruleset.Rule) bool {
	if commentWords(ruleComment(kernel)) != r.Comment {
		return false
	}
	v.w.b = v.w.b[:0]
	if v.w.exprs(t, r, Counter{}) != nil {
		return false
	}
	var ok bool
	if v.want, ok = appendMeaning(v.want[:0], string(v.w.b)); !ok {
		return false
	}
	v.have, ok = appendMeaning(v.have[:0], kernel)
	return ok && bytes.Equal(v.have, v.want)
}

// commentWords returns a comment that ruleset.Rule.FullComment made without the
// fingerprint.
func commentWords(s string) string {
	s = strings.TrimSuffix(s, "#"+ruleset.CommentFingerprint(s))
	return strings.TrimSuffix(s, " ")
}

// meaning says how an attribute of an expression counts in a comparison.
type meaning uint8

const (
	number   meaning = iota + 1 // big-endian; one that is not there is 0
	given                       // a number too, but not being there is something else
	register                    // in either numbering
	name                        // up to its zero byte
	data                        // struct nft_data: a value or a verdict
	millisec                    // a number of milliseconds that the kernel keeps in jiffies
	natFlags                    // flags, with those that the registers imply
	inner                       // an expression that an element gets, or none
	never                       // what a rule of weir's has not
)

// maxExprAttr is the highest attribute in expressions, plus one.
const maxExprAttr = 11

// What nf_tables.h has and golang.org/x/sys/unix lacks.
const (
	bitwiseOp         = 6  // NFTA_BITWISE_OP
	bitwiseData       = 7  // NFTA_BITWISE_DATA
	bitwiseSreg2      = 8  // NFTA_BITWISE_SREG2
	dynsetExpressions = 10 // NFTA_DYNSET_EXPRESSIONS

	natMapIPs = 1 // NF_NAT_RANGE_MAP_IPS of nf_nat.h
)

// jiffies is what every length of a jiffy in use (1, 3⅓, 4 and 10 ms) divides, in
// milliseconds: rounded down to it, a time is the same before the kernel and after.
const jiffies = 100

type exprAttr struct {
	typ uint16
	is  meaning
}

// meanings are the expressions that rules of weir's have, each with the attributes that
// make a difference in what it does. Others, such as newer kernels may add, don't count.
var meanings = map[string][]exprAttr{
	"payload": {{unix.NFTA_PAYLOAD_DREG, register}, {unix.NFTA_PAYLOAD_BASE, number}, {unix.NFTA_PAYLOAD_OFFSET, number},
		{unix.NFTA_PAYLOAD_LEN, number}, {unix.NFTA_PAYLOAD_SREG, register}, {payloadCsumType, number}, {payloadCsumOffset, number}},
	"dup":  {{dupAddr, register}, {dupDev, register}},
	"meta": {{unix.NFTA_META_KEY, number}, {unix.NFTA_META_DREG, register}, {unix.NFTA_META_SREG, register}},
	"ct": {{unix.NFTA_CT_KEY, number}, {unix.NFTA_CT_DREG, register}, {unix.NFTA_CT_DIRECTION, given},
		{unix.NFTA_CT_SREG, register}},
	"fib": {{fibDreg, register}, {fibResult, number}, {fibFlags, number}},
	"numgen": {{unix.NFTA_NG_DREG, register}, {unix.NFTA_NG_MODULUS, number}, {unix.NFTA_NG_TYPE, number},
		{unix.NFTA_NG_OFFSET, number}},
	"hash": {{unix.NFTA_HASH_SREG, register}, {unix.NFTA_HASH_DREG, register}, {unix.NFTA_HASH_LEN, number},
		{unix.NFTA_HASH_MODULUS, number}, {unix.NFTA_HASH_SEED, given}, {unix.NFTA_HASH_OFFSET, number},
		{unix.NFTA_HASH_TYPE, number}},
	"lookup": {{unix.NFTA_LOOKUP_SET, name}, {unix.NFTA_LOOKUP_SREG, register}, {unix.NFTA_LOOKUP_DREG, register},
		{unix.NFTA_LOOKUP_FLAGS, number}},
	"cmp": {{unix.NFTA_CMP_SREG, register}, {unix.NFTA_CMP_OP, number}, {unix.NFTA_CMP_DATA, data}},
	"bitwise": {{unix.NFTA_BITWISE_SREG, register}, {unix.NFTA_BITWISE_DREG, register}, {unix.NFTA_BITWISE_LEN, number},
		{unix.NFTA_BITWISE_MASK, data}, {unix.NFTA_BITWISE_XOR, data}, {bitwiseOp, number},
		{bitwiseData, never}, {bitwiseSreg2, never}},
	"immediate": {{unix.NFTA_IMMEDIATE_DREG, register}, {unix.NFTA_IMMEDIATE_DATA, data}},
	"dynset": {{unix.NFTA_DYNSET_SET_NAME, name}, {unix.NFTA_DYNSET_SREG_KEY, register},
		{unix.NFTA_DYNSET_SREG_DATA, register}, {unix.NFTA_DYNSET_OP, number}, {unix.NFTA_DYNSET_TIMEOUT, millisec},
		{unix.NFTA_DYNSET_FLAGS, number}, {unix.NFTA_DYNSET_EXPR, inner}, {dynsetExpressions, never}},
	"connlimit": {{connlimitCount, number}, {connlimitFlags, number}},
	"limit": {{unix.NFTA_LIMIT_RATE, number}, {unix.NFTA_LIMIT_UNIT, number}, {unix.NFTA_LIMIT_BURST, number},
		{unix.NFTA_LIMIT_TYPE, number}, {unix.NFTA_LIMIT_FLAGS, number}},
	"counter": {}, // what it has counted is no part of what it does
	"fwd":     {{fwdSregDev, register}, {fwdSregAddr, register}, {fwdNFProto, number}},
	"objref":  {{objrefType, number}, {objrefName, name}, {objrefSreg, never}, {objrefSet, never}},
	"rt":      {{rtDreg, register}, {rtKey, number}},
	"exthdr": {{unix.NFTA_EXTHDR_DREG, register}, {unix.NFTA_EXTHDR_TYPE, number}, {unix.NFTA_EXTHDR_OFFSET, number},
		{unix.NFTA_EXTHDR_LEN, number}, {exthdrFlags, number}, {exthdrOp, number}, {exthdrSreg, register}},
	"synproxy": {{synproxyMSS, number}, {synproxyWScale, number}, {synproxyFlags, number}},
	"byteorder": {{unix.NFTA_BYTEORDER_SREG, register}, {unix.NFTA_BYTEORDER_DREG, register}, {unix.NFTA_BYTEORDER_OP, number},
		{unix.NFTA_BYTEORDER_LEN, number}, {unix.NFTA_BYTEORDER_SIZE, number}},
	"nat": {{unix.NFTA_NAT_TYPE, number}, {unix.NFTA_NAT_FAMILY, number}, {unix.NFTA_NAT_REG_ADDR_MIN, register},
		{unix.NFTA_NAT_REG_ADDR_MAX, register}, {unix.NFTA_NAT_REG_PROTO_MIN, register},
		{unix.NFTA_NAT_REG_PROTO_MAX, register}, {unix.NFTA_NAT_FLAGS, natFlags}},
	"masq": {{unix.NFTA_MASQ_FLAGS, number}, {unix.NFTA_MASQ_REG_PROTO_MIN, register},
		{unix.NFTA_MASQ_REG_PROTO_MAX, register}},
	"notrack": {},
	"queue": {{unix.NFTA_QUEUE_NUM, number}, {unix.NFTA_QUEUE_TOTAL, number}, {unix.NFTA_QUEUE_FLAGS, number},
		{unix.NFTA_QUEUE_SREG_QNUM, never}},
	"reject": {{unix.NFTA_REJECT_TYPE, number}, {unix.NFTA_REJECT_ICMP_CODE, number}},
}

// appendMeaning appends what a rule does, in a form that is the same whether the driver
// wrote its attributes, or nft did, or the kernel gave them back. It reports false where
// the rule has what no rule of weir's has.
func appendMeaning(b []byte, rule string) ([]byte, bool) {
	for _, expr := range attrs(attr(rule, unix.NFTA_RULE_EXPRESSIONS)) {
		var ok bool
		if b, ok = appendExpr(b, expr); !ok {
			return b, false
		}
	}
	return b, true
}

func appendExpr(b []byte, expr string) ([]byte, bool) {
	kind := cstr(attr(expr, unix.NFTA_EXPR_NAME))
	var vals [maxExprAttr]string
	for typ, p := range attrs(attr(expr, unix.NFTA_EXPR_DATA)) {
		if typ < maxExprAttr {
			vals[typ] = p
		}
	}
	if kind == "byteorder" && turnsNothing(&vals) {
		return b, true
	}
	if kind == "target" && asQueue(&vals) {
		kind = "queue"
	}
	list, ok := meanings[kind]
	if !ok {
		return b, false
	}
	switch kind {
	case "nat":
		fillNAT(&vals)
	case "masq":
		if vals[unix.NFTA_MASQ_REG_PROTO_MAX] == "" {
			vals[unix.NFTA_MASQ_REG_PROTO_MAX] = vals[unix.NFTA_MASQ_REG_PROTO_MIN]
		}
	}
	b = appendBytes(b, kind)
	for _, a := range list {
		if a.is == inner {
			b, ok = appendInner(b, vals[a.typ])
		} else {
			b, ok = appendAttr(b, &vals, a)
		}
		if !ok {
			return b, false
		}
	}
	return b, true
}

// appendInner appends an expression that a dynset gives its elements; of those of weir's
// that is one that counts connections or limits their rate.
func appendInner(b []byte, expr string) ([]byte, bool) {
	if expr == "" {
		return append(b, 0), true
	}
	if kind := cstr(attr(expr, unix.NFTA_EXPR_NAME)); kind != "connlimit" && kind != "limit" {
		return b, false
	}
	return appendExpr(append(b, 1), expr)
}

func appendAttr(b []byte, vals *[maxExprAttr]string, a exprAttr) ([]byte, bool) {
	v := vals[a.typ]
	switch a.is {
	case number:
		return appendNumber(b, beNumber(v)), true
	case given:
		return appendNumber(append(b, byte(len(v))), beNumber(v)), true
	case millisec:
		return appendNumber(b, beNumber(v)/jiffies), true
	case register:
		return append(b, registerOf(v)), true
	case name:
		return appendBytes(b, cstr(v)), true
	case data:
		return appendData(b, v), true
	case natFlags:
		flags := beNumber(v)
		if vals[unix.NFTA_NAT_REG_ADDR_MIN] != "" {
			flags |= natMapIPs
		}
		if vals[unix.NFTA_NAT_REG_PROTO_MIN] != "" {
			flags |= natProtoSpecified
		}
		return appendNumber(b, flags), true
	}
	return b, v == "" // never
}

// fillNAT fills in what the kernel does where a range has no end.
func fillNAT(vals *[maxExprAttr]string) {
	if vals[unix.NFTA_NAT_REG_ADDR_MAX] == "" {
		vals[unix.NFTA_NAT_REG_ADDR_MAX] = vals[unix.NFTA_NAT_REG_ADDR_MIN]
	}
	if vals[unix.NFTA_NAT_REG_PROTO_MAX] == "" {
		vals[unix.NFTA_NAT_REG_PROTO_MAX] = vals[unix.NFTA_NAT_REG_PROTO_MIN]
	}
}

// turnsNothing reports whether a byteorder expression does nothing. nft writes such a
// one in look-ups of ranges, for a field of one byte, which has no units to turn.
func turnsNothing(vals *[maxExprAttr]string) bool {
	return beNumber(vals[unix.NFTA_BYTEORDER_LEN]) < beNumber(vals[unix.NFTA_BYTEORDER_SIZE]) &&
		registerOf(vals[unix.NFTA_BYTEORDER_SREG]) == registerOf(vals[unix.NFTA_BYTEORDER_DREG])
}

// Registers that are no word.
const (
	noRegister      = 0xff
	verdictRegister = 0xfe
	oddRegister     = 0xfd
)

// registerOf returns the word at which a register starts: 0 for NFT_REG_1 as for
// NFT_REG32_00, and so on.
func registerOf(v string) byte {
	if v == "" {
		return noRegister
	}
	switch n := be32(v); {
	case n == unix.NFT_REG_VERDICT:
		return verdictRegister
	case n <= unix.NFT_REG_4:
		return byte(n-unix.NFT_REG_1) * 4
	case n >= unix.NFT_REG32_00 && n < unix.NFT_REG32_00+registerWords:
		return byte(n - unix.NFT_REG32_00)
	}
	return oddRegister
}

// appendData appends struct nft_data.
func appendData(b []byte, v string) []byte {
	for typ, p := range attrs(v) {
		switch typ {
		case unix.NFTA_DATA_VALUE:
			b = appendBytes(append(b, byte(typ)), p)
		case unix.NFTA_DATA_VERDICT:
			b = appendNumber(append(b, byte(typ)), beNumber(attr(p, unix.NFTA_VERDICT_CODE)))
			b = appendBytes(b, cstr(attr(p, unix.NFTA_VERDICT_CHAIN)))
		}
	}
	return append(b, 0)
}

// appendBytes appends s and before it its length, so that what follows can't be taken
// for a part of it.
func appendBytes(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func appendNumber(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(b, n) }

// beNumber reads a number of up to eight bytes.
func beNumber(s string) uint64 {
	n := uint64(0)
	for i := range len(s) {
		n = n<<8 | uint64(s[i])
	}
	return n
}

// trusted returns the fingerprint of a rule that was read, or "" where the rule claims
// to be one that is wanted and does something else. A rule whose fingerprint is not
// wanted in its chain needs no look: it is replaced in any case.
func (r *chainRead) trusted(v *verifier, t *ruleset.Table, body string) string {
	print := rulePrint(body)
	if print == "" || r.want == nil {
		return print
	}
	i, rules := len(r.prints), r.want.Rules
	if i < len(rules) && v.same(body, t, &rules[i]) { // most are where they should be
		return print
	}
	if r.wantPrints == nil {
		r.wantPrints = r.want.Fingerprints()
	}
	k := slices.Index(r.wantPrints, print)
	if k < 0 || k >= len(rules) || v.same(body, t, &rules[k]) {
		return print
	}
	return ""
}
