package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weir/internal/api"
	"weir/internal/engine"
	"weir/internal/host"
	"weir/internal/model"
	"weir/internal/ruleset"
	st "weir/internal/state"
)

// examination is a `weir doctor` at work.
type examination struct {
	env *env
	cfg *model.Config
	rep *doctorReport
	use map[model.Family]familyUse // nil: not known
}

func (x *examination) count(what string, n int) {
	x.rep.Checked = append(x.rep.Checked, checkedItem{what, n})
}

func (x *examination) add(f host.Finding) {
	if f.Services == nil {
		f.Services = []string{}
	}
	x.rep.Findings = append(x.rep.Findings, f)
}

// surroundings looks at what is not weir's.
func (x *examination) surroundings() {
	n, f, err := survey(x.cfg, 0)
	if err != nil {
		x.add(notReadable(err))
		return
	}
	x.use = usage(n, f)
	x.rep.Findings = append(x.rep.Findings, host.Judge(n, f)...)
	x.count("routes to backends", len(n.Backends))
	x.count("devices", len(f.Links))
	x.count("addresses to hold", len(n.Assigned))
	x.count("source addresses", len(n.Sources))
	x.count("tracked connections", f.Conntrack.Count)
}

// rights looks whether this process has what weir run and weir apply need.
func (x *examination) rights() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	var missing []string
	if unix.Capget(&header, &data[0]) == nil {
		for _, c := range []struct {
			bit  uint
			name string
		}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_NET_RAW, "CAP_NET_RAW"}} {
			if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
				missing = append(missing, c.name)
			}
		}
	}
	if len(missing) > 0 {
		x.add(host.Finding{ID: host.Rights, Severity: host.Warning, Subject: strings.Join(missing, " "), Fix: "sudo weir doctor",
			Found: "you do not have " + strings.Join(missing, " and "), Means: "weir run and weir apply need it, and what weir's rules are cannot be seen"})
	}
}

// weir asks the weir that runs here.
func (x *examination) weir(ctx context.Context) {
	var s engine.Status
	err := ask(func(w *api.Client) (err error) {
		s, err = w.Status(ctx, "")
		return err
	})
	switch {
	case errors.Is(err, api.ErrNotRunning):
		x.notRunning()
	case err != nil:
		x.add(host.Finding{ID: host.NoAnswer, Severity: host.Warning, Subject: "socket", Found: "the weir that runs here does not answer: " + err.Error(),
			Means: "what it knows is missing here"})
	default:
		x.rep.Running = true
		x.running(s)
	}
}

func (x *examination) notRunning() {
	f := host.Finding{ID: host.NotRunning, Severity: host.Info, Subject: "weir run", Fix: "systemctl start weir",
		Found: "weir run is not active here", Means: "the rules work without it; nobody puts back what others change"}
	for _, s := range x.cfg.Services {
		if slices.ContainsFunc(s.Backends, func(b model.Backend) bool { return s.CheckOf(b) != nil }) {
			f.Severity, f.Means = host.Warning, "backends are not checked: one that fails goes on getting connections"
			f.Services = append(f.Services, s.Name)
		}
	}
	if n := len(f.Services) - host.MaxServices; n > 0 {
		f.Services, f.More = f.Services[:host.MaxServices], n
	}
	x.add(f)
}

// running takes over what a running weir knows.
func (x *examination) running(s engine.Status) {
	if s.Applied != nil && !*s.Applied {
		x.add(host.Finding{ID: host.RulesDiffer, Severity: host.Error, Subject: "table inet weir", Fix: "weir events",
			Found: "weir has not brought the kernel to what it should be yet", Means: "it goes on trying; its events say what is in the way"})
	} else if !s.Loaded {
		x.add(host.Finding{ID: host.RulesMissing, Severity: host.Error, Subject: "table inet weir",
			Found: "weir's rules are not in the kernel", Means: "weir puts them back within two seconds; weir events says if it cannot"})
	}
	for i := range x.rep.Findings {
		if f := &x.rep.Findings[i]; f.ID == host.AddressMissing {
			f.Means, f.Fix = "weir puts it back within two seconds; weir events says if it cannot", ""
		}
	}
	x.borrow(s.Findings)
	backends := 0
	for _, s := range s.Services {
		backends += len(s.Backends)
		x.backends(s)
	}
	x.count("backends of the running weir", backends)
}

