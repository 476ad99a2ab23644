package config

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/invopop/jsonschema"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

type limitKeys struct {
	NewConnections string `json:"new_connections,omitempty" jsonschema:"pattern=^[0-9]+/(second|minute|hour)$" jsonschema_description:"How many new connections pass in a second, a minute or an hour, such as 50/second; 1 to 10000000. A SYN that is sent again counts again. With track: none, TCP SYNs are counted."`
	Packets        string `json:"packets,omitempty" jsonschema:"pattern=^[0-9]+/(second|minute|hour)$" jsonschema_description:"The same for all packets to the service, counted before connection tracking. One of new_connections and packets must be there, not both."`
	Burst          int    `json:"burst,omitempty" jsonschema:"minimum=1,maximum=10000000" jsonschema_description:"How many pass at once after a time of rest. The rate must bring as many within a day. Default: the number of the rate."`
	Per            string `json:"per,omitempty" jsonschema:"pattern=^(service|source(/[0-9]{1\\,3}(\\,[0-9]{1\\,3})?)?)$,default=source" jsonschema_description:"Who shares what passes. source: each IPv4 address and each IPv6 /64 for itself. source/24: each IPv4 prefix of that length (1 to 32), IPv6 as with source. source/48: each IPv6 prefix of that length (33 to 128), IPv4 as with source. source/24,48: both. service: all together. Default: source."`
	Action         string `json:"action,omitempty" jsonschema:"default=drop" jsonschema_description:"What becomes of what is over the limit. drop: it gets no answer. reject: it is refused (TCP reset, ICMP port unreachable for the rest); for new_connections only. Default: drop."`
}

// limitEntry is a limit or a list of them.
type limitEntry struct{}

// JSONSchema says: the keys of a limit, or a list of limits.
func (limitEntry) JSONSchema() *jsonschema.Schema {
	keys := func() *jsonschema.Schema {
		s := reflector().Reflect(limitKeys{})
		s.Version = ""
		for _, c := range countsAllowed {
			s.OneOf = append(s.OneOf, &jsonschema.Schema{Required: []string{c}})
		}
		return s
	}
	limits, most := list(keys()), uint64(model.MaxLimits)
	limits.MaxItems = &most
	return anyOf(keys(), limits)
}

// JSONSchemaExtend lists the words of action.
func (limitKeys) JSONSchemaExtend(s *jsonschema.Schema) {
	p, _ := s.Properties.Get("action")
	setWords(p, limitActions)
}

var (
	limitAllowed  = keysOf[limitKeys]()
	limitActions  = []string{"drop", "reject"}
	countsAllowed = []string{model.NewConnections.String(), model.Packets.String()}
	unitWords     = map[string]time.Duration{"second": time.Second, "minute": time.Minute, "hour": time.Hour}
)

// floodReader keeps what the checks of limits and of the SYN proxy need.
type floodReader struct {
	limits []place // one for each of s.Limits
	proxy  place
}

// limits reads one limit or a list.
func (r *serviceReader) limits(n yaml.Node, w where) {
	if n.Kind() == yaml.Mapping {
		r.limit(n, w)
		return
	}
	switch {
	case n.Kind() != yaml.Sequence:
		r.addf(n, w, "%s is not allowed; want a limit such as {new_connections: 50/second, burst: 100}, or a list of them", describe(n))
		return
	case n.Len() == 0:
		r.addf(n, w, "a list without entries is not allowed; want limits, or leave the key out")
	case n.Len() > model.MaxLimits:
		r.addf(n, w, "%d limits; allowed: up to %d", n.Len(), model.MaxLimits)
		return
	}
	for j, c := range n.Items() {
		if c.Kind() != yaml.Mapping {
			r.addf(c, w.at(j), "%s is not allowed; want a limit with the keys %s", describe(c), strings.Join(limitAllowed, ", "))
			continue
		}
		r.limit(c, w.at(j))
	}
}

func (r *serviceReader) limit(n yaml.Node, w where) {
	l := model.NewLimit()
	before := len(r.problems)
	var rates []string
	var action, burst place
	for k, v := range n.Pairs() {
		switch w := w.of(k.Text()); k.Text() {
		case "new_connections", "packets":
			rates = append(rates, k.Text())
			l.Counts = model.Counts(slices.Index(countsAllowed, k.Text()))
			l.Rate, l.Unit = r.rate(v, w)
		case "burst":
			burst = place{v.Pos(), w}
			l.Burst = int(r.number(v, w, 1, model.MaxRate))
		case "per":
			r.per(&l, v, w)
		case "action":
			action = place{v.Pos(), w}
			i, _ := r.word(v, w, limitActions)
			l.Reject = i == 1
		default:
			r.unknown(k, w.of(""), limitAllowed)
		}
	}
	switch {
	case len(r.problems) > before:
		return
	case len(rates) != 1:
		r.addf(n, w, "want one of the keys %s, with a rate such as 50/second; found %s", strings.Join(countsAllowed, ", "), found(rates))
		return
	case l.Reject && l.Counts == model.Packets:
		r.add(action.at, action.w, "reject", "action: reject is for new_connections; an answer to each packet of a flood would be a flood too")
		return
	}
	if l.Burst == 0 {
		l.Burst = l.Rate
	}
	if l.Refill() > model.MaxRefill {
		r.add(burst.at, burst.w, strconv.Itoa(l.Burst), fmt.Sprintf("%s brings %d only after %s; allowed: what it brings within a day", l.RateText(), l.Burst, l.Refill().Round(time.Second)))
		return
	}
	if i := slices.Index(r.s.Limits, l); i >= 0 {
		r.addf(n, w, "the limit is there twice; it was first given in line %d", r.floods.limits[i].at.Line)
		return
	}
	r.s.Limits = append(r.s.Limits, l)
	r.floods.limits = append(r.floods.limits, place{n.Pos(), w})
}

