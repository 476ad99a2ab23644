package engine

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// LimitStatus is one limit of a service, and what was over it. The numbers are kept as long
// as the service has that limit.
type LimitStatus struct {
	Counts string `json:"counts"` // "new_connections" or "packets"
	Rate   string `json:"rate"`   // "50/second"
	Burst  int    `json:"burst"`
	Per    string `json:"per"`
	Action string `json:"action"` // "drop" or "reject"
	// Over is what was refused.
	Over Passed `json:"over"`
	// Unchecked is what passed because the table of sources was full.
	Unchecked Passed `json:"unchecked"`
}

// TableStatus is how full the kernel's connection table is.
type TableStatus struct {
	Entries int `json:"entries"`
	Max     int `json:"max"` // net.netfilter.nf_conntrack_max
}

// ProxyStatus is what the kernel's SYN proxies did since the network namespace came up, for
// weir's services and for others'.
type ProxyStatus struct {
	SYNs    uint64 `json:"syn_received"`
	Valid   uint64 `json:"cookie_valid"`   // clients that proved their address
	Invalid uint64 `json:"cookie_invalid"` // packets that proved nothing
}

// Offender is a source that was over a limit of a service within the last ten minutes.
type Offender struct {
	Source  string `json:"source"` // the prefix that the limit counts by, or an address
	Service string `json:"service"`
	Limit   string `json:"limit"` // "new_connections 50/second burst 100 per source"
	// Over is what was refused since the source was first seen to be over the limit.
	Over     Passed    `json:"over"`
	LastSeen time.Time `json:"last_seen"` // over the limit
	Expires  time.Time `json:"expires"`   // forgotten then, if not seen again
}

func limitStatus(s *model.Service) []LimitStatus {
	var out []LimitStatus
	for _, l := range s.Limits {
		action := "drop"
		if l.Reject {
			action = "reject"
		}
		out = append(out, LimitStatus{Counts: l.Counts.String(), Rate: l.RateText(), Burst: l.Burst, Per: l.PerText(), Action: action})
	}
	return out
}

// readLimits adds what was counted for limits.
func (st *Status) readLimits(ctx context.Context, k Counters, cfg *model.Config, p *plan.Plan) error {
	over, unchecked := p.LimitCounts()
	if over == nil {
		return nil
	}
	at := map[string]int{}
	for i, s := range cfg.Services {
		at[s.Name] = i
	}
	limits := p.Limits()
	read := func(set *ruleset.Set, add func(*LimitStatus, nft.Counter)) error {
		return k.Elements(ctx, Tables[0], set, func(e nft.Elem) bool {
			l, known := limits[e.Key]
			i, ok := at[l.Service]
			if !known || !ok {
				return true
			}
			if list := cfg.Services[i].Limits; l.I < len(list) && list[l.I] == l.Limit {
				add(&st.Services[i].Limits[l.I], e.Counter)
			}
			return true
		})
	}
	return errors.Join(
		read(over, func(l *LimitStatus, c nft.Counter) { l.Over.add(c) }),
		read(unchecked, func(l *LimitStatus, c nft.Counter) { l.Unchecked.add(c) }))
}

// ReadOffenders returns the sources that were over a limit of p's services, or of the one of
// that name, the worst first.
func ReadOffenders(ctx context.Context, k Counters, p *plan.Plan, service string, now time.Time) ([]Offender, error) {
	out := []Offender{}
	limits := p.Limits()
	for _, set := range p.Offenders() {
		err := k.Elements(ctx, Tables[0], set, func(e nft.Elem) bool {
			l, ok := limits[e.Key[:plan.LimitKeyLen]]
			if !ok || service != "" && l.Service != service {
				return true
			}
			o := Offender{Source: plan.OffenderSource(l.Limit, e.Key).String(), Service: l.Service, Limit: l.String(),
				Expires: now.Add(e.Expires).UTC(), LastSeen: now.Add(e.Expires - e.Timeout).UTC()}
			if addr, ok := strings.CutSuffix(o.Source, "/32"); ok && !strings.Contains(addr, ":") {
				o.Source = addr
			}
			o.Over.add(e.Counter)
			out = append(out, o)
			return true
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Offender) int {
		return cmp.Or(cmp.Compare(b.Over.Packets, a.Over.Packets), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Limit, b.Limit))
	})
	return out, nil
}

// Offenders returns the sources that were over a limit of the services as they are applied.
func (v *View) Offenders(ctx context.Context, k Counters, service string, now time.Time) ([]Offender, error) {
	if v.plan == nil {
		return []Offender{}, nil
	}
	return ReadOffenders(ctx, k, v.plan, service, now)
}

// readTables adds what the kernel tells of its tables.
func (st *Status) readTables(cfg *model.Config) {
	st.Connections = connectionTable()
	if slices.ContainsFunc(cfg.Services, func(s *model.Service) bool { return s.SynProxy }) {
		st.SYNProxy = proxyStatus()
	}
}

// proxyStatus reads the statistics of SYN proxies, a line of hexadecimal numbers for each
// processor (synproxy_cpu_seq_show in net/netfilter/nf_synproxy_core.c); nil where there are
// none.
func proxyStatus() *ProxyStatus {
	b, err := os.ReadFile("/proc/thread-self/net/stat/synproxy")
	if err != nil {
		return nil
	}
	st := &ProxyStatus{}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		for i, v := range []*uint64{&st.SYNs, &st.Invalid, &st.Valid} {
			n, _ := strconv.ParseUint(fields[i+1], 16, 64) // the head is no number
			*v += n
		}
	}
	return st
}

// connectionTable reads how full the connection table of the network namespace is; nil where
// the kernel has none.
func connectionTable() *TableStatus {
	read := func(name string) (int, bool) {
		b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
		if err != nil {
			return 0, false
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		return n, err == nil
	}
	entries, ok := read("nf_conntrack_count")
	most, ok2 := read("nf_conntrack_max")
	if !ok || !ok2 {
		return nil
	}
	return &TableStatus{entries, most}
}
