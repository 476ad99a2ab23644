package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/steer"
	"weir/internal/steer/nfqueue"
	"weir/internal/steer/pickup"
)

// Steerers answer for the packets that steered services' rules ask about. Implementation:
// Steering. Take may be called from one goroutine, Status from any.
type Steerers interface {
	// Prepare gets ready for the rules of p, which are not in the kernel yet.
	Prepare(p *plan.Plan) error
	// Take answers as p says, whose rules are in the kernel now.
	Take(p *plan.Plan)
	// Status returns what was done for each steered service that is answered for.
	Status() map[string]SteeringStatus
}

// Steering answers in the network namespace of those who call Prepare, which must be one.
type Steering struct {
	Log *slog.Logger

	mu      sync.Mutex
	running map[string]*steered
}

// steered is one service that is answered for.
type steered struct {
	service  *model.Service
	marks    *plan.Marks
	steerer  *steer.Steerer
	next     *steer.Set // for Take; nil: nothing changes
	nextEnds *steerEnds // comes with it
	ends     atomic.Pointer[steerEnds]
	sender   *pickup.Sender // nil: none is needed, or there can be none
	options  nfqueue.Options
	queues   *nfqueue.Queues // with Steering.mu
	stop     chan struct{}
	finished chan struct{}
}

// SteerConfig returns what the rules of s come to.
func SteerConfig(cfg *model.Config, s *model.Service, m *plan.Marks) steer.Config {
	st := s.Steering
	c := steer.Config{Seed: cfg.HashSeed, Mask: m.Mask, None: m.None, Workers: st.Queues.Len()}
	by := steer.BySourcePort
	if s.Balance == model.Source {
		by = steer.BySource
	}
	for _, t := range st.Targets {
		target := steer.Target{Name: t.Name, By: by}
		for _, i := range t.Members {
			b := s.Backends[i]
			member := steer.Member{V6: b.Family() == model.IPv6, Mark: m.Members[b.ID()]}
			member.ID, member.Weight = b.ID(), b.Weight
			target.Members = append(target.Members, member)
		}
		c.Targets = append(c.Targets, target)
	}
	for _, r := range st.Rules {
		rule := steer.Rule{Name: r.Name, Priority: r.Priority, Sources: r.Sources, Destinations: r.Destinations,
			SourcePorts: steerPorts(r.SourcePorts), DestinationPorts: steerPorts(r.Ports), Bytes: r.Bytes, To: st.Targets[r.To].Name}
		for _, p := range r.Protos {
			rule.Protocols = append(rule.Protocols, uint8(p))
		}
		c.Rules = append(c.Rules, rule)
	}
	c.Rules = append(c.Rules, steer.Rule{Name: DefaultRule, Priority: math.MaxInt, To: st.Targets[st.Default].Name})
	return c
}

// DefaultRule is the name of what stands behind all rules of a steered service.
const DefaultRule = "default"

func steerPorts(list []model.PortRange) []steer.PortRange {
	var out []steer.PortRange
	for _, r := range list {
		out = append(out, steer.PortRange{First: r.Lo, Last: r.Hi})
	}
	return out
}

// Prepare implements Steerers. Queues that get other numbers are closed here; until the new
// rules are in the kernel, it does what when_absent says.
func (s *Steering) Prepare(p *plan.Plan) error {
	s.mu.Lock()
	if s.running == nil {
		s.running = map[string]*steered{}
	}
	ending := s.ending(p)
	s.mu.Unlock()
	s.end(ending)
	var errs []error
	for _, service := range p.Config.Services {
		if service.Steered() {
			errs = append(errs, s.prepare(p, service))
		}
	}
	return errors.Join(errs...)
}

// ending takes out what must go before the queues of p can be opened.
func (s *Steering) ending(p *plan.Plan) []*steered {
	var out []*steered
	for name, r := range s.running {
		now := p.Config.Service(name)
		has := r.service.Steering.Queues
		gone := now == nil || !now.Steered()
		inTheWay := slices.ContainsFunc(p.Config.Services, func(o *model.Service) bool {
			return o.Steered() && o.Name != name && o.Steering.Queues.Overlaps(has)
		})
		if gone && inTheWay || !gone && options(now).other(r.options) {
			out = append(out, r)
			delete(s.running, name)
		}
	}
	return out
}

// queueOptions are nfqueue.Options as far as they can not be changed while a queue is open.
type queueOptions nfqueue.Options

