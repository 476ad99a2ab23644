package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// Limits of what the configuration says of blocklists; long lists belong into files.
const (
	maxListEntries = 1 << 16
	maxListFiles   = 1024
	maxAllow       = 1 << 16
	maxPath        = 4096 // bytes
)

// OperatorList names the list that `weir block` fills.
const OperatorList = "operator"

// actionWords are the words of action, in the order of the model's constants.
var actionWords = []string{model.BlockCount.String(), model.BlockReject.String(), model.BlockDrop.String()}

// blocklists reads the key of that name.
func (d *decoder) blocklists(n yaml.Node, w where) {
	if n.Kind() != yaml.Sequence {
		d.addf(n, w, "%s is not allowed; want a list of blocklists", describe(n))
		return
	}
	d.lists = map[string]int{"": n.Pos().Line} // the key was there
	for i, c := range n.Items() {
		w.i = i
		if i == model.MaxBlocklists {
			d.addf(c, w, "more than %d blocklists", model.MaxBlocklists)
			return
		}
		d.blocklist(c, w)
	}
}

func (d *decoder) blocklist(n yaml.Node, w where) {
	if n.Kind() != yaml.Mapping {
		d.addf(n, w, "%s is not allowed; want a blocklist with the keys %s", describe(n), strings.Join(listAllowed, ", "))
		return
	}
	l := &model.Blocklist{Action: model.BlockDrop, MaxChange: model.DefaultMaxChange}
	named, filled := false, false
	for k, v := range n.Pairs() {
		switch at := w.in(k.Text()); k.Text() {
		case "name":
			named = true
			l.Name = d.listName(v, at)
		case "entries":
			filled = true
			d.each(v, at, maxListEntries, func(n yaml.Node, w where) { d.blockEntry(l, n, w) })
		case "files":
			filled = true
			d.each(v, at, maxListFiles, func(n yaml.Node, w where) { d.blockFile(l, n, w) })
		case "action":
			if i, ok := d.word(v, at, actionWords); ok {
				l.Action = model.BlockAction(i)
			}
		case "strict":
			l.Strict = d.boolean(v, at)
		case "max_change":
			l.MaxChange = d.maxChange(v, at)
		default:
			d.unknown(k, w, listAllowed)
		}
	}
	if !named {
		d.addf(n, w, "key name is missing; want a name, such as name: crawlers")
	}
	if !filled {
		d.addf(n, w, "a blocklist without entries and files is not allowed; want at least one of the keys")
	}
	d.cfg.Blocklists = append(d.cfg.Blocklists, l)
}

func (d *decoder) listName(n yaml.Node, w where) string {
	s, ok := d.str(n, w, "a name"+inQuotes)
	if !ok {
		return ""
	}
	switch why := badName(s); {
	case why != "":
		d.addf(n, w, "%s is not a name: %s", quote(s), why)
	case s == OperatorList:
		d.addf(n, w, "%s is the list of weir block; name this one otherwise", quote(s))
	case d.lists[s] != 0:
		d.addf(n, w, "name %s is there twice; it was first given in line %d", quote(s), d.lists[s])
	default:
		d.lists[s] = n.Pos().Line
		return s
	}
	return ""
}

// each calls read for one value or for each of a list of at most most.
func (d *decoder) each(n yaml.Node, w where, most int, read func(yaml.Node, where)) {
	if n.Kind() != yaml.Sequence {
		read(n, w)
		return
	}
	for i, c := range n.Items() {
		if i == most || d.full {
			d.addf(c, w.at(i), "more than %d; long lists belong into a file", most)
			return
		}
		read(c, w.at(i))
	}
}

const entryForm = "an address, a prefix or a range, such as 192.0.2.7, 192.0.2.0/24 or 192.0.2.1-192.0.2.9"

func (d *decoder) blockEntry(l *model.Blocklist, n yaml.Node, w where) {
	s, ok := d.str(n, w, entryForm+inQuotes)
	if !ok {
		return
	}
	r, why := parseAddrRange(s)
	if why != "" {
		d.addf(n, w, "%s", why)
		return
	}
	l.Entries = append(l.Entries, model.BlockEntry{AddrRange: r, Text: s, Line: n.Pos().Line})
}

// parseAddrRange reads an address, a prefix or a range of addresses.
func parseAddrRange(s string) (model.AddrRange, string) {
	if first, last, ok := strings.Cut(s, "-"); ok {
		lo, hi := plainAddr(first), plainAddr(last)
		switch {
		case !lo.IsValid() || !hi.IsValid():
			return model.AddrRange{}, quote(s) + " is not a range of addresses; want " + entryForm
		case lo.Is4() != hi.Is4():
			return model.AddrRange{}, quote(s) + " begins in one family and ends in the other"
		case hi.Less(lo):
			return model.AddrRange{}, quote(s) + " ends before it begins"
		}
		return model.AddrRange{Lo: lo, Hi: hi}, ""
	}
	// Host bits are left out here, as they are in files: lists are full of them.
	p, why := parsePrefix(s, entryForm)
	if why != "" {
		return model.AddrRange{}, why
	}
	p = p.Masked()
	return model.AddrRange{Lo: p.Addr(), Hi: lastAddr(p)}, ""
}

