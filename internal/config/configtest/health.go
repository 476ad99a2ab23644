package configtest

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// health says how a service's backends are checked, and what follows from it.
func (g *generator) health(s *model.Service) {
	s.OnDown = pick(g, []model.OnDown{model.Keep, model.Reset}, "on down")
	if g.flip("service check") {
		s.Check = g.check(askable(s, model.Backend{}))
	}
	checked := s.Check != nil && len(s.Backends) == 0
	for i := range s.Backends {
		b := &s.Backends[i]
		switch g.upTo(0, 5, "backend check") {
		case 0:
			b.Check = g.check(askable(s, *b))
		case 1:
			b.Check = &model.Check{Kind: model.CheckNone}
		}
		checked = checked || s.CheckOf(*b) != nil
	}
	if checked && g.flip("slow start") {
		s.SlowStart = g.millis(1000, 3_600_000, "slow start")
	}
	if checked && g.flip("min healthy") {
		s.MinHealthy = g.percent(100, "min healthy")
	}
	g.backups(s)
}

// backups leaves each family at least one backend that is none.
func (g *generator) backups(s *model.Service) {
	first := map[model.Family]bool{}
	for i, b := range s.Backends {
		s.Backends[i].Backup = first[b.Family()] && g.flip("backup")
		first[b.Family()] = true
	}
}

// askable reports whether a check of b can do without a port of its own.
func askable(s *model.Service, b model.Backend) bool {
	ports := map[uint16]bool{}
	for _, l := range s.Listen {
		ports[l.Ports.Lo], ports[l.Ports.Hi] = true, true
	}
	return !b.Ports.IsZero() || len(ports) == 1
}

func (g *generator) millis(lo, hi int, label string) time.Duration {
	return time.Duration(g.upTo(lo, hi, label)) * time.Millisecond
}

// percent makes hundredths of a percent.
func (g *generator) percent(most int, label string) float64 {
	return float64(g.upTo(0, most*100, label)) / 10_000
}

func (g *generator) text(pattern, label string) string {
	return rapid.StringMatching(pattern).Draw(g.t, label)
}

// check makes a check, which is told a port if it is not askable without one.
func (g *generator) check(askable bool) *model.Check {
	c := &model.Check{Kind: model.CheckKind(g.upTo(0, int(model.CheckExec), "kind"))}
	c.Every, c.Timeout, c.Rise, c.Fall, c.Jitter = 2*time.Second, time.Second, 2, 3, 0.1
	if g.flip("own times") {
		c.Every = g.millis(100, 3_600_000, "every")
		c.Timeout = g.millis(10, int(c.Every.Milliseconds()), "timeout")
	}
	if g.flip("own counts") {
		c.Rise, c.Fall, c.Jitter = g.upTo(1, 100, "rise"), g.upTo(1, 100, "fall"), g.percent(50, "jitter")
	}
	if c.Kind != model.CheckICMP && (!askable || g.flip("own port")) {
		c.Port = uint16(g.upTo(1, 65535, "check port"))
	}
	switch c.Kind {
	case model.CheckHTTP, model.CheckHTTPS:
		g.request(c)
	case model.CheckUDP:
		c.Send, c.Expect = g.bytes("send"), g.bytes("expect")
	case model.CheckDNS:
		c.Name = g.text(`\.|([a-z0-9_]{1,10}\.){0,3}[a-z]([a-z0-9-]{0,10}[a-z])?\.?`, "name")
		c.Type = pick(g, []string{"A", "AAAA", "SOA", "NS", "TXT", "MX"}, "type")
	case model.CheckGRPC:
		c.Name, c.Host, c.Plain = g.text(`[a-zA-Z.é"\\]{0,8}`, "service"), g.host(), g.flip("plain")
		c.Verify = !c.Plain && g.flip("verify")
	case model.CheckExec:
		c.Args = []string{g.text(`/[a-z/ ']{0,9}`, "command")}
		for range g.upTo(0, 3, "arguments") {
			c.Args = append(c.Args, g.text(`(?s)[^\x00]{0,6}`, "argument"))
		}
	}
	return c
}

func (g *generator) request(c *model.Check) {
	c.Path, c.Host = g.text(`/[!-~]{0,12}`, "path"), g.host()
	c.Method = pick(g, []string{"GET", "HEAD", "OPTIONS", "PURGE"}, "method")
	c.Verify = c.Kind == model.CheckHTTPS && g.flip("verify")
	for range g.upTo(0, 3, "status") {
		lo := g.upTo(100, 599, "code")
		c.Status = append(c.Status, model.CodeRange{Lo: lo, Hi: pick(g, []int{lo, 599}, "last code")})
	}
	if c.Method != "HEAD" {
		c.Body = g.text(`(?s).{0,6}`, "body")
	}
}

func (g *generator) host() string {
	if g.flip("name") {
		return g.text(`([a-z0-9]{1,8}\.){0,2}[a-z]{1,5}`, "host")
	}
	return pick(g, []string{"", "192.0.2.7", "[2001:db8::7]"}, "host")
}

