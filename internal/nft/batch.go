package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// op is what a message of a batch does.
type op uint8

const (
	opBegin op = iota
	opEnd
	opAddTable
	opDelTable
	opFlush
	opDelElems
	opDelChain
	opDelSet
	opAddChain
	opAddSet
	opAddElems
	opAddRule
	opWakeTable
	opKeepElems // opAddElems of elements that may be there
)

var opInfo = [...]struct {
	verb  string
	typ   uint16
	flags uint16
}{
	opBegin:     {"begin", unix.NFNL_MSG_BATCH_BEGIN, 0},
	opEnd:       {"end", unix.NFNL_MSG_BATCH_END, 0},
	opAddTable:  {"add", msgType(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE | unix.NLM_F_EXCL},
	opDelTable:  {"delete", msgType(unix.NFT_MSG_DELTABLE), 0},
	opFlush:     {"flush", msgType(unix.NFT_MSG_DELRULE), 0},
	opDelElems:  {"delete", msgType(unix.NFT_MSG_DELSETELEM), 0},
	opDelChain:  {"delete", msgType(unix.NFT_MSG_DELCHAIN), 0},
	opDelSet:    {"delete", msgType(unix.NFT_MSG_DELSET), 0},
	opAddChain:  {"add", msgType(unix.NFT_MSG_NEWCHAIN), unix.NLM_F_CREATE | unix.NLM_F_EXCL},
	opAddSet:    {"add", msgType(unix.NFT_MSG_NEWSET), unix.NLM_F_CREATE | unix.NLM_F_EXCL},
	opAddElems:  {"add", msgType(unix.NFT_MSG_NEWSETELEM), unix.NLM_F_CREATE | unix.NLM_F_EXCL},
	opAddRule:   {"add", msgType(unix.NFT_MSG_NEWRULE), unix.NLM_F_CREATE | unix.NLM_F_APPEND},
	opWakeTable: {"switch on", msgType(unix.NFT_MSG_NEWTABLE), 0},
	opKeepElems: {"add", msgType(unix.NFT_MSG_NEWSETELEM), unix.NLM_F_CREATE},
}

func msgType(t uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | t }

// message is where one message of a batch starts and what it is about.
type message struct {
	op    op
	at    int
	table *ruleset.Table
	chain *ruleset.Chain
	rule  int // opAddRule: index in chain.Rules
	set   *ruleset.Set
	elems []ruleset.Element
	pack  *ruleset.Packed // elements, too
}

// count returns the number of elements that the message is about.
func (m *message) count() int {
	if m.pack != nil {
		return m.pack.Len()
	}
	return len(m.elems)
}

// elem returns the i-th of them.
func (m *message) elem(i int) ruleset.Element {
	if m.pack != nil {
		return m.pack.Elem(i)
	}
	return m.elems[i]
}

// only makes the message one about the i-th element alone.
func (m *message) only(i int) {
	if m.pack != nil {
		m.pack = m.pack.Slice(i, i+1)
	} else {
		m.elems = m.elems[i : i+1]
	}
}

// Batch is one transaction, ready to be sent. The sequence number of its messages is
// their index.
type Batch struct {
	w    buf
	msgs []message
}

// Bytes returns the messages, one after the other.
func (b *Batch) Bytes() []byte { return b.w.b }

// Len returns the number of messages, the two that frame the batch included.
func (b *Batch) Len() int { return len(b.msgs) }

// elements returns how many elements come or go.
func (b *Batch) elements() int {
	n := 0
	for i := range b.msgs {
		n += b.msgs[i].count()
	}
	return n
}

// String returns a line a message, numbered by sequence.
func (b *Batch) String() string {
	var s strings.Builder
	for i := range b.msgs {
		fmt.Fprintf(&s, "%5d %s\n", i, b.msgs[i].line())
	}
	return s.String()
}

func (m *message) line() string {
	line := opInfo[m.op].verb
	if m.table != nil {
		line += " " + m.object()
	}
	if m.op == opAddRule {
		line += ": " + m.chain.Rules[m.rule].String()
	}
	return line
}

// object names what the message is about.
func (m *message) object() string {
	in := fmt.Sprintf("table %s %s", m.table.Family, m.table.Name)
	switch {
	case m.count() > 0:
		return m.elemsText() + " of " + setText(m.set) + " in " + in
	case m.set != nil:
		return setText(m.set) + " in " + in
	case m.op == opAddRule:
		return fmt.Sprintf("rule %d of chain %s in %s", m.rule+1, m.chain.Name, in)
	case m.chain != nil:
		return "chain " + m.chain.Name + " in " + in
	}
	return in
}

func setText(s *ruleset.Set) string {
	if s.IsMap() {
		return "map " + s.Name
	}
	return "set " + s.Name
}

func (m *message) elemsText() string {
	n := m.count()
	e, last := m.elem(0), m.elem(n-1)
	first := m.set.Key.Text(e.Key, e.KeyEnd)
	if n == 1 {
		return "element " + first
	}
	return fmt.Sprintf("one of the %d elements %s to %s", n, first, m.set.Key.Text(last.Key, last.KeyEnd))
}

// objectAt names what lies at an offset of the message: the very element, or the rule's
// expression. Without an offset (0) it is object.
func (b *Batch) objectAt(i int, off uint32) string {
	m := &b.msgs[i]
	end := len(b.w.b)
	if i+1 < len(b.msgs) {
		end = b.msgs[i+1].at
	}
	if off <= hdrLen || m.at+int(off) >= end {
		return m.object()
	}
	msg := b.w.b[m.at:end]
	switch {
	case m.count() > 0:
		if k := listIndex(msg, unix.NFTA_SET_ELEM_LIST_ELEMENTS, int(off)); k >= 0 {
			one := *m
			if ranges(m.set) {
				k = rangeIndex(m.set, m.elems, k)
			}
			if k < m.count() {
				one.only(k)
			}
			return one.object()
		}
	case m.op == opAddRule:
		if k := listIndex(msg, unix.NFTA_RULE_EXPRESSIONS, int(off)); k >= 0 {
			return fmt.Sprintf("expression %d of %s", k+1, m.object())
		}
	}
	return m.object()
}

// listIndex returns which entry of the nested list typ of msg holds offset off, or -1.
func listIndex(msg []byte, typ uint16, off int) int {
	for at := hdrLen; at+unix.SizeofRtAttr <= len(msg); {
		n, t := attrAt(msg, at)
		if t == typ && off > at && off < at+n {
			k := 0
			for in := at + unix.SizeofRtAttr; in < at+n; k++ {
				size, _ := attrAt(msg, in)
				if off < in+align(size) {
					return k
				}
				in += max(align(size), unix.SizeofRtAttr)
			}
			return -1
		}
		at += max(align(n), unix.SizeofRtAttr)
	}
	return -1
}

func attrAt(msg []byte, at int) (n int, typ uint16) {
	return int(binary.NativeEndian.Uint16(msg[at:])),
		binary.NativeEndian.Uint16(msg[at+2:]) &^ unix.NLA_F_NESTED
}

// open starts a message and notes what it is about.
func (b *Batch) open(m message) int {
	m.at = len(b.w.b)
	seq := uint32(len(b.msgs))
	b.msgs = append(b.msgs, m)
	info := &opInfo[m.op]
	flags := info.flags | unix.NLM_F_REQUEST
	if m.op == opBegin || m.op == opEnd {
		return b.w.msg(info.typ, flags, seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	}
	return b.w.msg(info.typ, flags, seq, nfFamilies[m.table.Family], 0)
}

// frame runs body between the messages that begin and end a batch. A generation of 0
// guards nothing.
func (b *Batch) frame(gen uint32, body func()) {
	at := b.open(message{op: opBegin})
	if gen != 0 {
		b.w.u32(unix.NFNL_BATCH_GENID, gen)
	}
	b.w.end(at)
	body()
	if last := &b.msgs[len(b.msgs)-1]; last.op != opBegin {
		f := b.w.b[last.at+6:]
		binary.NativeEndian.PutUint16(f, binary.NativeEndian.Uint16(f)|unix.NLM_F_ACK)
	}
	b.w.end(b.open(message{op: opEnd}))
}

// rangeIndex returns which range the k-th written element belongs to: all but one that
// reaches the last value are written as two.
func rangeIndex(s *ruleset.Set, elems []ruleset.Element, k int) int {
	size := s.Key[0].Size()
	for i := range elems {
		last := elems[i].KeyEnd
		if last == "" {
			last = elems[i].Key
		}
		k--
		if _, two := addOne(last[:size], 1); two {
			k--
		}
		if k < 0 {
			return i
		}
	}
	return len(elems) - 1
}
