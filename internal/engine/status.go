package engine

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"weir/internal/binding"
	"weir/internal/host"
	"weir/internal/lists"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// Status is what the services did since their counters began: when weir was first
// applied, or after `weir clear`. Its JSON form is part of weir's interface.
type Status struct {
	Loaded   bool            `json:"loaded"` // weir's rules are in the kernel
	Services []ServiceStatus `json:"services"`
	Edge     *EdgeStatus     `json:"edge,omitempty"` // nil: the file says nothing of it, or one service was asked for
	// Leaks is packets with private sources that did not leave by the device of a pool.
	Leaks    []Dropped `json:"leaks,omitempty"`
	Waiting  *Waiting  `json:"waiting,omitempty"`  // a change that is not confirmed yet
	Rejected *Rejected `json:"rejected,omitempty"` // the last one that was not, until another is taken

	// What only a running weir knows.
	Findings []host.Finding `json:"findings,omitzero"` // what is wrong on the box, the worst first
	Lists    []lists.Status `json:"blocklists,omitempty"`
	Applied  *bool          `json:"applied,omitempty"` // the kernel does what is wanted; else it is tried again
	// Connections is the kernel's table of all connections, services' and others'.
	Connections *TableStatus `json:"connection_table,omitempty"`
	SYNProxy    *ProxyStatus `json:"syn_proxy,omitempty"` // nil: no service has one
	// Bindings is how the log of bindings fares; nil: nothing is logged.
	Bindings *binding.Status `json:"bindings,omitempty"`
	// Egress is what of egress pools is full or nearly so, the worst first.
	Egress []EgressAlarm `json:"egress,omitempty"`
}

// ServiceStatus is the share of one service.
type ServiceStatus struct {
	Name string `json:"name"`
	// MaxConnections is how many connections may be open at a time; left out where there
	// is no limit.
	MaxConnections int             `json:"max_connections,omitempty"`
	Forward        string          `json:"forward"`         // "nat", "direct" or "local"
	Track          string          `json:"track,omitempty"` // "conntrack" or "none"; left out of one with forward: nat
	Balance        string          `json:"balance"`         // "" of a local one
	Listen         []string        `json:"listen"`
	Backends       []BackendStatus `json:"backends"`
	// Listeners are those of a local service, which has no backends.
	Listeners []ListenerStatus `json:"listeners,omitempty"`
	Limits    []LimitStatus    `json:"limits,omitempty"` // in the order of the file
	// Steering is of a steered service.
	Steering *SteeringStatus `json:"steering,omitempty"`
	// Former sums up backends that were counted and are in the file no more.
	Former Traffic `json:"former"`
	Total  Traffic `json:"total"`
}

// BackendStatus is the share of one backend.
type BackendStatus struct {
	Address string `json:"address"`
	Weight  int    `json:"weight"`
	// MaxConnections is how many connections may be open at a time; left out where there
	// is no limit.
	MaxConnections int `json:"max_connections,omitempty"`
	// Share is the part of the new connections of its family that the weights give it, 0 to 1.
	Share float64 `json:"share"`
	Traffic

	// What only a running weir knows.
	State  string       `json:"state,omitempty"`              // a state.Name
	Reason string       `json:"reason,omitempty"`             // why
	Since  time.Time    `json:"since,omitzero"`               // when the state began
	Active *int         `json:"active_connections,omitempty"` // that the kernel tracks now
	Check  *CheckStatus `json:"check,omitempty"`              // the last one
}

// CheckStatus is how a check ended.
type CheckStatus struct {
	OK        bool      `json:"ok"`
	Void      bool      `json:"void,omitempty"` // nothing was learned, the reason lies on this machine
	Detail    string    `json:"detail"`
	LatencyMS float64   `json:"latency_ms"`
	At        time.Time `json:"at"`
}

// Traffic is what was counted. In is from clients to backends, out is back from them;
// bytes are those of layer 3.
type Traffic struct {
	NewConnections uint64 `json:"new_connections"`
	PacketsIn      uint64 `json:"packets_in"`
	BytesIn        uint64 `json:"bytes_in"`
	PacketsOut     uint64 `json:"packets_out"`
	BytesOut       uint64 `json:"bytes_out"`
}

func (t *Traffic) add(o Traffic) {
	t.NewConnections += o.NewConnections
	t.PacketsIn += o.PacketsIn
	t.BytesIn += o.BytesIn
	t.PacketsOut += o.PacketsOut
	t.BytesOut += o.BytesOut
}

// Counters reads the elements of sets that packets fill. Implementation: nft.Conn.
type Counters interface {
	// Elements calls each for every element of s until it returns false. A set or
	// table that does not exist is an error that unwraps to ENOENT.
	Elements(ctx context.Context, t nft.TableRef, s *ruleset.Set, each func(nft.Elem) bool) error
	RuleCounters
}

// ReadStatus returns the status of the services of p. A kernel without weir's rules gives
// one in which nothing was counted.
func ReadStatus(ctx context.Context, k Counters, p *plan.Plan) (Status, error) {
	st, err := readStatus(ctx, k, p.Config, p)
	st.readTables(p.Config)
	return st, err
}

