package main

import (
	"weir/internal/host"
	"weir/internal/host/look"
	"weir/internal/model"
)

// survey looks at the box once, for cfg. It needs no rights. most bounds how many routes
// are looked for; 0: all.
func survey(cfg *model.Config, most int) (*host.Needs, *host.Facts, error) {
	l, err := look.Open()
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	n := host.NeedsOf(cfg)
	f, err := l.Look(n, most)
	return n, f, err
}

// applyRoutes is how many routes `weir apply` looks for, in a few milliseconds: to look for
// 100,000 would take as long as the rest of it. weir doctor looks for all.
const applyRoutes = 2048

// warnings returns what is seriously wrong on the box, a line each.
func warnings(cfg *model.Config) []string {
	n, f, err := survey(cfg, applyRoutes)
	if err != nil {
		return []string{notReadable(err).String()}
	}
	var out []string
	for _, f := range host.Serious(host.Judge(n, f)) {
		out = append(out, f.String())
	}
	return append(out, deadEnds(cfg)...)
}

// notReadable says that the box could not be looked at.
func notReadable(err error) host.Finding {
	return host.Finding{ID: host.NotReadable, Severity: host.Warning, Subject: "netlink", Services: []string{},
		Found: "the box could not be looked at: " + err.Error(), Means: "what is wrong there is not seen"}
}
