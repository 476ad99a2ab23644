package blocklist

import (
	"encoding/json"
	"strconv"
)

// object is what a list's JSON objects are asked for.
type object struct {
	cidr, note []byte // nil: not there, or not a string
	metadata   bool
	records    int // -1: not said
}

// parseJSON reads the object that begins at line[at] and must end the line.
func (it *item) parseJSON(line []byte, at int) fault {
	it.json = true
	whole := fault{notJSON, at, len(line)}
	o, ok := scanObject(line[at:])
	if !ok {
		if o, ok = decodeObject(line[at:]); !ok {
			return whole
		}
	}
	switch {
	case o.metadata:
		it.records = o.records
		return fault{}
	case o.cidr == nil:
		whole.kind = noCIDR
		return whole
	}
	it.entry, it.note = true, o.note
	if f := it.parse(o.cidr, 0); f.kind != fine {
		whole.kind = badCIDR // where in it is not known: it may be escaped
		return whole
	}
	return fault{}
}

// set keeps the value of a key if it is asked for. Of keys that come twice the last one
// counts, as for encoding/json.
func (o *object) set(key, text []byte, isString bool) {
	words := text
	if !isString {
		words = nil
	}
	switch string(key) {
	case "cidr":
		o.cidr = words
	case "sblid":
		o.note = words
	case "type":
		o.metadata = string(words) == "metadata"
	case "records":
		o.records = -1
		if n, err := strconv.ParseUint(string(text), 10, 31); err == nil && !isString {
			o.records = int(n)
		}
	}
}

// scanObject reads the flat objects in plain ASCII that lists are made of, without copying
// anything. ok is false for all others, right or wrong.
func scanObject(b []byte) (o object, ok bool) {
	o.records = -1
	i := 1 + blanks(b[1:])
	if i < len(b) && b[i] == '}' {
		return o, i+1 == len(b)
	}
	for {
		key, n := scanString(b[i:])
		if n == 0 {
			return o, false
		}
		i += n
		i += blanks(b[i:])
		if i == len(b) || b[i] != ':' {
			return o, false
		}
		i++
		i += blanks(b[i:])
		value, n := scanString(b[i:])
		isString := n > 0
		if !isString {
			value, n = scanWord(b[i:])
		}
		if n == 0 {
			return o, false
		}
		o.set(key, value, isString)
		i += n
		i += blanks(b[i:])
		switch {
		case i == len(b):
			return o, false
		case b[i] == '}':
			return o, i+1 == len(b)
		case b[i] != ',':
			return o, false
		}
		i++
		i += blanks(b[i:])
	}
}

// blanks returns how much white space b begins with, by JSON's meaning of it.
func blanks(b []byte) int {
	n := 0
	for n < len(b) && (b[n] == ' ' || b[n] == '\t' || b[n] == '\r' || b[n] == '\n') {
		n++
	}
	return n
}

// scanString reads a string of printable ASCII without escapes, and returns the length
// with its quotes; 0 if b begins with anything else.
func scanString(b []byte) (text []byte, n int) {
	if len(b) == 0 || b[0] != '"' {
		return nil, 0
	}
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return b[1:i], i + 1
		case c == '\\' || c < ' ' || c > '~':
			return nil, 0
		}
	}
	return nil, 0
}

// scanWord reads true, false, null or a whole number that is not negative.
func scanWord(b []byte) (text []byte, n int) {
	for n < len(b) && (b[n] >= 'a' && b[n] <= 'z' || b[n] >= '0' && b[n] <= '9') {
		n++
	}
	switch text = b[:n]; {
	case n == 0:
		return nil, 0
	case string(text) == "true", string(text) == "false", string(text) == "null":
		return text, n
	case text[0] == '0' && n > 1:
		return nil, 0
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return nil, 0
		}
	}
	return text, n
}

// decodeObject reads any object.
func decodeObject(b []byte) (object, bool) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return object{}, false
	}
	o := object{records: -1}
	for key, value := range fields {
		var text string
		isString := value[0] == '"' && json.Unmarshal(value, &text) == nil
		if isString {
			value = []byte(text)
		}
		o.set([]byte(key), value, isString)
	}
	return o, true
}
