package plan

import (
	"net/netip"
	"slices"
	"strings"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// Access is what the access policy says of a packet, and why.
type Access struct {
	Verdict string `json:"verdict"` // "accept" or "drop"
	By      string `json:"by"`      // what decided, in words
	Rule    string `json:"rule"`    // the open rule that lets the packet pass; "" for anything else
}

// access finds the policy's word in a packet's way; nil if the policy had none.
func (p *Plan) access(t ruleset.Trace) *Access {
	chains := []string{chainEdgeIn, chainEdgeForward, chainInvalidFlags}
	for _, s := range slices.Backward(t.Steps) {
		if !s.Matched || !slices.Contains(chains, s.Chain) {
			continue
		}
		a := &Access{Verdict: string(ruleset.DropPacket), By: s.Comment}
		if strings.HasSuffix(s.Rule, " "+string(ruleset.AcceptPacket)) {
			a.Verdict = string(ruleset.AcceptPacket)
		}
		if s.Comment == openWords {
			for _, f := range t.Found {
				if i, ok := p.OpenRule(f.Set, f.Elem.Key, f.Elem.KeyEnd); ok {
					a.Rule = p.edge.edge.Open[i].Name
					a.By = "open rule " + a.Rule
				}
			}
		}
		return a
	}
	return nil
}

// own reports whether an address is the box's own as far as the file can tell: a program on
// the box serves it, or weir holds it.
func (p *Plan) own(a netip.Addr) bool {
	return slices.ContainsFunc(p.Config.Services, func(s *model.Service) bool {
		return (s.Local() || s.Assign != "") &&
			slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return l.Addr == a })
	})
}

// OpenRule returns the index of the open rule to which an element of one of the policy's
// sets belongs.
func (p *Plan) OpenRule(set, key, end string) (int, bool) {
	if p.edge == nil {
		return 0, false
	}
	i, ok := p.edge.rules[openAt{set, key, end}]
	return i, ok
}

// countedEdge returns the sets that count for listeners of the box and for the policy.
func (p *Plan) countedEdge() []Counted {
	var out []Counted
	add := func(what What, f model.Family, specs ...setSpec) {
		for _, s := range specs {
			if g := p.sets[s.Name]; g != nil {
				out = append(out, Counted{what, f, g.Set})
			}
		}
	}
	for _, f := range families {
		for what, list := range map[What][]setSpec{
			ListenerIn:          {untrackedIn(f), localIn(f)},
			ListenerOut:         {untrackedOut(f), localOut(f)},
			ListenerConnections: {localNew(f)},
		} {
			for _, s := range list {
				add(what, f, s, s.twin())
			}
		}
		add(Managed, f, managementSpec(f))
	}
	if p.edge != nil {
		for _, o := range p.edge.open {
			add(Opened, 0, o.spec)
		}
	}
	add(DroppedIn, 0, droppedIn)
	add(DroppedForward, 0, droppedForward)
	add(Leaked, 0, leakedSpec)
	add(DroppedFlags, 0, droppedFlags)
	return out
}

// FlagsText returns the flags of an element of the set of dropped TCP segments: "fin | syn".
func FlagsText(key string) string {
	return ruleset.Types{ruleset.TCPFlagByte}.Text(key[ruleset.IfName.Padded():], "")
}
