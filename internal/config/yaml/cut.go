package yaml

import "strings"

// Sizes of what the library gets at a time.
const (
	// pieceSize and pieceItems are how many bytes or entries of the list of services are
	// enough for a piece.
	pieceSize, pieceItems = 64 << 10, 256
	// maxText is the largest text in bytes that is not cut any further: one service, one
	// other key of the top level, or a text that is laid out otherwise. maxMarks is the
	// largest number in it of the characters that a value begins or ends with, and so half
	// of the values at most; the library allocates up to 300 bytes for each.
	maxText, maxMarks = 8 << 20, 1 << 20
)

// marks are the characters without one of which no value or comment begins.
const marks = ",:[{-?#\n"

// piece is a part of the text that can be read alone.
type piece struct {
	text   string
	line   int // lines before it
	indent int // column of the "- ", from 0
	// items is the number of entries of the list of services in it; 0 for a key of the
	// top level with its value, or for the key of the list without its entries.
	items int
	list  bool // it is the key of the list
}

// cutter cuts a text. By YAML's rule for indentation (1.2, sections 6.1 and 8.2) a line
// that is not indented, or a "- " at the column of the list it is in, can not be inside
// of another value. The library is more lenient with quotes and brackets, and the cutter
// does not know of those; but then it leaves one open at the end of a piece, which the
// library does not take.
type cutter struct {
	text  string
	items int  // enough for a piece
	odd   bool // there is a document marker or an indented key; the pieces are worthless
}

// pieces ranges over the pieces in the order of the text. What is before the first key,
// at most comments and "---", is in none.
func (c *cutter) pieces(yield func(piece) bool) {
	var p piece
	inside := false // p has begun
	begin, seenMarker := 0, false
	services := false // p is the key of the list, if entries follow
	flush := func(to int) bool {
		p.text = c.text[begin:to]
		return !inside || yield(p)
	}
	for off, line := 0, 0; off < len(c.text); line++ {
		l, end := lineAt(c.text, off)
		indent := len(l) - len(strings.TrimLeft(l, " "))
		switch first := firstByte(l); {
		case isMarker(l) && !inside && !seenMarker && bare(l[3:]) && l[0] == '-':
			seenMarker = true
		case isMarker(l), !inside && !isKey(l) && (first != 0 || strings.HasPrefix(l[indent:], "\t")):
			c.odd = true
			return
		case isKey(l):
			if !flush(off) {
				return
			}
			begin, inside = off, true
			p = piece{line: line}
			services = strings.HasPrefix(l, "services:") && bare(l[len("services:"):])
		case services && isDash(l, indent):
			if p.list = true; !flush(off) {
				return
			}
			begin, p, services = off, piece{line: line, indent: indent, items: 1}, false
		case services && first != 0:
			services = false // not a list, or not on lines of its own
		case p.items > 0 && p.indent == indent && isDash(l, indent):
			if off-begin < pieceSize && p.items < c.items {
				p.items++
				break
			}
			if !flush(off) {
				return
			}
			begin, p = off, piece{line: line, indent: indent, items: 1}
		}
		off = end
	}
	c.odd = c.odd || !inside
	flush(len(c.text))
}

// each ranges over the entries of the piece, each a piece of its own.
func (p piece) each(yield func(piece) bool) {
	begin, from := 0, p.line
	for off, line := 0, p.line; off < len(p.text); line++ {
		l, end := lineAt(p.text, off)
		if off > 0 && isDash(l, p.indent) {
			if !yield(piece{text: p.text[begin:off], line: from, indent: p.indent, items: 1}) {
				return
			}
			begin, from = off, line
		}
		off = end
	}
	yield(piece{text: p.text[begin:], line: from, indent: p.indent, items: 1})
}

// lineAt returns the line that begins at off, without its end, and where the next does.
func lineAt(s string, off int) (line string, next int) {
	next = len(s)
	if i := strings.IndexByte(s[off:], '\n'); i >= 0 {
		next = off + i + 1
		return strings.TrimSuffix(s[off:next-1], "\r"), next
	}
	return strings.TrimSuffix(s[off:], "\r"), next
}

// firstByte returns the first character of a line that says something, 0 for a blank
// line or a comment.
func firstByte(l string) byte {
	if l = strings.TrimLeft(l, " \t"); l == "" || l[0] == '#' {
		return 0
	}
	return l[0]
}

// bare reports whether s, the rest of a line, is empty but for spaces and a comment.
func bare(s string) bool {
	t := strings.TrimLeft(s, " ")
	return t == "" || t[0] == '#' && len(t) < len(s)
}

// isKey reports whether a key of the top level may begin with the line. What closes a
// bracket, and entries of a list that is not indented, are not on their own.
func isKey(l string) bool {
	return l != "" && strings.IndexByte(" \t#[]{},-", l[0]) < 0
}

// isDash reports whether the line is an entry of a list indented by n spaces.
func isDash(l string, n int) bool {
	if len(l) <= n || l[n] != '-' || strings.TrimLeft(l[:n], " ") != "" {
		return false
	}
	return len(l) == n+1 || l[n+1] == ' ' || l[n+1] == '\t'
}

// isMarker reports whether the line begins or ends a document.
func isMarker(l string) bool {
	if !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "...") {
		return false
	}
	return len(l) == 3 || l[3] == ' ' || l[3] == '\t'
}

// tooLarge says why the library should not get the text, "" when it may.
func tooLarge(text string) string {
	const advice = "; write every service as an entry of its own, with the \"- \" at the beginning of a line"
	switch {
	case len(text) <= pieceSize:
		return ""
	case len(text) > maxText:
		return "more than 8 MiB in one part of the file" + advice
	}
	n := 0
	for i := range len(text) {
		if isMark[text[i]] {
			n++
		}
	}
	if n > maxMarks {
		return "more than a million values in one part of the file" + advice
	}
	return ""
}

var isMark = func() (t [256]bool) {
	for _, c := range []byte(marks) {
		t[c] = true
	}
	return t
}()
