package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"weir/internal/model"
)

// The types below are the language: every key, with its default and its meaning in
// words. The JSON Schema and the allowed keys of messages are made from them. They are
// not filled from a file: package yaml hands out values with their places, which a
// struct can not keep.

type fileKeys struct {
	HashSeed   uint32         `json:"hash_seed,omitempty" jsonschema:"minimum=0,maximum=4294967295,default=2003134834" jsonschema_description:"Seed of every hash: which backend a client gets with balance maglev or source depends on it. The same on every node of a group. 0 to 4294967295, also in hexadecimal (0x5eed1234). Default: 2003134834 (0x77656972)."`
	MarkMask   uint32         `json:"mark_mask,omitempty" jsonschema:"minimum=1,maximum=4294967295,default=268369920" jsonschema_description:"The bits of packet and connection marks that weir may use; all others are left alone; steering needs as many as tell its backends apart. At least one bit. Default: 268369920 (0x0fff0000)."`
	Interfaces groups         `json:"interfaces,omitempty" jsonschema_description:"Named groups of network devices. Where a device is asked for, the name of a group will do. Default: no groups."`
	Edge       edgeKeys       `json:"edge,omitempty" jsonschema_description:"What may reach this machine and what may be forwarded through it. Default: everything, weir restricts nothing."`
	Services   []serviceKeys  `json:"services,omitempty" jsonschema_description:"The services. A list without entries is written [] and is allowed. Needed unless there are blocklists, steering, an edge, egress pools or mirrors."`
	Steering   []steeringKeys `json:"steering,omitempty" jsonschema_description:"Services whose backends weir itself chooses, by rules, for the first packet of each connection. Default: none."`

	Blocklists []blocklistKeys `json:"blocklists,omitempty" jsonschema:"maxItems=64" jsonschema_description:"Lists of addresses whose packets are turned away before anything else is done with them. Default: none."`
	Mirrors    []mirrorKeys    `json:"mirrors,omitempty" jsonschema:"maxItems=16" jsonschema_description:"Copies of packets for somebody to look at, who sits on a network of this machine. Default: none."`
	Allow      oneOrMore       `json:"allow,omitempty" jsonschema_description:"Addresses and prefixes that are never blocked, whatever a list says. Default: none."`

	Egress   []egressKeys `json:"egress,omitempty" jsonschema:"maxItems=256" jsonschema_description:"Pools of addresses that connections get as their source when they leave. A connection takes the first pool of the list that matches it; one whose destination was translated takes none, but for services with source: POOL. Default: none."`
	Bindings bindingsKeys `json:"bindings,omitempty" jsonschema_description:"Where it is logged which client had which address and ports of a pool (log: true). Default: to a file."`
}

