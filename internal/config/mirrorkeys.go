package config

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"github.com/invopop/jsonschema"

	"weir/internal/model"
)

// The keys of mirrors, as schema.go has those of the rest.

type mirrorKeys struct {
	Name     string    `json:"name" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the mirror, by which commands and metrics know it. Unique among the mirrors. Letters, digits, dot, dash and underscore; begins with a letter or digit; at most 63 bytes."`
	Match    matchKeys `json:"match,omitempty" jsonschema_description:"What is copied. Default: everything."`
	To       oneOrMore `json:"to" jsonschema_description:"The collector that gets the copies: an address on a network of this machine, or a list with one of each family. Packets of a family are copied to a collector of that family. It must be nobody who takes part: no listen address, backend or client of match."`
	VXLAN    vxlanKeys `json:"vxlan,omitempty" jsonschema_description:"The collector is in another network: copies of both families go to it through a VXLAN, which weir makes, as device weir-vxID, and removes. A network identifier, or a mapping with id and port. What comes in by the tunnel is dropped. Default: none, the collector is on a network of this machine."`
	View     string    `json:"view,omitempty" jsonschema:"default=client" jsonschema_description:"What copies show where addresses are translated. client: packets as clients send and get them. backend: as backends get and send them. Default: client."`
	Sample   string    `json:"sample,omitempty" jsonschema:"pattern=^[1-9][0-9]*/[1-9][0-9]*$,default=1/1" jsonschema_description:"Which part is copied, such as 1/10. The first number is at most the second, and that is at most 1000000. Default: 1/1, all."`
	SampleBy string    `json:"sample_by,omitempty" jsonschema:"default=flow" jsonschema_description:"What the sample is of. flow: connections, by the hash of addresses and ports with hash_seed; one that is in the sample is copied as a whole, both ways. packet: packets, in turn. Default: flow."`
	Limit    string    `json:"limit,omitempty" jsonschema_description:"How many copies of a family are made at most, such as 20000/second, from 1 to 10000000 in a second, a minute or an hour; more than that are left out and counted. Default: any number."`
	For      string    `json:"for,omitempty" jsonschema_description:"How long the mirror runs, 1s to 30d, such as 30m. The kernel ends it, also when weir does not run. Default: without end."`
}

type matchKeys struct {
	In        oneOrMore  `json:"in,omitempty" jsonschema_description:"Devices or groups of interfaces by which requests come in and answers leave, one or a list. Only with view: client. Default: any."`
	Out       oneOrMore  `json:"out,omitempty" jsonschema_description:"Devices or groups of interfaces by which requests leave and answers come in, one or a list. Only with view: backend. Default: any."`
	Direction string     `json:"direction,omitempty" jsonschema:"default=both" jsonschema_description:"Which packets are copied. requests: those from clients to servers. answers: those back. both: both. Other than both only with something that tells the two apart: in, out, port, from, to or service. Default: both."`
	Protocol  protoKeys1 `json:"protocol,omitempty" jsonschema_description:"A protocol by name or by number 1 to 255. Default: any."`
	Port      portKeys   `json:"port,omitempty" jsonschema_description:"The server's ports: a number, text such as 80,443,8000-8010, or a list. Default: any."`
	From      prefixKeys `json:"from,omitempty" jsonschema_description:"Prefixes or addresses of clients, one or a list. Default: any."`
	To        prefixKeys `json:"to,omitempty" jsonschema_description:"Prefixes or addresses of servers, one or a list; with view: client the addresses that clients ask for, with view: backend those of backends. Default: any."`
	Service   string     `json:"service,omitempty" jsonschema_description:"Name of a service. Default: any, and what belongs to no service."`
}

type tunnelKeys struct {
	ID   int `json:"id" jsonschema:"minimum=1,maximum=16777215" jsonschema_description:"VXLAN network identifier, 1 to 16777215, another one for each mirror."`
	Port int `json:"port,omitempty" jsonschema:"minimum=1,maximum=65535,default=4789" jsonschema_description:"UDP port of the collector. Default: 4789."`
}

