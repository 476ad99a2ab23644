package yaml

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// printer is a Handler that writes down what it is told.
type printer struct {
	strings.Builder
	problems []string
}

func (p *printer) NoMapping(k Kind, at Pos) {
	p.problems = append(p.problems, fmt.Sprintf("%d:%d: root is %v", at.Line, at.Column, k))
}

func (p *printer) Item(key Node, i int, value Node) bool {
	fmt.Fprintf(p, "%s[%d]%s\n", key.Text(), i, dump(value))
	return true
}

func (p *printer) Entry(key, value Node) bool {
	text := "list"
	if value.Kind() != Sequence {
		text = dump(value)
	}
	fmt.Fprintf(p, "%s%s\n", dump(key), text)
	return true
}

func (p *printer) Problem(at Pos, msg string) bool {
	p.problems = append(p.problems, fmt.Sprintf("%d:%d: %s", at.Line, at.Column, msg))
	return len(p.problems) < 100
}

// dump writes a node with the places of all that is in it.
func dump(n Node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d:", n.Pos().Line, n.Pos().Column)
	switch n.Kind() {
	case Sequence:
		b.WriteString("[")
		for _, c := range n.Items() {
			b.WriteString(dump(c))
		}
		b.WriteString("]")
	case Mapping:
		b.WriteString("{")
		for k, v := range n.Pairs() {
			b.WriteString(dump(k) + dump(v))
		}
		b.WriteString("}")
	default:
		fmt.Fprintf(&b, "%v:%q,", n.Kind(), n.Text())
	}
	return b.String()
}

func read(src string) *printer { return Read(src, func() *printer { return &printer{} }) }