type serviceKeys struct {
	Name        string         `json:"name" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the service, by which commands and metrics know it. Unique. Letters, digits, dot, dash and underscore; begins with a letter or digit; at most 63 bytes."`
	Listen      oneOrMore      `json:"listen" jsonschema_description:"What clients connect to: ADDRESS:PORTS/PROTOCOL, one or a list. PORTS are ports and ranges with commas between them (80,443,8000-8010). PROTOCOL is tcp, udp or sctp; default: tcp. An IPv6 address stands in brackets. No two services may listen on the same address, port and protocol."`
	Forward     string         `json:"forward,omitempty" jsonschema:"default=nat" jsonschema_description:"How packets reach who serves them. nat: the destination is rewritten to a backend's, and answers come back through this machine. direct: packets go to a backend as they are, only the link-layer address changes; backends are on a segment of this machine, hold the listen addresses themselves (weir backend-setup), and answer clients past this machine. local: a program on this machine serves them; there are no backends. Default: nat."`
	Track       string         `json:"track,omitempty" jsonschema:"default=conntrack" jsonschema_description:"Whether the kernel's connection tracking sees the packets. conntrack: yes. none: packets to and from the listeners are kept out of it, and let in, by one look-up each way; only with forward: local. With forward: direct it never sees them. Default: conntrack; none with forward: direct."`
	In          oneOrMore      `json:"in,omitempty" jsonschema_description:"Devices or groups of interfaces by which clients' packets come in; only with forward: direct, and needed there."`
	Balance     string         `json:"balance,omitempty" jsonschema:"default=round-robin" jsonschema_description:"How a backend is chosen for a new connection. round-robin: in turn, by weight. random: at random, by weight. maglev: by a consistent hash of the client's address and port. source: by a consistent hash of the client's address, so that a client keeps its backend. Default: round-robin."`
	Source      sourceKeys     `json:"source,omitempty" jsonschema_description:"What the backend sees as the client's address. keep: the client's own; the backend's way back must lead through this machine. masquerade: the address of this machine's outgoing device. Or a fixed address, or a list with one for each family that the service listens on. Or the name of an egress pool, whose addresses and ports it shares, whatever the pool matches. Default: keep."`
	Sticky      string         `json:"sticky,omitempty" jsonschema:"default=off" jsonschema_description:"For how long after its last connection a client (source address) is sent to the same backend again: 1s to 24h, such as 90s, 10m, 1h30m or 1d. off: not at all. Default: off."`
	WhenAllDown string         `json:"when_all_down,omitempty" jsonschema:"default=reject" jsonschema_description:"What happens to new connections when no backend can be chosen. reject: they are refused at once (TCP reset; ICMP port unreachable for the rest). drop: they get no answer. fail-open: backends that checks find down are tried all the same, as the checks may be wrong; where there are none, as reject. Default: reject."`
	Check       checkEntry     `json:"check,omitempty" jsonschema_description:"How the backends are asked for their health, those with a check of their own excepted: tcp or icmp, or a mapping with exactly one of the keys tcp, http, https, udp, dns, grpc, icmp, exec. Default: none; backends count as up."`
	SlowStart   string         `json:"slow_start,omitempty" jsonschema:"default=off" jsonschema_description:"How long the weight of a backend that came up again climbs to its whole, 1s to 1h, or off for at once. Needs a check. Default: off."`
	MinHealthy  string         `json:"min_healthy,omitempty" jsonschema:"pattern=^[0-9]{1\\,3}(\\.[0-9]{1\\,2})?%$,default=0%" jsonschema_description:"Part of the backends, 0% to 100%, below which too few are up: then backups take part, and with when_all_down: fail-open those that are down. Needs a check. Default: 0%; when none is up."`
	OnDown      string         `json:"on_down,omitempty" jsonschema:"default=keep" jsonschema_description:"What happens to the connections of a backend that goes down. keep: nothing; they may live longer than the check believes. reset: TCP clients get a reset at once, UDP flows move to another backend. Default: keep."`
	MaxConns    int            `json:"max_connections,omitempty" jsonschema:"minimum=1,maximum=10000000" jsonschema_description:"How many connections may be open with all backends of the service together, 1 to 10000000. New ones beyond it are refused (TCP reset; ICMP port unreachable for the rest), or dropped where when_all_down says drop. Default: any number."`
	Limit       limitEntry     `json:"limit,omitempty" jsonschema_description:"How much a source, or all of them, may send: a limit or a list of up to 8, all of which must be kept. Default: no limit."`
	SynProxy    bool           `json:"syn_proxy,omitempty" jsonschema:"default=false" jsonschema_description:"Whether weir answers TCP clients in the server's place until they have proved their address, so that a flood of SYNs with false ones fills no table. Not with track: none. The listen addresses must be this machine's (assign), or routed to somewhere: not to blackhole, unreachable or prohibit. Default: false."`
	Assign      string         `json:"assign,omitempty" jsonschema_description:"Network device, or group with exactly one, that is given the listen addresses while weir runs. Default: none; the addresses are routed to this machine by other means."`
	Backends    []backendEntry `json:"backends,omitempty" jsonschema:"maxItems=4096" jsonschema_description:"The servers. A service without any is written [] and does what when_all_down says. Must be there, but for forward: local, which has none."`
}

