package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/config"
	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/ruleset"
	"weir/internal/steer"
	"weir/internal/steer/nfqueue"
)

// Steering: how many packets a second weir answers for, whether one gets lost at a rate that is
// no flood, and what a new connection costs that weir chooses for, beside one for which the
// kernel does.

// SteeringReport is the part about steering.
type SteeringReport struct {
	Rate        int           `json:"rate"` // packets a second of Paced
	Seconds     float64       `json:"paced_seconds"`
	Flood       []QueueCell   `json:"flood"`
	Paced       []QueueCell   `json:"paced"`
	Connections []OpeningCell `json:"connections"`
}

// QueueCell is packets that go through queues. Rates are medians of the rounds.
type QueueCell struct {
	Name       string  `json:"name"`
	Queues     int     `json:"queues"`
	Sent       float64 `json:"sent_per_s"`
	Answered   float64 `json:"answered_per_s"`
	Least      float64 `json:"least_answered_per_s"` // of the rounds
	Most       float64 `json:"most_answered_per_s"`
	Packets    int     `json:"packets"`    // sent in all rounds
	Lost       int     `json:"lost"`       // of these, for whatever cause
	Full       int     `json:"full"`       // of the lost ones, because too many waited
	Unreceived int     `json:"unreceived"` // and because the socket's buffer was full
	Packet     Cost    `json:"packet"`     // for the process that answers: what it does with a packet, and the packet's way on
	// Sender is the processor time of who sends, and of the packets' way into the queue, as a
	// share of one processor; Waited is how long the threads that answer had to wait for a
	// processor, as a share of the time that they wanted one.
	Sender  float64 `json:"sender_share"`
	Waited  float64 `json:"waited_share"`
	Rounds  int     `json:"rounds"`
	Problem string  `json:"problem,omitempty"`
}

// OpeningCell is new TCP connections, as many as get through without a loss.
type OpeningCell struct {
	Name    string  `json:"name"`
	Flows   int     `json:"connections"` // of a round
	Rate    float64 `json:"per_s"`       // the median of the rounds
	Most    float64 `json:"most_per_s"`
	New     Cost    `json:"new"`          // processor time of all that is done for one
	Own     Cost    `json:"own"`          // of that, the part of the process that chooses
	Sender  float64 `json:"sender_share"` // as in QueueCell
	Rounds  int     `json:"rounds"`
	Problem string  `json:"problem,omitempty"`
}

const (
	steerFlood  = time.Second
	pacedRate   = 40_000
	pacedTime   = 2 * time.Second
	pacedStep   = 500 * time.Microsecond
	openings    = 60_000
	openingWait = 8192 // at most in a queue, which takes 16,384
	openingStep = 512
	steerLimit  = 20 * time.Second // for what is sent to come out
	steerTime   = 50 * time.Second // after which no further row is measured
	// steerMembers is how many there are to choose from.
	steerMembers = 20
	steerMask    = 0x0fff0000
)

// Names of the rows.
const (
	openKernel = "the kernel chooses"
	openWeir   = "weir run, first packets"
)

// steering measures it.
func (b *bench) steering(ctx context.Context) (*SteeringReport, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.note("steering: not measured: the world around the gateways needs nft: %v", err)
		return nil, nil
	}
	if err := largeBuffer(); err != nil {
		b.note("steering: not measured: large socket buffers need root outside of user namespaces: %v", err)
		return nil, nil
	}
	n, err := lab.New()
	if err != nil {
		return nil, err
	}
	defer n.Close()
	w := &steerWorld{bench: b, net: n, processor: lastProcessor(), until: time.Now().Add(steerTime)}
	defer w.close()
	if err := w.make(ctx); err != nil {
		return nil, err
	}
	err = b.inRounds(ctx, "steering", len(w.rows), func(i int) { w.rows[i].round(ctx) })
	return w.report(), err
}