type (
	vxlanKeys  struct{}
	protoKeys1 struct{}
	portKeys   struct{}
)

// JSONSchema says: a protocol by name or number.
func (protoKeys1) JSONSchema() *jsonschema.Schema {
	word := text()
	setWords(word, openProtoWords())
	return anyOf(word, &jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "255"})
}

// JSONSchema says: a network identifier, or a mapping.
func (vxlanKeys) JSONSchema() *jsonschema.Schema {
	keys := reflector().Reflect(tunnelKeys{})
	keys.Version = ""
	return anyOf(&jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "16777215"}, keys)
}

// JSONSchema says: a port, ports in text, or a list of these.
func (portKeys) JSONSchema() *jsonschema.Schema {
	number := &jsonschema.Schema{Type: "integer", Minimum: "1", Maximum: "65535"}
	return anyOf(number, text(), list(anyOf(number, text())))
}

// JSONSchemaExtend lists the words of the keys.
func (mirrorKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	for key, words := range map[string][]string{"view": viewWords, "sample_by": sampleWords} {
		p, _ := s.Properties.Get(key)
		setWords(p, words)
	}
}

// JSONSchemaExtend lists the words of direction.
func (matchKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	p, _ := s.Properties.Get("direction")
	setWords(p, directionWords)
}

// marshalMirrors writes the mirrors.
func marshalMirrors(b *bytes.Buffer, mirrors []*model.Mirror) {
	if len(mirrors) == 0 {
		return
	}
	b.WriteString("mirrors:\n")
	for _, m := range mirrors {
		fmt.Fprintf(b, "  - name: %q\n", m.Name)
		if text := matchText(m); text != "" {
			fmt.Fprintf(b, "    match: {%s}\n", text)
		}
		var to []string
		for _, f := range m.Families() {
			if a := m.CollectorOf(f).String(); !slices.Contains(to, a) {
				to = append(to, a)
			}
		}
		fmt.Fprintf(b, "    to: %s\n", quotedList(to))
		if m.VXLAN.ID != 0 {
			fmt.Fprintf(b, "    vxlan: {id: %d, port: %d}\n", m.VXLAN.ID, m.VXLAN.Port)
		}
		if m.Backend {
			b.WriteString("    view: backend\n")
		}
		if m.Sampled() {
			fmt.Fprintf(b, "    sample: %d/%d\n", m.Take, m.Of)
			if m.Packets {
				b.WriteString("    sample_by: packet\n")
			}
		}
		if m.Rate > 0 {
			fmt.Fprintf(b, "    limit: %s\n", m.RateText())
		}
		if m.For > 0 {
			fmt.Fprintf(b, "    for: %s\n", m.For)
		}
	}
}

func matchText(m *model.Mirror) string {
	text, sep := "", ""
	key := func(name, value string) {
		text += sep + name + ": " + value
		sep = ", "
	}
	x := &m.Match
	if len(x.Devices) > 0 {
		key(map[bool]string{false: "in", true: "out"}[m.Backend], quotedList(x.Devices))
	}
	switch {
	case !x.Answers:
		key("direction", "requests")
	case !x.Requests:
		key("direction", "answers")
	}
	if x.Proto != 0 {
		key("protocol", strconv.Itoa(int(x.Proto)))
	}
	if len(x.Ports) > 0 {
		var words []string
		for _, p := range x.Ports {
			words = append(words, p.String())
		}
		key("port", quotedList(words))
	}
	if len(x.From) > 0 {
		key("from", prefixList(x.From))
	}
	if len(x.To) > 0 {
		key("to", prefixList(x.To))
	}
	if x.Service != "" {
		key("service", strconv.Quote(x.Service))
	}
	return text
}
