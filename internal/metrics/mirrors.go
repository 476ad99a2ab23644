package metrics

import (
	"strconv"

	"weir/internal/engine"
)

// The metrics of mirrors.
var (
	mirrorRunning  = gauge("weir_mirror_running", "Whether the mirror copies packets; else it was stopped or has ended.", "mirror")
	mirrorCopies   = counter("weir_mirror_copies_total", "Copies that the mirror was to make: those that were sent and those that failed.", "mirror", "family")
	mirrorBytes    = counter("weir_mirror_bytes_total", "Bytes of layer 3 of the packets that the mirror was to copy.", "mirror", "family")
	mirrorOver     = counter("weir_mirror_over_limit_packets_total", "Packets that were not copied because of the mirror's limit.", "mirror", "family")
	mirrorFailed   = counter("weir_mirror_failed_copies_total", "Copies of all mirrors with the collector that did not arrive: no_route, no_neighbour or, of its whole family, too_big.", "collector", "vxlan", "family", "reason")
	mirrorTunnel   = counter("weir_mirror_tunnel_failed_copies_total", "Copies of both families that the tunnel to the collector could not send, since its device came.", "collector", "vxlan")
	mirrorReturned = counter("weir_mirror_returned_packets_total", "Packets with the mark of copies that came in, and were dropped.", "family")
	mirrorQueue    = counter("weir_mirror_queue_dropped_packets_total", "Packets that the queue of the device that leads to the collector dropped since weir looks at it, whoever sent them.", "collector")
)

var mirrorMetrics = []metric{mirrorRunning, mirrorCopies, mirrorBytes, mirrorOver, mirrorFailed, mirrorTunnel, mirrorReturned, mirrorQueue}

// mirrorEnd is to whom copies of a family go.
type mirrorEnd struct{ collector, vxlan, family string }

// mirrors tells of mirrors. What is not of one alone is told once.
func (w writer) mirrors(list []engine.MirrorStatus) {
	ends, returned, queues := map[mirrorEnd]engine.MirrorFailed{}, map[string]uint64{}, map[string]uint64{}
	for _, m := range list {
		w.yes(mirrorRunning, m.State == "running", m.Name)
		for _, f := range m.Families {
			w.put(mirrorCopies, float64(f.Made), m.Name, f.Family)
			w.put(mirrorBytes, float64(f.Bytes), m.Name, f.Family)
			w.put(mirrorOver, float64(f.OverLimit), m.Name, f.Family)
			e := mirrorEnd{f.Collector.String(), "", f.Family}
			if f.VXLAN != 0 {
				e.vxlan = strconv.FormatUint(uint64(f.VXLAN), 10)
			}
			ends[e], returned[f.Family], queues[e.collector] = f.Failed, f.Returned, f.QueueDropped
		}
	}
	tunnels := map[mirrorEnd]uint64{}
	for e, failed := range ends {
		w.put(mirrorFailed, float64(failed.NoRoute), e.collector, e.vxlan, e.family, "no_route")
		w.put(mirrorFailed, float64(failed.NoNeighbour), e.collector, e.vxlan, e.family, "no_neighbour")
		w.put(mirrorFailed, float64(failed.TooBig), e.collector, e.vxlan, e.family, "too_big")
		if e.vxlan != "" {
			tunnels[mirrorEnd{e.collector, e.vxlan, ""}] = failed.Tunnel
		}
	}
	for e, n := range tunnels {
		w.put(mirrorTunnel, float64(n), e.collector, e.vxlan)
	}
	for family, n := range returned {
		w.put(mirrorReturned, float64(n), family)
	}
	for collector, n := range queues {
		w.put(mirrorQueue, float64(n), collector)
	}
}
