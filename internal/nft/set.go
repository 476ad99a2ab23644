package nft

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// typeInfo is what nft knows a type by. The kernel keeps it for nft and never looks.
type typeInfo struct {
	id    uint32 // enum datatypes of nft
	order uint32 // byte order nft writes where the type is named by `type`
	// typeofOrder and typeof are the byte order and the user data of the expression
	// that ruleset prints for the type after `typeof`.
	typeofOrder uint32
	typeof      string
}

// Byte orders in nft's user data.
const (
	orderNone = iota
	orderHost
	orderNetwork
)

// Tags of nft's user data of sets, and numbers of its expressions.
const (
	udKeyOrder     = 0
	udDataOrder    = 1
	udKeyTypeof    = 3
	udDataTypeof   = 4
	udDataInterval = 6

	udExpr     = 0 // inside a typeof: the expression's number
	udExprData = 1 // and what it needs

	exprVerdict = 1
	exprPayload = 7
	exprMeta    = 9
	exprConcat  = 13
	exprNumgen  = 23
)

var types = [...]typeInfo{
	ruleset.IPv4Addr: {7, orderNetwork, orderNetwork, typeofUD(exprPayload, 12, 12)},
	ruleset.IPv6Addr: {8, orderNetwork, orderNetwork, typeofUD(exprPayload, 13, 9)},
	ruleset.Protocol: {12, orderNone, orderHost, typeofUD(exprMeta, unix.NFT_META_L4PROTO)},
	ruleset.Port:     {13, orderNetwork, orderNetwork, typeofUD(exprPayload, 11, 2)},
	ruleset.Integer:  {4, orderHost, orderHost, typeofUD(exprNumgen, unix.NFT_NG_INCREMENTAL, 2, 0)},

	ruleset.IfName:        {id: 41, order: orderHost},
	ruleset.TCPFlagByte:   {id: 15, order: orderNetwork},
	ruleset.ICMPTypeByte:  {id: 14, order: orderNetwork},
	ruleset.ICMP6TypeByte: {id: 29, order: orderNetwork},
	ruleset.MarkBits:      {id: 19, order: orderHost},
	ruleset.RouteType:     {id: 38, order: orderHost},
}

// maxFields is how many fields a key type can say: it has 32 bits, six for each.
const maxFields = 5

// typeBits is how many bits of a concatenated key type one field takes.
const typeBits = 6

// tlv appends one entry of nft's user data.
func tlv(b []byte, tag uint8, v string) []byte {
	return append(append(b, tag, uint8(len(v))), v...)
}

func ud32(b []byte, tag uint8, v uint32) []byte {
	return binary.NativeEndian.AppendUint32(append(b, tag, 4), v)
}

// typeofUD returns the user data of an expression with its numbered arguments.
func typeofUD(expr uint32, args ...uint32) string {
	var data []byte
	for i, a := range args {
		data = ud32(data, uint8(i), a)
	}
	return string(tlv(ud32(nil, udExpr, expr), udExprData, string(data)))
}

// typesUD returns the user data that says what ts is; "" where the type alone says it.
func typesUD(ts ruleset.Types, typeof bool) string {
	if len(ts) == 1 {
		if !typeof {
			return ""
		}
		return types[ts[0]].typeof
	}
	var fields []byte
	if typeof {
		for i, t := range ts {
			fields = tlv(fields, uint8(i), types[t].typeof)
		}
	}
	return string(tlv(ud32(nil, udExpr, exprConcat), udExprData, string(fields)))
}

func orderOf(ts ruleset.Types, typeof bool) uint32 {
	switch {
	case len(ts) != 1:
		return orderNone
	case typeof:
		return types[ts[0]].typeofOrder
	}
	return types[ts[0]].order
}

// setUD returns the user data by which nft lists the set as ruleset prints it.
func setUD(s *ruleset.Set) string {
	typeof := false
	for _, ts := range []ruleset.Types{s.Key, s.Data} {
		for _, t := range ts {
			typeof = typeof || t == ruleset.Integer
		}
	}
	b := ud32(nil, udKeyOrder, orderOf(s.Key, typeof))
	if s.IsMap() {
		b = ud32(b, udDataOrder, orderOf(s.Data, typeof))
	}
	if ud := typesUD(s.Key, typeof); ud != "" {
		b = tlv(b, udKeyTypeof, ud)
	}
	switch {
	case s.Verdict && typeof:
		b = tlv(b, udDataTypeof, typeofUD(exprVerdict))
	case len(s.Data) > 0:
		if ud := typesUD(s.Data, typeof); ud != "" {
			b = tlv(b, udDataTypeof, ud)
		}
	}
	if s.IsMap() {
		b = ud32(b, udDataInterval, 0)
	}
	return string(b)
}

// kernelType returns the number and the length that the kernel keeps for ts.
func kernelType(ts ruleset.Types) (id uint32, n int) {
	if len(ts) == 1 {
		return types[ts[0]].id, ts[0].Size()
	}
	for _, t := range ts {
		id = id<<typeBits | types[t].id
	}
	return id, ts.Len()
}

// rulesetTypes is the opposite of kernelType. It returns nil where ruleset has no type
// for what the kernel says.
func rulesetTypes(id uint32, n int) ruleset.Types {
	var ts ruleset.Types
	for v := id; v != 0; v >>= typeBits {
		field := v & (1<<typeBits - 1)
		i := 0
		for i < len(types) && types[i].id != field {
			i++
		}
		if i == len(types) {
			return nil
		}
		ts = append(ruleset.Types{ruleset.Type(i)}, ts...)
	}
	if len(ts) == 0 {
		return nil
	}
	if _, want := kernelType(ts); want != n {
		return nil
	}
	return ts
}

