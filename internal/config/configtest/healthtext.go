package configtest

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// healthKeys returns the keys about health of a service.
func (w *writer) healthKeys(s *model.Service) []string {
	var keys []string
	say := func(isDefault bool, key, value string) {
		if !isDefault || w.flip("say "+key) {
			keys = append(keys, key+": "+value)
		}
	}
	check := "none"
	if s.Check != nil {
		check = w.check(s.Check)
	}
	slow := "off"
	if s.SlowStart != 0 {
		slow = w.duration(s.SlowStart)
	}
	say(s.Check == nil, "check", check)
	say(s.SlowStart == 0, "slow_start", slow)
	say(s.MinHealthy == 0, "min_healthy", w.percentage(s.MinHealthy))
	say(s.OnDown == model.Keep, "on_down", w.scalar(s.OnDown.String()))
	return keys
}

func (w *writer) duration(d time.Duration) string {
	return w.scalar(pick(&w.generator, []string{d.String(), fmt.Sprintf("%dms", d.Milliseconds())}, "duration"))
}

func (w *writer) percentage(part float64) string {
	return w.scalar(strconv.FormatFloat(part*100, 'f', 2, 64) + "%")
}

// check writes a check as a word or a mapping, with its keys in any order.
func (w *writer) check(c *model.Check) string {
	bare := model.Check{Kind: c.Kind, Every: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3, Jitter: 0.1}
	switch {
	case c.Kind == model.CheckNone:
		return "none"
	case (c.Kind == model.CheckTCP || c.Kind == model.CheckICMP) && c.Equal(&bare) && w.flip("a word"):
		return w.scalar(c.Kind.String())
	}
	keys := []string{c.Kind.String() + ": " + w.kind(c)}
	say := func(isDefault bool, key, value string) {
		if !isDefault || w.flip("say "+key) {
			keys = append(keys, key+": "+value)
		}
	}
	say(c.Every == bare.Every, "every", w.duration(c.Every))
	say(c.Timeout == min(time.Second, c.Every), "timeout", w.duration(c.Timeout))
	say(c.Rise == 2, "rise", fmt.Sprint(c.Rise))
	say(c.Fall == 3, "fall", fmt.Sprint(c.Fall))
	say(c.Jitter == 0.1, "jitter", w.percentage(c.Jitter))
	if c.Port != 0 {
		keys = append(keys, "port: "+w.number(uint32(c.Port)))
	}
	if c.Host != "" {
		keys = append(keys, "host: "+strconv.Quote(c.Host))
	}
	switch c.Kind {
	case model.CheckHTTP, model.CheckHTTPS:
		say(c.Method == "GET", "method", w.scalar(c.Method))
		say(c.Body == "", "body", escaped(c.Body))
		if len(c.Status) > 0 {
			keys = append(keys, "status: "+w.codes(c.Status))
		}
		if c.Kind == model.CheckHTTPS {
			say(c.Verify, "verify", fmt.Sprint(c.Verify))
		}
	case model.CheckDNS:
		say(c.Type == "A", "type", w.scalar(c.Type))
	case model.CheckGRPC:
		say(c.Plain, "plain", fmt.Sprint(c.Plain))
		if !c.Plain {
			say(c.Verify, "verify", fmt.Sprint(c.Verify))
		}
	}
	return "{" + strings.Join(rapid.Permutation(keys).Draw(w.t, "check keys"), ", ") + "}"
}

// kind writes the value of the key that says the kind.
func (w *writer) kind(c *model.Check) string {
	switch c.Kind {
	case model.CheckHTTP, model.CheckHTTPS:
		return escaped(c.Path)
	case model.CheckUDP:
		return "{expect: " + byteText(c.Expect) + ", send: " + byteText(c.Send) + "}"
	case model.CheckDNS, model.CheckGRPC:
		return escaped(c.Name)
	case model.CheckExec:
		args := make([]string, len(c.Args))
		for i, a := range c.Args {
			args[i] = escaped(a)
		}
		return "[" + strings.Join(args, ",") + "]"
	}
	return "true"
}

func (w *writer) codes(list []model.CodeRange) string {
	out := make([]string, len(list))
	for i, r := range list {
		out[i] = fmt.Sprint(r.Lo)
		if r.Lo != r.Hi || w.flip("a range of one") {
			out[i] = w.scalar(fmt.Sprintf("%d-%d", r.Lo, r.Hi))
		}
	}
	if len(out) == 1 && w.flip("no list") {
		return out[0]
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// escaped writes every character of s by its number.
func escaped(s string) string {
	out := ""
	for _, c := range s {
		out += fmt.Sprintf(`\U%08x`, c)
	}
	return `"` + out + `"`
}

// byteText writes every byte of s by its number.
func byteText(s string) string {
	out := ""
	for _, c := range []byte(s) {
		out += fmt.Sprintf(`\x%02x`, c)
	}
	return `"` + out + `"`
}
