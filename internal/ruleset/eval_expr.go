package ruleset

import (
	"fmt"
	"net/netip"
	"strconv"

	"weir/internal/flow"
	"weir/internal/model"
)

// keyFor evaluates a key and finds the set it is looked up in. Where that fails, the
// words say why.
func (x *ruleRun) keyFor(k Key, name string) (string, *setIndex, bool) {
	key, ok := x.key(k)
	if !ok {
		return "", nil, false
	}
	set := x.table.sets[name]
	if set == nil || len(key) != set.set.Key.Len() {
		x.fail("there is no %s with such a key", name)
		return "", nil, false
	}
	return key, set, true
}

// key returns the key in register layout.
func (x *ruleRun) key(k Key) (string, bool) {
	var out string
	for _, e := range k {
		v, ok := x.value(e)
		if !ok {
			return "", false
		}
		out += v
	}
	return out, true
}

// value returns the value of an expression in register layout. Where there is none, the
// words say why.
func (x *ruleRun) value(e Expr) (string, bool) {
	switch e := e.(type) {
	case Field:
		return x.field(e)
	case Numgen:
		return x.numgen(e), true
	case Hash:
		return x.hash(e)
	case MapGet:
		return x.mapGet(e)
	case Concat:
		key := make(Key, len(e))
		for i, f := range e {
			key[i] = f
		}
		return x.key(key)
	case Masked:
		return x.masked(e)
	case Mark:
		return x.markValue(e)
	case FixedPort:
		return string(AppendPort(nil, uint16(e))), true
	}
	panic(fmt.Sprintf("ruleset: expression %T cannot be evaluated", e))
}

func integer(v uint32) string { return string(AppendInteger(nil, v)) }

func (x *ruleRun) numgen(n Numgen) string {
	if n.Mod <= 1 {
		return integer(n.Offset)
	}
	var v uint32
	if x.env.Next != nil {
		v = x.env.Next(x.rule, n)
	}
	kind := "inc"
	if n.Random {
		kind = "random"
	}
	x.note("numgen %s mod %d = %d", kind, n.Mod, v)
	return integer(v + n.Offset)
}

func (x *ruleRun) hash(h Hash) (string, bool) {
	key, ok := x.key(h.Key)
	if !ok {
		return "", false
	}
	if len(h.Key) == 1 { // alone, a field is hashed without its padding
		key = key[:x.size(h.Key[0])]
	}
	v := flow.Scale(flow.Hash([]byte(key), h.Seed), h.Mod)
	x.note("jhash %s mod %d = %d", h.Key, h.Mod, v)
	return integer(v + h.Offset), true
}

// size returns the unpadded length of an expression's value.
func (x *ruleRun) size(e Expr) int {
	switch e := e.(type) {
	case Field:
		return e.Type().Size()
	case Masked:
		return e.Field.Type().Size()
	case MapGet:
		if s := x.table.sets[e.Map]; len(s.set.Data) == 1 {
			return s.set.Data[0].Size()
		}
		return x.table.sets[e.Map].set.Data.Len()
	}
	return Integer.Size()
}

func (x *ruleRun) mapGet(m MapGet) (string, bool) {
	key, set, ok := x.keyFor(m.Key, m.Map)
	if !ok {
		return "", false
	}
	where := slotText(m.Key, set.set.Key, key)
	var data string
	if e := set.lookup(key); e != nil {
		data = e.Data
	} else if data, ok = x.dynamic(m.Map, key); !ok {
		x.note("%s of map %s is empty", where, m.Map)
		x.fail("%s has nothing under %s", m.Map, where)
		return "", false
	}
	x.note("%s of map %s → %s", where, m.Map, set.set.Data.Text(data, ""))
	return data, true
}

// slotText names the place in a map: the slot, where the key is a choice alone.
func slotText(k Key, types Types, key string) string {
	text := types.Text(key, "")
	if len(k) != 1 {
		return "key " + text
	}
	var off uint32
	switch e := k[0].(type) {
	case Numgen:
		off = e.Offset
	case Hash:
		off = e.Offset
	default:
		return "key " + text
	}
	n, _ := strconv.ParseUint(text, 10, 32) // an Integer's text
	if off == 0 {
		return "slot " + text
	}
	return fmt.Sprintf("slot %d (%s)", uint32(n)-off, text)
}

// field reads a field as the kernel does: a packet that has no such field, or a
// connection that is not known yet, ends the rule.
func (x *ruleRun) field(f Field) (string, bool) {
	if v, ok := x.packetField(f); ok {
		return v, true
	}
	if x.tracked {
		if v, ok := x.connField(f); ok {
			return v, true
		}
	}
	if v, ok := x.edgeField(f); ok {
		return v, true
	}
	x.fail("the packet has no %s", fieldInfo[f].text)
	return "", false
}

func (x *ruleRun) packetField(f Field) (string, bool) {
	switch f {
	case IPSaddr:
		return addr(x.src, model.IPv4)
	case IPDaddr:
		return addr(x.dst, model.IPv4)
	case IP6Saddr:
		return addr(x.src, model.IPv6)
	case IP6Daddr:
		return addr(x.dst, model.IPv6)
	case SPort:
		return port(x.src)
	case DPort:
		return port(x.dst)
	case L4Proto:
		return byteField(uint8(x.p.Proto))
	case NFProto:
		return byteField(IsFamily(model.FamilyOf(x.src.Addr())).Value)
	}
	return "", false
}

func (x *ruleRun) connField(f Field) (string, bool) {
	switch f {
	case CtDirection:
		if x.p.Reply {
			return byteField(1)
		}
		return byteField(0)
	case CtStatus:
		return integer(x.status()), true
	case CtOrigDaddr4:
		return addr(x.conn.OrigDst, model.IPv4)
	case CtOrigDaddr6:
		return addr(x.conn.OrigDst, model.IPv6)
	case CtOrigDPort:
		return port(x.conn.OrigDst)
	case CtReplySaddr4:
		return addr(x.conn.ReplySrc, model.IPv4)
	case CtReplySaddr6:
		return addr(x.conn.ReplySrc, model.IPv6)
	case CtReplySPort:
		return port(x.conn.ReplySrc)
	}
	return "", false
}

func addr(ap netip.AddrPort, f model.Family) (string, bool) {
	if model.FamilyOf(ap.Addr()) != f {
		return "", false
	}
	return string(AppendAddr(nil, ap.Addr())), true
}

func port(ap netip.AddrPort) (string, bool) { return string(AppendPort(nil, ap.Port())), true }

func byteField(v uint8) (string, bool) { return string(AppendByte(nil, v)), true }
