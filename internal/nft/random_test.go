package nft_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/nft/nftfake"
	rs "weir/internal/ruleset"
)

var tables = []nft.TableRef{{Family: rs.Inet, Name: "weir"}, {Family: rs.Inet, Name: "weir-too"}}

// driver is what the kernel and the fake have in common.
type driver interface {
	Read(context.Context, []nft.TableRef, *rs.Ruleset) (*rs.Ruleset, uint32, error)
	Apply(context.Context, *rs.Delta, uint32) (uint32, error)
}

// TestRandomDeltas walks through random rulesets, each delta made from the last ruleset
// in memory as the engine does, and reads back after every step. The fake and the kernel
// both have to do it.
func TestRandomDeltas(t *testing.T) {
	conn := nft.Namespace(t)
	rapid.Check(t, func(t *rapid.T) {
		for _, d := range []driver{conn, nftfake.New()} {
			have, gen := read(t, d, nil)
			gen = apply(t, d, rs.Diff(have, &rs.Ruleset{}), gen)
			have = &rs.Ruleset{}
			for range 3 {
				want := randomRuleset(t, false)
				delta := rs.Diff(have, want)
				gen = apply(t, d, delta, gen)
				got, now := read(t, d, want)
				if delta := rs.Diff(got, want); !delta.Empty() {
					b, _ := nft.Encode(delta, 0)
					t.Fatalf("%T has something else:\n%s", d, b)
				}
				if now != gen {
					t.Fatalf("%T: generation %d after the commit, which said %d", d, now, gen)
				}
				have = want
			}
		}
	})
}

// TestFakeIsAsStrict compares what the kernel and the fake say to deltas that were made
// from something else than what is there.
func TestFakeIsAsStrict(t *testing.T) {
	conn := nft.Namespace(t)
	rapid.Check(t, func(t *rapid.T) {
		fake := nftfake.New()
		base, wrong, want := randomRuleset(t, true), randomRuleset(t, true), randomRuleset(t, true)
		have, gen := read(t, conn, nil)
		gen = apply(t, conn, rs.Diff(have, base), gen)
		apply(t, fake, rs.Diff(&rs.Ruleset{}, base), 0)

		delta := rs.Diff(wrong, want)
		_, realErr := conn.Apply(context.Background(), delta, gen)
		_, fakeErr := fake.Apply(context.Background(), delta, 0)
		if (realErr == nil) != (fakeErr == nil) {
			b, _ := nft.Encode(delta, 0)
			t.Fatalf("on\n%s\nkernel: %v\nfake: %v\n%s", base, realErr, fakeErr, b)
		}
		var e *nft.Error
		if realErr != nil && (!errors.As(realErr, &e) || e.Object == "") {
			t.Fatalf("the error names no object: %v", realErr)
		}
		afterReal, _ := read(t, conn, nil)
		want = base
		if realErr == nil {
			afterFake, _ := read(t, fake, nil)
			want = afterFake
		}
		if d := rs.Diff(afterReal, want); !d.Empty() {
			b, _ := nft.Encode(d, 0)
			t.Fatalf("after %v the kernel differs by\n%s", realErr, b)
		}
	})
}

func read(t *rapid.T, d driver, expect *rs.Ruleset) (*rs.Ruleset, uint32) {
	got, gen, err := d.Read(context.Background(), tables, expect)
	if err != nil {
		t.Fatalf("%T: %v", d, err)
	}
	return got, gen
}

func apply(t *rapid.T, d driver, delta *rs.Delta, gen uint32) uint32 {
	next, err := d.Apply(context.Background(), delta, gen)
	if err != nil {
		b, _ := nft.Encode(delta, gen)
		t.Fatalf("%T: %v\n%s", d, err, b)
	}
	return next
}

// kinds are the declarations that a random set may have.
var kinds = []rs.Set{
	{Key: rs.Types{rs.IPv4Addr}},
	{Key: rs.Types{rs.Integer}, Data: rs.Types{rs.IPv4Addr, rs.Port}},
	{Key: rs.Types{rs.Integer}, Data: rs.Types{rs.IPv4Addr, rs.Port}, Counter: true},
	{Key: rs.Types{rs.IPv4Addr, rs.Protocol, rs.Port}, Verdict: true},
	{Key: rs.Types{rs.IPv4Addr, rs.Protocol, rs.Port}, Verdict: true, Range: true},
	{Key: rs.Types{rs.Port}, Range: true},
	{Key: rs.Types{rs.IPv4Addr}, Dynamic: true, Size: 100, Counter: true},
	{Key: rs.Types{rs.IPv6Addr, rs.Protocol}, Size: 50},
}

// Chains from leaf on jump nowhere, and nothing but they are jumped to: there are no loops.
const chainCount, leaf = 8, 5

// randomRuleset draws a ruleset. With typed a set's name says its kind, so that no rule of
// one ruleset meets a set of another kind in the next: of that the fake knows nothing.
func randomRuleset(t *rapid.T, typed bool) *rs.Ruleset {
	r := &rs.Ruleset{}
	for _, ref := range tables {
		if rapid.IntRange(0, 4).Draw(t, "table") > 0 {
			r.Tables = append(r.Tables, randomTable(t, ref.Name, typed))
		}
	}
	return r
}