// largeBuffer reports why this process may not have them.
func largeBuffer() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
}

// steerWorld is the gateways of the part.
type steerWorld struct {
	*bench
	processor
	net   *lab.Net
	until time.Time
	over  bool   // until has come, and that is noted
	flows []byte // frames of as many connections as a round opens at most
	some  []byte // and so many as are sent again and again
	rows  []*steerRow
}

// steerRow is one row of the tables: a gateway, who answers on it, and what is sent to it.
type steerRow struct {
	*steerWorld
	name    string
	kind    string // one of the constants
	queues  int
	gw      *gateway
	proc    *running // nil: the kernel alone
	tracks  bool
	rounds  []steerRound
	problem string
}

const (
	kindFlood = "flood"
	kindPaced = "paced"
	kindOpen  = "open"
)

// make makes the gateways and starts who answers there.
func (w *steerWorld) make(ctx context.Context) error {
	flows, err := w.roomForFlows()
	if err != nil {
		return err
	}
	packets := newFlows(flows)
	w.flows = ether(outsideMAC, clientMAC, packets)
	w.some = w.flows[:min(len(w.flows), maxFrames*frameSize)]
	for _, r := range []*steerRow{
		{name: "one queue", kind: kindFlood, queues: 1},
		{name: "two queues", kind: kindFlood, queues: 2},
		{name: "one queue", kind: kindPaced, queues: 1},
		{name: openWeir, kind: kindPaced, queues: 1, tracks: true},
		{name: openKernel, kind: kindOpen, tracks: true},
		{name: openWeir + ", one queue", kind: kindOpen, queues: 1, tracks: true},
		{name: openWeir + ", two queues", kind: kindOpen, queues: 2, tracks: true},
	} {
		r.steerWorld = w
		if err := r.start(ctx); err != nil {
			r.problem = err.Error()
		}
		w.rows = append(w.rows, r)
	}
	return nil
}

func (w *steerWorld) close() {
	for _, r := range w.rows {
		if r.proc != nil {
			r.proc.Kill()
		}
	}
}

// roomForFlows is how many connections a round may open.
func (w *steerWorld) roomForFlows() (int, error) {
	want := max(openings, int(pacedRate*pacedTime.Seconds()))
	h, err := w.net.Host("room")
	if err != nil {
		return 0, err
	}
	track, err := w.file("track.nft", []byte(trackAll)) // only now the kernel has such a table for sure
	if err != nil {
		return 0, err
	}
	if _, err := h.Run("nft", "-f", track); err != nil {
		return 0, err
	}
	most, err := number(h, "net.netfilter.nf_conntrack_max")
	if room := most * 9 / 10; err == nil && room < want {
		w.note("steering: rounds of at most %d connections: net.netfilter.nf_conntrack_max is %d", room, most)
		want = room
	}
	return want, err
}

// newFlows returns the first packets of n connections to one service.
func newFlows(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		src := netip.AddrPortFrom(nth(clients, 1+i%250), uint16(1024+i/250))
		out[i] = lab.TCPPacket(src, netip.AddrPortFrom(listenAddr(0), listenPort), lab.SYN, clientSeq, 0)
	}
	return out
}

// start makes the gateway, and starts who answers.
func (r *steerRow) start(ctx context.Context) error {
	drop, err := r.file("drop.nft", []byte(dropAll))
	if err != nil {
		return err
	}
	name := fmt.Sprintf("steer-%d", len(r.rows))
	if r.gw, err = newGateway(r.net, name, drop); err != nil {
		return err
	}
	// What comes out shall be what was sent, and no router's word of IPv6.
	for _, key := range []string{"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"} {
		if err := r.gw.host.Sysctl(key, "1"); err != nil {
			return err
		}
	}
	switch {
	case !r.tracks:
		return r.startQueues(ctx)
	case r.queues == 0:
		file, err := r.file(name+".yaml", config.Marshal(plainModel()))
		if err == nil {
			_, err = r.gw.host.Run(r.weir, "apply", "--config", file, "--state", r.dir+"/"+name+"/state.json")
		}
		return err
	}
	file, err := r.file(name+".yaml", config.Marshal(steeredModel(r.queues)))
	if err == nil {
		r.proc, err = r.untilRuns(ctx, r.gw.host, file)
	}
	return err
}