// plainAddr returns the address, invalid where s is none or has a zone.
func plainAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}
	}
	return a
}

// parsePrefix reads a prefix or an address, which is a prefix of its whole length.
func parsePrefix(s, want string) (netip.Prefix, string) {
	if !strings.Contains(s, "/") {
		a := plainAddr(s)
		if !a.IsValid() {
			return netip.Prefix{}, quote(s) + " is not " + want
		}
		return netip.PrefixFrom(a, a.BitLen()), ""
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, quote(s) + " is not " + want
	}
	return p, ""
}

// lastAddr returns the last address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (d *decoder) blockFile(l *model.Blocklist, n yaml.Node, w where) {
	s, ok := d.str(n, w, "the name of a file or a glob, such as lists/*.netset"+inQuotes)
	if !ok {
		return
	}
	_, err := filepath.Match(s, "")
	switch {
	case s == "" || len(s) > maxPath:
		d.addf(n, w, "want the name of a file or a glob of 1 to %d bytes", maxPath)
	case badPath(s):
		d.addf(n, w, "%s has characters that are not allowed in the name of a file; allowed: all that can be printed", quote(s))
	case err != nil:
		d.addf(n, w, "%s is not a glob: a bracket is not closed, or a backslash stands at the end", quote(s))
	default:
		if !filepath.IsAbs(s) {
			s = filepath.Join(filepath.Dir(d.name), s)
		}
		if slices.Contains(l.Files, s) {
			d.addf(n, w, "%s is in this list twice", quote(s))
			return
		}
		l.Files = append(l.Files, s)
	}
}

// badPath reports whether s has characters that would not show in a message.
func badPath(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' })
}

func (d *decoder) maxChange(n yaml.Node, w where) float64 {
	const least = 0.01
	if n.Kind() == yaml.String && n.Text() == "off" {
		return 0
	}
	before := len(d.problems)
	v := d.percent(n, w, 900)
	if v < least && len(d.problems) == before {
		d.addf(n, w, "%s is out of range; want 1%% to 900%%, or off", quote(n.Text()))
	}
	return v
}

// allow reads the key of that name.
func (d *decoder) allow(n yaml.Node, w where) {
	d.each(n, w, maxAllow, func(n yaml.Node, w where) {
		const want = "an address or a prefix, such as 203.0.113.0/24"
		s, ok := d.str(n, w, want+inQuotes)
		if !ok {
			return
		}
		p, why := parsePrefix(s, want)
		switch {
		case why != "":
			d.addf(n, w, "%s", why)
		case p != p.Masked(): // which of the two was meant cannot be known
			d.addf(n, w, "%s has bits behind its prefix; write %s, or the address alone", quote(s), p.Masked())
		case p.Bits() == 0:
			d.addf(n, w, "%s allows everybody, so that no list would block anyone; leave the lists out instead", quote(s))
		default:
			d.cfg.Allow = append(d.cfg.Allow, p)
		}
	})
}

// marshalBlocklists writes the lists and what they never block.
func marshalBlocklists(b *bytes.Buffer, cfg *model.Config) {
	if len(cfg.Allow) > 0 {
		var texts []string
		for _, p := range cfg.Allow {
			texts = append(texts, p.String())
		}
		fmt.Fprintf(b, "allow: %s\n", quotedList(texts))
	}
	if len(cfg.Blocklists) > 0 {
		b.WriteString("blocklists:\n")
	}
	for _, l := range cfg.Blocklists {
		fmt.Fprintf(b, "  - name: %q\n", l.Name)
		var entries []string
		for _, e := range l.Entries {
			entries = append(entries, e.Text)
		}
		if len(l.Entries) > 0 || len(l.Files) == 0 {
			fmt.Fprintf(b, "    entries: %s\n", quotedList(entries))
		}
		if len(l.Files) > 0 {
			fmt.Fprintf(b, "    files: %s\n", quotedList(l.Files))
		}
		if l.Action != model.BlockDrop {
			fmt.Fprintf(b, "    action: %s\n", l.Action)
		}
		if l.Strict {
			b.WriteString("    strict: true\n")
		}
		switch l.MaxChange {
		case 0:
			b.WriteString("    max_change: \"off\"\n")
		case model.DefaultMaxChange:
		default:
			fmt.Fprintf(b, "    max_change: %s\n", percentText(l.MaxChange))
		}
	}
}