type backendKeys struct {
	Address  string     `json:"address" jsonschema_description:"ADDRESS, ADDRESS:PORT or ADDRESS:PORT-PORT; an IPv6 address with a port stands in brackets. Without a port the connection's own is kept. With one port, every listen port leads to it. With a range, ports are translated one by one: it must be as long as every listen range of the service, and at most 1024 ports. Unique in the service."`
	Weight   int        `json:"weight,omitempty" jsonschema:"minimum=0,maximum=256,default=1" jsonschema_description:"Share of the new connections, compared with the other backends of the service, 0 to 256. 0: no new ones, for a backend that is to be taken out. Default: 1."`
	MaxConns int        `json:"max_connections,omitempty" jsonschema:"minimum=1,maximum=10000000" jsonschema_description:"How many connections of this service may be open with the backend, 1 to 10000000. New ones beyond it go to the other backends; where all are full, they are refused as with the service's max_connections. Default: any number."`
	Backup   bool       `json:"backup,omitempty" jsonschema:"default=false" jsonschema_description:"Whether the backend gets new connections only when too few others are up (min_healthy). At least one backend of each family must be no backup. Default: false."`
	Check    checkEntry `json:"check,omitempty" jsonschema_description:"How this backend is asked for its health, in the place of the service's check as a whole; none: not at all. Default: as the service says."`
}

type blocklistKeys struct {
	Name      string    `json:"name" jsonschema:"pattern=^[A-Za-z0-9][A-Za-z0-9_.-]{0\\,62}$" jsonschema_description:"Name of the list, by which commands and metrics know it. Unique among the lists. Letters, digits, dot, dash and underscore; begins with a letter or digit; at most 63 bytes; not operator, which is the list of weir block."`
	Entries   oneOrMore `json:"entries,omitempty" jsonschema_description:"Addresses, prefixes (192.0.2.0/24) and ranges (192.0.2.1-192.0.2.9), of both families. Default: none."`
	Files     oneOrMore `json:"files,omitempty" jsonschema_description:"Files with entries, and globs such as lists/*.netset, relative to the directory of this file; read again when they change. Plain addresses, prefixes and ranges with # and ; comments, ipset save, Spamhaus DROP (text and JSON lines), FireHOL netsets; any of them in gzip. Default: none."`
	Action    string    `json:"action,omitempty" jsonschema:"default=drop" jsonschema_description:"What happens to packets from these addresses. drop: they vanish. reject: the sender is told (TCP reset; ICMP administratively prohibited for the rest). count: nothing; they are only counted. Default: drop."`
	Strict    bool      `json:"strict,omitempty" jsonschema:"default=false" jsonschema_description:"Whether a line that is no entry makes the whole list bad, so that the last good one stays. Otherwise it is left out, counted and told. Default: false."`
	MaxChange string    `json:"max_change,omitempty" jsonschema:"pattern=^([0-9]{1\\,3}(\\.[0-9]{1\\,2})?%|off)$,default=50%" jsonschema_description:"Part of the list that may come or go at once, 1% to 900%; a change beyond is taken for a mistake, and the last good list stays. off: any change is taken. Default: 50%."`
}

