package match

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// SyntaxError says where a text is wrong, and what is allowed there.
type SyntaxError struct {
	Column int // in bytes, from 1
	Reason string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("column %d: %s", e.Column, e.Reason) }

// form is what a condition looks like, for errors.
const form = "PROTOCOL[OFFSET:LENGTH] & MASK = VALUE, such as udp[8:4] & 0xffffff00 = 0x494e5600"

// Parse reads conditions; the package says what they look like. An error is a [*SyntaxError].
func Parse(text string) (Conditions, error) {
	p := parser{text: text}
	cs := p.conditions()
	if p.err != nil {
		return nil, p.err
	}
	return cs, nil
}

// parser reads from left to right. After the first error it reads nothing any more.
type parser struct {
	text string
	at   int
	err  *SyntaxError
}

func (p *parser) fail(at int, format string, args ...any) {
	if p.err == nil {
		p.err = &SyntaxError{at + 1, fmt.Sprintf(format, args...)}
	}
}

func (p *parser) blanks() {
	for p.at < len(p.text) && strings.IndexByte(" \t", p.text[p.at]) >= 0 {
		p.at++
	}
}

// found describes what stands at an offset, for errors.
func (p *parser) found(at int) string {
	if at >= len(p.text) {
		return "the end"
	}
	end := at + 1
	for end < len(p.text) && isWord(p.text[at]) && isWord(p.text[end]) {
		end++
	}
	return strconv.Quote(p.text[at:end])
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c >= 0x80
}

// take reads the text s if it comes next.
func (p *parser) take(s string) bool {
	if p.blanks(); p.err != nil || !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

// want reads the text s, which must come next.
func (p *parser) want(s, what string) {
	if !p.take(s) {
		p.fail(p.at, "%s instead of %s: a condition is %s", p.found(p.at), what, form)
	}
}

func (p *parser) word() string {
	p.blanks()
	start := p.at
	for p.at < len(p.text) && isWord(p.text[p.at]) {
		p.at++
	}
	return p.text[start:p.at]
}

func (p *parser) conditions() Conditions {
	var cs Conditions
	for p.err == nil {
		p.blanks()
		start := p.at
		c := p.condition()
		p.fits(start, cs, c)
		if cs = append(cs, c); len(cs) > MaxConditions {
			p.fail(start, "%d conditions, where %d are the most", len(cs), MaxConditions)
		}
		if p.blanks(); p.at == len(p.text) || p.err != nil {
			break
		}
		p.and()
	}
	return cs
}

// and reads what joins conditions.
func (p *parser) and() {
	if p.take("&&") {
		return
	}
	p.blanks()
	at := p.at
	switch w := p.word(); w {
	case "and":
	case "or", "not":
		p.fail(at, "%q is not allowed: conditions are joined by and; write several rules instead", w)
	default:
		p.fail(at, "%s instead of and or the end", p.found(at))
	}
}

// fits tells conditions that no packet can meet together.
func (p *parser) fits(at int, before Conditions, c Condition) {
	if p.err != nil {
		return
	}
	for _, b := range before {
		if b.Header != c.Header && (b.Header.transport() == c.Header.transport() || clash(b.Header, c.Header)) {
			p.fail(at, "no packet has the headers %s and %s", b.Header, c.Header)
		}
	}
}

// clash reports whether the one is a transport of the family that the other is not.
func clash(a, b Header) bool {
	if a.transport() {
		a, b = b, a
	}
	return a == IP && b == ICMP6 || a == IP6 && b == ICMP
}

func (p *parser) condition() (c Condition) {
	c.Header = p.header()
	p.want("[", "[")
	at, offset := p.number(math.MaxUint64)
	if offset > MaxOffset {
		p.fail(at, "offset %s is not between 0 and %d", p.text[at:p.at], MaxOffset)
	}
	p.want(":", ": and the length")
	at, length := p.number(math.MaxUint64)
	switch length {
	case 1, 2, 4, 8:
	default:
		p.fail(at, "length %s is not 1, 2, 4 or 8", p.text[at:p.at])
	}
	p.want("]", "]")
	if p.err != nil {
		return c
	}
	c.Offset, c.Length = int(offset), int(length)
	c.Mask = full(c.Length)
	if !strings.HasPrefix(p.text[p.at:], "&&") && p.take("&") {
		if at, c.Mask = p.number(full(c.Length)); c.Mask == 0 {
			p.fail(at, "mask 0 leaves nothing to compare")
		}
	}
	p.operator(&c)
	at, c.Value = p.number(full(c.Length))
	if c.Value&^c.Mask != 0 {
		p.fail(at, "value 0x%x has bits that the mask 0x%x has not, so nothing can be like it", c.Value, c.Mask)
	}
	return c
}

func (p *parser) header() Header {
	p.blanks()
	at := p.at
	w := p.word()
	for h := range headers {
		if headers[h].name == w {
			return Header(h)
		}
	}
	var names []string
	for h := range headers {
		names = append(names, headers[h].name)
	}
	p.at = at
	p.fail(at, "%s instead of %s: a condition is %s", p.found(at), strings.Join(names, ", "), form)
	return 0
}

func (p *parser) operator(c *Condition) {
	switch {
	case p.take("!="):
		c.Not = true
	case p.take("=="), p.take("="):
	default:
		p.fail(p.at, "%s instead of = or !=: a condition is %s", p.found(p.at), form)
	}
}

// number reads a number up to most and returns where it began.
func (p *parser) number(most uint64) (int, uint64) {
	p.blanks()
	at := p.at
	if p.err != nil {
		return at, 0
	}
	w := p.word()
	digits, base := w, 10
	if hex, ok := strings.CutPrefix(w, "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	switch {
	case w == "":
		p.fail(at, "%s instead of a number", p.found(at))
	case base == 10 && len(w) > 1 && w[0] == '0':
		p.fail(at, "%s begins with a zero: write it in decimal without, or as 0x and hexadecimal digits", w)
	case strings.Contains(w, "_"), err != nil && !isRange(err):
		p.fail(at, "%q is not a number: write it in decimal, or as 0x and hexadecimal digits", w)
	case err != nil || n > most:
		p.fail(at, "%s is more than 0x%x", w, most)
	}
	return at, n
}

func isRange(err error) bool {
	e, ok := err.(*strconv.NumError)
	return ok && e.Err == strconv.ErrRange
}