// ranges reports whether the elements of s are pairs of an element and one that ends it,
// as in sets of ranges whose key is one field; a range of several fields is one element.
func ranges(s *ruleset.Set) bool { return s.Range && len(s.Key) == 1 }

func setFlags(s *ruleset.Set) uint32 {
	var f uint32
	for _, c := range []struct {
		on  bool
		bit uint32
	}{
		{s.IsMap(), unix.NFT_SET_MAP},
		{s.Range, unix.NFT_SET_INTERVAL},
		{s.Range && len(s.Key) > 1, setConcat},
		{s.Dynamic, unix.NFT_SET_EVAL},
		{s.Timeout, unix.NFT_SET_TIMEOUT},
	} {
		if c.on {
			f |= c.bit
		}
	}
	return f
}

// checkSet says why a set can't be made, or nil.
func checkSet(s *ruleset.Set) error {
	switch {
	case len(s.Key) == 0:
		return fmt.Errorf("has no key")
	case len(s.Key) > maxFields || len(s.Data) > maxFields:
		return fmt.Errorf("has more than %d fields", maxFields)
	case s.Dynamic && s.Size == 0:
		return fmt.Errorf("is dynamic and needs a size")
	}
	if s.Range && slices.Contains(s.Key, ruleset.Integer) {
		return fmt.Errorf("has ranges of integers, whose bytes are in the order of the host")
	}
	for _, t := range append(s.Key[:len(s.Key):len(s.Key)], s.Data...) {
		if t == 0 || int(t) >= len(types) {
			return fmt.Errorf("has a field of unknown type %d", t)
		}
	}
	return nil
}

// set writes what follows table and name in a message that makes a set. The kernel
// wants an id that no other new set of the batch has.
func (w *buf) set(s *ruleset.Set, id uint32) {
	keyType, keyLen := kernelType(s.Key)
	w.u32(unix.NFTA_SET_FLAGS, setFlags(s))
	w.u32(unix.NFTA_SET_KEY_TYPE, keyType)
	w.u32(unix.NFTA_SET_KEY_LEN, uint32(keyLen))
	switch {
	case s.Verdict:
		w.u32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
		w.u32(unix.NFTA_SET_DATA_LEN, 0)
	case len(s.Data) > 0:
		dataType, dataLen := kernelType(s.Data)
		w.u32(unix.NFTA_SET_DATA_TYPE, dataType)
		w.u32(unix.NFTA_SET_DATA_LEN, uint32(dataLen))
	}
	w.u32(unix.NFTA_SET_ID, id)
	w.setDesc(s)
	w.raw(unix.NFTA_SET_USERDATA, setUD(s))
	if s.Counter {
		at := w.nest(setExpr)
		w.str(unix.NFTA_EXPR_NAME, "counter")
		w.close(w.nest(unix.NFTA_EXPR_DATA))
		w.close(at)
	}
}

// setDesc writes the size, and for ranges of several fields the lengths of the fields.
func (w *buf) setDesc(s *ruleset.Set) {
	concat := s.Range && len(s.Key) > 1
	if s.Size == 0 && !concat {
		return
	}
	at := w.nest(unix.NFTA_SET_DESC)
	if s.Size > 0 {
		w.u32(unix.NFTA_SET_DESC_SIZE, uint32(s.Size))
	}
	if concat {
		fields := w.nest(setDescConcat)
		for _, t := range s.Key {
			f := w.nest(unix.NFTA_LIST_ELEM)
			w.u32(setFieldLen, uint32(t.Size()))
			w.close(f)
		}
		w.close(fields)
	}
	w.close(at)
}

// elem writes one element; of a range of one field the first of the two.
func (w *buf) elem(s *ruleset.Set, e *ruleset.Element, keyLen, dataLen int) {
	at := w.nest(unix.NFTA_LIST_ELEM)
	w.value(unix.NFTA_SET_ELEM_KEY, e.Key[:keyLen])
	if s.Range && len(s.Key) > 1 {
		end := e.KeyEnd
		if end == "" {
			end = e.Key
		}
		w.value(elemKeyEnd, end[:keyLen])
	}
	switch {
	case s.Verdict:
		w.jump(e.Jump)
	case dataLen > 0:
		w.value(unix.NFTA_SET_ELEM_DATA, e.Data[:dataLen])
	}
	w.close(at)
}

// elemRangeEnd writes the element that ends a range of one field, which is the first
// value after it; a range up to the last value has none.
func (w *buf) elemRangeEnd(e *ruleset.Element, keyLen int) {
	last := e.KeyEnd
	if last == "" {
		last = e.Key
	}
	end, ok := addOne(last[:keyLen], 1)
	if !ok {
		return
	}
	at := w.nest(unix.NFTA_LIST_ELEM)
	w.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	w.value(unix.NFTA_SET_ELEM_KEY, end)
	w.close(at)
}

// addOne adds 1 or -1 to a number in network order; false where it does not fit.
func addOne(v string, d int8) (string, bool) {
	b := []byte(v)
	for i := len(b) - 1; i >= 0; i-- {
		b[i] += byte(d)
		if d > 0 && b[i] != 0 || d < 0 && b[i] != 0xff {
			return string(b), true
		}
	}
	return "", false
}
