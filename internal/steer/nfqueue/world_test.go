package nfqueue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/internal/flow"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	rs "weir/internal/ruleset"
	"weir/internal/steer"
	"weir/internal/steer/match"
)

const (
	steerMask = 0x0fff0000
	backends  = 3
	port      = 5060
	seed      = 7                // of the hash
	patience  = 60 * time.Second // for what must come at last, however slow the machine is
)

// world is a gateway between a client and backends, in both families.
type world struct {
	*testing.T
	*lab.Topology
	set *steer.Set
	st  *steer.Steerer

	mu    sync.Mutex
	seen  map[string]map[int]int // datagrams by flow and backend
	total atomic.Int64           // of datagrams

	allSent int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	lab.Require(t)
	topo, err := lab.Gateway(lab.GatewayOptions{Clients: 1, Backends: backends})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Topology: topo, seen: map[string]map[int]int{}}
	t.Cleanup(func() {
		if err := topo.Net.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	target := steer.Target{Name: "all"}
	for i, b := range topo.Backends {
		target.Members = append(target.Members,
			steer.Member{Member: flow.Member{ID: b.V4.String(), Weight: 1}, Mark: markOf(i, false)},
			steer.Member{Member: flow.Member{ID: b.V6.String(), Weight: 1}, V6: true, Mark: markOf(i, true)})
	}
	w.set, err = steer.New(steer.Config{Seed: seed, Mask: steerMask, Workers: 2, Targets: []steer.Target{target},
		Rules: []steer.Rule{{Name: "all", To: "all", Protocols: []uint8{6, 17}, Destinations: []netip.Prefix{lab.VIPNet4, lab.VIPNet6}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.st = steer.NewSteerer(w.set)
	return w
}

// markOf is the mark of a backend for packets of one family.
func markOf(backend int, v6 bool) uint32 {
	n := uint32(2*backend + 1)
	if v6 {
		n++
	}
	return n << 16
}

func vip(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8:f::10")
	}
	return netip.MustParseAddr("198.51.100.10")
}

// rules returns a table that asks user space for packets whose connection has no mark, keeps the
// answer in the connection's mark, and translates to the backend of that mark, or by the kernel's own
// hash where there is none. Other bits of both marks are set before, and packets that have lost them are
// dropped.
func (w *world) rules(last uint16) *rs.Ruleset {
	conn, packet := rs.Mark{Conn: true, Mask: steerMask}, rs.Mark{Mask: steerMask}
	zero := rs.MarkIs{Mark: conn}
	otherConn, otherPacket := rs.Mark{Conn: true, Mask: 0xf000ffff}, rs.Mark{Mask: 0xf000ffff}
	t := &rs.Table{Family: rs.Inet, Name: "weir"}
	chain := func(name, hook string, typ string, priority int, rules ...rs.Rule) {
		c := &rs.Chain{Name: name, Rules: rules}
		if hook != "" {
			c.Base = &rs.Base{Type: typ, Hook: rs.Hook(hook), Priority: priority}
		}
		t.Chains = append(t.Chains, c)
	}
	rule := func(s ...rs.Stmt) rs.Rule { return rs.Rule{Stmts: s} }
	marks := &rs.Set{Name: "marks", Key: rs.Types{rs.MarkBits}, Verdict: true, Parts: []*rs.Part{{}}}
	t.Sets = append(t.Sets, marks)
	var nat []rs.Rule
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		to := &rs.Set{Name: "backend/" + f.String(), Key: rs.Types{rs.MarkBits}, Data: rs.Types{rs.AddrType(f)}, Parts: []*rs.Part{{}}}
		t.Sets = append(t.Sets, to)
		for i, b := range w.Backends {
			mark, addr := markOf(i, f == model.IPv6), b.V4
			if f == model.IPv6 {
				addr = b.V6
			}
			key := string(rs.AppendMark(nil, mark))
			to.Parts[0].Elems = append(to.Parts[0].Elems, rs.Element{Key: key, Data: string(rs.AppendAddr(nil, addr))})
			name := fmt.Sprintf("mark/%x", mark)
			marks.Parts[0].Elems = append(marks.Parts[0].Elems, rs.Element{Key: key, Jump: rs.Jump{Chain: name, Goto: true}})
			chain(name, "", "", 0, rule(rs.SetMark{Mark: conn, Value: mark}))
		}
		slots := w.slots(f)
		t.Sets = append(t.Sets, slots)
		hash := rs.Hash{Key: rs.Key{rs.Saddr(f), rs.SPort}, Mod: uint32(slots.Len()), Seed: seed}
		for _, p := range []model.Proto{model.TCP, model.UDP} {
			nat = append(nat, rule(zero, rs.IsFamily(f), rs.IsProto(p), rs.DNAT{Family: f, To: rs.MapGet{Key: rs.Key{hash}, Map: slots.Name}}),
				rule(rs.IsFamily(f), rs.IsProto(p), rs.DNAT{Family: f, To: rs.MapGet{Key: rs.Key{conn}, Map: to.Name}}))
		}
	}
	chain("others", "prerouting", "filter", -160, rule(rs.SetMark{Mark: otherConn, Value: 0xa0001234}),
		rule(rs.SetMark{Mark: otherPacket, Value: 0x50004321}))
	chain("steer", "prerouting", "filter", -150,
		rule(rs.IsProto(model.TCP), zero, rs.Queue{Last: last, Bypass: true}),
		rule(rs.IsProto(model.UDP), zero, rs.Queue{Last: last, Bypass: true}))
	chain("save", "prerouting", "filter", -140, rule(zero, rs.VMap{Key: rs.Key{packet}, Map: "marks"}))
	chain("nat", "prerouting", "nat", -100, nat...)
	chain("check", "forward", "filter", 0,
		rule(rs.MarkIs{Mark: otherConn, Not: true, Value: 0xa0001234}, rs.Verdict{Kind: rs.DropPacket}),
		rule(rs.MarkIs{Mark: otherPacket, Not: true, Value: 0x50004321}, rs.Verdict{Kind: rs.DropPacket}))
	return &rs.Ruleset{Tables: []*rs.Table{t}}
}

// slots is the table from which the kernel chooses when nobody listens.
func (w *world) slots(f model.Family) *rs.Set {
	var members []flow.Member
	var addrs []netip.Addr
	for _, b := range w.Backends {
		addr := b.V4
		if f == model.IPv6 {
			addr = b.V6
		}
		members, addrs = append(members, flow.Member{ID: addr.String(), Weight: 1}), append(addrs, addr)
	}
	s := &rs.Set{Name: "slots/" + f.String(), Key: rs.Types{rs.Integer}, Data: rs.Types{rs.AddrType(f)}, Parts: []*rs.Part{{}}}
	for i, m := range flow.Maglev(members, flow.TableSize(len(members))) {
		s.Parts[0].Elems = append(s.Parts[0].Elems, rs.Element{Key: string(rs.AppendInteger(nil, uint32(i))), Data: string(rs.AppendAddr(nil, addrs[m]))})
	}
	return s
}

// load brings rules into the gateway.
func (w *world) load(rules *rs.Ruleset) {
	w.Helper()
	err := w.Gateway.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		have, gen, err := c.Read(context.Background(), []nft.TableRef{{Family: rs.Inet, Name: "weir"}}, rules)
		if err != nil {
			return err
		}
		_, err = c.Apply(context.Background(), rs.Diff(have, rules), gen)
		return err
	})
	if errors.Is(err, nft.ErrNoQueue) && os.Getenv("CI") != "true" {
		w.Skip(err)
	}
	w.ok(err)
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// open opens queues in the gateway and serves them.
func (w *world) open(o Options, decide Decide) (qs *Queues, served chan error) {
	w.Helper()
	if o.Copy == 0 {
		o.Copy = w.set.CopyLength()
	}
	w.ok(w.Gateway.Do(func() (err error) {
		qs, err = Open(o)
		return err
	}))
	served = make(chan error, 1)
	go func() { served <- qs.Serve(decide) }()
	w.Cleanup(func() { qs.Close() })
	return qs, served
}

// steer is the answer of the world's set.
func (w *world) steer(worker int, data []byte, mark uint32) Verdict {
	return Verdict{Mark: w.st.Mark(worker, data, mark)}
}

// until waits for a condition.
func (w *world) until(what string, is func() bool) {
	w.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// sum adds the numbers of all queues up.
func (w *world) sum(qs *Queues) (s Stats) {
	w.Helper()
	all, err := qs.Stats()
	w.ok(err)
	for _, q := range all {
		s.Packets, s.Waiting, s.Dropped = s.Packets+q.Packets, s.Waiting+q.Waiting, s.Dropped+q.Dropped
		s.Unreceived, s.Refused, s.Overruns, s.Numbered = s.Unreceived+q.Unreceived, s.Refused+q.Refused, s.Overruns+q.Overruns, s.Numbered+q.Numbered
	}
	return s
}

// serve starts a TCP server on every backend that says who it is and then echoes lines, and a UDP server that
// notes what comes.
func (w *world) serve() {
	w.Helper()
	for i, b := range w.Backends {
		for _, a := range []netip.Addr{b.V4, b.V6} {
			l, err := b.Listen("tcp", netip.AddrPortFrom(a, port).String())
			w.ok(err)
			w.Cleanup(func() { l.Close() })
			go accept(l, byte('0'+i))
			u, err := b.ListenPacket("udp", netip.AddrPortFrom(a, port).String())
			w.ok(err)
			w.Cleanup(func() { u.Close() })
			go w.note(u, i)
		}
	}
}

func accept(l net.Listener, id byte) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := c.Write([]byte{id}); err == nil {
				_, _ = io.Copy(c, c)
			}
		}()
	}
}

func (w *world) note(u net.PacketConn, backend int) {
	buf := make([]byte, 64) // of the name; the rest of a longer one is thrown away
	for {
		n, _, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		id := string(buf[:n])
		w.mu.Lock()
		if w.seen[id] == nil {
			w.seen[id] = map[int]int{}
		}
		w.seen[id][backend]++
		w.mu.Unlock()
		w.total.Add(1)
	}
}

// chosen returns the backend that the set chooses for a packet of a connection.
func (w *world) chosen(proto uint8, src, dst net.Addr) int {
	w.Helper()
	from, to := netip.MustParseAddrPort(src.String()), netip.MustParseAddrPort(dst.String())
	pkt := lab.UDPPacket(from, to, nil)
	if proto == 6 {
		pkt = lab.TCPPacket(from, to, lab.SYN, 1, 0)
	}
	var p match.Packet
	if !p.Parse(pkt) {
		w.Fatal("is no packet")
	}
	mark := w.set.Choose(&p).Mark
	for i := range w.Backends {
		if mark == markOf(i, strings.Contains(src.String(), "[")) {
			return i
		}
	}
	w.Fatalf("no backend has the mark 0x%x", mark)
	return 0
}