// borrow takes the way to mend a route from a running weir, which saw it before it went.
func (x *examination) borrow(theirs []host.Finding) {
	var more []host.Finding
	for i := range x.rep.Findings {
		f := &x.rep.Findings[i]
		if f.ID != host.NoRoute || f.Fix != "" {
			continue
		}
		for _, o := range theirs {
			switch o.ID {
			case host.NoRoute:
				if overlap(f.Subject, o.Subject) {
					f.Fix = o.Fix
				}
			case host.DeviceDown, host.DeviceMissing, host.NoCarrier, host.IPv6Disabled:
				if !slices.ContainsFunc(append(more, x.rep.Findings...), func(h host.Finding) bool { return h.Key() == o.Key() }) {
					more = append(more, o)
				}
			}
		}
	}
	for _, o := range theirs {
		if o.ID == host.RouteLost { // only who saw it before can tell
			more = append(more, o)
		}
	}
	x.rep.Findings = append(x.rep.Findings, more...)
}

func overlap(a, b string) bool {
	p, err := netip.ParsePrefix(a)
	q, err2 := netip.ParsePrefix(b)
	return err == nil && err2 == nil && p.Overlaps(q)
}

// backends tells of those that the checks found down.
func (x *examination) backends(s engine.ServiceStatus) {
	var down []string
	for _, b := range s.Backends {
		if b.State == string(st.Down) {
			down = append(down, fmt.Sprintf("%s (%s)", b.Address, b.Reason))
		}
	}
	if len(down) == 0 {
		return
	}
	serves := slices.ContainsFunc(s.Backends, func(b engine.BackendStatus) bool {
		return slices.Contains([]string{string(st.Up), string(st.Starting), string(st.Backup)}, b.State)
	})
	f := host.Finding{ID: host.BackendDown, Severity: host.Warning, Subject: s.Name, Services: []string{s.Name},
		Found: fmt.Sprintf("%s down: %s", plural(len(down), "backend"), strings.Join(down[:min(len(down), host.MaxServices)], ", ")),
		Means: "the others take its connections"}
	if !serves {
		f.ID, f.Severity, f.Means = host.ServiceDown, host.Error, "no backend is up: new connections fail as when_all_down says"
	}
	x.add(f)
}

// filter looks at weir's rules and others'.
func (x *examination) filter(ctx context.Context) {
	k, err := openKernel(false)
	if err == nil {
		defer k.close()
		x.timeouts(k)
		err = x.rules(ctx, k)
	}
	if err == nil {
		err = x.hooks(ctx, k)
	}
	switch {
	case err == nil || errors.Is(err, fs.ErrPermission) && x.has(host.Rights): // it is said
	case errors.Is(err, fs.ErrPermission):
		x.add(host.Finding{ID: host.Rights, Severity: host.Error, Subject: "nf_tables", Found: "the kernel's packet filter may not be looked at: " + err.Error(), Means: "weir cannot work"})
	default:
		x.add(host.Finding{ID: host.NfTables, Severity: host.Error, Subject: "nf_tables", Found: "the kernel's packet filter cannot be used: " + err.Error(), Means: "weir cannot work"})
	}
}

// timeouts says that times of pools are left out.
func (x *examination) timeouts(k *kernel) {
	var pools []string
	for _, p := range x.cfg.Egress {
		if len(p.Timeouts) > 0 {
			pools = append(pools, p.Name)
		}
	}
	if k.NoTimeouts && len(pools) > 0 {
		x.add(host.Finding{ID: host.ConntrackTimes, Severity: host.Warning, Subject: "nf_conntrack",
			Found: "this kernel has no conntrack timeouts but the sysctls' (CONFIG_NF_CONNTRACK_TIMEOUT)",
			Means: "timeouts of egress pools have no effect (" + strings.Join(pools, ", ") + ")"})
	}
}

func (x *examination) has(id string) bool {
	return slices.ContainsFunc(x.rep.Findings, func(f host.Finding) bool { return f.ID == id })
}

