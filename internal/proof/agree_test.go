package proof

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/internal/config"
	"weir/internal/config/configtest"
	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

var tables = engine.Tables

// probesEach is the number of packets sent through each configuration.
const probesEach = 60

// TestEvaluatorAgreesWithKernel draws configurations and packets, and compares what the
// kernel does with each packet with what the evaluator says: the verdict, the backend
// and its port, and the source that the backend sees. For steered services somebody answers, or
// nobody does. Afterwards it compares what the
// packets left in the kernel: the counted pairs and the remembered clients.
func TestEvaluatorAgreesWithKernel(t *testing.T) {
	w := newWire(t)
	defer pin(t)()
	cases := map[string]int{}
	configurations := 0
	start := time.Now()
	rapid.Check(t, func(rt *rapid.T) {
		cfg := configtest.RandomModel(rt, &configtest.Options{NoAssign: true, NoFloods: true, Steering: true, Devices: []string{string(atClient), string(atSink)}})
		letSentinelsPass(cfg.Edge)
		keepSentinels(cfg.Egress)
		widen(cfg.Egress)
		for _, s := range cfg.Services {
			if s.Sticky > 0 {
				s.Sticky += time.Minute // no client is to be forgotten meanwhile
			}
		}
		d := &drawer{T: rt, cfg: cfg, inside: w.inside, used: map[uint16]bool{}}
		probes := make([]probe, probesEach)
		for i := range probes {
			probes[i] = d.probe()
		}
		compare(rt, w, cfg, probes, cases)
		configurations++
	})
	t.Logf("%d configurations, %d packets in %s: %s", configurations, configurations*probesEach, time.Since(start).Round(time.Millisecond), tally(cases))
	for _, c := range allCases {
		if cases[c] == 0 && !t.Failed() {
			t.Errorf("no packet was %q: the test proves less than it says", c)
		}
	}
}

func compare(rt *rapid.T, w *wire, cfg *model.Config, probes []probe, cases map[string]int) {
	p := plan.Build(cfg, nil)
	weir, err := newAnswerer(w, p, p.Marks() != nil && rapid.Bool().Draw(rt, "weir answers"))
	defer weir.close()
	if err := errors.Join(err, w.load(p.Ruleset)); err != nil {
		rt.Fatalf("%v\n%s", err, config.Marshal(cfg))
	}
	if weir.steering != nil {
		weir.steering.Take(p)
	}
	o := &oracle{eval: ruleset.NewEvaluator(p.Ruleset), inside: w.inside, updates: map[elemKey]elemValue{}, weir: weir}
	for i, pr := range probes {
		seen, err := weir.ask(pr)
		if err != nil {
			rt.Fatal(err)
		}
		got := sighting{}
		if len(seen) > 0 {
			got = seen[0]
		}
		want, trace := o.predict(pr, got)
		if got != want || len(seen) > 1 {
			rt.Fatalf("packet %d: %s\nkernel:    %v\nevaluator: %s\n%s\n%s", i, pr, seen, want, steps(trace), config.Marshal(cfg))
		}
		for _, c := range casesOf(pr, trace) {
			cases[c]++
		}
		if trace.Queued {
			cases[weir.queuedCase()]++
		}
	}
	if err := o.sameElements(w.kernel, p.Ruleset.Tables[0]); err != nil {
		rt.Fatalf("%v\n%s", err, config.Marshal(cfg))
	}
}

// oracle foretells what the kernel does. It remembers what packets leave behind.
type oracle struct {
	eval    *ruleset.Evaluator
	state   ruleset.State
	inside  map[model.Family]netip.Addr
	updates map[elemKey]elemValue
	weir    *answerer
}

type elemKey struct{ set, key string }

type elemValue struct {
	data    string
	updates uint64 // how many packets added or renewed it
}