// readStatus is the status of the services of cfg, which p may know by other weights.
func readStatus(ctx context.Context, k Counters, cfg *model.Config, p *plan.Plan) (Status, error) {
	st := newStatus(cfg)
	book := newBook(cfg)
	table := Tables[0]
	edge := st.Edge
	if p.Config.Edge != cfg.Edge {
		edge = nil // a file that is not applied yet: its rules are others
	}
	defer edge.sort()
	defer func() { sortDropped(st.Leaks) }()
	for _, c := range p.Counted() {
		err := k.Elements(ctx, table, c.Set, func(e nft.Elem) bool {
			switch {
			case c.What == plan.Leaked:
				st.leak(e)
				return true
			case c.What >= plan.Opened:
				edge.take(c, e, p.OpenRule)
				return true
			case c.What >= plan.ListenerConnections:
				st.serve(book, c, e)
				return true
			}
			pair := plan.ParsePair(c.Family, e.Key)
			t := traffic(c.What, e.Counter)
			if at, ok := book.find(pair); ok {
				st.credit(at, t)
			}
			return true
		})
		if errors.Is(err, fs.ErrNotExist) {
			return st, nil
		}
		if err != nil {
			return st, err
		}
	}
	if err := st.readLimits(ctx, k, cfg, p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return st, err
	}
	if err := st.readDirect(ctx, k, cfg); err != nil {
		return st, err
	}
	st.Loaded = true
	return st, nil
}

func traffic(what plan.What, c nft.Counter) Traffic {
	switch what {
	case plan.Connections:
		return Traffic{NewConnections: c.Packets}
	case plan.Requests:
		return Traffic{PacketsIn: c.Packets, BytesIn: c.Bytes}
	}
	return Traffic{PacketsOut: c.Packets, BytesOut: c.Bytes}
}

func newStatus(cfg *model.Config) Status {
	st := Status{Services: make([]ServiceStatus, len(cfg.Services)), Edge: newEdgeStatus(cfg.Edge)}
	for i, s := range cfg.Services {
		ss := &st.Services[i]
		*ss = ServiceStatus{Name: s.Name, MaxConnections: s.MaxConnections, Forward: s.Forward.String(), Balance: s.Balance.String(), Listen: []string{}, Backends: []BackendStatus{}}
		for _, l := range s.Listen {
			ss.Listen = append(ss.Listen, l.String())
		}
		ss.Limits = limitStatus(s)
		ss.describeLocal(s)
		ss.Steering = newSteeringStatus(s)
		sum := map[model.Family]int{}
		for _, b := range s.Backends {
			sum[b.Family()] += b.Weight
		}
		for _, b := range s.Backends {
			bs := BackendStatus{Address: b.ID(), Weight: b.Weight, MaxConnections: b.MaxConnections}
			if n := sum[b.Family()]; n > 0 {
				bs.Share = float64(b.Weight) / float64(n)
			}
			ss.Backends = append(ss.Backends, bs)
		}
	}
	return st
}

// spot is a service and one of its backends, -1 for one that is not in the file.
type spot struct{ service, backend int }

func (st *Status) credit(at spot, t Traffic) {
	s := &st.Services[at.service]
	s.Total.add(t)
	if at.backend < 0 {
		s.Former.add(t)
		return
	}
	s.Backends[at.backend].Traffic.add(t)
}

// book finds the service and the backend of a pair that was counted.
type book struct {
	cfg    *model.Config
	single map[listener]int
	ranges map[listener][]ranged // port 0
}

type listener struct {
	addr  netip.Addr
	proto model.Proto
	port  uint16
}

type ranged struct {
	ports   model.PortRange
	service int
}

func newBook(cfg *model.Config) *book {
	b := &book{cfg, map[listener]int{}, map[listener][]ranged{}}
	for i, s := range cfg.Services {
		for _, l := range s.Listen {
			if l.Ports.Single() {
				b.single[listener{l.Addr, l.Proto, l.Ports.Lo}] = i
				continue
			}
			k := listener{l.Addr, l.Proto, 0}
			b.ranges[k] = append(b.ranges[k], ranged{l.Ports, i})
		}
	}
	return b
}

func (b *book) find(p plan.Pair) (spot, bool) {
	service, ok := b.single[listener{p.Listen.Addr(), p.Proto, p.Listen.Port()}]
	if !ok {
		at := slices.IndexFunc(b.ranges[listener{p.Listen.Addr(), p.Proto, 0}], func(r ranged) bool {
			return r.ports.Contains(p.Listen.Port())
		})
		if at < 0 {
			return spot{}, false
		}
		service = b.ranges[listener{p.Listen.Addr(), p.Proto, 0}][at].service
	}
	backend := slices.IndexFunc(b.cfg.Services[service].Backends, func(be model.Backend) bool {
		return be.Addr == p.Backend.Addr() && (be.Ports.IsZero() || be.Ports.Contains(p.Backend.Port()))
	})
	return spot{service, backend}, true
}
