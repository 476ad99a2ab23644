package nftfake

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/nft"
	"weir/internal/ruleset"
)

var ref = nft.TableRef{Family: ruleset.Inet, Name: "weir"}

func wanted() *ruleset.Ruleset {
	return &ruleset.Ruleset{Tables: []*ruleset.Table{{Family: ref.Family, Name: ref.Name,
		Sets: []*ruleset.Set{
			{Name: "map", Key: ruleset.Types{ruleset.Port}, Verdict: true, Parts: []*ruleset.Part{{Elems: []ruleset.Element{
				{Key: "\x00\x50\x00\x00", Jump: ruleset.Jump{Chain: "target"}}}}}},
			{Name: "dynamic", Key: ruleset.Types{ruleset.Port}, Dynamic: true, Size: 9},
		},
		Chains: []*ruleset.Chain{
			{Name: "target"},
			{Name: "start", Rules: []ruleset.Rule{{Stmts: []ruleset.Stmt{
				ruleset.VMap{Key: ruleset.Key{ruleset.DPort}, Map: "map"}}}}},
		}}}}
}

// bring leads k from what it has to want.
func bring(t *testing.T, k *Kernel, want *ruleset.Ruleset) error {
	t.Helper()
	have, gen, err := k.Read(context.Background(), []nft.TableRef{ref}, want)
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Apply(context.Background(), ruleset.Diff(have, want), gen)
	return err
}

func missing(t *testing.T, k *Kernel, want *ruleset.Ruleset) bool {
	t.Helper()
	have, _, err := k.Read(context.Background(), []nft.TableRef{ref}, want)
	if err != nil {
		t.Fatal(err)
	}
	return !ruleset.Diff(have, want).Empty()
}

func TestFaults(t *testing.T) {
	k := New()
	k.Refuse(unix.ENOMEM)
	k.Interfere()
	k.LoseAnswer()
	for i, want := range []error{unix.ENOMEM, nft.ErrStale, nft.ErrUncertain} {
		if !missing(t, k, wanted()) {
			t.Fatalf("fault %d came too late", i)
		}
		if err := bring(t, k, wanted()); !errors.Is(err, want) {
			t.Fatalf("fault %d: %v, want %v", i, err, want)
		}
	}
	if missing(t, k, wanted()) {
		t.Error("the commit whose answer was lost did not happen")
	}
	if err := bring(t, k, &ruleset.Ruleset{}); err != nil {
		t.Errorf("without a fault: %v", err)
	}
	if n := k.Commits(); n != 2 {
		t.Errorf("%d commits", n)
	}
}

// TestRandomFaults repeats until all is there, as a loop around a driver does.
func TestRandomFaults(t *testing.T) {
	k := New()
	k.FailAtRandom(7, 0.7)
	failed := 0
	for try := 0; missing(t, k, wanted()); try++ {
		if bring(t, k, wanted()) != nil {
			failed++
		}
		if try == 100 {
			t.Fatal("a hundred failures in a row")
		}
	}
	if failed == 0 {
		t.Error("no commit failed")
	}
}

func TestOthers(t *testing.T) {
	k := New()
	ctx, cancel := context.WithCancel(context.Background())
	events, err := k.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(){k.Flush, func() { k.FlushChain(ref, "start") },
		func() { k.EditRule(ref, "start", 0) }, func() { k.SwitchOff(ref) }} {
		if err := bring(t, k, wanted()); err != nil {
			t.Fatal(err)
		}
		ours := <-events
		change()
		theirs := <-events
		if theirs.Gen != ours.Gen+1 || theirs.PID == ours.PID || theirs.Tables[0] != ref {
			t.Errorf("%+v after %+v", theirs, ours)
		}
		if !missing(t, k, wanted()) {
			t.Error("nothing is missing")
		}
	}
	cancel()
	for range events { // until it is closed
	}
}

func TestDynamicElements(t *testing.T) {
	k, ctx := New(), context.Background()
	want := wanted()
	if err := bring(t, k, want); err != nil {
		t.Fatal(err)
	}
	set := want.Tables[0].Set("dynamic")
	e := nft.Elem{Element: ruleset.Element{Key: "\x00\x01\x00\x00"}, Counter: nft.Counter{Packets: 3}}
	if !k.Put(ref, "dynamic", e) || k.Put(ref, "nowhere", e) {
		t.Error("Put is wrong about what is there")
	}
	if missing(t, k, want) {
		t.Error("an element of a dynamic set is a difference")
	}
	count := func() (n uint64) {
		if err := k.Elements(ctx, ref, set, func(e nft.Elem) bool { n += e.Counter.Packets; return true }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 3 {
		t.Errorf("%d packets", n)
	}
	before, _ := k.Generation()
	gen, err := k.AddElements(ctx, ref, set, []ruleset.Element{e.Element, {Key: "\x00\x02\x00\x00"}}, time.Minute)
	if err != nil || gen != before+1 || count() != 3 {
		t.Errorf("added: generation %d after %d, %v, %d packets", gen, before, err, count())
	}
	many := make([]ruleset.Element, set.Size+1)
	for i := range many {
		many[i].Key = string(ruleset.AppendPort(nil, uint16(i)))
	}
	if _, err := k.AddElements(ctx, ref, set, many, time.Minute); !errors.Is(err, unix.ENFILE) {
		t.Errorf("more than it holds: %v", err)
	}
	if _, err := k.AddElements(ctx, ref, &ruleset.Set{Name: "nowhere"}, many, time.Minute); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a set that is not there: %v", err)
	}
	if err := k.DeleteElements(ctx, ref, set, []ruleset.Element{e.Element}); err != nil || count() != 0 {
		t.Errorf("deleted: %v, %d packets left", err, count())
	}
}
