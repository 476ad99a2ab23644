package config

import (
	"fmt"
	"strings"

	"weir/internal/config/yaml"
	"weir/internal/model"
)

// in reads the devices by which clients come in. Groups may come later in the file.
func (r *serviceReader) in(n yaml.Node, w where) {
	if n.Kind() == yaml.Sequence && n.Len() == 0 {
		return // checkDirect says that it is missing
	}
	r.oneOrEach(n, w, "devices or groups", func(n yaml.Node, w where) {
		if s, ok := r.str(n, w, "a device or a group of interfaces"+inQuotes); ok {
			r.inAt = append(r.inAt, inAt{r.s, s, n.Pos(), w})
		}
	})
}

// directUnfit says of keys why they make no sense where answers do not come back.
var directUnfit = map[string]string{
	"source":          "backends see the clients' own addresses, for they answer them past this machine",
	"sticky":          "nothing is remembered of clients; balance: source sends all of a client to one backend",
	"max_connections": "connections are not known here, so they can not be counted",
	"limit":           "packets go on before rates are looked at",
	"syn_proxy":       "answers of the backends do not come by here",
}

// checkDirectKey finds keys and words that make no sense with forward: direct.
func (r *serviceReader) checkDirectKey(k saidKey) {
	word := k.value.Text()
	wrong := func(why, allowed string) {
		r.add(k.value.Pos(), k.w, word, fmt.Sprintf("%s is not for forward: direct: %s; allowed: %s", word, why, allowed))
	}
	if why := directUnfit[k.name]; why != "" {
		r.add(k.at, k.w, k.name, fmt.Sprintf("key %s makes no sense with forward: direct: %s", k.name, why))
		return
	}
	switch {
	case k.name == "balance" && (word == model.RoundRobin.String() || word == model.Random.String()):
		wrong("nothing is remembered of connections, so every packet must find its backend by a hash", "maglev, source")
	case k.name == "when_all_down" && word == model.Reject.String():
		allowed := allDownWords[1:]
		if r.s.Steered() {
			allowed = steerDownWords[1:]
		}
		wrong("a packet can not be answered where it comes in", strings.Join(allowed, ", "))
	case k.name == "on_down" && word == model.Reset.String():
		wrong("connections are not known here, so they can not be ended", model.Keep.String())
	}
}

// checkDirect fills in the defaults of a service with forward: direct, and finds what is
// missing, and what its backends must not have.
func (r *serviceReader) checkDirect() {
	s := r.s
	s.Untracked, s.SynProxy = true, false
	if s.Balance < model.Maglev {
		s.Balance = model.Maglev
	}
	if s.WhenAllDown == model.Reject {
		s.WhenAllDown = model.Drop
	}
	if len(r.inAt) == 0 {
		r.missing(false, "in", "want the devices by which clients' packets come in, such as in: eth1")
	}
	r.clientIn = append(r.clientIn, r.inAt...)
	for i, b := range s.Backends {
		if p := r.backendAt[i]; !b.Ports.IsZero() {
			r.add(p.at, p.w, b.ID(), fmt.Sprintf("backend %s has a port: forward: direct translates nothing, the backend gets the listen address and port; want %s", b.ID(), b.Addr))
		}
	}
	for _, p := range r.backendMax {
		r.add(p.at, p.w, "max_connections", "key max_connections makes no sense with forward: direct: "+directUnfit["max_connections"])
	}
}