// predict says what becomes of a probe. Where the kernel draws a number, it tries all
// that may be drawn and takes the one that leads to what was seen, if one does.
func (o *oracle) predict(p probe, seen sighting) (sighting, ruleset.Trace) {
	packet := ruleset.Packet{Src: p.src, Dst: p.dst, Proto: p.proto, Local: p.from == atGateway,
		In: string(p.from), Out: string(atSink), ICMPType: p.icmpType()}
	env := o.state.Env()
	o.weir.env(env, p)
	counted := env.Next
	var drawn, mod uint32
	turns := map[*ruleset.Rule]uint32{} // a turn counts once, however often it is tried
	env.Next = func(r *ruleset.Rule, n ruleset.Numgen) uint32 {
		if !n.Random {
			if _, had := turns[r]; !had {
				turns[r] = counted(r, n)
			}
			return turns[r]
		}
		mod = n.Mod
		return drawn
	}
	trace := o.eval.Eval(packet, env)
	for o.sighting(p, trace, seen) != seen && drawn+1 < mod {
		drawn++
		trace = o.eval.Eval(packet, env)
	}
	o.state.Keep(trace)
	for _, u := range trace.Updates {
		if trace.Masquerade && strings.HasPrefix(u.Set, "egress-new") { // by an address that rules do not know
			if p.src.Addr() == o.inside[p.family()] && (trace.Ports.IsZero() || trace.Ports.Contains(p.src.Port())) {
				continue // nothing changes, so it is no translation
			}
			inside := string(ruleset.AppendAddr(nil, o.inside[p.family()]))
			u.Key = inside + u.Key[len(inside):]
		}
		k := elemKey{u.Set, u.Key}
		o.updates[k] = elemValue{u.Data, o.updates[k].updates + 1}
	}
	for _, c := range trace.Counts {
		o.updates[elemKey{c.Set, c.Key}] = elemValue{}
	}
	return o.sighting(p, trace, seen), trace
}

// sighting is what is to be seen of a probe. Which port of a range it gets, the kernel chooses.
func (o *oracle) sighting(p probe, t ruleset.Trace, seen sighting) sighting {
	switch t.Verdict {
	case ruleset.Dropped:
		return sighting{}
	case ruleset.Accepted:
		src := t.Src
		if t.Masquerade {
			src = netip.AddrPortFrom(o.inside[p.family()], src.Port())
		}
		if t.Ports.Contains(seen.src.Port()) {
			src = netip.AddrPortFrom(src.Addr(), seen.src.Port())
		}
		return sighting{atSink, t.Verdict, src, t.Dst}
	}
	return sighting{p.from, t.Verdict, p.src, p.dst}
}

// relook is for how long sets are read again that are not as they should be: while the
// kernel makes room in one, which it does when it finds time, a dump may miss elements or
// have them twice. What packets did not bring does not come by waiting.
const relook = 5 * time.Second

// sameElements compares the sets and maps that packets fill.
func (o *oracle) sameElements(k *nft.Conn, t *ruleset.Table) error {
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if err := o.compareElements(k, t); err == nil || time.Since(begin) > relook {
			return err
		}
	}
}

func (o *oracle) compareElements(k *nft.Conn, t *ruleset.Table) error {
	want := maps.Clone(o.updates)
	for _, s := range t.Sets {
		if !s.Dynamic {
			continue
		}
		var bad []string
		err := k.Elements(context.Background(), tables[0], s, func(e nft.Elem) bool {
			at := elemKey{s.Name, e.Key}
			v, ok := want[at]
			delete(want, at)
			if !ok || v.data != e.Data || s.Counter && v.updates != e.Counter.Packets {
				bad = append(bad, fmt.Sprintf("%s : %x with %d packets; evaluator: %x with %d",
					s.Key.Text(e.Key, ""), e.Data, e.Counter.Packets, v.data, v.updates))
			}
			return true
		})
		if err != nil {
			return err
		}
		if len(bad) > 0 {
			return fmt.Errorf("set %s of the kernel holds %s", s.Name, strings.Join(bad, "\n"))
		}
	}
	for at := range want {
		if at.set == "limits" || at.set == "full" {
			continue // of connections that were refused after all, or seconds ago
		}
		return fmt.Errorf("set %s of the kernel does not hold %x and %d more", at.set, at.key, len(want)-1)
	}
	return nil
}