func found(keys []string) string {
	if len(keys) == 0 {
		return "none"
	}
	return strings.Join(keys, " and ")
}

const rateForm = "a rate such as 50/second, 600/minute or 1000/hour, from 1 to 10000000"

// rate reads "50/second".
func (r *serviceReader) rate(n yaml.Node, w where) (int, time.Duration) {
	s, ok := r.str(n, w, rateForm)
	if !ok {
		return 0, 0
	}
	number, word, _ := strings.Cut(s, "/")
	unit := unitWords[word]
	v, err := strconv.Atoi(number)
	if unit == 0 || err != nil || !digits(number, 8) || v < 1 || v > model.MaxRate {
		r.addf(n, w, "%s is not a rate; want %s", quote(s), rateForm)
		return 0, 0
	}
	return v, unit
}

const perForm = "source, source/N with N from 1 to 32 for IPv4 or from 33 to 128 for IPv6, source/N,N for both, or service"

// per reads who shares a limit.
func (r *serviceReader) per(l *model.Limit, n yaml.Node, w where) {
	s, ok := r.str(n, w, perForm)
	if !ok {
		return
	}
	lengths, hasLengths := strings.CutPrefix(s, "source/")
	switch {
	case s == "source":
	case s == "service":
		l.Whole, l.V4, l.V6 = true, 0, 0
	case !hasLengths || !sources(l, lengths):
		r.addf(n, w, "%s is not allowed; allowed: %s", quote(s), perForm)
	}
}

// sources takes prefix lengths, one for a family.
func sources(l *model.Limit, text string) bool {
	var four, six bool
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		switch {
		case err != nil || !digits(part, 3) || n < 1 || n > 128:
			return false
		case n < model.MinSource6 && !four && !six: // IPv4 comes first
			l.V4, four = n, true
		case n >= model.MinSource6 && !six:
			l.V6, six = n, true
		default:
			return false
		}
	}
	return true
}

// checkFloods holds limits and SYN proxy against the rest of the service.
func (r *serviceReader) checkFloods() {
	s := r.s
	tcp := slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return l.Proto == model.TCP })
	if p := r.floods.proxy; s.SynProxy && !r.broken {
		switch {
		case !tcp:
			r.add(p.at, p.w, "true", "syn_proxy is for TCP, and the service listens on none")
		case s.Untracked:
			r.add(p.at, p.w, "true", "syn_proxy needs connection tracking, which translates the sequence numbers between client and server; it cannot be with track: none")
		}
	}
	for i, l := range s.Limits {
		switch p := r.floods.limits[i]; {
		case r.broken:
		case l.Counts == model.NewConnections && s.Untracked && !tcp:
			r.add(p.at, p.w, "", "new_connections counts TCP SYNs with track: none, and the service does not listen on TCP; want packets")
		case l.Reject && s.SynProxy:
			r.add(p.at, p.w, "", "action: reject cannot be with syn_proxy, whose client is connected before the limit is asked; want action: drop")
		}
	}
}

// marshalFloods writes limits and SYN proxy.
func marshalFloods(b *bytes.Buffer, s *model.Service) {
	if s.SynProxy {
		b.WriteString("    syn_proxy: true\n")
	}
	switch len(s.Limits) {
	case 0:
	case 1:
		fmt.Fprintf(b, "    limit: %s\n", limitText(s.Limits[0]))
	default:
		b.WriteString("    limit:\n")
		for _, l := range s.Limits {
			fmt.Fprintf(b, "      - %s\n", limitText(l))
		}
	}
}

func limitText(l model.Limit) string {
	text := fmt.Sprintf("{%s: %s", l.Counts, l.RateText())
	if l.Burst != l.Rate {
		text += fmt.Sprintf(", burst: %d", l.Burst)
	}
	if per := l.PerText(); per != "source" {
		text += fmt.Sprintf(", per: %q", per)
	}
	if l.Reject {
		text += ", action: reject"
	}
	return text + "}"
}
