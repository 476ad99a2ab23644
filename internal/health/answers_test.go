package health

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"weir/internal/model"
)

// dnsReply is query with flags and records put to it.
func dnsReply(query []byte, flags uint16, records ...[]byte) []byte {
	m := slices.Clone(query)
	binary.BigEndian.PutUint16(m[2:], dnsResponse|flags)
	binary.BigEndian.PutUint16(m[6:], uint16(len(records)))
	return append(m, bytes.Join(records, nil)...)
}

// dnsRecord is a record of the name in the question.
func dnsRecord(typ, class uint16, data ...byte) []byte {
	r := []byte{0xc0, dnsHeader}
	r = binary.BigEndian.AppendUint16(r, typ)
	r = binary.BigEndian.AppendUint16(r, class)
	r = append(r, 0, 0, 0, 60)
	return append(binary.BigEndian.AppendUint16(r, uint16(len(data))), data...)
}

func TestDNSQuery(t *testing.T) {
	q, err := dnsQuery(0x1234, "a.example.", "AAAA")
	want := "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x1c\x00\x01"
	if err != nil || string(q) != want {
		t.Errorf("%q, %v", q, err)
	}
	if q, err := dnsQuery(1, ".", "NS"); err != nil || len(q) != dnsHeader+5 {
		t.Errorf("root: %q, %v", q, err)
	}
	long := strings.Repeat("a", 63)
	for _, name := range []string{"a..b", ".a", long + "a", strings.Join([]string{long, long, long, long}, ".")} {
		if _, err := dnsQuery(1, name, "A"); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	if _, err := dnsQuery(1, "a", "HINFO"); err == nil {
		t.Error("HINFO was taken")
	}
}

func TestDNSParse(t *testing.T) {
	query, _ := dnsQuery(7, "www.example", "A")
	a, cname := dnsRecord(1, 1, 192, 0, 2, 1), dnsRecord(5, 1, 0xc0, dnsHeader)
	other := func(change func([]byte)) []byte {
		m := dnsReply(query, 0, a)
		change(m)
		return m
	}
	for _, c := range []struct {
		name string
		msg  []byte
		err  error
		want string // of judge
	}{
		{"good", dnsReply(query, 0, a), nil, "NOERROR, 1 of A"},
		{"with an alias", dnsReply(query, 0, cname, a, a), nil, "NOERROR, 2 of A"},
		{"case of the name", other(func(m []byte) { m[dnsHeader+1] = 'W' }), nil, "NOERROR, 1 of A"},
		{"other types alone", dnsReply(query, 0, cname), nil, "bad: NOERROR, but no A record"},
		{"other class", dnsReply(query, 0, dnsRecord(1, 3, 1, 2, 3, 4)), nil, "bad: NOERROR, but no A record"},
		{"empty", dnsReply(query, 0), nil, "bad: NOERROR, but no A record"},
		{"truncated", dnsReply(query, dnsCut), nil, "NOERROR, truncated"},
		{"truncated within a record", dnsReply(query, dnsCut, a[:7]), nil, "NOERROR, truncated"},
		{"SERVFAIL", dnsReply(query, 2), nil, "bad: SERVFAIL"},
		{"NXDOMAIN, truncated", dnsReply(query, 3|dnsCut), nil, "bad: NXDOMAIN"},
		{"RCODE 11", dnsReply(query, 11), nil, "bad: RCODE 11"},
		{"REFUSED without a question", []byte{0, 7, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0}, nil, "bad: REFUSED"},
		{"NOERROR without a question", []byte{0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}, errStray, ""},
		{"other id", other(func(m []byte) { m[1]++ }), errStray, ""},
		{"other name", other(func(m []byte) { m[dnsHeader+1] = 'v' }), errStray, ""},
		{"other type asked", other(func(m []byte) { m[len(query)-3] = 28 }), errStray, ""},
		{"our own query", query, errStray, ""},
		{"two questions", other(func(m []byte) { m[5] = 2 }), errStray, ""},
		{"a notify", other(func(m []byte) { m[2] |= 4 << 3 }), errStray, ""},
		{"header alone", dnsReply(query, 0, a)[:dnsHeader], errStray, ""},
		{"nothing", nil, errStray, ""},
		{"record missing", other(func(m []byte) { m[7] = 2 }), errDNS, ""},
		{"record cut", dnsReply(query, 0, a[:len(a)-1]), errDNS, ""},
		{"bad label", dnsReply(query, 0, append([]byte{0x40}, a...)), errDNS, ""},
		{"endless name", dnsReply(query, 0, append(bytes.Repeat([]byte{1, 'a'}, 200), a...)), errDNS, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := dnsParse(c.msg, query)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			seen, err := got.judge("A")
			if err != nil {
				seen = "bad: " + err.Error()
			}
			if seen != c.want {
				t.Errorf("%s, want %s", seen, c.want)
			}
		})
	}
}

