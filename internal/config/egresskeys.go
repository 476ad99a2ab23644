package config

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"weir/internal/model"
)

// The keys of egress pools, as schema.go has those of the rest.

type egressKeys struct {
	Name      string     `json:"name" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the pool, by which commands and metrics know it. Unique among the pools; not keep or masquerade. Letters, digits, dot, dash and underscore; begins with a letter or digit; at most 63 bytes."`
	From      prefixKeys `json:"from,omitempty" jsonschema_description:"Prefixes or addresses that connections come from, one or a list; this machine's own count like any other. Default: any."`
	In        oneOrMore  `json:"in,omitempty" jsonschema_description:"Devices or groups of interfaces by which connections come in, one or a list; this machine's own come in by none. Default: any, and this machine's own."`
	Out       oneOrMore  `json:"out" jsonschema_description:"Devices or groups of interfaces by which connections leave, one or a list."`
	To        prefixKeys `json:"to,omitempty" jsonschema_description:"Prefixes or addresses that connections go to, one or a list. Default: any."`
	Except    prefixKeys `json:"except,omitempty" jsonschema_description:"Prefixes or addresses to which connections that match keep their source, one or a list; later pools do not see them. Default: none."`
	Protocols protoKeys  `json:"protocols,omitempty" jsonschema_description:"Protocols that match as a whole, one or a list, by name or by number 1 to 255; together with to_ports, both. Default: all, without to_ports."`
	ToPorts   oneOrMore  `json:"to_ports,omitempty" jsonschema_description:"Destination ports that match, one or a list of PORTS/PROTOCOL: 443/tcp, 80,443/tcp, 8000-8010/udp. PROTOCOL is tcp, udp or sctp. Default: all."`

	Addresses poolAddrKeys `json:"addresses" jsonschema_description:"The addresses that connections get: addresses, ranges (192.0.2.1-192.0.2.9) and prefixes (192.0.2.8/30, all of whose addresses are used), one or a list, of both families, at most 4096 of each. Or the word masquerade: the address of the outgoing device. An address belongs to one pool."`
	Ports     portsKeys    `json:"ports,omitempty" jsonschema:"default=1024-65535" jsonschema_description:"Source ports that TCP and UDP connections get: ports and ranges, one or a list. Ports on which this machine or a service listens are left out. Other protocols get an address alone. Default: 1024-65535."`
	Spread    string       `json:"spread,omitempty" jsonschema:"default=flow" jsonschema_description:"How the address of a new connection is chosen. flow: the addresses in turn, so that one client and one destination can use all of the pool. client: a client keeps its address. client+destination: a client keeps its address for a destination address. An address that comes takes over its share of the clients; the others keep theirs. Default: flow; with block: client."`
	WhenFull  string       `json:"when_full,omitempty" jsonschema:"enum=spill,enum=fail,default=spill" jsonschema_description:"What happens with spread client or client+destination when the client's address has no port left for the destination. spill: the connection gets another address when it tries again, and this is counted. fail: it fails. With spread flow always spill, with block always fail. Default: spill."`
	Assign    bool         `json:"assign,omitempty" jsonschema:"default=false" jsonschema_description:"Whether the addresses are put on the device of out, of which there must be one, while weir runs. Default: false; they are routed to this machine by other means."`
	Block     int          `json:"block,omitempty" jsonschema:"minimum=1,maximum=32768" jsonschema_description:"How many ports each client of from has for itself, in TCP and in UDP, 1 to 32768: address and ports follow from the client's place in from, and a client from address and port (RFC 7422). Needs from, with at most 65536 addresses. Default: none; clients share all ports."`
	Log       bool         `json:"log,omitempty" jsonschema:"default=false" jsonschema_description:"Whether it is logged which client had which address and port, and when (see bindings): a line when a connection begins and ends; with block, a line for each client's block. Default: false."`

	ClampMSS bool         `json:"clamp_mss,omitempty" jsonschema:"default=true" jsonschema_description:"Whether TCP connections are told to send no larger segments than the way out bears. Default: true."`
	Leaks    string       `json:"leaks,omitempty" jsonschema:"enum=reject,enum=allow,default=reject" jsonschema_description:"What happens to packets that would leave by out with a private source (RFC 1918, RFC 6598, RFC 4193), since no pool and no other rule translates them. reject: they are refused and counted. allow: they leave. What except names leaves in any case. Default: reject."`
	Timeouts timeoutsKeys `json:"timeouts,omitempty" jsonschema_description:"For how long the kernel remembers the pool's connections without another packet, by protocol and state: tcp_syn_sent, tcp_syn_recv, tcp_established, tcp_fin_wait, tcp_close_wait, tcp_last_ack, tcp_time_wait, tcp_close, udp_unreplied, udp_replied; 1s to 30d, in whole seconds. A port is free for the same destination again when its connection is forgotten. Default: as the kernel is set."`
}

type bindingsKeys struct {
	To string `json:"to" jsonschema:"default=/var/log/weir/bindings.jsonl" jsonschema_description:"The absolute path of a file that gets a line of JSON for each, or syslog, or journald. Default: /var/log/weir/bindings.jsonl."`
}

type (
	poolAddrKeys struct{}
	portsKeys    struct{}
	timeoutsKeys struct{}
)

