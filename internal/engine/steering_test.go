package engine

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
	"weir/internal/steer"
	"weir/internal/steer/match"
)

// TestAbsentChoosesAlike: for packets that no rule wants, the kernel alone chooses the backend,
// and port, that it translates to with weir's answer.
func TestAbsentChoosesAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := configtest.RandomModel(t, &configtest.Options{Steering: true, MaxServices: 1, NoFloods: true, NoEdge: true})
		for i, s := range cfg.Services {
			if s.Steered() {
				bare, st := *s, *s.Steering
				st.Rules, st.Absent = nil, model.AbsentHash
				bare.Steering, cfg.Services[i] = &st, &bare
			}
		}
		p := plan.Build(cfg, nil)
		for _, s := range cfg.Services {
			if !s.Steered() {
				continue
			}
			for _, l := range s.Listen {
				client := rapid.SampledFrom([]string{"203.0.113.9", "192.0.2.77"}).Draw(t, "client")
				if l.Addr.Is6() {
					client = "2001:db8:c::9"
				}
				from := netip.AddrPortFrom(netip.MustParseAddr(client), rapid.Uint16Min(1).Draw(t, "port"))
				to := netip.AddrPortFrom(l.Addr, rapid.Uint16Range(l.Ports.Lo, l.Ports.Hi).Draw(t, "to port"))
				packet := ruleset.Packet{Src: from, Dst: to, Proto: l.Proto, Local: rapid.Bool().Draw(t, "local") && !s.Direct()}
				var said Steered
				asked := p.Explain(packet, ruleset.Env{Queued: Steer(p, nil, func(s Steered) { said = s })})
				alone := p.Explain(packet, ruleset.Env{})
				if asked.Backend == "" || asked.Backend != alone.Backend || said.Rule != DefaultRule || said.Target != s.Steering.Targets[0].Name {
					t.Fatalf("%s to %s: %q with weir's answer (%+v), %q without", from, l, asked.Backend, said, alone.Backend)
				}
			}
		}
	})
}

// TestFirstPacketIsOne: what is made up for weir explain is read as what it stands for.
func TestFirstPacketIsOne(t *testing.T) {
	for _, proto := range []model.Proto{model.TCP, model.UDP, model.SCTP} {
		for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
			from, to := netip.AddrPortFrom(netip.MustParseAddr(a), 4000), netip.AddrPortFrom(netip.MustParseAddr(a).Next(), 5060)
			var p match.Packet
			payload, err := match.Parse(map[model.Proto]string{model.TCP: "tcp[12:2] & 0x01ff = 0x0002 and tcp[20:4] = 0x494e5649",
				model.UDP: "udp[4:2] = 14 and udp[8:4] = 0x494e5649", model.SCTP: "sctp[12:4] = 0x494e5649"}[proto])
			if err != nil {
				t.Fatal(err)
			}
			if !p.Parse(firstPacket(ruleset.Packet{Src: from, Dst: to, Proto: proto}, []byte("INVITE"))) || !p.HasPorts || p.SrcPort != 4000 || p.DstPort != 5060 ||
				p.Src != from.Addr() || p.Dst != to.Addr() || p.Proto != uint8(proto) || !payload.Match(&p) {
				t.Errorf("%s from %s: %+v", proto, from, p)
			}
		}
	}
}

// TestSteerMoves: of 100 backends one is drained. New flows of the other 99 that move are few
// (Eisenbud and others, Maglev, NSDI 2016, section 5.3: some percent at most with a table a
// hundred times as large as the number of backends).
func TestSteerMoves(t *testing.T) {
	s := &model.Service{Name: "s", Balance: model.Maglev, Steering: &model.Steering{Targets: []model.SteerTarget{{Name: "all"}}}}
	for i := range 100 {
		s.Backends = append(s.Backends, model.Backend{Addr: netip.AddrFrom4([4]byte{10, 1, 1, byte(i)}), Weight: 1})
		s.Steering.Targets[0].Members = append(s.Steering.Targets[0].Members, i)
	}
	set := func() *steer.Set {
		cfg := &model.Config{HashSeed: 7, MarkMask: model.DefaultMarkMask, Services: []*model.Service{s}}
		made, err := steer.New(SteerConfig(cfg, s, plan.Build(cfg, nil).Marks()), nil)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	before := set()
	s.Backends[42].Weight = 0
	after := set()
	const flows = 100_000
	moved, others := 0, 0
	for i := range flows {
		var p match.Packet
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 16), byte(i >> 8)}), uint16(1024+i))
		p.Parse(firstPacket(ruleset.Packet{Src: from, Dst: netip.MustParseAddrPort("198.51.100.1:80"), Proto: model.TCP}, nil))
		was, is := before.Choose(&p), after.Choose(&p)
		switch {
		case is.Member == 42:
			t.Fatalf("%s goes to the drained backend", from)
		case was.Member == 42:
		default:
			if others++; was.Mark != is.Mark {
				moved++
			}
		}
	}
	t.Logf("%d of %d flows of the other 99 backends moved (%.2f %%)", moved, others, 100*float64(moved)/float64(others))
	if moved > others*5/100 {
		t.Errorf("%d of %d flows of the others moved", moved, others)
	}
}
