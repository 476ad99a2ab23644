package blocklist

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxProblems is how many problems are kept of a list, and of a guard. More are counted.
const MaxProblems = 20

// Problem is one thing that is wrong with a list, or that a guard objects to.
type Problem struct {
	List   string `json:"list,omitempty"`
	File   string `json:"file,omitempty"`   // as it was given
	Line   int    `json:"line,omitempty"`   // from 1; 0 when it is the file or the list as a whole
	Column int    `json:"column,omitempty"` // in characters, from 1; 0 when it is the line as a whole
	Found  string `json:"found,omitempty"`  // what was there, shortened; it may hold any character
	Msg    string `json:"message"`          // one printable line
}

// Error returns one printable line: file:line:column: message.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(printable(p.File))
		if p.Line > 0 {
			b.WriteString(":" + strconv.Itoa(p.Line))
		}
		if p.Column > 0 {
			b.WriteString(":" + strconv.Itoa(p.Column))
		}
		b.WriteString(": ")
	} else if p.List != "" {
		b.WriteString("list " + printable(p.List) + ": ")
	}
	return b.String() + p.Msg
}

// Problems are what is wrong with one file, at most MaxProblems of them.
type Problems struct {
	First []*Problem
	More  int // that are not in First
}

// Error returns a line for each problem, and how many more there are.
func (p *Problems) Error() string {
	lines := make([]string, 0, len(p.First)+1)
	for _, one := range p.First {
		lines = append(lines, one.Error())
	}
	if p.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", p.More))
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems one by one.
func (p *Problems) Unwrap() []error {
	out := make([]error, len(p.First))
	for i, one := range p.First {
		out[i] = one
	}
	return out
}

// entryForms is what a line may be.
const entryForms = "192.0.2.1, 192.0.2.0/24, 192.0.2.1-192.0.2.9, the same in IPv6, lines of ipset save, JSON objects with a cidr"

// words says what is wrong, "%s" being what was found, in quotes.
var words = [...]string{
	notEntry:      "%s is no entry of a list; allowed: " + entryForms,
	badBits4:      "prefix length %s; allowed for IPv4: 0 to 32",
	badBits6:      "prefix length %s; allowed for IPv6: 0 to 128",
	badMappedBits: "prefix length %s of an IPv4 address in IPv6 form; allowed: 96 to 128, or write it as IPv4",
	hasZone:       "%s has a zone, which means nothing outside of one machine; write the address without it",
	backwards:     "range %s ends before it begins",
	twoFamilies:   "range %s begins in one family and ends in the other",
	behind:        "%s stands behind an entry; allowed there: a comment with # or ;",
	tooLong:       "line %s is too long; allowed: %d bytes",
	setCommand:    "ipset command %s; allowed: create, add, and what changes no entry (flush, destroy, swap, rename, COMMIT)",
	setOption:     "%s is not an option of an ipset entry; allowed: timeout, comment, nomatch, packets, bytes, skbmark, skbprio, skbqueue, -exist",
	setValue:      "the value of %s is missing or not closed by a quote",
	setNoEntry:    "%s without a set and an entry; want: add NAME 192.0.2.0/24",
	setPorts:      "%s is more than addresses; allowed: entries of hash:ip, hash:net and bitmap:ip",
	setType:       "set type %s; allowed: hash:ip, hash:net, bitmap:ip",
	setMask:       "a set with %s: its entries would be read as single addresses",
	setSecond:     "%s is a second set of this family in one file; its entries are read as the first one's: put each set into a file of its own",
	notJSON:       "%s is not one JSON object in one line",
	cutJSON:       "%s is not a whole JSON object, and the file ends in it: it may be half written",
	noCIDR:        `%s has no "cidr" that is a string; want an object such as {"cidr":"192.0.2.0/24"}`,
	badCIDR:       "the cidr of %s is no entry of a list; allowed: 192.0.2.0/24, and the same in IPv6",
	recordCount:   "the metadata tells of %d records; there were %d: the file is not whole",
}

// message returns the words for fault f of line; numbers are for those that show some.
func (f fault) message(line []byte, numbers ...any) (found, msg string) {
	found = shorten(string(line[f.from:min(f.to, f.from+8*maxFound)]))
	form := words[f.kind]
	if f.kind == notEntry || f.kind == notJSON || f.kind == cutJSON {
		switch {
		case bytes.IndexByte(line, 0) >= 0:
			form = "%s holds a NUL byte; want text: " + entryForms
		case !utf8.Valid(line):
			form = "%s is not UTF-8 text; want: " + entryForms
		}
	}
	if strings.Contains(form, "%s") {
		numbers = append([]any{strconv.Quote(found)}, numbers...)
	}
	return found, fmt.Sprintf(form, numbers...)
}

// maxFound is how many characters of a bad line a message shows.
const maxFound = 60

// shorten cuts untrusted text to what fits in a message.
func shorten(s string) string {
	if r := []rune(s[:min(len(s), 8*maxFound)]); len(r) > maxFound {
		return string(r[:maxFound]) + "…"
	}
	return s
}

// printable returns s itself when it is harmless, and else quotes it.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}
