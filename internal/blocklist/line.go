package blocklist

import (
	"bytes"
)

// item is what one line holds.
type item struct {
	span
	entry   bool   // there is one; else the line is blank, a comment or a command
	hole    bool   // an exception: ipset's nomatch
	timed   bool   // it has a timeout, which is not looked at
	note    []byte // what the line says of the entry; part of the line
	records int    // how many entries JSON's metadata says there are; -1: nothing
	json    bool
}

// parseLine reads a line of any of the formats, without its end. sets is what earlier lines
// of the file said.
func (it *item) parseLine(line []byte, sets *setNames) fault {
	line = trimRight(line)
	at := 0
	for at < len(line) && isBlank(line[at]) {
		at++
	}
	*it = item{records: -1}
	if at == len(line) {
		return fault{}
	}
	switch c := line[at]; {
	case c == '{':
		return it.parseJSON(line, at)
	case c >= 'a' && c <= 'z', c == '-', c == 'C':
		if word, end := token(line, at); isCommand(word) {
			return it.parseSet(line, at, end, sets)
		}
	}
	return it.parsePlain(line, at)
}

func isBlank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// trimRight takes blanks from the end; bytes.TrimRight is several times slower.
func trimRight(b []byte) []byte {
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// parsePlain reads an entry and a comment, from line[at] on.
func (it *item) parsePlain(line []byte, at int) fault {
	end := at
	for end < len(line) && line[end] != '#' && line[end] != ';' {
		end++
	}
	if end < len(line) {
		it.note = line[end+1:]
	}
	text := trimRight(line[at:end])
	if len(text) == 0 {
		return fault{}
	}
	it.entry = true
	return it.parse(text, at)
}

// setNames is what a file of ipset's said of its sets: the name of the one of each family.
type setNames struct{ four, six string }

// The commands of ipset, in their long forms and in the short ones of old files.
var setCommands = map[string]byte{
	"create": 'c', "-N": 'c', "add": 'a', "-A": 'a',
	"flush": 0, "-F": 0, "destroy": 0, "-X": 0, "swap": 0, "-W": 0, "rename": 0, "-E": 0, "COMMIT": 0, "quit": 0,
	"del": 'd', "-D": 'd', "test": 'd', "-T": 'd',
}

func isCommand(word []byte) bool {
	if len(word) > 7 {
		return false
	}
	_, ok := setCommands[string(word)]
	return ok
}

// token returns the word that begins at line[at], and where it ends.
func token(line []byte, at int) (word []byte, end int) {
	for end = at; end < len(line) && line[end] != ' ' && line[end] != '\t'; end++ {
	}
	return line[at:end], end
}

// next skips blanks and returns the word behind them, empty at the end of the line.
func next(line []byte, at int) (word []byte, from, end int) {
	from = at + spaces(line[at:])
	word, end = token(line, from)
	return word, from, end
}

// parseSet reads a line of ipset's, whose command is line[at:end].
func (it *item) parseSet(line []byte, at, end int, sets *setNames) fault {
	switch setCommands[string(line[at:end])] {
	case 'c':
		return parseCreate(line, at, end, sets)
	case 'a':
		return it.parseAdd(line, at, end)
	case 'd':
		return fault{setCommand, at, end}
	}
	return fault{}
}

// noOption skips words such as -exist, which may stand anywhere.
func noOption(line []byte, at int) (word []byte, from, end int) {
	for {
		word, from, end = next(line, at)
		switch string(word) {
		case "-exist", "-!", "--exist":
			at = end
		default:
			return word, from, end
		}
	}
}

// parseCreate looks at the kind of a set: whether its entries are what they look like.
func parseCreate(line []byte, at, end int, sets *setNames) fault {
	name, nameAt, end := noOption(line, end)
	kind, kindAt, end := noOption(line, end)
	switch string(kind) {
	case "":
		return fault{setNoEntry, at, len(line)}
	case "hash:ip", "hash:net", "bitmap:ip", "iphash", "nethash", "ipmap":
	default:
		return fault{setType, kindAt, end}
	}
	mine, width := &sets.four, "32"
	for {
		var word []byte
		var from int
		word, from, end = noOption(line, end)
		if len(word) == 0 {
			break
		}
		switch string(word) {
		case "family":
			if word, _, end = next(line, end); string(word) == "inet6" {
				mine, width = &sets.six, "128"
			}
		case "netmask", "bitmask":
			if word, _, end = next(line, end); string(word) != width {
				return fault{setMask, from, end}
			}
		}
	}
	if *mine != "" && *mine != string(name) {
		return fault{setSecond, nameAt, nameAt + len(name)}
	}
	*mine = string(name)
	return fault{}
}

// parseAdd reads: add NAME ENTRY OPTIONS.
func (it *item) parseAdd(line []byte, at, end int) fault {
	_, _, end = noOption(line, end)
	text, from, end := noOption(line, end)
	if len(text) == 0 {
		return fault{setNoEntry, at, len(line)}
	}
	if i := bytes.IndexByte(text, ','); i >= 0 {
		return fault{setPorts, from, end}
	}
	it.entry = true
	if f := it.parse(text, from); f.kind != fine {
		return f
	}
	for {
		var word, value []byte
		var valueAt int
		word, from, end = noOption(line, end)
		if len(word) == 0 {
			return fault{}
		}
		switch string(word) {
		case "nomatch":
			it.hole = true
			continue
		case "timeout", "packets", "bytes", "skbmark", "skbprio", "skbqueue", "comment":
		default:
			return fault{setOption, from, from + len(word)}
		}
		value, valueAt, end = next(line, end)
		if len(value) == 0 {
			return fault{setValue, from, from + len(word)}
		}
		switch string(word) {
		case "timeout":
			it.timed = string(value) != "0"
		case "comment":
			if value[0] == '"' {
				closing := bytes.IndexByte(line[valueAt+1:], '"')
				if closing < 0 {
					return fault{setValue, from, len(line)}
				}
				value, end = line[valueAt+1:][:closing], valueAt+closing+2
			}
			it.note = value
		}
	}
}
