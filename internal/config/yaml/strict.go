package yaml

import (
	"strconv"

	"go.yaml.in/yaml/v3"
)

// plain reports whether the node itself, whatever is in it, is of the part of YAML that
// a configuration needs, and tells the handler why not.
func (r *reader) plain(n Node) bool {
	why := ""
	switch style := n.n.Style; {
	case n.n.Kind == yaml.AliasNode:
		why = "YAML aliases are not allowed; write the value out"
	case n.n.Anchor != "":
		why = "YAML anchors are not allowed; write the value out where it is used"
	case style&yaml.TaggedStyle != 0:
		why = "YAML tags are not allowed"
	case style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		why = "YAML block text is not allowed; write the value in quotes on one line"
	default:
		return true
	}
	r.problem(n.Pos(), "%s", why)
	return false
}

// key is plain for a key, which must be a scalar.
func (r *reader) key(k Node) bool {
	if !r.plain(k) {
		return false
	}
	if k.n.Kind != yaml.ScalarNode {
		r.problem(k.Pos(), "a list or mapping as a key is not allowed")
		return false
	}
	return true
}

// strict is plain for the node and all in it, up to the first that is not. It also finds
// keys that a mapping has twice; they do not make it false.
func (r *reader) strict(n Node) bool {
	if !r.plain(n) {
		return false
	}
	for _, c := range n.Items() {
		if !r.strict(c) {
			return false
		}
	}
	var seen keySet
	for k, v := range n.Pairs() {
		if !r.key(k) {
			return false
		}
		seen.add(r, k)
		if r.stopped || !r.strict(v) {
			return false
		}
	}
	return true
}

// keySet finds keys that a mapping has twice.
type keySet struct {
	few  [8]seenKey     // the first ones are searched one by one
	n    int            // how many of few are in use
	many map[string]int // the others: key to line
}

type seenKey struct {
	text string
	line int
}

// add adds the key, and tells the handler and reports false when it was there.
func (s *keySet) add(r *reader, key Node) bool {
	line := s.find(key.Text(), key.Pos().Line)
	if line == 0 {
		return true
	}
	r.problem(key.Pos(), "key %s is there twice; it was first said in line %d", quote(key.Text()), line)
	return false
}

// find returns the line of the same key, or adds the key and returns 0.
func (s *keySet) find(text string, line int) int {
	for _, k := range s.few[:s.n] {
		if k.text == text {
			return k.line
		}
	}
	if old, ok := s.many[text]; ok {
		return old
	}
	if s.n < len(s.few) {
		s.few[s.n] = seenKey{text, line}
		s.n++
		return 0
	}
	if s.many == nil {
		s.many = map[string]int{}
	}
	s.many[text] = line
	return 0
}

// quote shortens untrusted text and makes it safe to print.
func quote(s string) string {
	const most = 40
	if r := []rune(s[:min(len(s), 8*most)]); len(r) > most {
		return strconv.Quote(string(r[:most])) + "…"
	}
	return strconv.Quote(s)
}
