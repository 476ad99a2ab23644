package config

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/invopop/jsonschema"

	"weir/internal/model"
)

// The keys of steering, as schema.go has those of the rest.

type steeringKeys struct {
	Name        string          `json:"name" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the service, by which commands and metrics know it. Unique, among services too. Letters, digits, dot, dash and underscore; begins with a letter or digit; at most 63 bytes."`
	Listen      oneOrMore       `json:"listen" jsonschema_description:"What clients connect to: ADDRESS:PORTS/PROTOCOL, one or a list, as with services."`
	Forward     string          `json:"forward,omitempty" jsonschema:"default=nat" jsonschema_description:"How packets reach the backend. nat: the destination address is translated, and answers come back through weir. direct: backends hold the listen addresses themselves and answer clients past this machine, as with services; connections are not tracked, and weir looks at each packet. Default: nat."`
	In          oneOrMore       `json:"in,omitempty" jsonschema_description:"With forward: direct, the network devices by which clients' packets come in; devices or groups of interfaces, one or a list. Needed then."`
	Packets     string          `json:"packets,omitempty" jsonschema_description:"Which packets weir looks at. first: those of new connections, until the first has its answer; the choice is kept with the connection; with forward: nat. all: each, and nothing is kept; with forward: direct. Default: what forward allows."`
	Rules       []steerRuleKeys `json:"rules,omitempty" jsonschema:"maxItems=1024" jsonschema_description:"Which packets go to which target. Default: none; all go to the default target."`
	Targets     steerTargetKeys `json:"targets" jsonschema_description:"Groups of backends, by name; one is chosen by a consistent hash of its own. A backend may be in several groups, with the same weight and check. Backends are written as with services, without backup and max_connections."`
	Default     string          `json:"default,omitempty" jsonschema_description:"The target of packets that no rule wants, and the one that the kernel chooses from with when_absent: hash. Default: the first of targets."`
	WhenAbsent  string          `json:"when_absent,omitempty" jsonschema:"default=hash" jsonschema_description:"What happens to new connections (with forward: direct, to packets) while no weir runs, or its queues are full. hash: the kernel chooses from the default target, as weir would; rules are not asked. drop: silence. accept: they go on untranslated. Open connections stay where they are. Default: hash."`
	Queues      queuesKeys      `json:"queues,omitempty" jsonschema_description:"How many of the kernel's queues (NFQUEUE) the connections are spread over, by their addresses, 1 to 64: one processor can work on each. Or their numbers, such as 100-103. Default: 1. Numbers that are not said are from 30565 on."`
	Balance     string          `json:"balance,omitempty" jsonschema:"default=maglev" jsonschema_description:"What the choice within a target depends on. maglev: the client's address and port. source: the client's address, so that a client keeps its backend. Default: maglev."`
	Source      sourceKeys      `json:"source,omitempty" jsonschema_description:"What the backend sees as the client's address, as with services. Default: keep."`
	WhenAllDown string          `json:"when_all_down,omitempty" jsonschema:"default=reject" jsonschema_description:"What happens to new connections whose target has no backend to choose. reject: they are refused at once (TCP reset; ICMP port unreachable for the rest). drop: they get no answer. Default: reject."`
	Check       checkEntry      `json:"check,omitempty" jsonschema_description:"How the backends are asked for their health, as with services. Default: none; backends count as up."`
	SlowStart   string          `json:"slow_start,omitempty" jsonschema:"default=off" jsonschema_description:"How long the weight of a backend that came up again climbs to its whole, 1s to 1h, or off for at once. Needs a check. Default: off."`
	OnDown      string          `json:"on_down,omitempty" jsonschema:"default=keep" jsonschema_description:"What happens to the connections of a backend that goes down, as with services. Default: keep."`
	Assign      string          `json:"assign,omitempty" jsonschema_description:"Network device, or group with exactly one, that is given the listen addresses while weir runs. Default: none; the addresses are routed to this machine by other means."`
}

type steerRuleKeys struct {
	Name         string     `json:"name,omitempty" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the rule, for status, metrics and explain; not default. Unique. Default: rules[N], its place in the list."`
	Priority     int        `json:"priority,omitempty" jsonschema:"minimum=0,maximum=65535,default=0" jsonschema_description:"The rule with the lowest number is asked first; of several alike, the one that stands first. Default: 0."`
	Protocols    oneOrMore  `json:"protocols,omitempty" jsonschema_description:"tcp, udp and sctp, one or a list. Default: any."`
	Sources      prefixKeys `json:"sources,omitempty" jsonschema_description:"Prefixes or addresses of clients, one or a list. Where only one family is said, packets of the other do not match. Default: any."`
	Destinations prefixKeys `json:"destinations,omitempty" jsonschema_description:"Prefixes or addresses that clients connect to, one or a list. Default: any of listen."`
	SourcePorts  portsKeys  `json:"source_ports,omitempty" jsonschema_description:"Ports and ranges of clients, one or a list. Default: any."`
	Ports        portsKeys  `json:"destination_ports,omitempty" jsonschema_description:"Ports and ranges that clients connect to, one or a list. Default: any of listen."`
	Bytes        string     `json:"bytes,omitempty" jsonschema_description:"Bytes of the first packet: PROTOCOL[OFFSET:LENGTH] & MASK = VALUE, joined by and, up to 16. PROTOCOL is ip, ip6, tcp, udp, sctp, icmp or icmp6, and OFFSET counts from its header. udp[8:4] & 0xffffff00 = 0x494e5600: the datagram begins with INV. != instead of = means others. Default: any."`
	To           string     `json:"to" jsonschema_description:"The name of the target."`
}