func randomTable(t *rapid.T, name string, typed bool) *rs.Table {
	tab := &rs.Table{Family: rs.Inet, Name: name}
	var leaves []string
	for i := range chainCount {
		if rapid.Bool().Draw(t, "chain") {
			c := &rs.Chain{Name: fmt.Sprintf("chain/%d", i)}
			tab.Chains = append(tab.Chains, c)
			if i >= leaf {
				leaves = append(leaves, c.Name)
			}
		}
	}
	for i := range kinds {
		if rapid.Bool().Draw(t, "set") {
			kind := i
			if !typed {
				kind = rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")
			}
			tab.Sets = append(tab.Sets, randomSet(t, kinds[kind], fmt.Sprintf("set-%d", i), leaves))
		}
	}
	for _, c := range tab.Chains {
		isLeaf := c.Name >= fmt.Sprintf("chain/%d", leaf)
		if !isLeaf && rapid.IntRange(0, 2).Draw(t, "base") == 0 {
			c.Base = &rs.Base{Type: "nat", Hook: rapid.SampledFrom([]rs.Hook{rs.Prerouting, rs.Output}).Draw(t, "hook"),
				Priority: rapid.IntRange(-150, -90).Draw(t, "priority")}
		}
		for range rapid.IntRange(0, 3).Draw(t, "rules") {
			c.Rules = append(c.Rules, randomRule(t, tab, isLeaf, leaves))
		}
	}
	return tab
}

func randomSet(t *rapid.T, s rs.Set, name string, leaves []string) *rs.Set {
	s.Name = name
	if s.Dynamic || s.Verdict && len(leaves) == 0 {
		return &s
	}
	used := map[uint32]bool{}
	for range rapid.IntRange(0, 2).Draw(t, "parts") {
		p := &rs.Part{}
		for range rapid.IntRange(0, 4).Draw(t, "elements") {
			n := rapid.Uint32Range(0, 20).Draw(t, "key")
			if used[n] {
				continue
			}
			used[n] = true
			e := rs.Element{Key: value(s.Key, n*100)}
			if s.Range && rapid.Bool().Draw(t, "range") {
				e.KeyEnd = value(s.Key[:len(s.Key)-1], n*100) + value(rs.Types{rs.Port}, n*100+rapid.Uint32Range(1, 99).Draw(t, "length"))
			}
			if s.Verdict {
				e.Jump = rs.Jump{Chain: rapid.SampledFrom(leaves).Draw(t, "target"), Goto: rapid.Bool().Draw(t, "goto")}
			}
			if len(s.Data) > 0 {
				e.Data = value(s.Data, rapid.Uint32Range(0, 3).Draw(t, "data"))
			}
			p.Elems = append(p.Elems, e)
		}
		s.Parts = append(s.Parts, p)
	}
	return &s
}

// value packs n into every field.
func value(ts rs.Types, n uint32) string {
	var b []byte
	for _, t := range ts {
		switch t {
		case rs.IPv4Addr:
			b = binary.BigEndian.AppendUint32(b, 10<<24|n)
		case rs.IPv6Addr:
			b = binary.BigEndian.AppendUint32(append(b, "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00"...), n)
		case rs.Protocol:
			b = rs.AppendByte(b, uint8(n/100))
		case rs.Port:
			b = rs.AppendPort(b, uint16(n))
		default:
			b = rs.AppendInteger(b, n)
		}
	}
	return string(b)
}

func randomRule(t *rapid.T, tab *rs.Table, isLeaf bool, leaves []string) rs.Rule {
	r := rs.Rule{Stmts: []rs.Stmt{rs.IsFamily(model.IPv4), rs.IsProto(model.TCP)},
		Comment: rapid.SampledFrom([]string{"", "a rule", "another: 1.2.3.4"}).Draw(t, "comment")}
	var choices []rs.Stmt
	for _, s := range tab.Sets {
		switch {
		case s.Dynamic:
			choices = append(choices, rs.Update{Set: s.Name, Key: rs.Key{rs.IPSaddr}})
		case s.Verdict && !isLeaf:
			choices = append(choices, rs.VMap{Key: rs.Key{rs.IPDaddr, rs.L4Proto, rs.DPort}, Map: s.Name})
		case len(s.Data) > 0:
			choices = append(choices, rs.DNAT{Family: model.IPv4, WithPort: true,
				To: rs.MapGet{Key: rs.Key{rs.Numgen{Mod: 7}}, Map: s.Name}})
		case !s.IsMap() && len(s.Key) == 1 && s.Key[0] == rs.Port:
			choices = append(choices, rs.InSet{Key: rs.Key{rs.DPort}, Set: s.Name})
		}
	}
	if !isLeaf {
		for _, l := range leaves {
			choices = append(choices, rs.Verdict{Kind: rs.JumpTo, Chain: l})
		}
	}
	choices = append(choices, rs.Verdict{Kind: rs.ReturnBack})
	r.Stmts = append(r.Stmts, rapid.SampledFrom(choices).Draw(t, "statement"))
	return r
}
