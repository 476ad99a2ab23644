package health

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The little of RFC 1035 that a check needs: one question, and of the answer what it
// answers, how it went, and how many records of the type there are.

const (
	dnsHeader   = 12
	dnsResponse = 1 << 15 // QR
	dnsOpcode   = 0xf << 11
	dnsCut      = 1 << 9 // TC
	dnsRecurse  = 1 << 8 // RD
	dnsRcode    = 0xf
	dnsClassIN  = 1
)

var dnsTypes = map[string]uint16{"A": 1, "NS": 2, "SOA": 6, "MX": 15, "TXT": 16, "AAAA": 28}

var dnsRcodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}

var (
	// errStray is of a message that does not answer the question: late, forged, or garbage.
	errStray = errors.New("no answer to the question among what came")
	// errDNS is of an answer to the question that breaks off or breaks the rules.
	errDNS = errors.New("malformed DNS answer")
)

// dnsQuery builds a query for records of a type, class IN, recursion desired.
func dnsQuery(id uint16, name, typ string) ([]byte, error) {
	number, ok := dnsTypes[typ]
	if !ok {
		return nil, fmt.Errorf("not a type of DNS record: %q", typ)
	}
	q := binary.BigEndian.AppendUint16(nil, id)
	q = append(q, dnsRecurse>>8, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	name = strings.TrimSuffix(name, ".")
	if name != "" {
		for label := range strings.SplitSeq(name, ".") {
			if len(label) == 0 || len(label) > 63 {
				return nil, fmt.Errorf("not a DNS name: %q", name)
			}
			q = append(append(q, byte(len(label))), label...)
		}
	}
	q = append(q, 0)
	if len(q)-dnsHeader > 255 {
		return nil, fmt.Errorf("DNS name is longer than 255 bytes: %q", name)
	}
	q = binary.BigEndian.AppendUint16(q, number)
	return binary.BigEndian.AppendUint16(q, dnsClassIN), nil
}

// dnsAnswer is what counts of an answer.
type dnsAnswer struct {
	rcode int
	cut   bool // the server left records out that did not fit
	found int  // records of the type in the answer section
}

// judge says whether the answer is good: NOERROR with a record of the type, or cut, in
// which case the records are merely elsewhere.
func (a dnsAnswer) judge(typ string) (string, error) {
	if a.rcode != 0 {
		if a.rcode < len(dnsRcodes) {
			return "", errors.New(dnsRcodes[a.rcode])
		}
		return "", fmt.Errorf("RCODE %d", a.rcode)
	}
	if a.found == 0 && !a.cut {
		return "", fmt.Errorf("NOERROR, but no %s record", typ)
	}
	if a.cut {
		return "NOERROR, truncated", nil
	}
	return fmt.Sprintf("NOERROR, %d of %s", a.found, typ), nil
}

// dnsParse reads an answer to query, which dnsQuery made. It returns errStray for what
// does not answer it and errDNS for an answer that cannot be read.
func dnsParse(msg, query []byte) (dnsAnswer, error) {
	if len(msg) < dnsHeader || !bytes.Equal(msg[:2], query[:2]) {
		return dnsAnswer{}, errStray
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&dnsResponse == 0 || flags&dnsOpcode != 0 {
		return dnsAnswer{}, errStray
	}
	a := dnsAnswer{rcode: int(flags & dnsRcode), cut: flags&dnsCut != 0}
	questions, answers := binary.BigEndian.Uint16(msg[4:]), binary.BigEndian.Uint16(msg[6:])
	rest := msg[dnsHeader:]
	if questions == 0 && a.rcode != 0 {
		return a, nil // a server that refuses need not repeat the question
	}
	question := query[dnsHeader:]
	if questions != 1 || !sameQuestion(rest, question) {
		return dnsAnswer{}, errStray
	}
	if a.rcode != 0 || a.cut {
		return a, nil
	}
	typ := binary.BigEndian.Uint16(question[len(question)-4:])
	rest = rest[len(question):]
	for range answers {
		name, ok := dnsNameLen(rest)
		if !ok || len(rest) < name+10 {
			return dnsAnswer{}, errDNS
		}
		fixed := rest[name:]
		end := 10 + int(binary.BigEndian.Uint16(fixed[8:]))
		if len(fixed) < end {
			return dnsAnswer{}, errDNS
		}
		if binary.BigEndian.Uint16(fixed) == typ && binary.BigEndian.Uint16(fixed[2:]) == dnsClassIN {
			a.found++
		}
		rest = fixed[end:]
	}
	return a, nil
}

// sameQuestion reports whether msg begins with question. Case of the name does not
// count; lengths of labels are below the letters, so that they are not taken for one.
func sameQuestion(msg, question []byte) bool {
	if len(msg) < len(question) {
		return false
	}
	name := len(question) - 4
	for i, c := range question[:name] {
		if lower(c) != lower(msg[i]) {
			return false
		}
	}
	return bytes.Equal(msg[name:len(question)], question[name:])
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// dnsNameLen is how many bytes the name at the start of b takes there. A compression
// pointer ends it and is not followed.
func dnsNameLen(b []byte) (int, bool) {
	for i := 0; i < len(b) && i < 255; {
		switch n := int(b[i]); {
		case n == 0:
			return i + 1, true
		case n >= 0xc0:
			return i + 2, i+2 <= len(b)
		case n > 63:
			return 0, false
		default:
			i += 1 + n
		}
	}
	return 0, false
}