// rules compares weir's rules with the configuration. A running weir does that itself, with
// what the checks found and operators said.
func (x *examination) rules(ctx context.Context, k *kernel) error {
	lists := x.env.readLists(ctx, x.cfg)
	k.Blocked = lists.Compiled()
	for _, s := range lists.Status() {
		if s.Problem != "" {
			x.add(host.Finding{ID: host.Blocklist, Severity: host.Error, Subject: s.Name, Found: "blocklist " + s.Name + " is not good: " + s.Problem,
				Means: "the last good one is in use, if there was one"})
		}
	}
	p, delta, err := k.Preview(ctx, x.cfg)
	if err != nil {
		return err
	}
	rules := 0
	for _, t := range p.Ruleset.Tables {
		for _, c := range t.Chains {
			rules += len(c.Rules)
		}
	}
	x.count("rules", rules)
	if x.rep.Running || delta.Empty() {
		return nil
	}
	x.add(compared(delta))
	return nil
}

func compared(delta *ruleset.Delta) host.Finding {
	f := host.Finding{ID: host.RulesDiffer, Severity: host.Warning, Subject: "table inet weir", Fix: "weir apply",
		Found: "weir's rules are not what the configuration asks for: " + delta.Summary(), Means: "the kernel does what an earlier configuration, or somebody else, said"}
	if creates(delta) {
		f.ID, f.Severity, f.Found, f.Means = host.RulesMissing, host.Error, "weir's rules are not in the kernel", "nobody answers for the services"
	}
	return f
}

// hooks looks for others' chains that drop what no rule of theirs accepts. Whether a rule
// does is theirs to know; where there is none, nothing gets through.
func (x *examination) hooks(ctx context.Context, k *kernel) error {
	hooks, err := k.conn.Hooks(ctx)
	if err != nil {
		return err
	}
	others := 0
	for _, h := range hooks {
		if slices.Contains(engine.Tables, h.Table) {
			continue
		}
		others++
		hit := false
		for family, use := range x.use {
			hit = hit || (h.Table.Family == ruleset.Inet || string(h.Table.Family) == family.String()) &&
				(h.Hook == "forward" && use.elsewhere || h.Hook == "input" && use.here)
		}
		if !hit || !h.Drop {
			continue
		}
		name := fmt.Sprintf("%s %s %s", h.Table.Family, host.Word(h.Table.Name), host.Word(h.Chain))
		f := host.Finding{ID: host.ForeignDrop, Severity: host.Info, Subject: name,
			Found: fmt.Sprintf("chain %s (%s) drops what none of its %s accepts", name, h.Hook, plural(h.Rules, "rule")),
			Means: "they have to accept the services' packets; see nft list chain " + name}
		if h.Rules == 0 {
			f.Severity, f.Found = host.Error, fmt.Sprintf("chain %s (%s) drops everything", name, h.Hook)
			f.Means, f.Fix = "packets of services end there", "nft add rule "+name+" ct status dnat accept"
		}
		x.add(f)
	}
	x.count("chains of others", others)
	return nil
}

// stateFile looks whether weir run can keep what operators say.
func (x *examination) stateFile(path string) {
	dir := filepath.Dir(path)
	for { // weir makes the directories that are missing
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	err := unix.Access(dir, unix.W_OK|unix.X_OK)
	switch {
	case err == unix.EACCES && x.has(host.Rights): // another user's weir may
	case err != nil:
		x.add(host.Finding{ID: host.StateFile, Severity: host.Warning, Subject: path, Found: fmt.Sprintf("%s cannot be written: %v", dir, err),
			Means: "what operators say will be lost when weir run ends"})
	default:
		if _, err := engine.LoadMemory(path); err != nil && !errors.Is(err, fs.ErrPermission) {
			x.add(host.Finding{ID: host.StateFile, Severity: host.Warning, Subject: path, Found: "the state file makes no sense: " + err.Error(),
				Means: "the next weir run puts it aside, and begins without what operators said", Fix: fmt.Sprintf("mv %s %s", host.Word(path), host.Word(path+".bad"))})
		}
	}
	x.count("state file", 1)
}