func TestRead(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"a: 1", `1:1:4:"a",1:4:2:"1",`},
		{"\ufeffa: 1\r\nb: x # c\r\n", `1:1:4:"a",1:4:2:"1",|2:1:4:"b",2:4:4:"x",`},
		{"# c\n---\n# d\n\na: b\n", `5:1:4:"a",5:4:4:"b",`},
		{"services:\n- b\n# c\n-\n  c\nd: e\n", `1:1:4:"services",list|services[0]2:3:4:"b",|services[1]5:3:4:"c",|6:1:4:"d",6:4:4:"e",`},
		{"services: # c\n\n  - a: 1\n    b:\n  - - x\n    -\n\n", `1:1:4:"services",list|services[0]3:5:{3:5:4:"a",3:8:2:"1",4:5:4:"b",4:6:0:"",}|services[1]5:5:[5:7:4:"x",6:5:0:"",]`},
		{"services: [a,\nb\n]\n", `1:1:4:"services",list|services[0]1:12:4:"a",|services[1]2:1:4:"b",`},
		{"a: {\n  b: c,\n}\nservices: [\n  d\n]\n", `1:1:4:"a",1:4:{2:3:4:"b",2:6:4:"c",}|4:1:4:"services",list|services[0]5:3:4:"d",`},
		{"services:\n  - \"a\n  - b\"\n  - c\n", `1:1:4:"services",list|services[0]2:5:4:"a - b",|services[1]4:5:4:"c",`},
		{"{\"a\": [1,\n\"b\"]}", `1:2:4:"a",list|a[0]1:8:2:"1",|a[1]2:1:4:"b",`},
		{"  a: 1\n  b: 2\n", `1:3:4:"a",1:6:2:"1",|2:3:4:"b",2:6:2:"2",`},
		{"a: 1\n...\n", `1:1:4:"a",1:4:2:"1",`},
		{"a: \"x\\té\"\n'b': ü\n", `1:1:4:"a",1:4:4:"x\té",|2:1:4:"b",2:6:4:"ü",`},
	} {
		p := read(c.src)
		got := strings.ReplaceAll(strings.TrimSuffix(p.String(), "\n"), "\n", "|")
		if diff := cmp.Diff(c.want, got); diff != "" || len(p.problems) > 0 {
			t.Errorf("%q: %s\n%s", c.src, p.problems, diff)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"", "1:1: root is 0"},
		{"# only\n\n", "1:1: root is 0"},
		{"---\n", "1:1: root is 0"},
		{"- a\n", "1:1: root is 5"},
		{"[a]", "1:1: root is 5"},
		{"hello", "1:1: root is 4"},
		{"12", "1:1: root is 2"},
		{"a: 1\n---\nb: 2\n", "2:1: a second YAML document begins here; allowed: one document in a file"},
		{"--- \na: 1\n---\nb: [\n", "4:1: not YAML: did not find expected node content; look at the quotes, the brackets and the indentation here"},
		{"a: &x 1\nb: *x\n", "1:4: YAML anchors are not allowed; write the value out where it is used|2:4: YAML aliases are not allowed; write the value out"},
		{"services:\n- &x a\n- *x\n- b\n- *y\n", "2:3: YAML anchors are not allowed; write the value out where it is used|3:1: YAML aliases are not allowed; write the value out|5:1: YAML aliases are not allowed; write the value out"},
		{"a: !!str 1\n", "1:4: YAML tags are not allowed"},
		{"a: |\n  text\n", "1:4: YAML block text is not allowed; write the value in quotes on one line"},
		{"a: [>\n  text\n]", "1:1: not YAML: found character that cannot start any token; a value that begins with % @ ` or a tab must be in quotes"},
		{"%YAML 1.2\n---\na: 1", "1:1: YAML directives are not allowed"},
		{"a:\n\t- b\n", "2:1: a tab is not allowed in indentation; allowed: spaces"},
		{"a: 1\na: 2\n", `2:1: key "a" is there twice; it was first said in line 1`},
		{"services:\n- a\nservices:\n- &x b\n", `3:1: key "services" is there twice; it was first said in line 1|4:3: YAML anchors are not allowed; write the value out where it is used`},
		{"x:\n  a: 1\n  b: 3\n  \"a\": 2\n", `4:3: key "a" is there twice; it was first said in line 2`},
		{"{a: 1, b: {c: 1, c: 2}, a: 2}", `1:18: key "c" is there twice; it was first said in line 1|1:25: key "a" is there twice; it was first said in line 1`},
		{"x: {[a]: 1}\n? {b: c}\n: d\n", "1:5: a list or mapping as a key is not allowed|2:3: a list or mapping as a key is not allowed"},
		{"a:\n    b: 1\n  c: 2\n", "3:3: not YAML: did not find expected key; look at the quotes, the brackets and the indentation here"},
		{"a: \"b\nc: 1\nd: &x\n", "1:1: not YAML: found unexpected end of stream; a quote is not closed|3:4: YAML anchors are not allowed; write the value out where it is used"},
		{"a: [b\n", "1:1: not YAML: did not find expected ',' or ']'; a bracket is not closed, or a comma is missing"},
		{"a: [2001:db8::1]:80\n", `1:1: this line is not YAML; an IPv6 address in brackets must be in quotes, such as "[2001:db8::1]:80"`},
		{"a: b: c\n", `1:1: not YAML: mapping values are not allowed in this context; look at the indentation; a value with ": " in it must be in quotes`},
		{"c: 1\na:b\n", "2:1: not YAML: could not find expected ':'; want a key, a colon and a space"},
		{"a: \"\\q\"\n", "1:1: not YAML: found unknown escape character"},
		{"a: \x00", "1:4: character U+0000 is not allowed"},
		{"b: 1\na: ü\xff", "2:5: byte 0xff is not part of UTF-8 text; allowed: text in UTF-8"},
		{"a: 1\rb: 2", "1:5: a carriage return that does not end a line is not allowed"},
		{"services:\n  - a\n  - \"b\n  - c: 1\n     d: 2\n  - &e e\n hello\n", "3:3: not YAML: found unexpected end of stream; a quote is not closed|5:6: not YAML: mapping values are not allowed in this context; look at the indentation; a value with \": \" in it must be in quotes|7:2: not YAML: did not find expected <document start>; look at the quotes, the brackets and the indentation here"},
		{"a: " + strings.Repeat("[", 20000), "1:1: not YAML: exceeded max depth of 10000"},
		{"services:\n" + strings.Repeat("- ", 20000), "2:1: not YAML: exceeded max depth of 10000"},
		{"a: [" + strings.Repeat("x,", 1<<20) + "]", `1:1: more than a million values in one part of the file; write every service as an entry of its own, with the "- " at the beginning of a line`},
		{"b: 1\nservices:\n- x\n- [" + strings.Repeat("x", 8<<20) + "]", `4:1: more than 8 MiB in one part of the file; write every service as an entry of its own, with the "- " at the beginning of a line`},
	} {
		if got := strings.Join(read(c.src).problems, "|"); got != c.want {
			t.Errorf("%.80q:\n got %s\nwant %s", c.src, got, c.want)
		}
	}
}

func TestKind(t *testing.T) {
	for s, want := range map[string]Kind{
		"": Null, "~": Null, "null": Null, "nul": String, "true": Bool, "True": Bool, "yes": String, "off": String,
		"0": Int, "-1": Int, "+1": Int, "0x1F": Int, "0o17": Int, "0x": String, "0xg": String, "99999999999999999999999": Int,
		"1.5": Float, "1.": Float, ".5": Float, ".": String, "1e3": Float, "1e": String, "e3": String, "-.inf": Float,
		".nan": Float, "10.1.1.1": String, "10.1": Float, "+": String, "--1": String, "10m": String, "1e+3": Float,
		"2026-01-02": String, "\"1\"": String, "''": String, "<<": String,
	} {
		root, err := library("a: " + s)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range (Node{root, 0}).Pairs() {
			if got := v.Kind(); got != want {
				t.Errorf("%s is %d, want %d", s, got, want)
			}
		}
	}
}
