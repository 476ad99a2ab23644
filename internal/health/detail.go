package health

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxDetail is the longest Result.Detail, in bytes.
const MaxDetail = 200

// clean makes s fit to be a Detail. Backends and commands choose part of these words,
// and they end up on terminals and in logs: what does not print (escape sequences, line
// ends, bytes that are no UTF-8, marks that turn the writing direction) is escaped, and
// what is too long is cut.
func clean(s string) string {
	const more = "…"
	var b strings.Builder
	fits := 0 // where to cut should the rest not fit
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case strconv.IsPrint(r):
			b.WriteString(s[:n])
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		if b.Len() > MaxDetail {
			return b.String()[:fits] + more
		}
		if b.Len() <= MaxDetail-len(more) {
			fits = b.Len()
		}
		s = s[n:]
	}
	return b.String()
}