type checkKeys struct {
	TCP   onlyTrue `json:"tcp,omitempty" jsonschema_description:"Kind tcp: up when a connection can be opened."`
	HTTP  string   `json:"http,omitempty" jsonschema:"pattern=^/,maxLength=2048" jsonschema_description:"Kind http: the path, with its query, of a request that must be answered with a good status."`
	HTTPS string   `json:"https,omitempty" jsonschema:"pattern=^/,maxLength=2048" jsonschema_description:"Kind https: the same as http, over TLS."`
	UDP   udpKeys  `json:"udp,omitempty" jsonschema_description:"Kind udp: the datagram to send and how the answer must begin."`
	DNS   string   `json:"dns,omitempty" jsonschema:"maxLength=254" jsonschema_description:"Kind dns: the name that must be resolved, over UDP."`
	GRPC  string   `json:"grpc,omitempty" jsonschema:"maxLength=1024" jsonschema_description:"Kind grpc: the service whose grpc.health.v1 status must be SERVING; empty for the whole server."`
	ICMP  onlyTrue `json:"icmp,omitempty" jsonschema_description:"Kind icmp: up when an echo request is answered."`
	Exec  []string `json:"exec,omitempty" jsonschema:"minItems=1,maxItems=64" jsonschema_description:"Kind exec: a command by its absolute path, and its arguments, that must exit with 0; no shell, WEIR_ADDRESS and WEIR_PORT are in its environment."`

	Every   string `json:"every,omitempty" jsonschema:"default=2s" jsonschema_description:"Time from the start of one probe to the start of the next, 100ms to 1h. Default: 2s."`
	Timeout string `json:"timeout,omitempty" jsonschema_description:"Time after which a probe without an answer is bad, 10ms to every. Default: 1s, or every where that is shorter."`
	Rise    int    `json:"rise,omitempty" jsonschema:"minimum=1,maximum=100,default=2" jsonschema_description:"Good probes in a row that make a backend up, 1 to 100. Default: 2."`
	Fall    int    `json:"fall,omitempty" jsonschema:"minimum=1,maximum=100,default=3" jsonschema_description:"Bad probes in a row that make a backend down, 1 to 100. Default: 3."`
	Jitter  string `json:"jitter,omitempty" jsonschema:"pattern=^[0-9]{1\\,2}(\\.[0-9]{1\\,2})?%$,default=10%" jsonschema_description:"The time between two probes is shorter than every by a random part of it up to this, 0% to 50%, so that they do not keep in step. It is never longer: a backend that stops answering is down after at most fall times every and one timeout. Default: 10%."`
	Port    int    `json:"port,omitempty" jsonschema:"minimum=1,maximum=65535" jsonschema_description:"Port that is asked (all kinds but icmp). Default: the backend's own, the first of a range; without one the port of listen, if there is but one."`

	Host   string    `json:"host,omitempty" jsonschema:"maxLength=253" jsonschema_description:"Name or address in the Host header and, over TLS, in SNI and the certificate (http, https, grpc). Default: the backend's address."`
	Method string    `json:"method,omitempty" jsonschema:"pattern=^[A-Z]{1\\,20}$,default=GET" jsonschema_description:"Method of the request (http, https). Default: GET."`
	Status codesKeys `json:"status,omitempty" jsonschema_description:"Good status codes, one or a list of codes and ranges such as [200-299, 404], 100 to 599 (http, https). Default: 200-399."`
	Body   string    `json:"body,omitempty" jsonschema:"maxLength=1024" jsonschema_description:"Text that the first 64 KiB of the body must contain (http, https). Default: none; the body is not read."`
	Verify bool      `json:"verify,omitempty" jsonschema:"default=true" jsonschema_description:"Whether the certificate must be valid for host (https, and grpc with plain: false). Default: true."`
	Type   string    `json:"type,omitempty" jsonschema:"default=A" jsonschema_description:"Type of the record that the answer must have (dns). Default: A."`
	Plain  bool      `json:"plain,omitempty" jsonschema:"default=true" jsonschema_description:"Whether the call is made without TLS (grpc). Default: true."`
}

type udpKeys struct {
	Send   string `json:"send" jsonschema:"maxLength=1024" jsonschema_description:"Content of the datagram: each character up to U+00FF is one byte, so \"\\xff\" in double quotes is a byte of that value; at most 1024."`
	Expect string `json:"expect,omitempty" jsonschema:"maxLength=1024" jsonschema_description:"What the answer must begin with, written like send. Default: any answer will do."`
}

// Values with more than one form in the file.
type (
	checkEntry   struct{}
	onlyTrue     struct{}
	codesKeys    struct{}
	oneOrMore    struct{}
	sourceKeys   struct{}
	groups       struct{}
	backendEntry struct{}
)

func text() *jsonschema.Schema { return &jsonschema.Schema{Type: "string"} }

func list(of *jsonschema.Schema) *jsonschema.Schema {
	least := uint64(1)
	return &jsonschema.Schema{Type: "array", Items: of, MinItems: &least}
}

func anyOf(s ...*jsonschema.Schema) *jsonschema.Schema { return &jsonschema.Schema{AnyOf: s} }

// JSONSchema says: one text or a list of them.
func (oneOrMore) JSONSchema() *jsonschema.Schema { return anyOf(text(), list(text())) }

