package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"weir/internal/model"
)

// The keys of the access policy, as schema.go has those of the rest.

type edgeKeys struct {
	Policy       string     `json:"policy,omitempty" jsonschema:"enum=accept,enum=drop,default=accept" jsonschema_description:"What happens to packets that nothing opens, to this machine and through it. accept: weir restricts nothing. drop: they are dropped and counted. Always let in then: what belongs or is related to a known connection, the loopback device, the services (nat and local), management, DHCP answers, and the ICMP and ICMPv6 that networks need (errors such as frag-needed and packet-too-big, echo requests to this machine, neighbour and multicast listener discovery, router advertisements). Default: accept."`
	InvalidFlags string     `json:"invalid_flags,omitempty" jsonschema:"enum=accept,enum=drop" jsonschema_description:"What happens to TCP segments whose flags contradict each other (none at all, SYN with FIN or RST, FIN without ACK, and so on), before anything else looks at them. Default: as policy."`
	Management   prefixKeys `json:"management,omitempty" jsonschema_description:"Prefixes or addresses, one or a list, from which this machine is always reached, whatever the policy and the open rules say. Default: none."`
	Open         []openKeys `json:"open,omitempty" jsonschema:"maxItems=4096" jsonschema_description:"What is let in or through with policy: drop. What a rule does not say is open to all. Default: none."`
}

type openKeys struct {
	Name      string     `json:"name,omitempty" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the rule, for status and explain. Unique. Default: open[N], its place in the list."`
	To        toKeys     `json:"to,omitempty" jsonschema_description:"box: the rule is about packets to this machine. Prefixes or addresses: about packets that are forwarded to them. A rule must have to or out."`
	Out       oneOrMore  `json:"out,omitempty" jsonschema_description:"Devices or groups of interfaces by which forwarded packets leave, one or a list. Default: any; not with to: box."`
	In        oneOrMore  `json:"in,omitempty" jsonschema_description:"Devices or groups of interfaces by which packets come in, one or a list. Default: any."`
	From      prefixKeys `json:"from,omitempty" jsonschema_description:"Prefixes or addresses that packets come from, one or a list. Default: any, of both families."`
	Ports     oneOrMore  `json:"ports,omitempty" jsonschema_description:"Destination ports, one or a list of PORTS/PROTOCOL: 22/tcp, 80,443/tcp, 8000-8010/udp. PROTOCOL is tcp, udp or sctp. Default: without protocols too, everything."`
	Protocols protoKeys  `json:"protocols,omitempty" jsonschema_description:"Protocols that are let through as a whole, one or a list, by name or by number 1 to 255; together with ports, both. Default: none."`
}

type (
	prefixKeys struct{}
	toKeys     struct{}
	protoKeys  struct{}
)

// JSONSchema says: a prefix or address, or a list of them.
func (prefixKeys) JSONSchema() *jsonschema.Schema { return anyOf(text(), list(text())) }

// JSONSchema says: the word box, or prefixes.
func (toKeys) JSONSchema() *jsonschema.Schema {
	return anyOf(&jsonschema.Schema{Const: "box"}, text(), list(text()))
}

// JSONSchema says: a protocol by name or number, or a list of them.
func (protoKeys) JSONSchema() *jsonschema.Schema {
	word := text()
	setWords(word, openProtoWords())
	number := &jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "255"}
	return anyOf(word, number, list(anyOf(word, number)))
}

func marshalLocal(b *bytes.Buffer, s *model.Service) {
	b.WriteString("    forward: local\n")
	if s.Untracked {
		b.WriteString("    track: none\n")
	}
	if s.Assign != "" {
		fmt.Fprintf(b, "    assign: %q\n", s.Assign)
	}
}

func marshalEdge(b *bytes.Buffer, e *model.Edge) {
	if e == nil {
		return
	}
	policy := func(drop bool) string { return map[bool]string{false: "accept", true: "drop"}[drop] }
	fmt.Fprintf(b, "edge:\n  policy: %s\n", policy(e.Drop))
	if e.DropInvalidFlags != e.Drop {
		fmt.Fprintf(b, "  invalid_flags: %s\n", policy(e.DropInvalidFlags))
	}
	if len(e.Management) > 0 {
		fmt.Fprintf(b, "  management: %s\n", prefixList(e.Management))
	}
	if len(e.Open) == 0 {
		return
	}
	b.WriteString("  open:\n")
	for i, r := range e.Open {
		marshalOpen(b, i, r)
	}
}

func prefixList(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return quotedList(words)
}

func marshalOpen(b *bytes.Buffer, i int, r *model.OpenRule) {
	sep := "    - {"
	key := func(name, value string) {
		fmt.Fprintf(b, "%s%s: %s", sep, name, value)
		sep = ", "
	}
	if r.Name != fmt.Sprintf("open[%d]", i) {
		key("name", strconv.Quote(r.Name))
	}
	if r.Box {
		key("to", "box")
	}
	if len(r.To) > 0 {
		key("to", prefixList(r.To))
	}
	if len(r.Out) > 0 {
		key("out", quotedList(r.Out))
	}
	if len(r.In) > 0 {
		key("in", quotedList(r.In))
	}
	if len(r.From) > 0 {
		key("from", prefixList(r.From))
	}
	ports, protocols := trafficTexts(r.Traffic)
	if len(ports) > 0 {
		key("ports", quotedList(ports))
	}
	if len(protocols) > 0 {
		key("protocols", "["+strings.Join(protocols, ", ")+"]")
	}
	b.WriteString("}\n")
}