func FuzzDNSParse(f *testing.F) {
	query, _ := dnsQuery(7, "www.example", "A")
	f.Add(dnsReply(query, 0, dnsRecord(1, 1, 192, 0, 2, 1)))
	f.Add(dnsReply(query, dnsCut))
	f.Add([]byte{0, 7, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		a, err := dnsParse(msg, query)
		if err != nil {
			return
		}
		if len(msg) < dnsHeader || !bytes.Equal(msg[:2], query[:2]) || a.found*10 > len(msg) {
			t.Errorf("%+v of %q", a, msg)
		}
		if _, err := a.judge("A"); err == nil && a.found == 0 && !a.cut {
			t.Error("good without an answer")
		}
	})
}

// prefixed puts gRPC's prefix before a message.
func prefixed(m string) []byte {
	return append([]byte{0, 0, 0, byte(len(m) >> 8), byte(len(m))}, m...)
}

func TestGRPCMessage(t *testing.T) {
	if got := grpcMessage(""); !bytes.Equal(got, make([]byte, 5)) {
		t.Errorf("%q", got)
	}
	if got := grpcMessage("web"); string(got) != "\x00\x00\x00\x00\x05\x0a\x03web" {
		t.Errorf("%q", got)
	}
}

func TestServingStatus(t *testing.T) {
	for _, c := range []struct {
		name string
		body []byte
		want uint64
		bad  bool
	}{
		{"serving", prefixed("\x08\x01"), 1, false},
		{"not serving", prefixed("\x08\x02"), 2, false},
		{"left out", prefixed(""), 0, false},
		{"the last one counts", prefixed("\x08\x01\x08\x02"), 2, false},
		{"unknown fields", prefixed("\x12\x02ab\x19abcdefgh\x25abcd\x28\x80\x01\x08\x01"), 1, false},
		{"field 1 of another type", prefixed("\x0a\x01a"), 0, false},
		{"a large one", prefixed("\x08\xff\xff\xff\xff\x0f"), 1<<32 - 1, false},
		{"nothing", nil, 0, true},
		{"compressed", []byte("\x01\x00\x00\x00\x02\x08\x01"), 0, true},
		{"longer than said", append(prefixed("\x08\x01"), 0), 0, true},
		{"shorter than said", prefixed("\x08\x01")[:6], 0, true},
		{"tag without value", prefixed("\x08"), 0, true},
		{"endless number", prefixed("\x08" + strings.Repeat("\xff", 11)), 0, true},
		{"bytes beyond the end", prefixed("\x12\x7f"), 0, true},
		{"bytes far beyond the end", prefixed("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 0, true},
		{"a group", prefixed("\x0b\x0c"), 0, true},
		{"field 0", prefixed("\x00\x01"), 0, true},
		{"short fixed", prefixed("\x19abc"), 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := servingStatus(c.body)
			if got != c.want || (err != nil) != c.bad {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
	if statusWord(2) != "NOT_SERVING" || statusWord(1<<40) != "status 1099511627776" {
		t.Error(statusWord(2), statusWord(1<<40))
	}
}

func FuzzServingStatus(f *testing.F) {
	f.Add(prefixed("\x08\x01"))
	f.Add(prefixed("\x12\x02ab\x19abcdefgh\x25abcd\x08\x01"))
	f.Fuzz(func(t *testing.T, body []byte) {
		status, err := servingStatus(body)
		if err == nil && status == statusServing && !bytes.ContainsRune(body[grpcPrefix:], 8) {
			t.Errorf("serving by %q", body)
		}
	})
}

func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
	c := &model.Check{Kind: model.CheckHTTP, Body: "ok"}
	f.Fuzz(func(t *testing.T, b []byte) {
		seen, err := answer(bytes.NewReader(b), c)
		if err == nil && (!bytes.HasPrefix(b, []byte("HTTP/")) || !strings.Contains(seen, "HTTP ")) {
			t.Errorf("good: %s, of %q", seen, b)
		}
	})
}
