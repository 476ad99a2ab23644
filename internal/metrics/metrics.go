// Package metrics tells Prometheus what a running weir knows, in the names that stand in
// docs/METRICS.md. It looks when it is asked, and keeps nothing.
package metrics

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weir/internal/engine"
	"weir/internal/lists"
	"weir/internal/ruleset"
)

// Source is a running weir. Its methods may be called from several goroutines.
type Source interface {
	View(ctx context.Context) (engine.View, error)
	Status(ctx context.Context, view engine.View, service string) (engine.Status, error)
	// Counts returns how many events of each kind there were since the start.
	Counts() map[string]uint64
	// Sums returns what entries of each blocklist have counted since the first look at them.
	Sums() map[string]ruleset.Count
	// Uncounted returns what met an entry and was counted for none, for want of room.
	Uncounted() ruleset.Count
	// Usage returns what view's egress pools had in use at the last look at them.
	Usage(view engine.View) engine.EgressStatus
	// Mirrors returns all mirrors.
	Mirrors(ctx context.Context) ([]engine.MirrorStatus, error)
}

// timeout bounds one look.
const timeout = 10 * time.Second

// Handler answers GET /metrics for a weir of that version. What could not be learned is
// missing from the answer, and weir_up is 0.
func Handler(weir Source, version string) http.Handler {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_build_info",
		Help: "Always 1; the version is a label.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	reg.MustRegister(build, &collector{weir},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 2 * timeout})
}

// collector asks weir when Prometheus asks.
type collector struct{ weir Source }

// metric is one name with its labels.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

// The metrics. Names, labels and units are for ever.
var (
	up      = gauge("weir_up", "Whether weir could be asked for all that stands here.")
	applied = gauge("weir_applied", "Whether the kernel does all that is wanted; 0 while it is tried again.")
	loaded  = gauge("weir_rules_loaded", "Whether weir's rules are in the kernel.")
	events  = counter("weir_events_total", "Events since weir started, by kind as in weir events.", "kind")

	backendState  = gauge("weir_backend_state", "Always 1; the backend's state is a label: up, down, draining, drained, disabled, starting or backup.", "service", "backend", "state")
	backendWeight = gauge("weir_backend_weight", "Weight of the backend, as in the file or as an operator says.", "service", "backend")
	backendShare  = gauge("weir_backend_share_ratio", "Part of its family's new connections that the backend gets, 0 to 1.", "service", "backend")
	backendActive = gauge("weir_backend_active_connections", "Connections to the backend that the kernel tracks.", "service", "backend")
	backendNew    = counter("weir_backend_connections_total", "New connections that the backend got.", "service", "backend")
	backendPkts   = counter("weir_backend_packets_total", "Packets to the backend (in) and back from it (out).", "service", "backend", "direction")
	backendBytes  = counter("weir_backend_bytes_total", "Bytes of layer 3 to the backend (in) and back from it (out).", "service", "backend", "direction")
	listenerNew   = counter("weir_listener_connections_total", "New connections that the listener of a local service got; not with track: none.", "service", "listener")
	listenerPkts  = counter("weir_listener_packets_total", "Packets to the listener of a local service (in) and back from it (out).", "service", "listener", "direction")
	listenerBytes = counter("weir_listener_bytes_total", "Bytes of layer 3 to the listener of a local service (in) and back from it (out).", "service", "listener", "direction")
	checkUp       = gauge("weir_backend_check_up", "Whether the last check of the backend was good.", "service", "backend")
	checkTime     = gauge("weir_backend_check_duration_seconds", "How long the last check of the backend took.", "service", "backend")
	checkAt       = gauge("weir_backend_check_timestamp_seconds", "When the last check of the backend ended, in seconds since 1970.", "service", "backend")
)

// The metrics of blocklists.
var (
	listEntries = gauge("weir_blocklist_entries", "Entries of the blocklist that are in use.", "list")
	listOK      = gauge("weir_blocklist_ok", "Whether what was read of the blocklist last is in use.", "list")
	listRead    = gauge("weir_blocklist_read_timestamp_seconds", "When what is in use of the blocklist was read, in seconds since 1970.", "list")
	blockedPkts = counter("weir_blocked_packets_total", "Packets that met an entry of the blocklist since weir started, as seen at the last look at the counters.", "list")
	blockedSize = counter("weir_blocked_bytes_total", "Bytes of layer 3 that met an entry of the blocklist since weir started, as seen at the last look at the counters.", "list")
	uncounted   = counter("weir_blocked_uncounted_packets_total", "Packets that met an entry of a blocklist and were counted for none, because there was no room for another counter; as seen at the last look.")
)

// The metrics of steered services. They begin with weir's start.
var (
	steerUp      = gauge("weir_steering_answering", "Whether weir answers for the steered service; else the kernel does what when_absent says.", "service")
	steerRule    = counter("weir_steering_rule_packets_total", "Packets that weir was asked about and the rule wanted.", "service", "rule")
	steerMember  = counter("weir_steering_backend_packets_total", "Packets that weir was asked about and the backend was chosen for, by target.", "service", "target", "backend")
	steerNobody  = counter("weir_steering_nobody_packets_total", "Packets that weir was asked about and whose target had no backend to choose.", "service")
	steerEnds    = counter("weir_steering_ends_total", "FINs and RSTs of TCP connections that conntrack does not know: sent on to the backend (sent), over the limit of 1,000 a second (limited), or not sent on for another reason (dropped).", "service", "outcome")
	queuePackets = counter("weir_steering_queue_packets_total", "Packets of the kernel's queue that weir was asked about.", "service", "queue")
	queueWaiting = gauge("weir_steering_queue_waiting", "Packets that wait for an answer in the kernel's queue.", "service", "queue")
	queuePast    = counter("weir_steering_queue_unasked_packets_total", "Packets that did not get to weir, because too many waited (full) or the socket's buffer was full (buffer).", "service", "queue", "reason")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range append(slices.Concat(egressMetrics, mirrorMetrics), []metric{up, applied, loaded, events, backendState, backendWeight, backendShare, backendActive,
		backendNew, backendPkts, backendBytes, listenerNew, listenerPkts, listenerBytes, checkUp, checkTime, checkAt,
		steerUp, steerRule, steerMember, steerNobody, steerEnds, queuePackets, queueWaiting, queuePast,
		listEntries, listOK, listRead, blockedPkts, blockedSize}...) {
		ch <- m.desc
	}
}