// plainModel is the service for which the kernel chooses.
func plainModel() *model.Config {
	cfg := &model.Config{HashSeed: model.DefaultHashSeed, MarkMask: model.DefaultMarkMask}
	s := &model.Service{Name: "web", Balance: model.Maglev, Source: model.SourceNAT{Mode: model.SourceKeep},
		Listen: []model.Listen{{Addr: listenAddr(0), Proto: model.TCP, Ports: model.Port(listenPort)}}}
	for i := range steerMembers {
		s.Backends = append(s.Backends, model.Backend{Addr: nth(backends, i+1), Ports: model.Port(backendPort), Weight: 1})
	}
	cfg.Services = []*model.Service{s}
	return cfg
}

// steeredModel is the same for weir.
func steeredModel(queues int) *model.Config {
	cfg := plainModel()
	s := cfg.Services[0]
	target := model.SteerTarget{Name: "all"}
	for i := range s.Backends {
		target.Members = append(target.Members, i)
	}
	s.Steering = &model.Steering{Targets: []model.SteerTarget{target}, Absent: model.AbsentDrop,
		Queues: model.QueueRange{First: model.FirstQueue, Last: model.FirstQueue + uint16(queues) - 1}}
	return cfg
}

// startQueues gives all TCP packets to a process with weir's loop, without connection tracking:
// so each packet is asked about.
func (r *steerRow) startQueues(ctx context.Context) error {
	if err := queueTCP(r.gw.host, 0, r.queues); err != nil {
		return err
	}
	r.proc = &running{}
	var err error
	cmd := r.gw.host.Command("/proc/self/exe", steerWord, strconv.Itoa(r.queues))
	cmd.Stdout, cmd.Stderr = &r.proc.said, &r.proc.said
	if r.proc.Process, err = r.gw.host.Start(cmd); err != nil {
		r.proc = nil
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.limit, errLimit)
	defer cancel()
	for {
		n, err := r.gw.queued()
		if err == nil && n.queues == r.queues {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-r.proc.Done():
			return fmt.Errorf("the process that answers ended: %s", lastLine(r.proc.said.String()))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// queueTCP gives all TCP packets that come in to queues, in the form that the kernel has.
func queueTCP(host *lab.Host, first, count int) error {
	rules := &ruleset.Ruleset{Tables: []*ruleset.Table{{Family: ruleset.Inet, Name: "weir", Chains: []*ruleset.Chain{
		{Name: "steer", Base: &ruleset.Base{Type: "filter", Hook: ruleset.Prerouting, Priority: -150}, Rules: []ruleset.Rule{
			{Stmts: []ruleset.Stmt{ruleset.IsProto(model.TCP), ruleset.Queue{First: uint16(first), Last: uint16(first + count - 1), Bypass: true}}}}}}}}}
	return host.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Apply(context.Background(), ruleset.Diff(&ruleset.Ruleset{}, rules), 0)
		return err
	})
}

// answerQueues opens so many queues and answers until the process is ended.
func answerQueues(count string) result {
	n, err := strconv.Atoi(count)
	if err != nil {
		return result{Problem: err.Error()}
	}
	st, err := newSteerer(1, n)
	if err != nil {
		return result{Problem: err.Error()}
	}
	queues, err := nfqueue.Open(nfqueue.Options{Count: n, Copy: st.Set().CopyLength()})
	if err == nil {
		err = queues.Serve(func(worker int, data []byte, mark uint32) nfqueue.Verdict {
			return nfqueue.Verdict{Mark: st.Mark(worker, data, mark)}
		})
	}
	return result{Problem: fmt.Sprint(err)}
}

// newSteerer returns one with so many rules, of which the last matches, and a group of
// steerMembers.
func newSteerer(rules, workers int) (*steer.Steerer, error) {
	group := steer.Target{Name: "group"}
	for i := range steerMembers {
		group.Members = append(group.Members, steer.Member{Member: flow.Member{ID: fmt.Sprint("10.1.1.", i), Weight: 1}, Mark: uint32(i+1) << 16})
	}
	cfg := steer.Config{Mask: steerMask, Workers: workers, Targets: []steer.Target{group}}
	for i := range rules {
		r := steer.Rule{Name: fmt.Sprint(i), To: "group", Protocols: []uint8{6}}
		if i+1 < rules {
			r.Destinations = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)}
		}
		cfg.Rules = append(cfg.Rules, r)
	}
	set, err := steer.New(cfg, nil)
	if err != nil {
		return nil, err
	}
	return steer.NewSteerer(set), nil
}

