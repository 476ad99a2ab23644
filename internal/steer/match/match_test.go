package match

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ text, canonical string }{
		{"udp[8:4]&0xffffff00=0x494e5600", "udp[8:4] & 0xffffff00 = 0x494e5600"},
		{"tcp[12:2] & 0x01ff = 0x0002", "tcp[12:2] & 0x01ff = 0x0002"},
		{"tcp[13:1]=2", "tcp[13:1] = 0x02"},
		{"tcp[13:1]==0", "tcp[13:1] = 0x00"},
		{" ip [ 8 : 1 ] != 1 and udp[0:2]=5060 ", "ip[8:1] != 0x01 and udp[0:2] = 0x13c4"},
		{"ip6[6:1]=17&&udp[8:8]=0xffffffffffffffff", "ip6[6:1] = 0x11 and udp[8:8] = 0xffffffffffffffff"},
		{"icmp[0:1]=8 && ip[0:1]&0xf0=0x40", "icmp[0:1] = 0x08 and ip[0:1] & 0xf0 = 0x40"},
		{"sctp[1400:4]&0xffffffff=10", "sctp[1400:4] = 0x0000000a"},
		{"icmp6[0:2]=0x8000\tand\tip6[7:1]=255", "icmp6[0:2] = 0x8000 and ip6[7:1] = 0xff"},
	} {
		cs, err := Parse(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := cs.String(); got != c.canonical {
			t.Errorf("%s: prints %s, want %s", c.text, got, c.canonical)
		}
		again, err := Parse(cs.String())
		if err != nil || !cmp.Equal(again, cs) {
			t.Errorf("%s: read again: %v, %v", cs, again, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct {
		text   string
		column int
		words  string
	}{
		{"", 1, "the end instead of ip, ip6, tcp, udp, sctp, icmp, icmp6"},
		{"  ", 3, "the end instead of ip"},
		{"ether[0:2]=1", 1, `"ether" instead of ip`},
		{"TCP[0:2]=1", 1, `"TCP" instead of ip`},
		{"tcp(0:2)=1", 4, `"(" instead of [`},
		{"tcp[13]=2", 7, `"]" instead of : and the length`},
		{"tcp[x:1]=2", 5, `"x" is not a number`},
		{"tcp[:1]=2", 5, `":" instead of a number`},
		{"tcp[012:1]=2", 5, "012 begins with a zero"},
		{"tcp[1_0:1]=2", 5, `"1_0" is not a number`},
		{"tcp[1401:1]=2", 5, "offset 1401 is not between 0 and 1400"},
		{"tcp[99999999999999999999:1]=2", 5, "99999999999999999999 is more than"},
		{"tcp[-1:1]=2", 5, `"-" instead of a number`},
		{"tcp[0:3]=2", 7, "length 3 is not 1, 2, 4 or 8"},
		{"tcp[0:1=2", 8, `"=" instead of ]`},
		{"tcp[0:1]", 9, "the end instead of = or !="},
		{"tcp[0:1]<2", 9, `"<" instead of = or !=`},
		{"tcp[0:1]=256", 10, "256 is more than 0xff"},
		{"tcp[0:1]=0x", 10, `"0x" is not a number`},
		{"tcp[0:1]&0=0", 10, "mask 0 leaves nothing to compare"},
		{"tcp[0:1]&0x100=0", 10, "0x100 is more than 0xff"},
		{"tcp[0:1]&0xf0=0x41", 15, "value 0x41 has bits that the mask 0xf0 has not"},
		{"tcp[0:1]&&tcp[0:1]=1", 9, `"&" instead of = or !=`},
		{"tcp[0:1]=1 or tcp[0:1]=2", 12, `"or" is not allowed`},
		{"tcp[0:1]=1 tcp[0:1]=2", 12, `"tcp" instead of and or the end`},
		{"tcp[0:1]=1 and", 15, "the end instead of ip"},
		{"tcp[0:1]=1 and udp[0:1]=2", 16, "no packet has the headers tcp and udp"},
		{"ip[0:1]=1 and ip6[0:1]=2", 15, "no packet has the headers ip and ip6"},
		{"ip[0:1]=1 and icmp6[0:1]=2", 15, "no packet has the headers ip and icmp6"},
		{"icmp[0:1]=1 and ip6[0:1]=2", 17, "no packet has the headers icmp and ip6"},
		{strings.Repeat("tcp[0:1]=1&&", 16) + "tcp[0:1]=1", 193, "17 conditions, where 16 are the most"},
		{"tcp[0:1]=1\nand tcp[0:1]=1", 11, "instead of and or the end"},
	} {
		_, err := Parse(c.text)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%q: error %v", c.text, err)
			continue
		}
		if syntax.Column != c.column || !strings.Contains(syntax.Reason, c.words) {
			t.Errorf("%q: column %d, %q; want column %d, %q", c.text, syntax.Column, syntax.Reason, c.column, c.words)
		}
	}
}

// genCondition draws a condition that can stand beside others of the same header.
func genCondition(t *rapid.T, h Header) Condition {
	c := Condition{Header: h, Offset: rapid.IntRange(0, MaxOffset).Draw(t, "offset"),
		Length: rapid.SampledFrom([]int{1, 2, 4, 8}).Draw(t, "length"), Not: rapid.Bool().Draw(t, "not")}
	c.Mask = rapid.Uint64Range(1, full(c.Length)).Draw(t, "mask")
	c.Value = rapid.Uint64().Draw(t, "value") & c.Mask
	return c
}

// TestPrintParse: what is printed is read as what it was.
func TestPrintParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header(rapid.IntRange(0, len(headers)-1).Draw(t, "header"))
		var cs Conditions
		for range rapid.IntRange(1, MaxConditions).Draw(t, "n") {
			cs = append(cs, genCondition(t, h))
		}
		got, err := Parse(cs.String())
		if err != nil || !cmp.Equal(got, cs) {
			t.Fatalf("%s: read as %v, %v", cs, got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"udp[8:4]&0xffffff00=0x494e5600", "tcp[12:2] & 0x01ff != 2 and ip[0:1]=0x45",
		"ip6[6:1]=17&&udp[8:8]=0xffffffffffffffff", "icmp[0:1]==8", "tcp[0x10:1]=1 or x", "\x00[", "tcp[0:1]=1 and é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cs, err := Parse(s)
		var syntax *SyntaxError
		switch {
		case err == nil:
			again, err := Parse(cs.String())
			if err != nil || !cmp.Equal(again, cs) {
				t.Fatalf("%q prints %q, read as %v, %v", s, cs, again, err)
			}
			if cs.CopyLength() > MaxOffset+8+maxHeaders {
				t.Fatalf("%q needs %d bytes", s, cs.CopyLength())
			}
		case !errors.As(err, &syntax):
			t.Fatalf("%q: error %T", s, err)
		case syntax.Column < 1 || syntax.Column > len(s)+1:
			t.Fatalf("%q: column %d", s, syntax.Column)
		}
	})
}
