package egress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Parts of an address's ports, in percent, from which on its use is said, and below which
// that is taken back: in between it stays as it was, so that nothing is said twice.
const (
	warnAt, warnBelow   = 80, 75
	errorAt, errorBelow = 95, 90
)

// Level says how bad it is.
type Level string

// The levels. The words are part of weir's interface.
const (
	OK      Level = "ok"
	Warning Level = "warning" // 80 % of the ports of an address are in use for a destination
	Error   Level = "error"   // 95 %
)

var levels = map[Level]int{OK: 0, Warning: 1, Error: 2}

// Alarm is a destination of a pool for which some address runs full.
type Alarm struct {
	Pool  string
	Dest  Dest
	Level Level
	// Addr is the fullest, and InUse of its Ports are in use.
	Addr         netip.Addr
	InUse, Ports int
	// PoolInUse of PoolPorts are in use for the destination in the whole pool, but for
	// drained addresses, of which there are Addrs.
	PoolInUse, PoolPorts, Addrs int
}

// Percent returns how full the fullest address is.
func (a Alarm) Percent() float64 { return percent(a.InUse, a.Ports) }

func percent(n, of int) float64 {
	if of <= 0 {
		return 0
	}
	return min(100*float64(n)/float64(of), 100)
}

// String says it in words.
func (a Alarm) String() string {
	s := fmt.Sprintf("%s has %d of %d ports in use for %s (%.0f%%)", a.Addr, a.InUse, a.Ports, a.Dest, a.Percent())
	if a.Addrs > 1 {
		s += fmt.Sprintf("; all %d addresses together %.0f%%", a.Addrs, percent(a.PoolInUse, a.PoolPorts))
	}
	return s
}

type poolDest struct {
	pool string
	dest Dest
}

type mark struct{ level Level }

// level returns the level that follows from the one before.
func level(was Level, percent float64) Level {
	switch {
	case percent >= errorAt || was == Error && percent >= errorBelow:
		return Error
	case percent >= warnAt || was != OK && was != "" && percent >= warnBelow:
		return Warning
	}
	return OK
}

// Alarms returns what is to be warned of, as of the last dump: the worst first, and what of it
// changed since the last call. Of what is well again only the change tells, with level OK.
func (l *Ledger) Alarms() (all, changed []Alarm) {
	fullest := map[poolDest]Alarm{}
	for k, e := range l.keys {
		if l.pools[e.pool].drained(k.Addr) {
			continue // nobody is waiting for a port
		}
		pd := poolDest{l.pools[e.pool].Model.Name, k.Dest}
		a, known := fullest[pd]
		ports := l.ports(k, e)
		was := Alarm{InUse: a.InUse, Ports: a.Ports}
		a.Pool, a.Dest = pd.pool, pd.dest
		if p := percent(e.inUse, ports); !known || p > was.Percent() || p == was.Percent() && k.Addr.Less(a.Addr) {
			a.Addr, a.InUse, a.Ports = k.Addr, e.inUse, ports
		}
		a.PoolInUse += e.inUse
		fullest[pd] = a
	}
	for pd := range l.marks {
		if _, ok := fullest[pd]; !ok {
			fullest[pd] = Alarm{Pool: pd.pool, Dest: pd.dest}
		}
	}
	for pd, a := range fullest {
		was := l.marks[pd].level
		if was == "" {
			was = OK
		}
		a.Level = level(was, a.Percent())
		if a.Level == OK && was == OK {
			continue
		}
		a.Addrs, a.PoolPorts = l.room(pd)
		if a.Level != was {
			changed = append(changed, a)
		}
		if a.Level == OK {
			delete(l.marks, pd)
			continue
		}
		l.marks[pd] = mark{a.Level}
		all = append(all, a)
	}
	slices.SortFunc(all, worse)
	slices.SortFunc(changed, worse)
	return all, changed
}

func worse(a, b Alarm) int {
	return cmp.Or(levels[b.Level]-levels[a.Level], cmp.Compare(b.Percent(), a.Percent()), cmp.Compare(a.Pool, b.Pool), a.Dest.Compare(b.Dest))
}

// room returns how many addresses take new connections to the destination, and how many ports
// they have together.
func (l *Ledger) room(pd poolDest) (addrs, ports int) {
	for _, p := range l.pools {
		if p.Model.Name != pd.pool {
			continue
		}
		for _, a := range p.Addrs {
			if a.Is4() == pd.dest.To.Addr().Is4() && !p.drained(a) {
				addrs, ports = addrs+1, ports+p.count
			}
		}
	}
	return addrs, ports
}
