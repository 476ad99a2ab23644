package configtest

import (
	"fmt"
	"net/netip"
	"strings"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// entries are written in these forms; each masks to the range.
var entries = []model.BlockEntry{
	entry("192.0.2.7", "192.0.2.7", "192.0.2.7"),
	entry("192.0.2.0/24", "192.0.2.0", "192.0.2.255"),
	entry("192.0.2.77/25", "192.0.2.0", "192.0.2.127"),
	entry("198.51.100.250-198.51.101.5", "198.51.100.250", "198.51.101.5"),
	entry("2001:db8:bad::/48", "2001:db8:bad::", "2001:db8:bad:ffff:ffff:ffff:ffff:ffff"),
	entry("2001:db8::1-2001:db8::9", "2001:db8::1", "2001:db8::9"),
}

func entry(text, lo, hi string) model.BlockEntry {
	return model.BlockEntry{AddrRange: model.AddrRange{Lo: netip.MustParseAddr(lo), Hi: netip.MustParseAddr(hi)}, Text: text}
}

// blocklists makes lists without files that are there.
func (g *generator) blocklists() []*model.Blocklist {
	var out []*model.Blocklist
	for i := range g.upTo(0, 2, "blocklists") {
		l := &model.Blocklist{Name: fmt.Sprintf("list%d", i), Strict: g.flip("strict")}
		l.Action = pick(g, []model.BlockAction{model.BlockCount, model.BlockReject, model.BlockDrop}, "action")
		l.MaxChange = pick(g, []float64{0, 0.01, 0.125, model.DefaultMaxChange, 9}, "max change")
		for range g.upTo(0, 3, "entries") {
			l.Entries = append(l.Entries, pick(g, entries, "entry"))
		}
		if g.flip("files") {
			l.Files = []string{"lists/*.netset", "/nowhere/drop.txt"}[:g.upTo(1, 2, "files")]
		}
		out = append(out, l)
	}
	return out
}

func (g *generator) allow() []netip.Prefix {
	return rapid.SliceOfN(rapid.SampledFrom([]netip.Prefix{
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8:c::/64"),
	}), 0, 2).Draw(g.t, "allow")
}

// lists writes the keys blocklists and allow, as far as they say anything.
func (w *writer) lists() []string {
	var parts []string
	if len(w.cfg.Allow) > 0 {
		var texts []string
		for _, p := range w.cfg.Allow {
			texts = append(texts, p.String())
		}
		parts = append(parts, "allow: "+w.scalars(texts)+"\n")
	}
	if len(w.cfg.Blocklists) > 0 {
		text := "blocklists:\n"
		for _, l := range w.cfg.Blocklists {
			text += "- {" + strings.Join(rapid.Permutation(w.list(l)).Draw(w.t, "list keys"), ", ") + "}\n"
		}
		parts = append(parts, text)
	}
	return parts
}

func (w *writer) list(l *model.Blocklist) []string {
	keys := []string{"name: " + w.scalar(l.Name)}
	var texts []string
	for _, e := range l.Entries {
		texts = append(texts, e.Text)
	}
	if len(texts) > 0 || len(l.Files) == 0 {
		keys = append(keys, "entries: "+w.scalars(texts))
	}
	if len(l.Files) > 0 {
		keys = append(keys, "files: "+w.scalars(l.Files))
	}
	if l.Action != model.BlockDrop || w.flip("say action") {
		keys = append(keys, "action: "+w.scalar(l.Action.String()))
	}
	if l.Strict || w.flip("say strict") {
		keys = append(keys, fmt.Sprintf("strict: %t", l.Strict))
	}
	switch {
	case l.MaxChange == 0:
		keys = append(keys, `max_change: "off"`)
	case l.MaxChange != model.DefaultMaxChange || w.flip("say change"):
		keys = append(keys, fmt.Sprintf(`max_change: "%g%%"`, l.MaxChange*100))
	}
	return keys
}