type (
	steerTargetKeys struct{}
	queuesKeys      struct{}
)

// JSONSchema says: a list of backends for every name.
func (steerTargetKeys) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "object", AdditionalProperties: list(backendEntry{}.JSONSchema())}
}

// JSONSchema says: how many, or a range of numbers.
func (queuesKeys) JSONSchema() *jsonschema.Schema {
	numbers := text()
	numbers.Pattern = "^[0-9]{1,5}-[0-9]{1,5}$"
	return anyOf(&jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "64"}, numbers)
}

// JSONSchemaExtend lists the words of keys.
func (steeringKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	for key, words := range map[string][]string{"packets": packetsWords, "forward": steerForwards, "when_absent": model.AbsentNames(),
		"balance": steerBalances, "when_all_down": steerDownWords, "on_down": onDownWords} {
		p, _ := s.Properties.Get(key)
		setWords(p, words)
	}
}

var (
	steeringAllowed  = keysOf[steeringKeys]()
	steerRuleAllowed = keysOf[steerRuleKeys]()
)

// marshalSteering writes the steered services.
func marshalSteering(b *bytes.Buffer, services []*model.Service) {
	if len(services) == 0 {
		return
	}
	b.WriteString("steering:\n")
	for _, s := range services {
		marshalSteered(b, s)
	}
}

func marshalSteered(b *bytes.Buffer, s *model.Service) {
	st := s.Steering
	fmt.Fprintf(b, "  - name: %q\n", s.Name)
	listen := make([]string, len(s.Listen))
	for i, l := range s.Listen {
		listen[i] = l.String()
	}
	fmt.Fprintf(b, "    listen: %s\n", quotedList(listen))
	if s.Direct() {
		fmt.Fprintf(b, "    forward: direct\n    in: %s\n", quotedList(s.In))
	}
	if len(st.Rules) > 0 {
		b.WriteString("    rules:\n")
		for i, r := range st.Rules {
			fmt.Fprintf(b, "      - {%s}\n", steerRuleText(st, i, r))
		}
	}
	b.WriteString("    targets:\n")
	for _, t := range st.Targets {
		fmt.Fprintf(b, "      %q:\n", t.Name)
		for _, i := range t.Members {
			b.WriteString("  ")
			marshalBackend(b, s.Backends[i])
		}
	}
	if st.Default != 0 {
		fmt.Fprintf(b, "    default: %q\n", st.Targets[st.Default].Name)
	}
	if st.Absent != model.AbsentHash {
		fmt.Fprintf(b, "    when_absent: %s\n", st.Absent)
	}
	fmt.Fprintf(b, "    queues: \"%d-%d\"\n", st.Queues.First, st.Queues.Last)
	if s.Balance != model.Maglev {
		fmt.Fprintf(b, "    balance: %s\n", s.Balance)
	}
	marshalSource(b, s)
	if s.WhenAllDown != model.Reject {
		fmt.Fprintf(b, "    when_all_down: %s\n", s.WhenAllDown)
	}
	marshalHealth(b, s)
	if s.Assign != "" {
		fmt.Fprintf(b, "    assign: %q\n", s.Assign)
	}
}

func steerRuleText(st *model.Steering, i int, r model.SteerRule) string {
	var keys []string
	add := func(has bool, format string, value any) {
		if has {
			keys = append(keys, fmt.Sprintf(format, value))
		}
	}
	add(r.Name != fmt.Sprintf("rules[%d]", i), "name: %q", r.Name)
	add(r.Priority != 0, "priority: %d", r.Priority)
	add(len(r.Protos) > 0, "protocols: %s", quotedList(texts(r.Protos)))
	add(len(r.Sources) > 0, "sources: %s", quotedList(texts(r.Sources)))
	add(len(r.Destinations) > 0, "destinations: %s", quotedList(texts(r.Destinations)))
	add(len(r.SourcePorts) > 0, "source_ports: %s", quotedList(texts(r.SourcePorts)))
	add(len(r.Ports) > 0, "destination_ports: %s", quotedList(texts(r.Ports)))
	add(len(r.Bytes) > 0, "bytes: %q", r.Bytes)
	add(true, "to: %q", st.Targets[r.To].Name)
	return strings.Join(keys, ", ")
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}