// writer sends values of metrics.
type writer chan<- prometheus.Metric

func (w writer) put(m metric, value float64, labels ...string) {
	w <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

func (w writer) yes(m metric, is bool, labels ...string) {
	value := 0.0
	if is {
		value = 1
	}
	w.put(m, value, labels...)
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	w := writer(ch)
	for kind, n := range c.weir.Counts() {
		w.put(events, float64(n), kind)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	view, err := c.weir.View(ctx)
	if err != nil {
		w.yes(up, false)
		return
	}
	w.yes(applied, view.Reached())
	sums := c.weir.Sums()
	for _, l := range view.Lists {
		w.list(l, sums[l.Name])
	}
	if len(view.Lists) > 0 {
		w.put(uncounted, float64(c.weir.Uncounted().Packets))
	}
	w.egress(c.weir.Usage(view))
	mirrors, mirrorErr := c.weir.Mirrors(ctx)
	w.mirrors(mirrors)
	st, err := c.weir.Status(ctx, view, "")
	w.yes(up, err == nil && mirrorErr == nil)
	if err != nil {
		return
	}
	w.yes(loaded, st.Loaded)
	for i := range st.Services {
		s := &st.Services[i]
		for j := range s.Backends {
			w.backend(s.Name, &s.Backends[j])
		}
		for j := range s.Listeners {
			w.listener(s, &s.Listeners[j])
		}
		w.steering(s.Name, s.Steering)
	}
}

// steering tells of a steered service; nil of one that is none.
func (w writer) steering(service string, s *engine.SteeringStatus) {
	if s == nil {
		return
	}
	w.yes(steerUp, s.Answering, service)
	for _, r := range s.Rules {
		w.put(steerRule, float64(r.Packets), service, r.Name)
	}
	for _, t := range s.Targets {
		for _, b := range t.Backends {
			w.put(steerMember, float64(b.Packets), service, t.Name, b.Address)
		}
	}
	w.put(steerNobody, float64(s.Nobody), service)
	if e := s.Ends; e != nil {
		w.put(steerEnds, float64(e.Sent), service, "sent")
		w.put(steerEnds, float64(e.Limited), service, "limited")
		w.put(steerEnds, float64(e.Dropped), service, "dropped")
	}
	for _, q := range s.Queues {
		number := strconv.Itoa(int(q.Queue))
		w.put(queuePackets, float64(q.Packets), service, number)
		w.put(queueWaiting, float64(q.Waiting), service, number)
		w.put(queuePast, float64(q.Full), service, number, "full")
		w.put(queuePast, float64(q.Unreceived), service, number, "buffer")
	}
}

func (w writer) listener(s *engine.ServiceStatus, l *engine.ListenerStatus) {
	if s.Track != "none" { // else nobody knows what is new
		w.put(listenerNew, float64(l.NewConnections), s.Name, l.Listen)
	}
	w.put(listenerPkts, float64(l.PacketsIn), s.Name, l.Listen, "in")
	w.put(listenerPkts, float64(l.PacketsOut), s.Name, l.Listen, "out")
	w.put(listenerBytes, float64(l.BytesIn), s.Name, l.Listen, "in")
	w.put(listenerBytes, float64(l.BytesOut), s.Name, l.Listen, "out")
}

func (w writer) list(l lists.Status, n ruleset.Count) {
	w.put(listEntries, float64(l.Entries), l.Name)
	w.yes(listOK, l.Problem == "", l.Name)
	if !l.ReadAt.IsZero() {
		w.put(listRead, float64(l.ReadAt.UnixMilli())/1000, l.Name)
	}
	w.put(blockedPkts, float64(n.Packets), l.Name)
	w.put(blockedSize, float64(n.Bytes), l.Name)
}

func (w writer) backend(service string, b *engine.BackendStatus) {
	if b.State != "" {
		w.put(backendState, 1, service, b.Address, b.State)
	}
	w.put(backendWeight, float64(b.Weight), service, b.Address)
	w.put(backendShare, b.Share, service, b.Address)
	if b.Active != nil {
		w.put(backendActive, float64(*b.Active), service, b.Address)
	}
	w.put(backendNew, float64(b.NewConnections), service, b.Address)
	w.put(backendPkts, float64(b.PacketsIn), service, b.Address, "in")
	w.put(backendPkts, float64(b.PacketsOut), service, b.Address, "out")
	w.put(backendBytes, float64(b.BytesIn), service, b.Address, "in")
	w.put(backendBytes, float64(b.BytesOut), service, b.Address, "out")
	if c := b.Check; c != nil && !c.Void {
		w.yes(checkUp, c.OK, service, b.Address)
		w.put(checkTime, c.LatencyMS/1000, service, b.Address)
		w.put(checkAt, float64(c.At.UnixMilli())/1000, service, b.Address)
	}
}