func options(s *model.Service) queueOptions {
	q := s.Steering.Queues
	return queueOptions{First: q.First, Count: q.Len(), FailOpen: s.Steering.Absent != model.AbsentDrop}
}

func (o queueOptions) other(has nfqueue.Options) bool {
	return o.First != has.First || o.Count != has.Count || o.FailOpen != has.FailOpen
}

func (s *Steering) prepare(p *plan.Plan, service *model.Service) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.running[service.Name]
	if r != nil && r.service == service && r.marks.Equal(p.Marks()) {
		return nil
	}
	var before *steer.Set
	if r != nil {
		before = r.steerer.Set()
	}
	set, err := steer.New(SteerConfig(p.Config, service, p.Marks()), before)
	if err != nil {
		return fmt.Errorf("service %s: %w", service.Name, err)
	}
	if r != nil {
		r.service, r.marks, r.next = service, p.Marks(), set
		r.nextEnds = s.newEnds(r)
		return r.look(max(r.options.Copy, set.CopyLength()))
	}
	r = &steered{service: service, marks: p.Marks(), steerer: steer.NewSteerer(set), options: nfqueue.Options(options(service)),
		stop: make(chan struct{}), finished: make(chan struct{})}
	r.options.Copy = set.CopyLength()
	if r.queues, err = nfqueue.Open(r.options); err != nil {
		return fmt.Errorf("service %s: %w", service.Name, err)
	}
	r.ends.Store(s.newEnds(r))
	s.running[service.Name] = r
	go s.serve(r)
	return nil
}

// look makes the kernel copy n bytes of each packet.
func (r *steered) look(n int) error {
	if n == r.options.Copy {
		return nil
	}
	r.options.Copy = n
	if err := r.queues.SetCopy(n); err != nil && !errors.Is(err, nfqueue.ErrClosed) { // it is opened again with that
		return fmt.Errorf("service %s: %w", r.service.Name, err)
	}
	return nil
}

// againAfter is how long a service is left to the kernel after its queues have failed.
const againAfter = time.Second

// serve answers until stop is closed.
func (s *Steering) serve(r *steered) {
	defer close(r.finished)
	for qs := r.queues; ; {
		err := nfqueue.ErrClosed
		if qs != nil {
			err = qs.Serve(r.decide)
			_ = qs.Close() // waits where it is being closed
		}
		select {
		case <-r.stop:
			return
		default:
		}
		s.Log.Error("steering: queues failed; until they are open again the kernel does what when_absent says", "service", r.service.Name, "error", err)
		select {
		case <-r.stop:
			return
		case <-time.After(againAfter):
		}
		s.mu.Lock()
		select {
		case <-r.stop:
			s.mu.Unlock()
			return
		default:
		}
		if qs, err = nfqueue.Open(r.options); err == nil {
			r.queues = qs
		} else {
			s.Log.Error("steering: queues can not be opened", "service", r.service.Name, "error", err)
			qs = nil
		}
		s.mu.Unlock()
	}
}

// Take implements Steerers.
func (s *Steering) Take(p *plan.Plan) {
	s.mu.Lock()
	var gone []*steered
	for name, r := range s.running {
		if now := p.Config.Service(name); now == nil || !now.Steered() {
			gone = append(gone, r)
			delete(s.running, name)
			continue
		}
		if r.next != nil {
			r.steerer.Replace(r.next)
			r.ends.Store(r.nextEnds)
			if err := r.look(r.next.CopyLength()); err != nil {
				s.Log.Warn("steering", "error", err)
			}
			r.next = nil
		}
	}
	s.mu.Unlock()
	s.end(gone)
}

// Close answers what waits and gives the queues back; from then on the kernel does what
// when_absent says.
func (s *Steering) Close() {
	s.mu.Lock()
	var all []*steered
	for name, r := range s.running {
		all = append(all, r)
		delete(s.running, name)
	}
	s.mu.Unlock()
	s.end(all)
}

// end ends what is in no list any more.
func (s *Steering) end(list []*steered) {
	for _, r := range list {
		s.mu.Lock()
		close(r.stop) // from here on they are not opened again
		qs := r.queues
		s.mu.Unlock()
		if err := qs.Close(); err != nil {
			s.Log.Warn("steering: close queues", "service", r.service.Name, "error", err)
		}
		<-r.finished
		if r.sender != nil {
			r.sender.Close()
		}
	}
}
