package metrics

import (
	"weir/internal/engine"
	"weir/internal/model"
)

// The metrics of mirrors.
var (
	mirrorRunning  = gauge("weir_mirror_running", "Whether the mirror copies packets; else it was stopped or has ended.", "mirror")
	mirrorCopies   = counter("weir_mirror_copies_total", "Copies that the mirror was to make: those that were sent and those that failed.", "mirror", "collector")
	mirrorBytes    = counter("weir_mirror_bytes_total", "Bytes of layer 3 of the packets that the mirror was to copy.", "mirror", "collector")
	mirrorOver     = counter("weir_mirror_over_limit_packets_total", "Packets that were not copied because of the mirror's limit.", "mirror", "collector")
	mirrorFailed   = counter("weir_mirror_failed_copies_total", "Copies of all mirrors with the collector that did not arrive: no_route, no_neighbour or, of its whole family, too_big.", "collector", "reason")
	mirrorReturned = counter("weir_mirror_returned_packets_total", "Packets with the mark of copies that came in, and were dropped.", "family")
	mirrorQueue    = counter("weir_mirror_queue_dropped_packets_total", "Packets that the queue of a device with collectors dropped since weir looks at it, whoever sent them.", "device")
)

var mirrorMetrics = []metric{mirrorRunning, mirrorCopies, mirrorBytes, mirrorOver, mirrorFailed, mirrorReturned, mirrorQueue}

// mirrors tells of mirrors. What is not of one alone is told once.
func (w writer) mirrors(list []engine.MirrorStatus) {
	collectors, returned, queues := map[string]engine.MirrorFailed{}, map[string]uint64{}, map[string]uint64{}
	for _, m := range list {
		w.yes(mirrorRunning, m.State == "running", m.Name)
		for _, f := range m.Families {
			name := f.Collector.String()
			w.put(mirrorCopies, float64(f.Made), m.Name, name)
			w.put(mirrorBytes, float64(f.Bytes), m.Name, name)
			w.put(mirrorOver, float64(f.OverLimit), m.Name, name)
			collectors[name] = f.Failed
			returned[model.FamilyOf(f.Collector).String()] = f.Returned
			if f.Device != "" {
				queues[f.Device] = f.QueueDropped
			}
		}
	}
	for name, failed := range collectors {
		w.put(mirrorFailed, float64(failed.NoRoute), name, "no_route")
		w.put(mirrorFailed, float64(failed.NoNeighbour), name, "no_neighbour")
		w.put(mirrorFailed, float64(failed.TooBig), name, "too_big")
	}
	for family, n := range returned {
		w.put(mirrorReturned, float64(n), family)
	}
	for dev, n := range queues {
		w.put(mirrorQueue, float64(n), dev)
	}
}
