package nft

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// What nf_tables.h has and golang.org/x/sys/unix lacks.
const (
	msgDestroySetElem = 0x1e // NFT_MSG_DESTROYSETELEM, from Linux 6.3 on

	setConcat       = 0x80 // NFT_SET_CONCAT
	setDescConcat   = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen     = 1    // NFTA_SET_FIELD_LEN
	setExpr         = 17   // NFTA_SET_EXPR
	setExpressions  = 18   // NFTA_SET_EXPRESSIONS
	setCount        = 20   // NFTA_SET_COUNT, from Linux 6.17 on
	elemKeyEnd      = 10   // NFTA_SET_ELEM_KEY_END
	elemExpressions = 11   // NFTA_SET_ELEM_EXPRESSIONS
	elemCatchAll    = 2    // NFT_SET_ELEM_CATCHALL

	chainFlags   = 10 // NFTA_CHAIN_FLAGS
	chainBinding = 4  // NFT_CHAIN_BINDING

	verdictContinue = -1 // NFT_CONTINUE

	verdictJump   = -3 // NFT_JUMP
	verdictGoto   = -4 // NFT_GOTO
	verdictReturn = -5 // NFT_RETURN

	connlimitCount    = 1 // NFTA_CONNLIMIT_COUNT
	connlimitFlags    = 2 // NFTA_CONNLIMIT_FLAGS
	connlimitInverted = 1 // NFT_CONNLIMIT_F_INV: over the limit matches

	tableOwner = 2 // NFT_TABLE_F_OWNER, from Linux 5.12 on

	fibDreg     = 1      // NFTA_FIB_DREG
	fibResult   = 2      // NFTA_FIB_RESULT
	fibFlags    = 3      // NFTA_FIB_FLAGS
	fibAddrType = 3      // NFT_FIB_RESULT_ADDRTYPE
	fibDaddr    = 1 << 1 // NFTA_FIB_F_DADDR

	// natProtoSpecified is NF_NAT_RANGE_PROTO_SPECIFIED of nf_nat.h.
	natProtoSpecified = 2
)

const (
	hdrLen   = unix.SizeofNlMsghdr + 4 // netlink header and struct nfgenmsg
	maxAttr  = 60 << 10                // bytes of one attribute; its length has 16 bits
	maxElems = 2500                    // elements of one message, which keeps acks and retries small
)

func align(n int) int { return (n + 3) &^ 3 }

// buf builds netlink messages by appending. Lengths are filled in when a message or a
// nest is closed. Numbers are in network order, as nf_tables wants them.
type buf struct {
	b     []byte
	queue queueForm // how rules are written that give packets to user space
}

// msg opens a message; close it with end.
func (w *buf) msg(typ, flags uint16, seq uint32, family uint8, resID uint16) int {
	at := len(w.b)
	w.b = append(w.b, 0, 0, 0, 0)
	w.b = binary.NativeEndian.AppendUint16(w.b, typ)
	w.b = binary.NativeEndian.AppendUint16(w.b, flags)
	w.b = binary.NativeEndian.AppendUint32(w.b, seq)
	w.b = append(w.b, 0, 0, 0, 0, family, unix.NFNETLINK_V0, byte(resID>>8), byte(resID))
	return at
}

func (w *buf) end(at int) {
	binary.NativeEndian.PutUint32(w.b[at:], uint32(len(w.b)-at))
}

// setType changes the type of the message at at.
func (w *buf) setType(at int, typ uint16) {
	binary.NativeEndian.PutUint16(w.b[at+4:], typ)
}

func (w *buf) head(typ uint16, n int) {
	w.b = binary.NativeEndian.AppendUint16(w.b, uint16(n+unix.SizeofRtAttr))
	w.b = binary.NativeEndian.AppendUint16(w.b, typ)
}

func (w *buf) pad() {
	for len(w.b)&3 != 0 {
		w.b = append(w.b, 0)
	}
}

// nest opens a nested attribute; close it with close.
func (w *buf) nest(typ uint16) int {
	at := len(w.b)
	w.head(typ|unix.NLA_F_NESTED, 0)
	return at
}

func (w *buf) close(at int) {
	binary.NativeEndian.PutUint16(w.b[at:], uint16(len(w.b)-at))
}

// str writes a name, with the zero byte the kernel expects.
func (w *buf) str(typ uint16, s string) {
	w.head(typ, len(s)+1)
	w.b = append(w.b, s...)
	w.b = append(w.b, 0)
	w.pad()
}

func (w *buf) raw(typ uint16, s string) {
	w.head(typ, len(s))
	w.b = append(w.b, s...)
	w.pad()
}

func (w *buf) u8(typ uint16, v uint8) {
	w.head(typ, 1)
	w.b = append(w.b, v, 0, 0, 0)
}

func (w *buf) u32(typ uint16, v uint32) {
	w.head(typ, 4)
	w.b = binary.BigEndian.AppendUint32(w.b, v)
}

func (w *buf) u64(typ uint16, v uint64) {
	w.head(typ, 8)
	w.b = binary.BigEndian.AppendUint64(w.b, v)
}

// value writes v as struct nft_data under attribute typ.
func (w *buf) value(typ uint16, v string) {
	at := w.nest(typ)
	w.raw(unix.NFTA_DATA_VALUE, v)
	w.close(at)
}

// verdict writes a verdict as struct nft_data under attribute typ.
func (w *buf) verdict(typ uint16, code int32, chain string) {
	at := w.nest(typ)
	v := w.nest(unix.NFTA_DATA_VERDICT)
	w.u32(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		w.str(unix.NFTA_VERDICT_CHAIN, chain)
	}
	w.close(v)
	w.close(at)
}

// attrs walks the attributes in s, a piece of a message that starts at one, up to the
// first that does not fit.
func attrs(s string) iter.Seq2[uint16, string] {
	return func(yield func(uint16, string) bool) {
		for len(s) >= unix.SizeofRtAttr {
			n := int(native16(s))
			typ := native16(s[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.SizeofRtAttr || n > len(s) || !yield(typ, s[unix.SizeofRtAttr:n]) {
				return
			}
			s = s[min(align(n), len(s)):]
		}
	}
}

// attr returns the payload of the first attribute of that type, or "".
func attr(s string, want uint16) string {
	for typ, p := range attrs(s) {
		if typ == want {
			return p
		}
	}
	return ""
}

func native16(s string) uint16 { return binary.NativeEndian.Uint16([]byte(s[:2])) }

func native32(s string) uint32 { return binary.NativeEndian.Uint32([]byte(s[:4])) }

func be32(s string) uint32 {
	if len(s) < 4 {
		return 0
	}
	return uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3])
}

func be64(s string) uint64 {
	if len(s) < 8 {
		return 0
	}
	return uint64(be32(s))<<32 | uint64(be32(s[4:]))
}

// cstr returns s without the zero byte at its end.
func cstr(s string) string {
	for i := range len(s) {
		if s[i] == 0 {
			return s[:i]
		}
	}
	return s
}
