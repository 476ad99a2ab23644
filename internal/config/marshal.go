package config

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"weir/internal/model"
)

// Marshal writes cfg, which must be valid, as a file that Parse turns into an equal
// model. Keys that have their default are left out.
func Marshal(cfg *model.Config) []byte {
	var b bytes.Buffer
	if cfg.HashSeed != model.DefaultHashSeed {
		fmt.Fprintf(&b, "hash_seed: 0x%08x\n", cfg.HashSeed)
	}
	if cfg.MarkMask != model.DefaultMarkMask {
		fmt.Fprintf(&b, "mark_mask: 0x%08x\n", cfg.MarkMask)
	}
	if len(cfg.Interfaces) > 0 {
		b.WriteString("interfaces:\n")
		for _, name := range slices.Sorted(maps.Keys(cfg.Interfaces)) {
			fmt.Fprintf(&b, "  %q: %s\n", name, quotedList(cfg.Interfaces[name]))
		}
	}
	marshalEdge(&b, cfg.Edge)
	marshalMirrors(&b, cfg.Mirrors)
	marshalBlocklists(&b, cfg)
	marshalEgress(&b, cfg)
	plain := slices.DeleteFunc(slices.Clone(cfg.Services), (*model.Service).Steered)
	if len(plain) == 0 {
		b.WriteString("services: []\n")
	} else {
		b.WriteString("services:\n")
	}
	for _, s := range plain {
		marshalService(&b, s)
	}
	marshalSteering(&b, slices.DeleteFunc(slices.Clone(cfg.Services), func(s *model.Service) bool { return !s.Steered() }))
	return b.Bytes()
}

func marshalService(b *bytes.Buffer, s *model.Service) {
	fmt.Fprintf(b, "  - name: %q\n", s.Name)
	listen := make([]string, len(s.Listen))
	for i, l := range s.Listen {
		listen[i] = l.String()
	}
	fmt.Fprintf(b, "    listen: %s\n", quotedList(listen))
	marshalFloods(b, s)
	if s.Local() {
		marshalLocal(b, s)
		return
	}
	if s.Direct() {
		fmt.Fprintf(b, "    forward: direct\n    in: %s\n", quotedList(s.In))
	}
	if s.Balance != model.RoundRobin {
		fmt.Fprintf(b, "    balance: %s\n", s.Balance)
	}
	marshalSource(b, s)
	if s.Sticky != 0 {
		fmt.Fprintf(b, "    sticky: %s\n", s.Sticky)
	}
	if s.WhenAllDown != model.Reject {
		fmt.Fprintf(b, "    when_all_down: %s\n", s.WhenAllDown)
	}
	marshalHealth(b, s)
	if s.MaxConnections != 0 {
		fmt.Fprintf(b, "    max_connections: %d\n", s.MaxConnections)
	}
	if s.Assign != "" {
		fmt.Fprintf(b, "    assign: %q\n", s.Assign)
	}
	if len(s.Backends) == 0 {
		b.WriteString("    backends: []\n")
		return
	}
	b.WriteString("    backends:\n")
	for _, be := range s.Backends {
		marshalBackend(b, be)
	}
}

func marshalSource(b *bytes.Buffer, s *model.Service) {
	switch s.Source.Mode {
	case model.SourceMasquerade:
		b.WriteString("    source: masquerade\n")
	case model.SourceAddress:
		var addrs []string
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			if a := s.Source.Addr(f); a.IsValid() {
				addrs = append(addrs, a.String())
			}
		}
		fmt.Fprintf(b, "    source: %s\n", quotedList(addrs))
	case model.SourcePool:
		fmt.Fprintf(b, "    source: %q\n", s.Source.Pool)
	}
}

