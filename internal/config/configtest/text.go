package configtest

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"weir/internal/model"
)

// Random makes the text of a valid configuration.
func Random(t *rapid.T) string { return RandomText(t, RandomModel(t, &Options{Steering: true})) }

// RandomText writes cfg, which must be valid, in one of the many forms that mean it:
// block or flow, plain or in quotes, keys in any order, defaults said or not.
func RandomText(t *rapid.T, cfg *model.Config) string {
	w := &writer{generator{t: t}, cfg}
	parts := []string{w.services()}
	if cfg.HashSeed != model.DefaultHashSeed || w.flip("say seed") {
		parts = append(parts, "hash_seed: "+w.number(cfg.HashSeed)+"\n")
	}
	if cfg.MarkMask != model.DefaultMarkMask || w.flip("say mask") {
		parts = append(parts, "mark_mask: "+w.number(cfg.MarkMask)+"\n")
	}
	if len(cfg.Interfaces) > 0 {
		parts = append(parts, w.groups())
	}
	if cfg.Edge != nil {
		parts = append(parts, w.edgeText())
	}
	parts = append(parts, w.lists()...)
	parts = append(parts, w.egressText()...)
	if slices.ContainsFunc(cfg.Services, (*model.Service).Steered) {
		parts = append(parts, w.steeringText())
	}
	text := strings.Join(rapid.Permutation(parts).Draw(t, "order"), w.comment())
	if w.flip("document marker") {
		text = "---\n" + text
	}
	if w.flip("CRLF") {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

type writer struct {
	generator
	cfg *model.Config
}

func (w *writer) number(v uint32) string {
	if w.flip("hexadecimal") {
		return fmt.Sprintf("0x%x", v)
	}
	return fmt.Sprint(v)
}

func (w *writer) comment() string {
	return pick(&w.generator, []string{"", "\n", "# a comment: with [signs\n", "   # indented\n\n"}, "comment")
}

// plain are the texts that may stand without quotes wherever they come, but for the
// words that YAML takes for something else.
var plain = regexp.MustCompile(`^([a-z][a-z-]*[a-z0-9]|[0-9]+\.[0-9]+\.[0-9]+\.[0-9][0-9:/a-z-]*|[0-9]+:[0-9a-z:]*[0-9a-z])$`)

func (w *writer) scalar(s string) string {
	styles := []string{`"` + s + `"`, "'" + s + "'"}
	if plain.MatchString(s) && s != "null" && s != "true" && s != "false" {
		styles = append(styles, s)
	}
	return pick(&w.generator, styles, "style")
}

func (w *writer) scalars(items []string) string {
	out := make([]string, len(items))
	for i, s := range items {
		out[i] = w.scalar(s)
	}
	if len(out) == 1 && w.flip("no list") {
		return out[0]
	}
	return "[" + strings.Join(out, pick(&w.generator, []string{", ", ",", " , "}, "comma")) + "]"
}

func (w *writer) groups() string {
	if w.flip("flow groups") {
		var items []string
		for _, name := range slices.Sorted(maps.Keys(w.cfg.Interfaces)) {
			items = append(items, name+": "+w.scalars(w.cfg.Interfaces[name]))
		}
		return "interfaces: {" + strings.Join(items, ", ") + "}\n"
	}
	text := "interfaces:\n"
	for _, name := range slices.Sorted(maps.Keys(w.cfg.Interfaces)) {
		text += "  " + name + ": " + w.scalars(w.cfg.Interfaces[name]) + "\n"
	}
	return text
}

func (w *writer) services() string {
	if len(w.cfg.Services) == 0 {
		return "services: []\n"
	}
	indent := pick(&w.generator, []string{"", "  ", "    "}, "indent")
	text := "services:\n"
	for _, s := range w.cfg.Services {
		if s.Steered() {
			continue
		}
		keys := rapid.Permutation(w.service(s)).Draw(w.t, "key order")
		switch pick(&w.generator, []string{"block", "flow", "apart"}, "service style") {
		case "flow":
			text += indent + "- {" + strings.Join(keys, ", ") + "}\n"
		case "apart":
			text += indent + "-\n" + indent + "   " + strings.Join(keys, "\n"+indent+"   ") + "\n"
		default:
			text += indent + "- " + strings.Join(keys, "\n"+indent+"  ") + " # end\n"
		}
		text += w.comment()
	}
	return text
}

// service returns the keys of a service, each on one line.
func (w *writer) service(s *model.Service) []string {
	keys := []string{
		"name: " + w.scalar(s.Name),
		"listen: " + w.scalars(w.listen(s.Listen)),
	}
	keys = append(keys, w.floodKeys(s)...)
	if s.Local() {
		return append(keys, w.localKeys(s)...)
	}
	keys = append(keys, "backends: "+w.backends(s.Backends))
	optional := func(isDefault bool, key, value string) {
		if !isDefault || w.flip("say "+key) {
			keys = append(keys, key+": "+value)
		}
	}
	optional(true, "forward", "nat")
	optional(s.Balance == model.RoundRobin, "balance", w.scalar(s.Balance.String()))
	optional(s.WhenAllDown == model.Reject, "when_all_down", w.scalar(s.WhenAllDown.String()))
	optional(s.Sticky == 0, "sticky", w.sticky(s))
	optional(s.Source.Mode == model.SourceKeep, "source", w.sourceText(s))
	if s.MaxConnections != 0 {
		keys = append(keys, "max_connections: "+w.number(uint32(s.MaxConnections)))
	}
	if s.Assign != "" {
		keys = append(keys, "assign: "+w.scalar(w.assign(s.Assign)))
	}
	return append(keys, w.healthKeys(s)...)
}

func (w *writer) localKeys(s *model.Service) []string {
	keys := []string{"forward: " + w.scalar("local")}
	if s.Untracked {
		keys = append(keys, "track: "+w.scalar("none"))
	} else if w.flip("say track") {
		keys = append(keys, "track: "+w.scalar("conntrack"))
	}
	if s.Assign != "" {
		keys = append(keys, "assign: "+w.scalar(w.assign(s.Assign)))
	}
	return keys
}

func (w *writer) sticky(s *model.Service) string {
	if s.Sticky == 0 {
		return "off"
	}
	return w.duration(s.Sticky)
}

func (w *writer) sourceText(s *model.Service) string {
	switch s.Source.Mode {
	case model.SourceKeep:
		return "keep"
	case model.SourceMasquerade:
		return "masquerade"
	case model.SourcePool:
		return w.scalar(s.Source.Pool)
	}
	var addrs []string
	for _, f := range s.Families() {
		addrs = append(addrs, s.Source.Addr(f).String())
	}
	return w.scalars(addrs)
}

// assign returns the device, or a group that has no other.
func (w *writer) assign(device string) string {
	for _, name := range slices.Sorted(maps.Keys(w.cfg.Interfaces)) {
		if d := w.cfg.Interfaces[name]; len(d) == 1 && d[0] == device && w.flip("group") {
			return name
		}
	}
	return device
}

// listen joins neighbours that differ in the ports alone, and leaves out tcp.
func (w *writer) listen(list []model.Listen) []string {
	var out []string
	for i := 0; i < len(list); {
		l := list[i]
		ports := l.Ports.String()
		for i++; i < len(list) && list[i].Addr == l.Addr && list[i].Proto == l.Proto && w.flip("join"); i++ {
			ports += "," + list[i].Ports.String()
		}
		text := l.Addr.String()
		if l.Addr.Is6() {
			text = "[" + text + "]"
		}
		text += ":" + ports
		if l.Proto != model.TCP || w.flip("say tcp") {
			text += "/" + l.Proto.String()
		}
		out = append(out, text)
	}
	return out
}

func (w *writer) backends(list []model.Backend) string {
	items := make([]string, len(list))
	for i, b := range list {
		items[i] = w.scalar(b.ID())
		if b.Weight != 1 || b.Backup || b.Check != nil || b.MaxConnections != 0 || w.flip("mapping") {
			keys := []string{"address: " + items[i], fmt.Sprintf("weight: %d", b.Weight), fmt.Sprintf("backup: %t", b.Backup)}
			if b.MaxConnections != 0 {
				keys = append(keys, "max_connections: "+w.number(uint32(b.MaxConnections)))
			}
			if b.Check != nil {
				keys = append(keys, "check: "+w.check(b.Check))
			}
			items[i] = "{" + strings.Join(rapid.Permutation(keys).Draw(w.t, "backend keys"), ", ") + "}"
		}
	}
	return "[" + strings.Join(items, ", ") + "]"
}