func (g *generator) bytes(label string) string {
	out := make([]byte, g.upTo(0, 5, label+" length"))
	for i := range out {
		out[i] = byte(g.upTo(0, 255, label))
	}
	return string(out)
}

var (
	pathForm   = regexp.MustCompile(`^/[!-~]*$`)
	hostForm   = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.|$))+$`)
	methodForm = regexp.MustCompile(`^[A-Z]{1,20}$`)
	typeForm   = regexp.MustCompile(`^(A|AAAA|SOA|NS|TXT|MX)$`)
)

// checkHealth says what is wrong with the checks of a service.
func checkHealth(s *model.Service) error {
	checked := s.Check != nil && len(s.Backends) == 0
	others := map[model.Family]int{}
	for _, b := range s.Backends {
		if !b.Backup {
			others[b.Family()]++
		}
		c := s.CheckOf(b)
		if c == nil {
			continue
		}
		checked = true
		if c.Port == 0 && c.Kind != model.CheckICMP && c.Kind != model.CheckExec && !askable(s, b) {
			return fmt.Errorf("nobody knows on which port to ask %s", b.ID())
		}
	}
	for _, b := range s.Backends {
		if others[b.Family()] == 0 {
			return fmt.Errorf("%s is a backup of nobody", b.ID())
		}
		if b.Check != nil && b.Check.Kind != model.CheckNone {
			if err := checkCheck(b.Check); err != nil {
				return fmt.Errorf("check of %s: %w", b.ID(), err)
			}
		}
		if b.Check != nil && b.Check.Kind == model.CheckNone && !b.Check.Equal(&model.Check{Kind: model.CheckNone}) {
			return fmt.Errorf("%s has more than no check", b.ID())
		}
	}
	switch {
	case !checked && (s.SlowStart != 0 || s.MinHealthy != 0):
		return fmt.Errorf("slow start %s and min healthy %v without checks", s.SlowStart, s.MinHealthy)
	case s.SlowStart != 0 && !within(s.SlowStart, time.Second, time.Hour), s.MinHealthy < 0, s.MinHealthy > 1:
		return fmt.Errorf("slow start %s, min healthy %v", s.SlowStart, s.MinHealthy)
	case s.Check == nil:
		return nil
	}
	return checkCheck(s.Check)
}

func within(v, lo, hi time.Duration) bool { return lo <= v && v <= hi && v%time.Millisecond == 0 }

func checkCheck(c *model.Check) error {
	ok := within(c.Every, 100*time.Millisecond, time.Hour) && within(c.Timeout, 10*time.Millisecond, c.Every) &&
		c.Rise >= 1 && c.Rise <= 100 && c.Fall >= 1 && c.Fall <= 100 && c.Jitter >= 0 && c.Jitter <= 0.5
	rest := *c // without what its kind may say
	rest.Kind, rest.Every, rest.Timeout, rest.Rise, rest.Fall, rest.Jitter = 0, 0, 0, 0, 0, 0
	if c.Kind != model.CheckICMP {
		rest.Port = 0
	}
	switch c.Kind {
	case model.CheckHTTP, model.CheckHTTPS:
		ok = ok && pathForm.MatchString(c.Path) && len(c.Path) <= 2048 && hostOK(c.Host) && methodForm.MatchString(c.Method) &&
			len(c.Body) <= 1024 && (c.Body == "" || c.Method != "HEAD") && (c.Kind == model.CheckHTTPS || !c.Verify)
		for _, r := range c.Status {
			ok = ok && 100 <= r.Lo && r.Lo <= r.Hi && r.Hi <= 599
		}
		rest.Path, rest.Host, rest.Method, rest.Body, rest.Verify, rest.Status = "", "", "", "", false, nil
	case model.CheckUDP:
		ok = ok && len(c.Send) <= 1024 && len(c.Expect) <= 1024
		rest.Send, rest.Expect = "", ""
	case model.CheckDNS:
		ok = ok && (c.Name == "." || len(strings.TrimSuffix(c.Name, ".")) <= 253 && hostForm.MatchString(c.Name)) && typeForm.MatchString(c.Type)
		rest.Name, rest.Type = "", ""
	case model.CheckGRPC:
		ok = ok && len(c.Name) <= 1024 && hostOK(c.Host) && !(c.Plain && c.Verify)
		rest.Name, rest.Host, rest.Plain, rest.Verify = "", "", false, false
	case model.CheckExec:
		ok = ok && len(c.Args) > 0 && len(c.Args) <= 64 && strings.HasPrefix(c.Args[0], "/")
		for _, a := range c.Args {
			ok = ok && len(a) <= 4096 && !strings.Contains(a, "\x00")
		}
		rest.Args = nil
	}
	if !ok || c.Kind >= model.CheckNone || !rest.Equal(&model.Check{}) {
		return fmt.Errorf("%+v", *c)
	}
	return nil
}

func hostOK(s string) bool {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	switch {
	case s == "":
		return true
	case err == nil:
		return a.Zone() == "" && a.Is6() == strings.HasPrefix(s, "[")
	}
	return len(s) <= 253 && hostForm.MatchString(s) && !strings.HasSuffix(s, ".")
}
