package yaml

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
)

// syntax tells the handler why the library does not take a piece, and where.
func (r *reader) syntax(p piece, err error) {
	r.broken = true
	var second secondDocument
	var size sizeError
	switch {
	case errors.As(err, &second):
		r.problem(Pos{p.line + second.line, 1}, "%s", err)
		return
	case errors.As(err, &size):
		r.problem(Pos{p.line + 1, 1}, "%s", err)
		return
	}
	line, msg := split(err)
	if l, err := r.firstBad(p.text); l > 0 && l >= line {
		_, msg = split(err)
		line = l
	}
	line = min(max(line, 1), countLines(p.text))
	text := lineNumber(p.text, line)
	rest := strings.TrimLeft(text, " ")
	r.problem(Pos{p.line + line, len(text) - len(rest) + 1}, "%s", explain(msg, rest[:min(len(rest), maxLine)]))
}

// firstBad returns the number of the first line with which the text, cut off behind it,
// is no YAML, though it is without: that line opens what is never closed, or does not fit
// the lines before. The library by itself tells where the list or mapping around the
// mistake begins. It also returns what the library says up to there. The line is 0 when
// the text is too long for all this.
func (r *reader) firstBad(text string) (line int, why error) {
	n := countLines(text)
	cost := n * len(text)
	if cost > r.budget {
		return 0, nil
	}
	r.budget -= cost
	for end := len(text); n > 0; n-- {
		_, err := library(text[:end])
		if err == nil {
			break
		}
		line, why = n, err
		end = strings.LastIndexByte(strings.TrimSuffix(text[:end], "\n"), '\n') + 1
	}
	return line, why
}

func countLines(text string) int {
	return strings.Count(strings.TrimSuffix(text, "\n"), "\n") + 1
}

// lineNumber returns line n, from 1.
func lineNumber(text string, n int) string {
	off := 0
	for ; n > 1; n-- {
		_, off = lineAt(text, off)
	}
	line, _ := lineAt(text, off)
	return line
}

// libraryError is the form of the library's errors.
var libraryError = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)`)

// ofParser are the errors that name a line too low by one: it counts them from 0.
var ofParser = regexp.MustCompile(`^did not find expected (key|'-' indicator|',' or '[]}]'|node content|<)|^found undefined tag handle`)

// split takes the line and the words from an error of the library. The line is that of
// the text, which the library got behind an empty line; 0 for none.
func split(err error) (line int, msg string) {
	m := libraryError.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, "text that the YAML library does not take"
	}
	line, _ = strconv.Atoi(m[1])
	if !ofParser.MatchString(m[2]) {
		line--
	}
	return line, m[2]
}

// maxLine is how much of a line is searched for what may be wrong, in bytes.
const maxLine = 1024

// bracketed finds an IPv6 address in brackets with a port behind and no quote before.
var bracketed = regexp.MustCompile(`(^|[\s,[{])\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]:\d`)

// explain makes of the library's words, and the line they are about, what a person needs.
func explain(msg, line string) string {
	switch {
	case strings.HasPrefix(msg, "unknown anchor"):
		return "YAML aliases are not allowed; write the value out"
	case strings.HasPrefix(line, "\t"):
		return "a tab is not allowed in indentation; allowed: spaces"
	case bracketed.MatchString(line):
		return `this line is not YAML; an IPv6 address in brackets must be in quotes, such as "[2001:db8::1]:80"`
	}
	hint := ""
	for _, h := range []struct{ word, hint string }{
		{"mapping values are not allowed", `; look at the indentation; a value with ": " in it must be in quotes`},
		{"end of stream", "; a quote is not closed"},
		{"',' or", "; a bracket is not closed, or a comma is missing"},
		{"could not find expected ':'", "; want a key, a colon and a space"},
		{"cannot start any token", "; a value that begins with % @ ` or a tab must be in quotes"},
		{"did not find expected", "; look at the quotes, the brackets and the indentation here"},
	} {
		if strings.Contains(msg, h.word) {
			hint = h.hint
			break
		}
	}
	if quoted := strconv.Quote(msg); quoted != `"`+msg+`"` {
		msg = quoted
	}
	return "not YAML: " + msg + hint
}

// directive finds a YAML directive before the document.
func directive(text string) (bool, Pos) {
	for off, line := 0, 1; off < len(text); line++ {
		l, end := lineAt(text, off)
		if firstByte(l) != 0 {
			return l[0] == '%', Pos{line, 1}
		}
		off = end
	}
	return false, Pos{}
}
