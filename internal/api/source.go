package api

import (
	"net/netip"
	"slices"

	"weir/internal/engine"
	"weir/internal/model"
)

// SourceEdge is what the access policy says of packets by where they come from. Whether they get
// in depends on where to, too: weir explain tells.
type SourceEdge struct {
	Policy     string       `json:"policy"`               // "accept" or "drop": what happens to what nothing opens
	Management string       `json:"management,omitempty"` // the prefix that holds the address: the box is always reached
	Open       []SourceRule `json:"open"`                 // rules whose from holds the address, in the order of the file
}

// SourceRule is an open rule of the access policy. What a list does not say is open to all.
type SourceRule struct {
	Name    string         `json:"name"`
	From    string         `json:"from"` // the prefix that holds the address; "any": the rule names none
	Box     bool           `json:"box"`  // packets to the box; else those that are forwarded
	In      []string       `json:"in"`   // devices
	Out     []string       `json:"out"`
	To      []netip.Prefix `json:"to"`
	Traffic []string       `json:"traffic"` // "22/tcp", "udp"
}

// AddSource adds what else applies to the address by the configuration, and which of those who
// were over a limit it belongs to.
func (w *Why) AddSource(cfg *model.Config, over []engine.Offender) {
	w.OverLimits = []engine.Offender{}
	for _, o := range over {
		p, err := netip.ParsePrefix(o.Source)
		if a, bad := netip.ParseAddr(o.Source); bad == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err == nil && p.Contains(w.Address) {
			w.OverLimits = append(w.OverLimits, o)
		}
	}
	w.Edge = nil
	if e := cfg.Edge; e != nil {
		w.Edge = &SourceEdge{Policy: "accept", Management: holding(e.Management, w.Address), Open: []SourceRule{}}
		if e.Drop {
			w.Edge.Policy = "drop"
		}
		for _, r := range e.Open {
			if s, ok := sourceRule(r, w.Address); ok {
				w.Edge.Open = append(w.Edge.Open, s)
			}
		}
	}
}

// sourceRule returns r if it is for packets from a.
func sourceRule(r *model.OpenRule, a netip.Addr) (SourceRule, bool) {
	if !slices.Contains(r.Families(), model.FamilyOf(a)) {
		return SourceRule{}, false
	}
	s := SourceRule{Name: r.Name, From: "any", Box: r.Box, In: append([]string{}, r.In...), Out: append([]string{}, r.Out...),
		To: append([]netip.Prefix{}, r.To...), Traffic: []string{}}
	if len(r.From) > 0 {
		if s.From = holding(r.From, a); s.From == "" {
			return s, false
		}
	}
	for _, t := range r.Traffic {
		text := t.Proto.String()
		if !t.Ports.IsZero() {
			text = t.Ports.String() + "/" + text
		}
		s.Traffic = append(s.Traffic, text)
	}
	return s, true
}

// holding returns the prefix that holds a, as text; "": none does. The prefixes do not overlap.
func holding(list []netip.Prefix, a netip.Addr) string {
	for _, p := range list {
		if p.Contains(a) {
			return p.String()
		}
	}
	return ""
}
