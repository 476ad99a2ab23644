package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// decoder builds the model from what yaml.Read hands out.
type decoder struct {
	name     string
	cfg      model.Config
	problems Errors
	full     bool // more than maxProblems

	seeded   bool           // hash_seed was there: it may be 0
	names    map[string]int // services: name to line
	lists    map[string]int // blocklists: name to line
	listens  []listenAt     // of all services
	assigns  []assignAt
	clientIn []inAt // entries of in, whose groups may come later
	devices  []groupDevice
	words    []deviceAt // devices and groups of open rules and pools
	edges    edgeReader
	pools    poolsReader
	mirrors  mirrorReader
	services bool // the key was there
	steered  []steeredAt
	bad      bool // the text is no mapping, or could not be read to its end
}

// where is the path of a value. An index of -1 means there is none.
type where struct {
	key   string // top level: services
	i     int
	sub   string // backends
	j     int
	field string // weight
}

func top(key string) where { return where{key: key, i: -1, j: -1} }

func (w where) in(sub string) where   { w.sub, w.j = sub, -1; return w }
func (w where) at(j int) where        { w.j = j; return w }
func (w where) of(field string) where { w.field = field; return w }

// under is the value of a key of a mapping at w, however deep w is.
func (w where) under(key string) where {
	if w.field != "" {
		key = w.field + "." + key
	}
	return w.of(key)
}

// entry is entry i of a list at w, however deep w is.
func (w where) entry(i int) where { return w.of(fmt.Sprintf("%s[%d]", w.field, i)) }

// String returns a form such as services[0].backends[1].weight.
func (w where) String() string {
	var b strings.Builder
	b.WriteString(w.key)
	index := func(i int) {
		if i >= 0 {
			fmt.Fprintf(&b, "[%d]", i)
		}
	}
	index(w.i)
	if w.sub != "" {
		b.WriteString("." + w.sub)
	}
	index(w.j)
	if w.field != "" {
		b.WriteString("." + w.field)
	}
	return b.String()
}

// add notes a mistake and reports whether there is room for more.
func (d *decoder) add(at yaml.Pos, w where, found, msg string) bool {
	if len(d.problems) >= maxProblems {
		d.full = true
		return false
	}
	d.problems = append(d.problems, &Error{
		File: d.name, Line: at.Line, Column: at.Column, Path: w.String(), Found: shorten(found), Msg: msg,
	})
	return true
}

// addf is add for a mistake in the value n.
func (d *decoder) addf(n yaml.Node, w where, format string, args ...any) {
	d.add(n.Pos(), w, n.Text(), fmt.Sprintf(format, args...))
}

// NoMapping implements yaml.Handler.
func (d *decoder) NoMapping(k yaml.Kind, at yaml.Pos) {
	const smallest = `; the smallest useful file is: services: [{name: web, listen: "198.51.100.10:80", backends: ["10.1.1.1:8080"]}]`
	switch k {
	case yaml.Null:
		d.add(at, top(""), "", "the file says nothing"+smallest)
	case yaml.Sequence:
		d.add(at, top(""), "", "a list is not allowed at the top of the file; allowed: the keys "+strings.Join(topAllowed, ", ")+smallest)
	default:
		d.add(at, top(""), "", "a single value is not allowed at the top of the file; allowed: the keys "+strings.Join(topAllowed, ", ")+smallest)
	}
	d.bad = true
}

// Problem implements yaml.Handler.
func (d *decoder) Problem(at yaml.Pos, msg string) bool {
	d.bad = true
	return d.add(at, top(""), "", msg)
}

// Item implements yaml.Handler.
func (d *decoder) Item(key yaml.Node, i int, value yaml.Node) bool {
	w := top(key.Text())
	w.i = i
	switch key.Text() {
	case "services":
		d.service(w, value)
	case "steering":
		d.steeringEntry(w, value)
	}
	return !d.full
}

// Entry implements yaml.Handler.
func (d *decoder) Entry(key, value yaml.Node) bool {
	w := top(key.Text())
	switch key.Text() {
	case "hash_seed":
		d.cfg.HashSeed = uint32(d.number(value, w, 0, math.MaxUint32))
		d.seeded = true
	case "mark_mask":
		d.cfg.MarkMask = uint32(d.number(value, w, 1, math.MaxUint32))
	case "interfaces":
		d.interfaces(value, w)
	case "edge":
		d.edges.there = true
		d.edge(value, w)
	case "services":
		d.services = true
		if value.Kind() != yaml.Sequence {
			d.addf(value, w, "%s is not allowed; want a list of services, [] for none", describe(value))
		}
	case "steering":
		if value.Kind() != yaml.Sequence {
			d.addf(value, w, "%s is not allowed; want a list of steered services", describe(value))
		}
	case "blocklists":
		d.blocklists(value, w)
	case "mirrors":
		d.mirrorList(value, w)
	case "allow":
		d.allow(value, w)
	case "egress":
		d.egress(value, w)
	case "bindings":
		d.bindings(value, w)
	default:
		d.unknown(key, top(""), topAllowed)
	}
	return !d.full
}

