package engine

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"weir/internal/egress"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/state"
)

// Status returns what was seen at the last look.
func (m *Meter) Status() EgressStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.status
	if st.Pools == nil {
		st.Pools = []EgressPool{}
	}
	return st
}

// Ask returns what is seen now, by a running Meter.
func (m *Meter) Ask(ctx context.Context) (EgressStatus, error) {
	err := m.Fresh(ctx)
	return m.Status(), err
}

// report puts the status together; m.mu is held.
func (m *Meter) report(p *plan.Plan, spilled map[string]uint64) {
	st := EgressStatus{At: m.Now().Round(0), Pools: []EgressPool{}, Failures: m.ledger.Failures(), Dump: m.status.Dump,
		Problems: slices.Sorted(maps.Values(m.problems))}
	for i, mp := range p.Config.Egress {
		pool := newEgressPool(mp, m.ledger.Report(i, mostUses))
		pool.Spilled, pool.Relieved = spilled[mp.Name], len(m.found.Relief[mp.Name])
		for _, a := range m.found.Alarms {
			if a.Pool == mp.Name && (pool.Level == egress.OK || a.Level == egress.Error) {
				pool.Level = a.Level
			}
		}
		if b, ok := m.ledger.Bear(i, usualHeadroom); ok {
			pool.Bears = &Bears{b.Dest.Proto.String(), b.Dest.To, b.Addr, b.Load, b.Limit, round(b.Factor), round(b.Rate), round(b.Rate * b.Factor)}
		}
		st.Pools = append(st.Pools, pool)
	}
	m.status = st
}

func newEgressPool(mp *model.Pool, r egress.PoolReport) EgressPool {
	out := EgressPool{Name: mp.Name, Spread: mp.Spread.String(), WhenFull: "fail", Level: egress.OK, Connections: r.Flows,
		NewPerSecond: round(r.New), NewTotal: r.Total, Hold: round(r.Hold), Taken: len(mp.Taken), LeftOut: r.Rest,
		Addresses: []EgressAddress{}, Destinations: []EgressUse{}}
	if mp.Spill || mp.Spread == model.SpreadFlow {
		out.WhenFull = "spill"
	}
	for _, a := range r.Addrs {
		ea := EgressAddress{Address: a.Addr, State: state.Up, Ports: a.Ports, Connections: a.Flows, NewPerSecond: round(a.New),
			NewTotal: a.Total, FullIn: number(a.FullIn), Relieved: a.Relieved}
		if a.Busiest != nil {
			u := newEgressUse(*a.Busiest)
			ea.Busiest, ea.InUse, ea.Percent = &u, u.InUse, u.Percent
		}
		out.Addresses = append(out.Addresses, ea)
	}
	for _, u := range r.Uses {
		out.Destinations = append(out.Destinations, newEgressUse(u))
	}
	return out
}

func newEgressUse(u egress.UseReport) EgressUse {
	return EgressUse{Address: u.Addr, Protocol: u.Proto.String(), Destination: u.To, InUse: u.InUse, MaybeMore: u.More, Ports: u.Ports,
		Percent: round(u.Percent()), NewPerSecond: round(u.New), Growth: number(u.Growth), FullIn: number(u.FullIn), NearFull: u.Relieve}
}

// number is nil where nothing is known.
func number(f float64) *float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	f = round(f)
	return &f
}

// round leaves three digits behind the point.
func round(f float64) float64 { return math.Round(f*1000) / 1000 }

// tellUsage decides relief and warnings, and notes what is to be told.
func (m *Meter) tellUsage(found *PoolsFound) {
	list, crowded := m.ledger.Relief(m.Now(), m.reaction)
	now := map[poolDest]string{}
	for i, relief := range list {
		name := m.of.Config.Egress[i].Name
		for _, r := range relief {
			now[poolDest{name, egress.Dest{Proto: r.Proto, To: r.To}}] = fmt.Sprint(r.Without)
		}
		if len(relief) > 0 {
			found.Relief[name] = relief
		}
	}
	m.tellRelief(now)
	m.tellCrowded(crowded)
	var changed []egress.Alarm
	found.Alarms, changed = m.ledger.Alarms()
	for i, a := range changed {
		if i == mostTold {
			m.tell(Event{Kind: "egress", Pool: a.Pool, To: string(a.Level), Message: fmt.Sprintf("and %d more destinations", len(changed)-i)})
			break
		}
		m.tell(Event{Kind: "egress", Pool: a.Pool, Address: a.Addr.String(), To: string(a.Level), Message: a.String()})
	}
}

// mostTold is how many warnings, and how many reliefs, are told at once one by one.
const mostTold = 20

func (m *Meter) tellRelief(now map[poolDest]string) {
	n := 0
	say := func(pd poolDest, words string) {
		if n++; n <= mostTold {
			m.tell(Event{Kind: "egress", Pool: pd.pool, Message: words})
		}
	}
	for pd, without := range now {
		if m.relieved[pd] != without {
			say(pd, fmt.Sprintf("new connections to %s avoid %s, which are nearly full for it", pd.dest, strings.Trim(without, "[]")))
		}
	}
	for pd := range m.relieved {
		if _, ok := now[pd]; !ok {
			say(pd, fmt.Sprintf("new connections to %s go to all addresses again", pd.dest))
		}
	}
	if n > mostTold {
		m.tell(Event{Kind: "egress", Message: fmt.Sprintf("and so for %d more destinations", n-mostTold)})
	}
	m.relieved = now
}

func (m *Meter) tellCrowded(list []egress.Crowded) {
	now := map[poolDest]bool{}
	for i, c := range list {
		pd := poolDest{c.Pool, c.Dest}
		now[pd] = true
		if !m.crowded[pd] && i < mostTold {
			m.tell(Event{Kind: "egress", Pool: c.Pool, To: string(egress.Error),
				Message: fmt.Sprintf("all addresses are nearly full for %s: none is left out, and connections will fail", c.Dest)})
		}
	}
	m.crowded = now
}
