package binding

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// What lines are about. The words are part of weir's interface.
const (
	Start  = "start"  // a connection began
	Open   = "open"   // it is open; when it began is in Start, where that is known
	End    = "end"    // it ended; between After and Time, where the end was not heard
	Blocks = "blocks" // from now on a pool gives its clients blocks of ports, by these parameters
	Block  = "block"  // a client uses its block, for the first time in this file
	All    = "all"    // the next Lines lines are all that is open, and all parameters of blocks
	Watch  = "watch"  // weir begins to watch
	Stop   = "stop"   // it ends to
	Lost   = "lost"   // events were lost between After and Time
	Failed = "failed" // Lines lines could not be written between After and Time
)

// Line is one line of the log. Its JSON form is part of weir's interface (docs/BINDINGS.md).
type Line struct {
	Time  time.Time `json:"time"` // in UTC, to the microsecond
	Event string    `json:"event"`
	Pool  string    `json:"pool,omitempty"`
	Proto string    `json:"proto,omitempty"`
	// Inside, Outside and To are ADDRESS:PORT, of protocols without ports an address. The
	// identifier of an ICMP query stands where a port would. In a line on a block they are
	// addresses.
	Inside  string    `json:"inside,omitempty"`
	Outside string    `json:"outside,omitempty"`
	To      string    `json:"to,omitempty"`
	Ports   string    `json:"ports,omitempty"` // of a block: "1024-1535"
	Start   time.Time `json:"start,omitzero"`
	After   time.Time `json:"after,omitzero"`
	Lines   int       `json:"lines,omitempty"`

	// What a line on the blocks of a pool says.
	Size      int      `json:"block,omitempty"` // ports of each client's block
	Clients   []string `json:"clients,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Ranges    []string `json:"ranges,omitempty"`  // of ports
	Drained   []string `json:"drained,omitempty"` // addresses that give no block
}

// timeLayout is RFC 3339 in UTC with microseconds.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// Append appends the line and what ends it.
func (l *Line) Append(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = l.Time.UTC().AppendFormat(b, timeLayout)
	b = append(b, `","event":"`...)
	b = append(b, l.Event...)
	b = append(b, '"')
	for _, f := range []struct{ key, value string }{{"pool", l.Pool}, {"proto", l.Proto}, {"inside", l.Inside},
		{"outside", l.Outside}, {"to", l.To}, {"ports", l.Ports}} {
		if f.value != "" {
			b = appendKey(b, f.key)
			b = appendString(b, f.value)
		}
	}
	for _, f := range []struct {
		key   string
		value time.Time
	}{{"start", l.Start}, {"after", l.After}} {
		if !f.value.IsZero() {
			b = appendKey(b, f.key)
			b = append(b, '"')
			b = f.value.UTC().AppendFormat(b, timeLayout)
			b = append(b, '"')
		}
	}
	for _, f := range []struct {
		key   string
		value int
	}{{"lines", l.Lines}, {"block", l.Size}} {
		if f.value != 0 {
			b = strconv.AppendInt(appendKey(b, f.key), int64(f.value), 10)
		}
	}
	for _, f := range []struct {
		key   string
		value []string
	}{{"clients", l.Clients}, {"addresses", l.Addresses}, {"ranges", l.Ranges}, {"drained", l.Drained}} {
		if len(f.value) > 0 {
			text, _ := json.Marshal(f.value) // strings can be nothing else
			b = append(appendKey(b, f.key), text...)
		}
	}
	return append(b, '}', '\n')
}

func appendKey(b []byte, key string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	return append(b, '"', ':')
}

// appendString appends s as JSON has it. Names and addresses have nothing to escape.
func appendString(b []byte, s string) []byte {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		text, _ := json.Marshal(s)
		return append(b, text...)
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// String returns the line without its end.
func (l *Line) String() string { return strings.TrimSuffix(string(l.Append(nil)), "\n") }

// ParseLine reads a line that Append wrote. Fields that it does not know are passed over.
func ParseLine(b []byte) (Line, error) {
	var l Line
	if err := json.Unmarshal(b, &l); err != nil {
		return Line{}, fmt.Errorf("not a line of the log: %w", err)
	}
	if l.Time.IsZero() || l.Event == "" {
		return Line{}, fmt.Errorf("not a line of the log: it has no time or no event")
	}
	return l, nil
}

// parsePlace reads what endpoint wrote: an address and a port, or an address alone.
func parsePlace(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	return netip.ParseAddrPort(s)
}
