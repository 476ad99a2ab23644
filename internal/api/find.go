package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"weir/internal/engine"
	"weir/internal/model"
)

// findService returns a service, or an Error that names those there are.
func findService(cfg *model.Config, name string) (*model.Service, *Error) {
	if s := cfg.Service(name); s != nil {
		return s, nil
	}
	var names []string
	for _, s := range cfg.Services {
		names = append(names, s.Name)
	}
	return nil, &Error{Code: http.StatusNotFound,
		Message: fmt.Sprintf("there is no service %s; there are: %s", quote(name), enumerate(names))}
}

// findBackend returns the backend that a word means: by its identity, or by its address
// alone when only one backend of the service has it.
func findBackend(cfg *model.Config, service, word string) (engine.Member, *Error) {
	s, bad := findService(cfg, service)
	if bad != nil {
		return engine.Member{}, bad
	}
	word = canonical(word)
	addr, isAddr := parseAddr(word)
	var same, all []string
	for _, b := range s.Backends {
		id := b.ID()
		if id == word {
			return engine.Member{Service: s.Name, Backend: id}, nil
		}
		if isAddr && b.Addr == addr {
			same = append(same, id)
		}
		all = append(all, id)
	}
	switch len(same) {
	case 0:
		return engine.Member{}, &Error{Code: http.StatusNotFound,
			Message: fmt.Sprintf("service %s has no backend %s; it has: %s", s.Name, quote(word), enumerate(all))}
	case 1:
		return engine.Member{Service: s.Name, Backend: same[0]}, nil
	}
	return engine.Member{}, &Error{Code: http.StatusConflict,
		Message: fmt.Sprintf("service %s has several backends %s; say which: %s", s.Name, quote(word), enumerate(same))}
}

// canonical writes an address with a port as a backend's identity does.
func canonical(word string) string {
	if ap, err := netip.ParseAddrPort(word); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
	}
	if a, ok := parseAddr(word); ok {
		return a.String()
	}
	return word // with a range of ports, or nonsense
}

// parseAddr reads an address; brackets are allowed.
func parseAddr(word string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(word, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			word = inner
		}
	}
	a, err := netip.ParseAddr(word)
	return a.Unmap(), err == nil
}

func enumerate(names []string) string {
	switch n := len(names); {
	case n == 0:
		return "none"
	case n > maxNamed:
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d more", n-maxNamed)
	}
	return strings.Join(names, ", ")
}

// quote returns untrusted text so that it can be printed.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.QuoteToGraphic(s)
}
