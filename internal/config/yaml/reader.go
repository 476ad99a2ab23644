package yaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"

	"go.yaml.in/yaml/v3"
)

// reader tells a Handler what comes out of the library.
type reader struct {
	h       Handler
	stopped bool // the handler wants no more
	broken  bool // something is not YAML, or too large
	final   bool // the one piece is the whole text, so there is no other way to read it
	budget  int  // bytes that may be read again to find the place of a mistake

	pieceItems int

	seen keySet // keys of the top level
	list Node   // key of the list whose items come; no value while they are left out
	item int    // number of the next of them
}

func newReader(h Handler) *reader { return &reader{h: h, budget: 1 << 20, pieceItems: pieceItems} }

// parsed is what the library makes of a piece.
type parsed struct {
	piece
	root *yaml.Node
	err  error
}

// pieces cuts the text and reads the pieces. It reports whether they can be trusted: not
// when the text is laid out in another way.
func (r *reader) pieces(text string) bool {
	c := cutter{text: text, items: r.pieceItems}
	var window []<-chan []parsed
	take := func() {
		for _, p := range <-window[0] {
			r.final = len(p.text) == len(text)
			if !r.stopped && !c.odd {
				c.odd = !r.part(p)
			}
		}
		window = window[1:]
	}
	for p := range c.pieces {
		window = append(window, parseAhead(p))
		if len(window) > runtime.GOMAXPROCS(0) {
			take()
		}
		if r.stopped || c.odd {
			break
		}
	}
	for len(window) > 0 {
		take()
	}
	return !c.odd
}

// parseAhead reads a piece while others are used.
func parseAhead(p piece) <-chan []parsed {
	out := make(chan []parsed, 1)
	go func() { out <- p.parse() }()
	return out
}

// parse reads a piece: at once, or entry by entry when one of them is broken.
func (p piece) parse() []parsed {
	root, err := library(p.text)
	if err == nil && (p.items == 0 || isList(root, p)) {
		return []parsed{{p, root, nil}}
	}
	if p.items <= 1 {
		if err == nil {
			err = errors.New("yaml: this line does not fit the list that it is in")
		}
		return []parsed{{p, nil, err}}
	}
	out := make([]parsed, 0, p.items)
	for one := range p.each {
		out = append(out, one.parse()...)
	}
	return out
}

// isList reports whether the tree is the list with the entries that the cutter saw.
func isList(root *yaml.Node, p piece) bool {
	return root != nil && root.Kind == yaml.SequenceNode && root.Style&yaml.FlowStyle == 0 &&
		root.Line == 1 && root.Column == p.indent+1 && len(root.Content) == p.items
}

// isEntries reports whether the tree is a mapping whose first key the piece begins with.
func isEntries(root *yaml.Node) bool {
	return root != nil && root.Kind == yaml.MappingNode && root.Style&yaml.FlowStyle == 0 &&
		root.Content[0].Line == 1 && root.Content[0].Column == 1
}

// part hands out what a piece holds. It reports whether the text may go on as it is cut.
func (r *reader) part(p parsed) bool {
	switch {
	case p.err != nil:
		r.syntax(p.piece, p.err)
		if r.item++; p.items == 0 {
			r.list = Node{}
		}
	case p.items > 0:
		r.items(Node{p.root, p.line})
	case p.list:
		r.list, r.item = Node{}, 0
		if key := (Node{p.root.Content[0], p.line}); r.seen.add(r, key) {
			r.list = key
			list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: key.n.Line, Column: key.n.Column}
			r.stopped = r.stopped || !r.h.Entry(key, Node{list, p.line})
		}
	case isEntries(p.root):
		r.entries(Node{p.root, p.line})
	case r.seen.n > 0 || r.broken:
		r.syntax(p.piece, errors.New("could not find expected ':'"))
	default:
		return false
	}
	return true
}

// whole reads the text at once, and reports whether it is one YAML document.
func (r *reader) whole(text string) bool {
	if n, at := directive(text); n {
		r.broken, r.stopped = true, !r.h.Problem(at, "YAML directives are not allowed")
		return false
	}
	root, err := library(text)
	switch n := (Node{root, 0}); {
	case err != nil:
		r.syntax(piece{text: text}, err)
	case root == nil:
		r.h.NoMapping(Null, Pos{1, 1})
	case root.Kind != yaml.MappingNode:
		if r.strict(n) {
			r.h.NoMapping(n.Kind(), n.Pos())
		}
	default:
		r.entries(n)
	}
	return !r.broken
}

// entries hands out keys of the top level and their values.
func (r *reader) entries(m Node) {
	if !r.plain(m) {
		return
	}
	for k, v := range m.Pairs() {
		first := r.key(k) && r.seen.add(r, k)
		switch {
		case r.stopped:
			return
		case v.Kind() == Sequence:
			r.list, r.item = Node{}, 0
			if !r.plain(v) {
				break
			}
			if first {
				r.list = k
				r.stopped = r.stopped || !r.h.Entry(k, v)
			}
			r.items(v)
		case r.strict(v) && first:
			r.stopped = r.stopped || !r.h.Entry(k, v)
		}
	}
}

// items hands out entries of the list.
func (r *reader) items(list Node) {
	for _, n := range list.Items() {
		if r.stopped {
			return
		}
		if r.strict(n) && !r.stopped && r.list.n != nil {
			r.stopped = !r.h.Item(r.list, r.item, n)
		}
		r.item++
	}
}

// problem tells the handler what is wrong.
func (r *reader) problem(at Pos, format string, args ...any) {
	r.stopped = r.stopped || !r.h.Problem(at, fmt.Sprintf(format, args...))
}

// Errors that are not the library's.
type (
	secondDocument struct{ line int }
	sizeError      string
)

func (secondDocument) Error() string {
	return "a second YAML document begins here; allowed: one document in a file"
}

func (e sizeError) Error() string { return string(e) }

// library returns the tree of a text with at most one document, nil for none. An empty
// line goes before the text, as the library says no line in errors about the first; the
// tree's lines are those of the text.
func library(text string) (root *yaml.Node, err error) {
	if why := tooLarge(text); why != "" {
		return nil, sizeError(why)
	}
	defer func() {
		// It has panicked on odd comments before, and what it gets is anybody's.
		if v := recover(); v != nil {
			root, err = nil, fmt.Errorf("yaml: %v", v)
		}
	}()
	dec := yaml.NewDecoder(io.MultiReader(bytes.NewReader([]byte{'\n'}), bytes.NewReader([]byte(text))))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case err == io.EOF:
		return nil, nil
	case err != nil:
		return nil, err
	}
	switch err := dec.Decode(&next); {
	case err == nil:
		return nil, secondDocument{next.Line - 1}
	case err != io.EOF:
		return nil, err
	}
	root = doc.Content[0]
	if missing(root) {
		return nil, nil
	}
	moveUp(root)
	return root, nil
}

// moveUp takes the empty line before the text off the lines of a tree. A value that is
// not there can get a place far behind its key ("? key"); it is put at the key.
func moveUp(n *yaml.Node) {
	n.Line--
	for i, c := range n.Content {
		moveUp(c)
		if i%2 == 0 || n.Kind != yaml.MappingNode {
			continue
		}
		if k := n.Content[i-1]; missing(c) && c.Line != k.Line {
			c.Line, c.Column = k.Line, k.Column+1
		}
	}
}

// missing reports whether there is nothing in the text where a value could be.
func missing(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Value == "" && n.Style == 0 && n.Anchor == ""
}
