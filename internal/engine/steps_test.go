package engine_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/engine"
	"weir/internal/model"
	"weir/internal/nft/nftfake"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// shop is web's listener with another name and other backends: what leads to the new chain
// takes the place of what led to the old one, so to get there takes three steps.
func shop() *model.Config {
	cfg := web(1, 1, 1)
	s := *cfg.Services[0]
	s.Name = "shop"
	for i := range s.Backends {
		s.Backends[i].Addr = netip.AddrFrom4([4]byte{10, 1, 2, byte(i + 1)})
	}
	cfg.Services = []*model.Service{&s}
	return cfg
}

const shopSteps = 3

// TestTransactions: how many transactions a change is. A backend that goes or comes back is
// one, where a hash chooses; where a turn does, what it leaves goes after it.
func TestTransactions(t *testing.T) {
	hashed := func(weights ...int) *model.Config {
		cfg := web(weights...)
		cfg.Services[0].Balance = model.Maglev
		return cfg
	}
	ranged := func(name string, weights ...int) *model.Config {
		cfg := web(weights...)
		cfg.Services[0].Name = name
		cfg.Services[0].Listen[0].Ports = model.PortRange{Lo: 80, Hi: 90}
		return cfg
	}
	beside := func(cfg *model.Config, ports model.PortRange) *model.Config {
		s := web(1).Services[0]
		s.Name, s.Listen[0].Ports = "beside", ports
		cfg.Services = append(cfg.Services, s)
		return cfg
	}
	for _, c := range []struct {
		name     string
		from, to *model.Config
		want     int
	}{
		{"the first load", nil, web(1, 1), 1},
		{"a backend goes, with a hash", hashed(1, 1, 1), hashed(1, 0, 1), 1},
		{"a backend comes, with a hash", hashed(1, 0, 1), hashed(1, 1, 1), 1},
		{"a backend comes, in turn", web(1, 0), web(1, 1), 1},
		{"a backend goes, in turn", web(1, 1), web(1, 0), 2},
		{"a service comes", web(1), beside(web(1), model.Port(443)), 2},
		{"a service goes", beside(web(1), model.Port(443)), web(1), 2},
		{"another takes a listener", web(1, 1), shop(), shopSteps},
		{"a port becomes a range", web(1, 1), ranged("web", 1, 1), 3},
		{"a port becomes a range, others stay", beside(web(1, 1), model.Port(443)), beside(ranged("web", 1, 1), model.Port(443)), 3},
		{"that, and another service", beside(web(1, 1), model.Port(443)), beside(ranged("shop", 1, 1), model.Port(443)), 4},
	} {
		k := nftfake.New()
		e := &engine.Engine{Kernel: k}
		if c.from != nil {
			if _, err := e.Apply(ctx, c.from); err != nil {
				t.Fatal(err)
			}
		}
		before := k.Commits()
		if _, err := e.Apply(ctx, c.to); err != nil {
			t.Fatal(err)
		}
		if got := k.Commits() - before; got != c.want {
			t.Errorf("%s: %d transactions, want %d", c.name, got, c.want)
		}
		holds(t, k, c.to)
	}
}

// TestAStepFails lets each step of a change fail. Before the change is in force, all is as it
// was; after that, the change is, and what it left goes with the next try, or by itself.
func TestAStepFails(t *testing.T) {
	for at := range shopSteps {
		t.Run(fmt.Sprint(at+1), func(t *testing.T) {
			k := nftfake.New()
			e := &engine.Engine{Kernel: k}
			if _, err := e.Apply(ctx, web(1, 1)); err != nil {
				t.Fatal(err)
			}
			for range at {
				k.Pass()
			}
			k.Refuse(unix.ENOMEM)
			rep, err := e.Apply(ctx, shop())
			if !errors.Is(err, unix.ENOMEM) {
				t.Fatalf("got %v", err)
			}
			if at < shopSteps-1 {
				if e.Plan().Config.Service("shop") != nil {
					t.Error("the plan is that of a change that failed")
				}
				holds(t, k, web(1, 1))
				if rep, err = e.Repair(ctx); err != nil || !rep.Delta.Empty() {
					t.Errorf("a repair had to do %s (%v)", rep.Delta, err)
				}
			} else {
				if e.Plan().Config.Service("shop") == nil || rep.Delta.Empty() || !strings.Contains(err.Error(), "in force") {
					t.Errorf("the change is in force: %v, %s", err, rep.Delta)
				}
				if rep, err = e.Repair(ctx); err != nil || rep.Delta.Empty() || !rep.Left {
					t.Errorf("a repair did %s, and takes it for what a change left: %t (%v)", rep.Delta, rep.Left, err)
				}
				holds(t, k, shop())
			}
			if _, err := e.Apply(ctx, shop()); err != nil {
				t.Fatal(err)
			}
			holds(t, k, shop())
			if rep, err = e.Repair(ctx); err != nil || !rep.Delta.Empty() || rep.Left {
				t.Errorf("in the end a repair did %s (%v)", rep.Delta, err)
			}
		})
	}
}

