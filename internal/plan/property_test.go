package plan_test

import (
	"encoding/binary"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/config/configtest"
	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// TestReuseChangesNothing: what is taken from the plan before is what would be made anew.
func TestReuseChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := configtest.RandomModel(t, &configtest.Options{Steering: true})
		b := mutate(t, a)
		prev := plan.Build(a, nil)
		reused, fresh := plan.Build(b, prev), plan.Build(b, nil)
		if reused.Ruleset.String() != fresh.Ruleset.String() {
			t.Fatalf("with the plan before:\n%s\nwithout:\n%s", reused.Ruleset, fresh.Ruleset)
		}
		with, without := ruleset.Diff(prev.Ruleset, reused.Ruleset), ruleset.Diff(prev.Ruleset, fresh.Ruleset)
		if with.String() != without.String() {
			t.Fatalf("delta with the plan before:\n%s\nwithout:\n%s", with, without)
		}
		if d := ruleset.Diff(reused.Ruleset, fresh.Ruleset); !d.Empty() {
			t.Fatalf("not the same:\n%s", d)
		}
	})
}

// mutate returns a configuration that shares most services with cfg.
func mutate(t *rapid.T, cfg *model.Config) *model.Config {
	next := *cfg
	next.Services = nil
	if cfg.Edge != nil {
		e := *cfg.Edge
		switch rapid.IntRange(0, 4).Draw(t, "fate of the edge") {
		case 0:
			next.Edge = nil
		case 1:
			e.Drop, next.Edge = !e.Drop, &e
		case 2:
			e.Open, next.Edge = e.Open[len(e.Open)/2:], &e
		}
	}
	for _, s := range cfg.Services {
		switch rapid.IntRange(0, 5).Draw(t, "fate of "+s.Name) {
		case 0: // it goes
		case 1:
			c := *s
			c.Backends = append([]model.Backend(nil), s.Backends...)
			for i := range c.Backends {
				c.Backends[i].Weight = 1 + rapid.IntRange(0, 3).Draw(t, "weight")
			}
			next.Services = append(next.Services, &c)
		default:
			next.Services = append(next.Services, s)
		}
	}
	return &next
}

// TestShares: every slot leads to a backend of the pool, and the slots of a backend are
// in proportion to its weight: exactly where a counter or chance chooses, within one
// percent of the pool and one slot where a hash does.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := plan.Build(configtest.RandomModel(t, &configtest.Options{Steering: true}), nil)
		for _, pool := range p.Pools {
			sum := 0
			for _, b := range pool.Backends {
				sum += b.Weight
			}
			slots := make([]int, len(pool.Backends))
			for _, i := range pool.Slots {
				slots[i]++
			}
			for i, b := range pool.Backends {
				n, want := float64(slots[i]), float64(len(pool.Slots))*float64(b.Weight)/float64(max(sum, 1))
				slack := 0.0
				if pool.Service.Balance == model.Maglev || pool.Service.Balance == model.Source {
					slack = 1 + 0.01*float64(len(pool.Slots))
				}
				if n < want-slack-1e-6 || n > want+slack+1e-6 {
					t.Fatalf("%s: %s of weight %d has %v of %d slots, want %v", pool.Service.Name, b.ID(), b.Weight, n, len(pool.Slots), want)
				}
			}
		}
	})
}

// TestPoolsDoNotMeet: no two pools use the same slot of a map.
func TestPoolsDoNotMeet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := configtest.RandomModel(t, &configtest.Options{Steering: true})
		p := plan.Build(cfg, nil)
		type slot struct {
			set string
			at  uint32
		}
		owner := map[slot]string{}
		for _, pool := range p.Pools {
			for i := range pool.Slots {
				at := slot{pool.SlotMap, pool.Base + uint32(i)}
				if o, taken := owner[at]; taken {
					t.Fatalf("%v belongs to %s and %s", at, o, pool.Service.Name)
				}
				owner[at] = pool.Service.Name
			}
		}
		checkSlotElements(t, p)
	})
}

// checkSlotElements holds the elements of the slot maps against the pools.
func checkSlotElements(t *rapid.T, p *plan.Plan) {
	for _, pool := range p.Pools {
		if len(pool.Slots) == 0 {
			continue
		}
		table := p.Ruleset.Tables[0]
		if pool.Service.Direct() {
			table = p.Ruleset.Table(ruleset.TableFamily(pool.Family), plan.TableName)
		}
		set := table.Set(pool.SlotMap)
		if set == nil {
			t.Fatalf("%s: no map %s", pool.Service.Name, pool.SlotMap)
		}
		found := map[uint32]bool{}
		for _, part := range set.Parts {
			for _, e := range part.Elems {
				if at := binary.NativeEndian.Uint32([]byte(e.Key[:4])); at-pool.Base < uint32(len(pool.Slots)) {
					found[at-pool.Base] = true
					b := pool.Backends[pool.Slots[at-pool.Base]]
					if pool.Service.Direct() {
						if !strings.HasSuffix(e.Jump.Chain, "/"+strings.ReplaceAll(b.ID(), ":", "_")) {
							t.Fatalf("%s: slot %d leads to %s, want %s", pool.Service.Name, at-pool.Base, e.Jump.Chain, b.ID())
						}
					} else if addr := string(ruleset.AppendAddr(nil, b.Addr)); e.Data[:len(addr)] != addr {
						t.Fatalf("%s: slot %d leads to %s, want %s", pool.Service.Name, at-pool.Base, set.ElementText(&e), b.ID())
					}
				}
			}
		}
		if len(found) != len(pool.Slots) {
			t.Fatalf("%s: %d slots have elements, want %d", pool.Service.Name, len(found), len(pool.Slots))
		}
	}
}

// TestNewServiceMovesFew: a service that comes leaves the others where they are, unless
// the number of groups doubles with it or it meets another in its group.
func TestNewServiceMovesFew(t *testing.T) {
	cfg := &model.Config{HashSeed: 1}
	for i := range 999 {
		cfg.Services = append(cfg.Services, service(i))
	}
	before := bases(plan.Build(cfg, nil))
	for i := range 20 {
		next := *cfg
		next.Services = append(append([]*model.Service{}, service(2000+i)), cfg.Services...)
		after := bases(plan.Build(&next, nil))
		moved := 0
		for name, at := range before {
			if after[name] != at {
				moved++
			}
		}
		if moved > 1 {
			t.Errorf("one service came and %d of %d moved", moved, len(before))
		}
	}
	if len(before) != 999 || maps.Equal(before, map[string]string{}) {
		t.Fatalf("%d pools", len(before))
	}
}

func bases(p *plan.Plan) map[string]string {
	out := map[string]string{}
	for _, pool := range p.Pools {
		out[pool.Service.Name] = pool.SlotMap + "@" + string(binary.BigEndian.AppendUint32(nil, pool.Base))
	}
	return out
}
