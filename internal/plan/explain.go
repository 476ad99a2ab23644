package plan

import (
	"net/netip"
	"slices"
	"strings"

	"weir/internal/blocklist"
	"weir/internal/model"
	"weir/internal/ruleset"
)

// Explanation is what becomes of a packet, and why. Its JSON form is part of weir's
// interface.
type Explanation struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	// Service is the service that listens there; "" if none does.
	Service string `json:"service"`
	// Forward is how the service forwards: "nat" or "local"; "" without a service.
	Forward string `json:"forward"`
	// Access is what the access policy says of the packet; nil where it says nothing.
	Access *Access `json:"access,omitempty"`
	// Established says that the packet belongs to a connection that the kernel knows.
	Established bool `json:"established"`
	// Blocked says that a blocklist drops or refuses it.
	Blocked bool `json:"blocked"`
	// Verdict is "accept", "drop", "reject tcp-reset" or "reject icmp".
	Verdict string `json:"verdict"`
	// Backend is who gets it, "" if nobody does or a counter of the kernel decides.
	Backend string `json:"backend"`
	// Candidates are the backends among which a counter decides, with their shares.
	Candidates []Candidate `json:"candidates"`
	// Source is the address that the backend sees, or "masquerade"; without a service it is
	// said of packets that take an egress pool. "" where a counter of the kernel decides.
	Source string `json:"source"`
	// Pool is the egress pool that gives the source; "" where none does. Sources are the
	// addresses among which a counter decides, and SourcePorts the ports, say "1024-65535".
	Pool        string   `json:"pool"`
	Sources     []string `json:"sources"`
	SourcePorts string   `json:"source_ports"`
	Steps       []Step   `json:"steps"`
}

// Candidate is a backend and its share of new connections, 0 to 1.
type Candidate struct {
	Address string  `json:"address"`
	Share   float64 `json:"share"`
}

// Step is a rule that was looked at.
type Step struct {
	Hook    string `json:"hook"`
	Chain   string `json:"chain"`
	Rule    string `json:"rule"`
	Words   string `json:"words"`
	Detail  string `json:"detail"`
	Matched bool   `json:"matched"`
}

// Explain follows a packet through the plan's ruleset. What the file alone cannot tell
// comes in env; packet.Conn is the connection it belongs to, if it does.
func (p *Plan) Explain(packet ruleset.Packet, env ruleset.Env) Explanation {
	count := &counters{plan: p}
	if env.Next == nil {
		env.Next = count.next
	}
	if packet.ToLocal == nil {
		packet.ToLocal = p.own
	}
	trace := p.eval(packet, &env)
	asked := packet.Dst
	if packet.Conn != nil {
		asked = packet.Conn.OrigDst
	}
	x := Explanation{
		From: packet.Src.String(), To: packet.Dst.String(), Protocol: packet.Proto.String(),
		Established: packet.Conn != nil, Verdict: string(trace.Verdict),
		Candidates: []Candidate{}, Sources: []string{}, Steps: []Step{},
	}
	for _, s := range trace.Steps {
		if count.backend && s.Matched && (strings.Contains(s.Rule, "dnat ") || strings.Contains(s.Rule, " vmap @picks")) {
			// The counter is the kernel's and cannot be read: what follows is one of the ways.
			s.Words = "the next in turn decides; the steps below are for " + trace.DNAT.String()
			s.Detail = ""
		}
		if len(count.sources) > 1 && s.Matched && strings.Contains(s.Rule, "snat ip") {
			s.Words, s.Detail = "the next address in turn becomes the source", ""
		}
		x.Steps = append(x.Steps, Step{string(s.Hook), s.Chain, s.Rule, s.Words, s.Detail, s.Matched})
	}
	x.Access = p.access(trace)
	if e, ok := p.blocked(packet); ok {
		x.Blocked = trace.Verdict != ruleset.Accepted && e.Action > blocklist.Count
	}
	s := p.listener(asked, packet.Proto)
	if s == nil {
		if x.Pool = poolOf(trace); x.Pool != "" && trace.Verdict == ruleset.Accepted {
			x.source(trace, packet, count)
		}
		return x
	}
	x.Service, x.Forward = s.Name, s.Forward.String()
	switch {
	case trace.Verdict != ruleset.Accepted:
		return x
	case count.backend:
		x.Candidates = p.candidates(s, model.FamilyOf(asked.Addr()))
		if len(x.Candidates) == 1 {
			x.Backend = trace.DNAT.String()
		}
	case trace.DNAT.IsValid():
		x.Backend = trace.DNAT.String()
	}
	x.source(trace, packet, count)
	return x
}

// blocked returns the entry of blocklists that decides about a packet. What the box sends
// itself meets none.
func (p *Plan) blocked(packet ruleset.Packet) (blocklist.Entry, bool) {
	if p.Blocks == nil || p.Blocks.Compiled == nil || packet.Local {
		return blocklist.Entry{}, false
	}
	return p.Blocks.Compiled.Find(packet.Src.Addr())
}

// listener returns the service that listens on a, or nil.
func (p *Plan) listener(a netip.AddrPort, proto model.Proto) *model.Service {
	for _, s := range p.Config.Services {
		if slices.ContainsFunc(s.Listen, func(l model.Listen) bool {
			return l.Addr == a.Addr() && l.Proto == proto && l.Ports.Contains(a.Port())
		}) {
			return s
		}
	}
	return nil
}

func (p *Plan) candidates(s *model.Service, f model.Family) []Candidate {
	out := []Candidate{}
	for _, pool := range p.Pools {
		if pool.Service != s || pool.Family != f {
			continue
		}
		slots := make([]int, len(pool.Backends))
		for _, i := range pool.Slots {
			slots[i]++
		}
		for i, b := range pool.Backends {
			if slots[i] > 0 {
				out = append(out, Candidate{b.ID(), float64(slots[i]) / float64(len(pool.Slots))})
			}
		}
	}
	return out
}
