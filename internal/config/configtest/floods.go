package configtest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"weir/internal/model"
)

func listensOnTCP(s *model.Service) bool {
	return slices.ContainsFunc(s.Listen, func(l model.Listen) bool { return l.Proto == model.TCP })
}

// floods gives a service limits of rates and a SYN proxy, or none.
func (g *generator) floods(s *model.Service) {
	if g.o.NoFloods {
		return
	}
	tcp := listensOnTCP(s)
	s.SynProxy = tcp && !s.Untracked && g.upTo(0, 4, "SYN proxy") == 0
	for range max(0, g.upTo(-3, 3, "limits")) {
		l := model.NewLimit()
		l.Counts = pick(g, []model.Counts{model.NewConnections, model.Packets}, "counts")
		if s.Untracked && !tcp {
			l.Counts = model.Packets
		}
		l.Rate, l.Unit = g.upTo(1, 1000, "rate"), pick(g, []time.Duration{time.Second, time.Minute, time.Hour}, "unit")
		l.Burst = g.upTo(1, 20*l.Rate, "burst")
		switch g.upTo(0, 3, "per") {
		case 0:
			l.Whole, l.V4, l.V6 = true, 0, 0
		case 1:
			l.V4 = g.upTo(1, 32, "IPv4 bits")
		case 2:
			l.V6 = g.upTo(33, 128, "IPv6 bits")
		}
		l.Reject = l.Counts == model.NewConnections && !s.SynProxy && g.flip("reject")
		if !slices.Contains(s.Limits, l) {
			s.Limits = append(s.Limits, l)
		}
	}
}

// floodKeys returns the keys of a service about floods.
func (w *writer) floodKeys(s *model.Service) []string {
	var keys []string
	if s.SynProxy || w.flip("say syn_proxy") {
		keys = append(keys, fmt.Sprintf("syn_proxy: %t", s.SynProxy))
	}
	var limits []string
	for _, l := range s.Limits {
		limits = append(limits, w.limit(l))
	}
	switch {
	case len(limits) == 1 && w.flip("no list"):
		keys = append(keys, "limit: "+limits[0])
	case len(limits) > 0:
		keys = append(keys, "limit: ["+strings.Join(limits, ", ")+"]")
	}
	return keys
}

func (w *writer) limit(l model.Limit) string {
	unit := map[time.Duration]string{time.Second: "second", time.Minute: "minute", time.Hour: "hour"}[l.Unit]
	name := map[model.Counts]string{model.NewConnections: "new_connections", model.Packets: "packets"}[l.Counts]
	keys := []string{name + ": " + w.scalar(fmt.Sprintf("%d/%s", l.Rate, unit))}
	if l.Burst != l.Rate || w.flip("say burst") {
		keys = append(keys, fmt.Sprintf("burst: %d", l.Burst))
	}
	var lengths []string
	if l.V4 != 32 || w.flip("say 32") {
		lengths = append(lengths, fmt.Sprint(l.V4))
	}
	if l.V6 != 64 || w.flip("say 64") {
		lengths = append(lengths, fmt.Sprint(l.V6))
	}
	switch {
	case l.Whole:
		keys = append(keys, "per: "+w.scalar("service"))
	case len(lengths) > 0:
		keys = append(keys, `per: "source/`+strings.Join(lengths, ",")+`"`)
	case w.flip("say per"):
		keys = append(keys, "per: "+w.scalar("source"))
	}
	if l.Reject {
		keys = append(keys, "action: "+w.scalar("reject"))
	} else if w.flip("say action") {
		keys = append(keys, "action: "+w.scalar("drop"))
	}
	return "{" + strings.Join(keys, ", ") + "}"
}

// checkFloods says what is wrong with limits and the SYN proxy of a service.
func checkFloods(s *model.Service) error {
	tcp := listensOnTCP(s)
	if s.SynProxy && (!tcp || s.Untracked) {
		return fmt.Errorf("a SYN proxy without tracked TCP")
	}
	if len(s.Limits) > 8 {
		return fmt.Errorf("%d limits", len(s.Limits))
	}
	for i, l := range s.Limits {
		rest := float64(l.Burst) / float64(l.Rate) * l.Unit.Hours()
		sources := l.V4 >= 1 && l.V4 <= 32 && l.V6 >= 33 && l.V6 <= 128
		switch {
		case slices.Contains(s.Limits[:i], l):
			return fmt.Errorf("limit %s is there twice", l)
		case l.Rate < 1 || l.Rate > 10_000_000 || l.Burst < 1 || l.Burst > 10_000_000 || rest > 24:
			return fmt.Errorf("limit %s: rate or burst", l)
		case l.Unit != time.Second && l.Unit != time.Minute && l.Unit != time.Hour:
			return fmt.Errorf("limit %s: unit", l)
		case l.Whole && (l.V4 != 0 || l.V6 != 0) || !l.Whole && !sources:
			return fmt.Errorf("limit %s: sources", l)
		case l.Reject && (l.Counts == model.Packets || s.SynProxy):
			return fmt.Errorf("limit %s: reject", l)
		case l.Counts == model.NewConnections && s.Untracked && !tcp:
			return fmt.Errorf("limit %s: nothing tells a new connection", l)
		}
	}
	return nil
}
