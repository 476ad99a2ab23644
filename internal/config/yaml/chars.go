package yaml

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

const bom = "\ufeff"

// badCharacter returns the first character that may not be in a text, and why: what
// YAML excludes (section 5.1), and line ends that YAML 1.1 and 1.2 count differently.
func badCharacter(src string) (Pos, string) {
	line, bol := 1, 0
	for i := 0; i < len(src); {
		c := src[i]
		if c >= ' ' && c < 0x7f || c == '\t' {
			i++
			continue
		}
		if c == '\n' {
			i++
			line, bol = line+1, i
			continue
		}
		r, n := utf8.DecodeRuneInString(src[i:])
		if msg := refuse(r, n, src, i); msg != "" {
			return Pos{line, utf8.RuneCountInString(src[bol:i]) + 1}, msg
		}
		i += n
	}
	return Pos{}, ""
}

func refuse(r rune, n int, src string, i int) string {
	switch {
	case r == utf8.RuneError && n == 1:
		return fmt.Sprintf("byte 0x%02x is not part of UTF-8 text; allowed: text in UTF-8", src[i])
	case r == '\r' && strings.HasPrefix(src[i+1:], "\n"):
		return ""
	case r == '\r':
		return "a carriage return that does not end a line is not allowed"
	case r == '\ufeff' && i == 0:
		return ""
	case r < ' ', r >= 0x7f && r < 0xa0, r == '\u2028', r == '\u2029', r == '\ufeff', r == '\ufffe', r == '\uffff':
		return fmt.Sprintf("character U+%04X is not allowed", r)
	}
	return ""
}
