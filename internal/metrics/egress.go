package metrics

import (
	"weir/internal/egress"
	"weir/internal/engine"
)

// The metrics of egress pools.
var (
	egressInUse   = gauge("weir_egress_ports_in_use", "Source ports of the address that are in use for its busiest destination.", "pool", "address")
	egressPorts   = gauge("weir_egress_ports", "Source ports that the address has for each destination.", "pool", "address")
	egressUsed    = gauge("weir_egress_ports_used_ratio", "Part of the address's source ports that is in use for its busiest destination, 0 to 1.", "pool", "address")
	egressOpen    = gauge("weir_egress_connections", "Connections that have the address as their source.", "pool", "address")
	egressNew     = counter("weir_egress_connections_total", "New connections that the address got since weir began to count.", "pool", "address")
	egressDrained = gauge("weir_egress_drained", "Whether an operator drains the address.", "pool", "address")
	egressRelief  = gauge("weir_egress_relief_destinations", "Destinations for which new connections avoid addresses of the pool that are nearly full.", "pool")
	egressSpilled = counter("weir_egress_spilled_total", "Connections of the pool that got another address than theirs, which was full.", "pool")
	egressFailed  = counter("weir_egress_failures_total", "Connections that the kernel could not enter since weir began to count, of pools or of others, by what it may be due to: exhaustion, race or unknown.", "cause")
)

var egressMetrics = []metric{egressInUse, egressPorts, egressUsed, egressOpen, egressNew, egressDrained, egressRelief, egressSpilled, egressFailed}

func (w writer) egress(st engine.EgressStatus) {
	if len(st.Pools) == 0 {
		return
	}
	for _, p := range st.Pools {
		w.put(egressRelief, float64(p.Relieved), p.Name)
		w.put(egressSpilled, float64(p.Spilled), p.Name)
		for _, a := range p.Addresses {
			w.address(p.Name, a)
		}
	}
	w.failures(st.Failures)
}

func (w writer) address(pool string, a engine.EgressAddress) {
	name := a.Address.String()
	w.put(egressInUse, float64(a.InUse), pool, name)
	w.put(egressPorts, float64(a.Ports), pool, name)
	w.put(egressUsed, a.Percent/100, pool, name)
	w.put(egressOpen, float64(a.Connections), pool, name)
	w.put(egressNew, float64(a.NewTotal), pool, name)
	w.yes(egressDrained, a.State != "up", pool, name)
}

func (w writer) failures(f egress.Failures) {
	w.put(egressFailed, float64(f.Exhaustion), "exhaustion")
	w.put(egressFailed, float64(f.Race), "race")
	w.put(egressFailed, float64(f.Unknown), "unknown")
}