// allCases are the kinds of packets that a run must have met.
var allCases = []string{
	"left alone", "dropped", "reset", "unreachable",
	"source kept", "source kept, local", "masqueraded", "masqueraded hairpin", "masqueraded, local", "fixed source",
	"round-robin", "random", "maglev", "source", "a client that is known",
	"that one too",
	"to a listener without conntrack", "open rules", "nothing opens this: policy drop",
	"chosen by rules", weirAsked, nobodyAsked,
}

// casesOf returns what became of a packet and, where it got a backend, who chose it.
func casesOf(p probe, t ruleset.Trace) []string {
	local := ""
	if p.from == atGateway {
		local = ", local"
	}
	switch {
	case t.Verdict == ruleset.Dropped:
		return append(lastComment(t), "dropped")
	case t.Verdict == ruleset.RejectedReset:
		return []string{"reset"}
	case t.Verdict == ruleset.RejectedICMP:
		return []string{"unreachable"}
	case !t.DNAT.IsValid():
		return append(lastComment(t), "left alone")
	case t.SNAT.IsValid():
		return []string{"fixed source", chosenBy(t)}
	case t.Masquerade && t.Dst.Addr() == p.src.Addr():
		return []string{"masqueraded hairpin", chosenBy(t)}
	case t.Masquerade:
		return []string{"masqueraded" + local, chosenBy(t)}
	}
	return []string{"source kept" + local, chosenBy(t)}
}

// lastComment returns the comment of the rule that kept the packet from conntrack, of the
// one that decided in the access policy, if there is one.
func lastComment(t ruleset.Trace) []string {
	for _, s := range slices.Backward(t.Steps) {
		if s.Matched && (strings.HasPrefix(s.Chain, "edge-") || strings.HasPrefix(s.Chain, "early")) {
			return []string{s.Comment}
		}
	}
	return nil
}

// letSentinelsPass adds a rule to the policy by which the packets pass that mark the end of
// what a probe caused.
func letSentinelsPass(e *model.Edge) {
	if e == nil {
		return
	}
	r := &model.OpenRule{Name: "sentinels"}
	for _, s := range []site{atClient, atSink} {
		r.From = append(r.From, netip.PrefixFrom(sentinelSrc[s].Addr(), 32))
		r.To = append(r.To, netip.PrefixFrom(sentinelAt[s].Addr(), 32))
	}
	e.Open = append(e.Open, r)
}

// keepSentinels has those packets take no pool, which would count them.
func keepSentinels(pools []*model.Pool) {
	for _, p := range pools {
		for _, s := range []site{atClient, atSink} {
			if to := netip.PrefixFrom(sentinelAt[s].Addr(), 32); !slices.ContainsFunc(p.Except, to.Overlaps) {
				p.Except = append(p.Except, to)
			}
		}
	}
}

// widen gives pools ports enough for all packets of the test: whether one is free is not for
// rules to know.
func widen(pools []*model.Pool) {
	for _, p := range pools {
		p.Ports = []model.PortRange{model.DefaultPoolPorts}
		if p.Block < 64 {
			p.Block = 0
		}
	}
}

// chosenBy returns the comment of the rule that chose the backend: the last, where those
// that others had chosen were full.
func chosenBy(t ruleset.Trace) string {
	for _, s := range slices.Backward(t.Steps) {
		if s.Matched && strings.HasPrefix(s.Chain, "service/") {
			comment, _, _ := strings.Cut(s.Words, ":")
			return comment
		}
	}
	return "nobody"
}

func tally(cases map[string]int) string {
	var words []string
	for _, c := range slices.Sorted(maps.Keys(cases)) {
		words = append(words, fmt.Sprintf("%d %s", cases[c], c))
	}
	return strings.Join(words, "; ")
}

func steps(t ruleset.Trace) string {
	var b strings.Builder
	for _, s := range t.Steps {
		fmt.Fprintf(&b, "  %-5t %s %s: %s | %s | %s\n", s.Matched, s.Hook, s.Chain, s.Words, s.Rule, s.Detail)
	}
	return b.String()
}