// JSONSchema says: a word, an address, or one or two addresses.
func (sourceKeys) JSONSchema() *jsonschema.Schema {
	addresses, most := list(text()), uint64(2)
	addresses.MaxItems = &most
	s := anyOf(text(), addresses)
	s.Default = "keep"
	return s
}

// JSONSchema says: a device or a list of devices for every name.
func (groups) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "object", AdditionalProperties: anyOf(text(), list(text()))}
}

// JSONSchema says: an address alone, or the keys of a backend.
func (backendEntry) JSONSchema() *jsonschema.Schema {
	keys := reflector().Reflect(backendKeys{})
	keys.Version = ""
	short := text()
	short.Description = "The address alone, with weight 1."
	return anyOf(short, keys)
}

// JSONSchema says: a word, or the keys of a check with exactly one kind.
func (checkEntry) JSONSchema() *jsonschema.Schema {
	word := text()
	setWords(word, []string{model.CheckTCP.String(), model.CheckICMP.String(), model.CheckNone.String()})
	keys := reflector().Reflect(checkKeys{})
	keys.Version = ""
	for k := range model.CheckNone {
		keys.OneOf = append(keys.OneOf, &jsonschema.Schema{Required: []string{k.String()}})
	}
	return anyOf(word, keys)
}

// JSONSchemaExtend lists the types of DNS records.
func (checkKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	p, _ := s.Properties.Get("type")
	setWords(p, dnsTypes)
}

// JSONSchema says: true, as nothing else makes sense.
func (onlyTrue) JSONSchema() *jsonschema.Schema { return &jsonschema.Schema{Const: true} }

// JSONSchema says: a code or a range of codes, or a list of these.
func (codesKeys) JSONSchema() *jsonschema.Schema {
	number, rang := &jsonschema.Schema{Type: "integer", Minimum: "100", Maximum: "599"}, text()
	rang.Pattern = "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"
	codes, most := list(anyOf(number, rang)), uint64(maxStatuses)
	codes.MaxItems = &most
	return anyOf(number, rang, codes)
}

// JSONSchemaExtend lists the words of the keys whose words the model knows.
func (serviceKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	for key, words := range map[string][]string{
		"balance": model.BalanceNames(), "forward": model.ForwardNames(), "track": trackWords,
		"when_all_down": allDownWords, "on_down": onDownWords,
	} {
		p, _ := s.Properties.Get(key)
		setWords(p, words)
	}
}

// JSONSchemaExtend lists the words of action.
func (blocklistKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	p, _ := s.Properties.Get("action")
	setWords(p, actionWords)
}

func setWords(s *jsonschema.Schema, words []string) {
	for _, w := range words {
		s.Enum = append(s.Enum, w)
	}
}

func reflector() *jsonschema.Reflector {
	return &jsonschema.Reflector{Anonymous: true, DoNotReference: true, ExpandedStruct: true}
}

// Schema returns the JSON Schema (draft 2020-12) of the language, for editors. It is
// the same text on every call. It can not say all that Load checks.
func Schema() []byte {
	s := reflector().Reflect(fileKeys{})
	s.Title = "weir configuration"
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		panic("config: the schema has no JSON form: " + err.Error()) // it is built from constants
	}
	return b.Bytes()
}

// The allowed keys, in the order of the types.
var (
	topAllowed     = keysOf[fileKeys]()
	serviceAllowed = keysOf[serviceKeys]()
	backendAllowed = keysOf[backendKeys]()
	checkAllowed   = keysOf[checkKeys]()
	listAllowed    = keysOf[blocklistKeys]()
	udpAllowed     = keysOf[udpKeys]()
	edgeAllowed    = keysOf[edgeKeys]()
	mirrorAllowed  = keysOf[mirrorKeys]()
	matchAllowed   = keysOf[matchKeys]()
	vxlanAllowed   = keysOf[tunnelKeys]()
	openAllowed    = keysOf[openKeys]()
	egressAllowed  = keysOf[egressKeys]()
)

func keysOf[T any]() []string {
	var out []string
	for t, i := reflect.TypeFor[T](), 0; i < t.NumField(); i++ {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}