func marshalBackend(b *bytes.Buffer, be model.Backend) {
	if be.Weight == 1 && !be.Backup && be.Check == nil && be.MaxConnections == 0 {
		fmt.Fprintf(b, "      - %q\n", be.ID())
		return
	}
	fmt.Fprintf(b, "      - {address: %q", be.ID())
	if be.Weight != 1 {
		fmt.Fprintf(b, ", weight: %d", be.Weight)
	}
	if be.Backup {
		b.WriteString(", backup: true")
	}
	if be.MaxConnections != 0 {
		fmt.Fprintf(b, ", max_connections: %d", be.MaxConnections)
	}
	if be.Check != nil {
		b.WriteString(", check: " + checkText(be.Check))
	}
	b.WriteString("}\n")
}

func marshalHealth(b *bytes.Buffer, s *model.Service) {
	if s.Check != nil {
		fmt.Fprintf(b, "    check: %s\n", checkText(s.Check))
	}
	if s.SlowStart != 0 {
		fmt.Fprintf(b, "    slow_start: %s\n", s.SlowStart)
	}
	if s.MinHealthy != 0 {
		fmt.Fprintf(b, "    min_healthy: %s\n", percentText(s.MinHealthy))
	}
	if s.OnDown != model.Keep {
		fmt.Fprintf(b, "    on_down: %s\n", s.OnDown)
	}
}

// checkText writes a check on one line, without what is as it is by default.
func checkText(c *model.Check) string {
	def := newCheck(c.Kind)
	def.Timeout = defaultTimeout(c.Every)
	def.Verify = c.Kind == model.CheckHTTPS || c.Kind == model.CheckGRPC && !c.Plain
	isWord := c.Kind == model.CheckTCP || c.Kind == model.CheckICMP
	if c.Kind == model.CheckNone || isWord && c.Equal(def) {
		return c.Kind.String()
	}
	keys := []string{kindText(c)}
	unless := func(isDefault bool, format string, value any) {
		if !isDefault {
			keys = append(keys, fmt.Sprintf(format, value))
		}
	}
	unless(c.Every == def.Every, "every: %s", c.Every)
	unless(c.Timeout == def.Timeout, "timeout: %s", c.Timeout)
	unless(c.Rise == def.Rise, "rise: %d", c.Rise)
	unless(c.Fall == def.Fall, "fall: %d", c.Fall)
	unless(c.Jitter == def.Jitter, "jitter: %s", percentText(c.Jitter))
	unless(c.Port == 0, "port: %d", c.Port)
	unless(c.Host == "", "host: %q", c.Host)
	unless(c.Method == def.Method, "method: %q", c.Method)
	unless(len(c.Status) == 0, "status: %s", statusText(c.Status))
	unless(c.Body == "", "body: %s", strconv.QuoteToASCII(c.Body))
	unless(c.Type == def.Type, "type: %q", c.Type)
	unless(c.Plain == def.Plain, "plain: %t", c.Plain)
	unless(c.Verify == def.Verify, "verify: %t", c.Verify)
	return "{" + strings.Join(keys, ", ") + "}"
}

// kindText writes the key that says the kind.
func kindText(c *model.Check) string {
	value := "true"
	switch c.Kind {
	case model.CheckHTTP, model.CheckHTTPS:
		value = strconv.Quote(c.Path)
	case model.CheckUDP:
		value = "{send: " + datagramText(c.Send)
		if c.Expect != "" {
			value += ", expect: " + datagramText(c.Expect)
		}
		value += "}"
	case model.CheckDNS, model.CheckGRPC:
		value = strconv.QuoteToASCII(c.Name)
	case model.CheckExec:
		value = quotedList(c.Args)
	}
	return c.Kind.String() + ": " + value
}

func statusText(list []model.CodeRange) string {
	out := make([]string, len(list))
	for i, r := range list {
		if out[i] = strconv.Itoa(r.Lo); r.Hi != r.Lo {
			out[i] += "-" + strconv.Itoa(r.Hi)
		}
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// quotedList writes a flow list. Go's escapes are YAML's as long as the text is UTF-8,
// which all of a valid model is but the datagrams of checks.
func quotedList(items []string) string {
	quoted := make([]string, len(items))
	for i, s := range items {
		quoted[i] = strconv.QuoteToASCII(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