// unknown notes a key that is not in the language.
func (d *decoder) unknown(key yaml.Node, parent where, allowed []string) {
	name := key.Text()
	if name == "<<" {
		d.addf(key, parent, "YAML merge keys (<<) are not allowed; write the keys out")
		return
	}
	msg := "key " + quote(name) + " is not known"
	if near := nearest(name, allowed); near != "" {
		msg += "; did you mean " + near + "?"
	}
	d.addf(key, parent, "%s; allowed: %s", msg, strings.Join(allowed, ", "))
}

// describe says what a value is, for messages.
func describe(n yaml.Node) string {
	switch n.Kind() {
	case yaml.Null:
		return "nothing (null)"
	case yaml.Bool:
		return quote(n.Text()) + " (true or false)"
	case yaml.Int, yaml.Float:
		return quote(n.Text()) + " (a number)"
	case yaml.Sequence:
		return "a list"
	case yaml.Mapping:
		return "a mapping"
	}
	return quote(n.Text())
}

// str returns the text of a value that must be text.
func (d *decoder) str(n yaml.Node, w where, want string) (string, bool) {
	switch n.Kind() {
	case yaml.String:
		return n.Text(), true
	case yaml.Bool, yaml.Int, yaml.Float:
		d.addf(n, w, "%s is not text; want %s", describe(n), want)
	default:
		d.addf(n, w, "%s is not allowed; want %s", describe(n), strings.TrimSuffix(want, inQuotes))
	}
	return "", false
}

// inQuotes ends what str wants where a number or a bool could be meant as text.
const inQuotes = " (in quotes it is text)"

// word returns the index of the value in allowed.
func (d *decoder) word(n yaml.Node, w where, allowed []string) (int, bool) {
	list := strings.Join(allowed, ", ")
	s, ok := d.str(n, w, "one of "+list)
	if !ok {
		return 0, false
	}
	for i, a := range allowed {
		if s == a {
			return i, true
		}
	}
	msg := quote(s) + " is not allowed; allowed: " + list
	if near := nearest(s, allowed); near != "" {
		msg = quote(s) + " is not allowed; did you mean " + near + "? allowed: " + list
	}
	d.addf(n, w, "%s", msg)
	return 0, false
}

// boolean returns a value that must be true or false; false when it is neither.
func (d *decoder) boolean(n yaml.Node, w where) bool {
	if n.Kind() != yaml.Bool {
		d.addf(n, w, "%s is not allowed; want true or false", describe(n))
		return false
	}
	return strings.EqualFold(n.Text(), "true")
}

// number returns a whole number between lo and hi; 0 when it is none.
func (d *decoder) number(n yaml.Node, w where, lo, hi uint64) uint64 {
	s := n.Text()
	if n.Kind() != yaml.Int {
		msg := "%s is not allowed; want a whole number from %d to %d"
		if n.Kind() == yaml.String && s != "" && strings.Trim(s, "0123456789") == "" {
			msg += " without quotes"
		}
		d.addf(n, w, msg, describe(n), lo, hi)
		return 0
	}
	digits := strings.TrimPrefix(s, "+")
	if strings.Contains(s, "_") || len(digits) > 1 && strings.IndexByte("bBOX", digits[1]) >= 0 {
		d.addf(n, w, "%s is not a number to all who read YAML; write it in decimal, or with 0x for hexadecimal", quote(s))
		return 0
	}
	if len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9' {
		d.addf(n, w, "%s begins with 0, which some read as octal; write it without, or 0x for hexadecimal", quote(s))
		return 0
	}
	v, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || v < lo || v > hi {
		d.addf(n, w, "%s is out of range; allowed: %d to %d", quote(s), lo, hi)
		return 0
	}
	return v
}

// nearest returns the allowed word that s was probably meant to be, or "".
func nearest(s string, allowed []string) string {
	best, word := 3, "" // at most two letters off
	if len(s) > 2*model.MaxNameLen {
		return ""
	}
	for _, a := range allowed {
		if n := distance(strings.ToLower(s), a); n < best && n*2 < len(a) {
			best, word = n, a
		}
	}
	return word
}

// distance is the number of bytes to insert, delete or replace to make b of a
// (Levenshtein distance).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
