package ruleset

import (
	"encoding/binary"
	"fmt"
)

// Mark is the bits of Mask of the packet's mark or, with Conn, of its connection's. A packet
// that conntrack does not see has no connection, and the rule ends.
type Mark struct {
	Conn bool
	Mask uint32 // at least one bit
}

// MarkIs compares the bits of a mark with a value that has none beside them.
type MarkIs struct {
	Mark
	Not   bool
	Value uint32
}

// SetMark writes Value to the bits of a mark that Mask has, and leaves all others as they are.
type SetMark struct {
	Mark
	Value uint32
}

func (Mark) expr()    {}
func (MarkIs) stmt()  {}
func (SetMark) stmt() {}

func (m Mark) name() string {
	if m.Conn {
		return "ct mark"
	}
	return "meta mark"
}

func (m Mark) text() string { return fmt.Sprintf("%s & 0x%08x", m.name(), m.Mask) }

func (m MarkIs) text() string {
	op := "=="
	if m.Not {
		op = "!="
	}
	return fmt.Sprintf("%s %s 0x%08x", m.Mark.text(), op, m.Value)
}

func (m SetMark) text() string {
	text := fmt.Sprintf("%s set %s & 0x%08x", m.name(), m.name(), ^m.Mask)
	if m.Value != 0 {
		text += fmt.Sprintf(" | 0x%08x", m.Value)
	}
	return text
}

// AppendMark appends a mark in register layout, for elements of type MarkBits.
func AppendMark(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }

// mark returns where the mark of the packet, or of its connection, is kept.
func (x *ruleRun) mark(m Mark) (*uint32, bool) {
	switch {
	case !m.Conn:
		return &x.trace.Mark, true
	case !x.tracked:
		x.fail("conntrack does not know the packet")
		return nil, false
	}
	return &x.trace.ConnMark, true
}

func (x *ruleRun) markValue(m Mark) (string, bool) {
	at, ok := x.mark(m)
	if !ok {
		return "", false
	}
	return string(AppendMark(nil, *at&m.Mask)), true
}

func (x *ruleRun) markIs(s MarkIs) (bool, Verdict) {
	at, ok := x.mark(s.Mark)
	if !ok {
		return false, Verdict{}
	}
	if v := *at & s.Mask; (v == s.Value) == s.Not {
		return x.fail("%s is 0x%08x", s.Mark.text(), v)
	}
	return x.hold("%s holds", s.text())
}

func (x *ruleRun) setMark(s SetMark) (bool, Verdict) {
	at, ok := x.mark(s.Mark)
	if !ok {
		return false, Verdict{}
	}
	*at = *at&^s.Mask | s.Value
	return x.hold("%s becomes 0x%08x", s.name(), *at)
}
