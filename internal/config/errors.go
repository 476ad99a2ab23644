package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxShown is how many errors Errors.Error writes out.
const maxShown = 50

// Error is one mistake in a configuration.
type Error struct {
	File   string `json:"file"`             // as it was given to Load or Parse
	Line   int    `json:"line,omitempty"`   // from 1; 0 when it is the file as a whole
	Column int    `json:"column,omitempty"` // in characters, from 1
	Path   string `json:"path,omitempty"`   // such as services[0].backends[1].weight
	Found  string `json:"found,omitempty"`  // what was there, shortened; it may hold any character
	Msg    string `json:"message"`          // one printable line

	cause error
}

// Error returns one printable line: file:line:column: path: message.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(printable(e.File))
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Unwrap returns the system's error, for a file that can not be read.
func (e *Error) Unwrap() error { return e.cause }

// Errors are the mistakes of one configuration in the order of the text, at most 1,000
// and one that says so.
type Errors []*Error

// Error returns a line for each of the first 50 mistakes, and how many more there are.
func (e Errors) Error() string {
	var b strings.Builder
	for i, one := range e {
		if i == maxShown {
			fmt.Fprintf(&b, "\nand %d more", len(e)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
	}
	return b.String()
}

// Unwrap returns the errors one by one.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, one := range e {
		out[i] = one
	}
	return out
}

// errors returns the problems in the order of the text.
func (d *decoder) errors() Errors {
	out := d.problems
	slices.SortStableFunc(out, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if d.full {
		last := out[len(out)-1]
		out = append(out, &Error{File: d.name, Line: last.Line, Column: last.Column, Msg: fmt.Sprintf("more than %d mistakes; the rest of the file was not looked at", maxProblems)})
	}
	return out
}

// shorten cuts untrusted text to what fits in a message.
func shorten(s string) string {
	const most = 60
	if r := []rune(s[:min(len(s), 8*most)]); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// quote returns untrusted text shortened, in quotes, with all that is not printable
// written as escapes.
func quote(s string) string { return strconv.Quote(shorten(s)) }

// printable returns s itself when it is harmless, and else quotes it.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}
