package nft

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// plainCodes are the kernel's numbers of verdicts that need no chain (NF_DROP and NF_ACCEPT
// of netfilter.h, NFT_CONTINUE and NFT_RETURN of nf_tables.h).
var plainCodes = [...]int32{
	ruleset.PlainDrop: 0, ruleset.PlainAccept: 1,
	ruleset.PlainContinue: verdictContinue, ruleset.PlainReturn: verdictReturn,
}

// jump writes an element's verdict.
func (w *buf) jump(j ruleset.Jump) {
	code := int32(verdictJump)
	switch {
	case j.Plain != 0:
		code = plainCodes[j.Plain]
	case j.Goto:
		code = verdictGoto
	}
	w.verdict(unix.NFTA_SET_ELEM_DATA, code, j.Chain)
}

// jumpOf reads an element's verdict.
func jumpOf(verdict string) ruleset.Jump {
	code := int32(be32(attr(verdict, unix.NFTA_VERDICT_CODE)))
	switch code {
	case verdictJump, verdictGoto:
		return ruleset.Jump{Goto: code == verdictGoto, Chain: cstr(attr(verdict, unix.NFTA_VERDICT_CHAIN))}
	}
	for p := ruleset.PlainDrop; int(p) < len(plainCodes); p++ {
		if plainCodes[p] == code {
			return ruleset.Jump{Plain: p}
		}
	}
	return ruleset.Jump{} // equals no verdict of weir's
}

// packedBytes is what one element of c takes in a message, at most.
func packedBytes(c *ruleset.ElemChange) int {
	const nest = unix.SizeofRtAttr
	n := nest + 2*nest + c.Packed.Stride
	chain := -1
	for _, j := range c.Packed.Jumps {
		chain = max(chain, len(j.Chain))
	}
	if chain >= 0 {
		n += 2*nest + nest + 4
	}
	if chain > 0 {
		n += nest + align(chain+1)
	}
	if c.Counts != nil {
		n += countBytes
	}
	return n
}

// countBytes is the length of a counter in an element.
const countBytes = 4 + 4 + 8 + 4 + 2*12

// packed writes elements that are packed: nothing but a copy of what all of one verdict have
// in common, and the key.
func (e *encoder) packed(o op, t *ruleset.Table, c *ruleset.ElemChange) {
	s, p := c.Set, c.Packed
	m := message{op: o, table: t, set: s}
	if err := checkPacked(c); err != nil {
		e.fail(m, err)
		return
	}
	verdicts := e.verdicts(o, p)
	_, keyLen := kernelType(s.Key)
	for i := 0; i < p.Len(); {
		at := e.open(m)
		e.w.str(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		e.w.str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		list := e.w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		first := i
		for i < p.Len() && i-first < maxElems && len(e.w.b)-list < maxAttr {
			el := e.w.nest(unix.NFTA_LIST_ELEM)
			e.w.value(unix.NFTA_SET_ELEM_KEY, p.Key(i)[:keyLen])
			switch {
			case len(verdicts) == 0:
			case p.Which == "":
				e.w.b = append(e.w.b, verdicts[0]...)
			default:
				e.w.b = append(e.w.b, verdicts[p.Which[i]]...)
			}
			if c.Counts != nil && o == opAddElems {
				e.w.count(c.Counts[i])
			}
			e.w.close(el)
			i++
		}
		e.w.close(list)
		e.w.end(at)
		e.msgs[len(e.msgs)-1].pack = p.Slice(first, i)
	}
}

// verdicts returns the attributes of each verdict; none where elements go.
func (e *encoder) verdicts(o op, p *ruleset.Packed) [][]byte {
	if o != opAddElems {
		return nil
	}
	out := make([][]byte, len(p.Jumps))
	for i, j := range p.Jumps {
		var w buf
		w.jump(j)
		out[i] = w.b
	}
	return out
}

func checkPacked(c *ruleset.ElemChange) error {
	s, p := c.Set, c.Packed
	if err := checkSet(s); err != nil {
		return err
	}
	switch {
	case p.Stride != s.Key.Len() || len(p.Keys)%p.Stride != 0:
		return errKeyLen(p.Stride, s)
	case s.Range || len(s.Data) > 0 || s.Verdict != (len(p.Jumps) > 0):
		return errUnpackable
	case c.Counts != nil && (!s.Counter || len(c.Counts) != p.Len()):
		return errCounts
	}
	return nil
}

// count writes the counter that an element starts with.
func (w *buf) count(c ruleset.Count) {
	at := w.nest(unix.NFTA_SET_ELEM_EXPR)
	w.str(unix.NFTA_EXPR_NAME, "counter")
	d := w.nest(unix.NFTA_EXPR_DATA)
	w.u64(unix.NFTA_COUNTER_BYTES, c.Bytes)
	w.u64(unix.NFTA_COUNTER_PACKETS, c.Packets)
	w.close(d)
	w.close(at)
}

// view returns b as a string without a copy: good as long as b does not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
