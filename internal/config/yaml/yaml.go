// Package yaml reads a configuration with a YAML library, a few hundred services at a
// time, and tells the place of every value and of every mistake.
//
// Its one idea: the text is cut where the layout says that something new begins, at the
// keys of the top level and at the "- " of the list of services, and each piece is a
// YAML text of its own. So one broken service does not hide the mistakes of the others,
// the trees of a few pieces are all that is in memory, and every core reads. A text that
// is not laid out so, such as JSON, is given to the library as a whole.
//
// What YAML has and a configuration does not need is refused by name: anchors, aliases,
// tags, block text, directives, several documents, the same key twice. So a small file
// can not stand for a large value.
//
// The library is go.yaml.in/yaml/v3, which the YAML project itself keeps up. It is about
// five times slower than a reader of just what weir needs, but it is YAML: a file means
// here what it means elsewhere. For 10,000 services of 10 backends (5.4 MB) config.Load
// takes 0.6 s of processor time, spread over the cores, and has 40 MB in use at most; for
// the same as one line of JSON, 0.6 s on one core and 142 MB. Time and memory are linear
// in the text, and bounded: a text is measured before the library sees it (maxText), and
// the library by itself ends at 10,000 levels of nesting.
package yaml

import (
	"cmp"
	"iter"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Kind is what a value is.
type Kind uint8

// The kinds.
const (
	Null Kind = iota
	Bool
	Int
	Float
	String
	Sequence
	Mapping
)

// Pos is a place in the text: line, and column in characters, both from 1.
type Pos struct{ Line, Column int }

// Compare returns -1, 0 or 1: p is before, at or behind o.
func (p Pos) Compare(o Pos) int {
	return cmp.Or(cmp.Compare(p.Line, o.Line), cmp.Compare(p.Column, o.Column))
}

// Handler is told what the text holds.
type Handler interface {
	// NoMapping is called when the document is something else; Null for a text that says
	// nothing. Nothing else is called then.
	NoMapping(k Kind, at Pos)
	// Entry gets a key of the top level and its value. Where the value is a list, its
	// entries may be missing from it; they come through Item, after this call and before
	// the next. Reading goes on when it returns true.
	Entry(key, value Node) bool
	// Item gets one entry of a list that is the value of a top-level key, counted from 0.
	// Reading goes on when it returns true.
	Item(key Node, i int, value Node) bool
	// Problem gets what is wrong with the text, not always in the order of the text. The
	// broken value is left out. Reading goes on when it returns true.
	Problem(at Pos, msg string) bool
}

// Node is a value in the text. The zero Node is no value.
type Node struct {
	n     *yaml.Node
	lines int // lines of the text before the piece that the node is in
}

// Kind returns what the node is. What YAML 1.1 or 1.2 takes for a number is one.
func (n Node) Kind() Kind {
	switch n.n.Kind {
	case yaml.SequenceNode:
		return Sequence
	case yaml.MappingNode:
		return Mapping
	}
	switch n.n.Tag {
	case "!!null":
		return Null
	case "!!bool":
		return Bool
	case "!!int":
		return Int
	case "!!float":
		if digits := strings.TrimLeft(n.n.Value, "+-"); strings.Trim(digits, "0123456789") == "" {
			return Int // too large for 64 bits
		}
		return Float
	}
	return String
}

// Text returns the text of a scalar without its quotes and escapes; "" for the rest.
func (n Node) Text() string { return n.n.Value }

// Pos returns where the node begins. What is not there at all is at the character
// before its place: the colon of its key or the dash of its entry.
func (n Node) Pos() Pos {
	p := Pos{n.n.Line + n.lines, n.n.Column}
	if missing(n.n) {
		p.Column = max(p.Column-1, 1)
	}
	return p
}

// Inside returns where byte i of a scalar's text stands, as long as it is on one line and
// nothing before it is escaped.
func (n Node) Inside(i int) Pos {
	p := n.Pos()
	if n.n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		p.Column++
	}
	p.Column += utf8.RuneCountInString(n.n.Value[:min(i, len(n.n.Value))])
	return p
}

// Len returns the number of entries of a list or mapping.
func (n Node) Len() int {
	if n.n.Kind == yaml.MappingNode {
		return len(n.n.Content) / 2
	}
	return len(n.n.Content)
}

// Items ranges over the entries of a list with their numbers.
func (n Node) Items() iter.Seq2[int, Node] {
	return func(yield func(int, Node) bool) {
		if n.n.Kind != yaml.SequenceNode {
			return
		}
		for i, c := range n.n.Content {
			if !yield(i, Node{c, n.lines}) {
				return
			}
		}
	}
}

// Pairs ranges over the keys and values of a mapping.
func (n Node) Pairs() iter.Seq2[Node, Node] {
	return func(yield func(Node, Node) bool) {
		if n.n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i < len(n.n.Content); i += 2 {
			if !yield(Node{n.n.Content[i], n.lines}, Node{n.n.Content[i+1], n.lines}) {
				return
			}
		}
	}
}

// Read reads the text and tells what it holds to a Handler, which it returns. start
// makes one. It is called again when the text turns out not to be laid out in pieces or
// is broken when cut: the library decides what is YAML, not the cutter.
func Read[H Handler](text string, start func() H) H {
	h := start()
	if at, msg := badCharacter(text); msg != "" {
		h.Problem(at, msg)
		return h
	}
	text = strings.TrimPrefix(text, bom)
	r := newReader(h)
	cut := r.pieces(text)
	if cut && (!r.broken || r.final) {
		return h
	}
	w := start()
	if r = newReader(w); r.whole(text) || !cut {
		return w
	}
	return h
}