// JSONSchema says: masquerade, an address, or a list of addresses.
func (poolAddrKeys) JSONSchema() *jsonschema.Schema {
	return anyOf(&jsonschema.Schema{Const: masqueradeWord}, text(), list(text()))
}

// JSONSchema says: a port or a range, or a list of these.
func (portsKeys) JSONSchema() *jsonschema.Schema {
	number := &jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "65535"}
	rang := text()
	rang.Pattern = "^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$"
	return anyOf(number, rang, list(anyOf(number, rang)))
}

// JSONSchema says: a duration for each of some states.
func (timeoutsKeys) JSONSchema() *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "object", Properties: jsonschema.NewProperties(), AdditionalProperties: jsonschema.FalseSchema}
	for _, k := range timeoutAllowed {
		s.Properties.Set(k, text())
	}
	return s
}

// JSONSchemaExtend lists the words of spread.
func (egressKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	p, _ := s.Properties.Get("spread")
	setWords(p, model.SpreadNames())
}

// masqueradeWord stands for the address of the outgoing device.
const masqueradeWord = "masquerade"

// The words of when_full and leaks.
var (
	whenFullWords = []string{"spill", "fail"}
	leaksWords    = []string{"reject", "allow"}
)

// timeoutStates are the states that timeouts may be said for, by protocol, as the kernel
// names them (net/netfilter/nf_conntrack_proto_tcp.c, …_udp.c).
var timeoutStates = []struct {
	proto  model.Proto
	states []string
}{
	{model.TCP, []string{"syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close"}},
	{model.UDP, []string{"unreplied", "replied"}},
}

// timeoutAllowed are the keys of timeouts.
var timeoutAllowed = func() []string {
	var out []string
	for _, t := range timeoutStates {
		for _, s := range t.states {
			out = append(out, t.proto.String()+"_"+s)
		}
	}
	return out
}()

// marshalEgress writes the pools, and where bindings go.
func marshalEgress(b *bytes.Buffer, cfg *model.Config) {
	if cfg.Bindings != model.DefaultBindings() && cfg.Bindings != (model.Bindings{}) {
		to := cfg.Bindings.To.String()
		if cfg.Bindings.To == model.BindingsFile {
			to = cfg.Bindings.File
		}
		fmt.Fprintf(b, "bindings: {to: %q}\n", to)
	}
	if len(cfg.Egress) > 0 {
		b.WriteString("egress:\n")
	}
	for _, p := range cfg.Egress {
		marshalPool(b, p)
	}
}

func marshalPool(b *bytes.Buffer, p *model.Pool) {
	fmt.Fprintf(b, "  - name: %q\n", p.Name)
	key := func(is bool, name, value string) {
		if is {
			fmt.Fprintf(b, "    %s: %s\n", name, value)
		}
	}
	key(len(p.From) > 0, "from", prefixList(p.From))
	key(len(p.In) > 0, "in", quotedList(p.In))
	key(true, "out", quotedList(p.Out))
	key(len(p.To) > 0, "to", prefixList(p.To))
	key(len(p.Except) > 0, "except", prefixList(p.Except))
	ports, protocols := trafficTexts(p.Traffic)
	key(len(protocols) > 0, "protocols", "["+strings.Join(protocols, ", ")+"]")
	key(len(ports) > 0, "to_ports", quotedList(ports))
	if p.Masquerade {
		key(true, "addresses", masqueradeWord)
	} else {
		key(true, "addresses", quotedList(addrTexts(p.Addresses)))
	}
	key(!slices.Equal(p.Ports, []model.PortRange{model.DefaultPoolPorts}), "ports", quotedList(portTexts(p.Ports)))
	stable := p.Spread != model.SpreadFlow && p.Block == 0
	key(stable, "spread", p.Spread.String())
	key(stable && !p.Spill, "when_full", "fail")
	key(p.Assign != "", "assign", "true")
	key(p.Block > 0, "block", strconv.Itoa(p.Block))
	key(p.Log, "log", "true")
	key(!p.ClampMSS, "clamp_mss", "false")
	key(p.Leaks, "leaks", "allow")
	var times []string
	for _, t := range p.Timeouts {
		times = append(times, fmt.Sprintf("%s_%s: %s", t.Proto, t.State, t.Time))
	}
	key(len(times) > 0, "timeouts", "{"+strings.Join(times, ", ")+"}")
}

func addrTexts(list []model.AddrRange) []string {
	out := make([]string, len(list))
	for i, r := range list {
		if out[i] = r.Lo.String(); r.Hi != r.Lo {
			out[i] += "-" + r.Hi.String()
		}
	}
	return out
}

func portTexts(list []model.PortRange) []string {
	out := make([]string, len(list))
	for i, r := range list {
		out[i] = r.String()
	}
	return out
}

// trafficTexts returns what the keys for ports and for protocols say.
func trafficTexts(list []model.Traffic) (ports, protocols []string) {
	for _, t := range list {
		if t.Ports.IsZero() {
			protocols = append(protocols, strconv.Itoa(int(t.Proto)))
		} else {
			ports = append(ports, t.Ports.String()+"/"+t.Proto.String())
		}
	}
	return ports, protocols
}