// report sums up.
func (w *steerWorld) report() *SteeringReport {
	rep := &SteeringReport{Rate: pacedRate, Seconds: pacedTime.Seconds()}
	for _, r := range w.rows {
		switch r.kind {
		case kindFlood:
			rep.Flood = append(rep.Flood, r.queueCell())
		case kindPaced:
			rep.Paced = append(rep.Paced, r.queueCell())
		case kindOpen:
			rep.Connections = append(rep.Connections, r.openingCell())
		}
	}
	return rep
}

// each returns a figure of every round.
func (r *steerRow) each(figure func(*steerRound) float64) (out []float64) {
	for i := range r.rounds {
		out = append(out, figure(&r.rounds[i]))
	}
	return out
}

func (r *steerRow) queueCell() QueueCell {
	c := QueueCell{Name: r.name, Queues: r.queues, Rounds: len(r.rounds), Problem: r.problem}
	for _, one := range r.rounds {
		c.Packets, c.Lost = c.Packets+one.sent, c.Lost+one.lost
		c.Full, c.Unreceived = c.Full+one.full, c.Unreceived+one.unreceived
	}
	c.Sent = median(r.each(func(o *steerRound) float64 { return float64(o.sent) / o.spent.Seconds() }))
	if rates := r.each(func(o *steerRound) float64 { return float64(o.answered) / o.spent.Seconds() }); len(rates) > 0 {
		c.Answered, c.Least, c.Most = median(rates), slices.Min(rates), slices.Max(rates)
	}
	c.Packet = costOf(r.each(func(o *steerRound) float64 { return float64(o.own) / float64(max(o.answered, 1)) }))
	c.Sender = median(r.each(func(o *steerRound) float64 { return o.sender.Seconds() / o.spent.Seconds() }))
	c.Waited = median(r.each(func(o *steerRound) float64 { return o.waited.Seconds() / max((o.waited+o.own).Seconds(), 1e-9) }))
	return c
}

func (r *steerRow) openingCell() OpeningCell {
	c := OpeningCell{Name: r.name, Rounds: len(r.rounds), Problem: r.problem}
	if len(r.rounds) == 0 {
		return c
	}
	c.Flows = r.rounds[0].sent
	rates := r.each(func(o *steerRound) float64 { return float64(o.sent) / o.spent.Seconds() })
	c.Rate, c.Most = median(rates), slices.Max(rates)
	c.New = costOf(r.each(func(o *steerRound) float64 { return float64(o.own+o.sender) / float64(max(o.sent, 1)) }))
	c.Own = costOf(r.each(func(o *steerRound) float64 { return float64(o.own) / float64(max(o.sent, 1)) }))
	c.Sender = median(r.each(func(o *steerRound) float64 { return o.sender.Seconds() / o.spent.Seconds() }))
	return c
}
