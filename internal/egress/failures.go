package egress

import (
	"slices"
)

// Stats are the kernel's counters of its connection table, sums that only grow.
type Stats struct {
	InsertFailed uint64 // connections that could not be entered when their first packet left
	Drop         uint64 // packets dropped for it, and others
}

// Failures is what the kernel counted since accounting began, and what it may be due to. The
// kernel does not say whose connections those were: they may be of others' rules, too. So
// this is what the pools could have caused.
type Failures struct {
	InsertFailed uint64 `json:"insert_failed"`
	Drop         uint64 `json:"dropped"`
	// Exhaustion is what of InsertFailed came while some address was nearly out of ports for
	// a destination. A race in such a time counts here, too.
	Exhaustion uint64 `json:"exhaustion"`
	// Race is what came while none was: two packets of one connection at once, or somebody
	// else's translation.
	Race uint64 `json:"race"`
	// Unknown is what came while it was not known how full the pools are, or with pools that
	// give each client a block of ports: of those it is not looked at block by block.
	Unknown uint64 `json:"unknown"`
	// TableFull is what of Drop, beyond InsertFailed, came while the connection table was full.
	TableFull uint64 `json:"table_full"`
}

// Failed takes the kernel's counters as they are now. The first call is where
// counting begins. full says that the connection table has no room. It returns what came since
// the last call; what of it may be due to exhaustion can be of the pools of those names.
func (l *Ledger) Failed(s Stats, full bool) (Failures, []string) {
	old := l.stats
	l.stats = &s
	if old == nil {
		return Failures{}, nil
	}
	f := Failures{InsertFailed: less(s.InsertFailed, old.InsertFailed), Drop: less(s.Drop, old.Drop)}
	var pools []string
	if f.InsertFailed > 0 {
		pools = l.nearlyOut()
		switch {
		case len(pools) > 0:
			f.Exhaustion = f.InsertFailed
		case l.census == nil || slices.ContainsFunc(l.pools, func(p *Pool) bool { return p.Model.Block > 0 }):
			f.Unknown = f.InsertFailed
		default:
			f.Race = f.InsertFailed
		}
	}
	if full {
		f.TableFull = less(f.Drop, f.InsertFailed)
	}
	l.failures.add(f)
	return f, pools
}

func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

func (f *Failures) add(o Failures) {
	f.InsertFailed += o.InsertFailed
	f.Drop += o.Drop
	f.Exhaustion += o.Exhaustion
	f.Race += o.Race
	f.Unknown += o.Unknown
	f.TableFull += o.TableFull
}

// Failures returns the sums.
func (l *Ledger) Failures() Failures { return l.failures }

// nearlyOut returns the pools of which some address may be so full that a search for a port
// fails: for ranges that are searched whole when none is free, else from 95 % on.
func (l *Ledger) nearlyOut() []string {
	var out []string
	for k, e := range l.keys {
		ports := l.ports(k, e)
		limit := ports
		if ports > wholeSearch {
			limit = ports * errorAt / 100
		}
		if name := l.pools[e.pool].Model.Name; ports > 0 && e.bound() >= limit && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