// TestUndoFails: what was prepared and could not be taken back goes later, and is not taken
// for the work of others.
func TestUndoFails(t *testing.T) {
	k := nftfake.New()
	e := &engine.Engine{Kernel: k}
	if _, err := e.Apply(ctx, web(1, 1)); err != nil {
		t.Fatal(err)
	}
	k.Pass()
	k.Refuse(unix.ENOMEM)
	k.Refuse(unix.EBUSY)
	if _, err := e.Apply(ctx, shop()); !errors.Is(err, unix.ENOMEM) || !errors.Is(err, unix.EBUSY) {
		t.Fatalf("got %v", err)
	}
	if rep, err := e.Repair(ctx); err != nil || rep.Delta.Empty() || !rep.Left {
		t.Errorf("a repair did %s, and takes it for what a change left: %t (%v)", rep.Delta, rep.Left, err)
	}
	holds(t, k, web(1, 1))
}

// TestOthersCommitBetween: somebody commits between two steps, or an answer is lost.
func TestOthersCommitBetween(t *testing.T) {
	for name, fault := range map[string]func(*nftfake.Kernel){
		"stale generation": (*nftfake.Kernel).Interfere,
		"lost answer":      (*nftfake.Kernel).LoseAnswer,
	} {
		for at := range shopSteps {
			t.Run(fmt.Sprint(name, at+1), func(t *testing.T) {
				k := nftfake.New()
				e := &engine.Engine{Kernel: k}
				if _, err := e.Apply(ctx, web(1, 1)); err != nil {
					t.Fatal(err)
				}
				for range at {
					k.Pass()
				}
				fault(k)
				rep, err := e.Apply(ctx, shop())
				if err != nil || rep.Delta.Empty() {
					t.Fatalf("%s, %v", rep.Delta, err)
				}
				holds(t, k, shop())
				if rep, err = e.Repair(ctx); err != nil || !rep.Delta.Empty() {
					t.Errorf("a repair had to do %s (%v)", rep.Delta, err)
				}
			})
		}
	}
}

// TestEndsBetweenSteps: a weir that was killed between two steps leaves what the next one goes
// on from, or back from. `weir plan` says so.
func TestEndsBetweenSteps(t *testing.T) {
	for at := 1; at < shopSteps; at++ {
		for name, then := range map[string]*model.Config{"on": shop(), "back": web(1, 1)} {
			t.Run(fmt.Sprint(name, at), func(t *testing.T) {
				k := nftfake.New()
				if _, err := (&engine.Engine{Kernel: k}).Apply(ctx, web(1, 1)); err != nil {
					t.Fatal(err)
				}
				steps := ruleset.Diff(plan.Build(web(1, 1), nil).Ruleset, plan.Build(shop(), nil).Ruleset).Steps()
				for _, d := range []*ruleset.Delta{steps.Prepare, steps.Change}[:at] {
					if _, err := k.Apply(ctx, d, 0); err != nil {
						t.Fatal(err)
					}
				}
				e := &engine.Engine{Kernel: k}
				if _, d, err := e.Preview(ctx, then); err != nil || d.Empty() {
					t.Errorf("there is to do: %s (%v)", d, err)
				}
				if _, err := e.Apply(ctx, then); err != nil {
					t.Fatal(err)
				}
				holds(t, k, then)
			})
		}
	}
}
