package ruleset

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"weir/internal/model"
)

// Timeouts is a `ct timeout` object: for how long conntrack remembers a connection that is in
// a state, without another packet. States that it does not name have what the sysctls
// (net.netfilter.nf_conntrack_tcp_timeout_*, nf_conntrack_udp_timeout*) said when it was made.
// The kernel can't change one (net/netfilter/nft_ct.c); when one goes, connections that have it
// get the sysctls'. It is immutable.
type Timeouts struct {
	Name   string
	Proto  model.Proto // TCP or UDP
	States []Lasting   // in the order of TimeoutStates, each once, at least one
}

// Lasting is one state's time, in whole seconds.
type Lasting struct {
	State string // one of TimeoutStates
	Time  time.Duration
}

// TimeoutStates returns nft's words for the states of a protocol, in the order of the kernel's
// attributes, which count from 1 (CTA_TIMEOUT_TCP_SYN_SENT and CTA_TIMEOUT_UDP_UNREPLIED in
// include/uapi/linux/netfilter/nfnetlink_cttimeout.h); nil for a protocol that has none here.
func TimeoutStates(p model.Proto) []string {
	switch p {
	case model.TCP:
		return []string{"syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack",
			"time_wait", "close", "syn_sent2", "retrans", "unack"}
	case model.UDP:
		return []string{"unreplied", "replied"}
	}
	return nil
}

// serves reports whether t, which the kernel gave with all its states, does what want says.
func (t *Timeouts) serves(want *Timeouts) bool {
	return t.Proto == want.Proto && !slices.ContainsFunc(want.States, func(l Lasting) bool { return !slices.Contains(t.States, l) })
}

// Timeout returns the object of that name, or nil.
func (t *Table) Timeout(name string) *Timeouts {
	for _, o := range t.Timeouts {
		if o.Name == name {
			return o
		}
	}
	return nil
}

// SetTimeouts gives the connection that begins with the packet the times of an object. A
// packet of another protocol, or of a connection that is known, passes as it is.
type SetTimeouts struct{ Name string }

func (SetTimeouts) stmt() {}

func (t *Timeouts) spec() []string {
	states := make([]string, len(t.States))
	for i, l := range t.States {
		states[i] = fmt.Sprintf("%s : %d", l.State, int64(l.Time/time.Second))
	}
	return []string{"protocol " + t.Proto.String(), "l3proto inet", "policy = { " + strings.Join(states, ", ") + " }"}
}

func (t *Timeouts) print(b *strings.Builder) {
	fmt.Fprintf(b, "\tct timeout %s {\n", t.Name)
	spec := t.spec()
	for i, line := range spec {
		if i < len(spec)-1 {
			line += ";"
		}
		fmt.Fprintf(b, "\t\t%s\n", line)
	}
	b.WriteString("\t}\n")
}

// timeouts fills in the objects. It returns the names of those that are replaced: chains that
// refer to them have to be loaded again.
func (td *TableDelta) timeouts(old, want *Table) map[string]bool {
	var replaced map[string]bool
	for _, w := range want.Timeouts {
		o := old.Timeout(w.Name)
		if o != nil && (o == w || o.serves(w)) {
			continue
		}
		if o != nil {
			if replaced == nil {
				replaced = map[string]bool{}
			}
			replaced[w.Name] = true
			td.DelTimeouts = append(td.DelTimeouts, o)
		}
		td.AddTimeouts = append(td.AddTimeouts, w)
	}
	for _, o := range old.Timeouts {
		if want.Timeout(o.Name) == nil {
			td.DelTimeouts = append(td.DelTimeouts, o)
		}
	}
	return replaced
}

// refersTo reports whether a rule of the chain names one of the objects.
func (c *Chain) refersTo(names map[string]bool) bool {
	if len(names) == 0 {
		return false
	}
	return slices.ContainsFunc(c.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.Stmts, func(s Stmt) bool {
			t, ok := s.(SetTimeouts)
			return ok && names[t.Name]
		})
	})
}

// setTimeouts is about what becomes of the connection later: the packet goes on.
func (x *ruleRun) setTimeouts(s SetTimeouts) (bool, Verdict) {
	t := x.table.timeouts[s.Name]
	if t == nil {
		return x.fail("there is no ct timeout %s", s.Name)
	}
	if x.p.Proto != t.Proto {
		return x.hold("the times of %s are for %s alone", s.Name, t.Proto)
	}
	return x.hold("conntrack remembers the connection for the times of %s", s.Name)
}
