package health

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"HTTP 200 OK", "HTTP 200 OK"},
		{"über", "über"},
		{"a\r\nb\x1b[31m\x00", `a\r\nb\x1b[31m\x00`},
		{"\xff\xc3", `\xff\xc3`},
		{"x\u202ey", `x\u202ey`},
		{strings.Repeat("a", MaxDetail), strings.Repeat("a", MaxDetail)},
		{strings.Repeat("a", MaxDetail+1), strings.Repeat("a", MaxDetail-3) + "…"},
		{strings.Repeat("\x00", MaxDetail), strings.Repeat(`\x00`, 49) + "…"},
	} {
		if got := clean(c.in); got != c.want {
			t.Errorf("clean(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\nb")
	f.Add(strings.Repeat("ü\x9b", 100))
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if len(got) > MaxDetail || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 }) {
			t.Errorf("%q", got)
		}
		if again := clean(got); again != got {
			t.Errorf("%q becomes %q", got, again)
		}
	})
}
