package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	rs "weir/internal/ruleset"
)

// applyErr applies a delta that the kernel should refuse.
func (n netns) applyErr(d *rs.Delta, gen uint32) error {
	n.tb.Helper()
	_, err := n.Apply(context.Background(), d, gen)
	if err == nil {
		n.tb.Fatal("the kernel took it")
	}
	return err
}

func table(sets []*rs.Set, chains ...*rs.Chain) *rs.Ruleset {
	return &rs.Ruleset{Tables: []*rs.Table{{Family: rs.Inet, Name: "weir", Sets: sets, Chains: chains}}}
}

// TestErrorsNameTheObject refuses something of every kind and looks at the words.
func TestErrorsNameTheObject(t *testing.T) {
	n := namespace(t)
	ports := &rs.Set{Name: "ports", Key: rs.Types{rs.Port}, Range: true, Parts: part(
		rs.Element{Key: pack(80), KeyEnd: pack(90)}, rs.Element{Key: pack(100)})}
	keys := &rs.Set{Name: "keys", Key: rs.Types{rs.IPv4Addr, rs.Protocol, rs.Port}, Parts: part(
		rs.Element{Key: pack("198.51.100.10", model.TCP, 80)}, rs.Element{Key: pack("198.51.100.10", model.TCP, 81)})}
	have := table([]*rs.Set{ports, keys}, &rs.Chain{Name: "c"})
	n.make(have)
	more := func(s *rs.Set, e ...rs.Element) *rs.Delta {
		return &rs.Delta{Tables: []*rs.TableDelta{{Table: have.Tables[0], AddElems: []*rs.ElemChange{{Set: s, Elems: e}}}}}
	}
	many := make([]rs.Element, 6000)
	for i := range many {
		many[i].Key = pack(fmt.Sprintf("192.0.%d.%d", i>>8, i&0xff), model.UDP, 1)
	}
	many[4321].Key = pack("198.51.100.10", model.TCP, 81)

	for _, c := range []struct {
		what   string
		delta  *rs.Delta
		errno  unix.Errno
		object string
	}{
		{"a table that is there", &rs.Delta{Tables: []*rs.TableDelta{{Table: have.Tables[0], Create: true}}},
			unix.EEXIST, "add table inet weir:"},
		{"a chain that is not there", &rs.Delta{Tables: []*rs.TableDelta{{Table: have.Tables[0], DelChains: []*rs.Chain{{Name: "gone"}}}}},
			unix.ENOENT, "delete chain gone in table inet weir:"},
		{"a set that is there", &rs.Delta{Tables: []*rs.TableDelta{{Table: have.Tables[0], AddSets: []*rs.Set{keys}}}},
			unix.EEXIST, "add set keys in table inet weir:"},
		{"an element among others", more(keys, rs.Element{Key: pack("198.51.100.9", model.TCP, 80)}, keys.Parts[0].Elems[1], rs.Element{Key: pack("198.51.100.11", model.TCP, 80)}),
			unix.EEXIST, "add element 198.51.100.10 . tcp . 81 of set keys in table inet weir:"},
		{"an element of the second of three messages", more(keys, many...),
			unix.EEXIST, "add element 198.51.100.10 . tcp . 81 of set keys in table inet weir:"},
		{"a range that overlaps", more(ports, rs.Element{Key: pack(1), KeyEnd: pack(2)}, rs.Element{Key: pack(85), KeyEnd: pack(95)}),
			unix.EEXIST, "element 85-95 of set ports in table inet weir:"},
		{"a rule with an unknown set", rs.Diff(have, table(have.Tables[0].Sets, &rs.Chain{Name: "c", Rules: []rs.Rule{
			rule("fine", rs.Verdict{Kind: rs.ReturnBack}),
			rule("", rs.IsFamily(model.IPv4), rs.InSet{Key: rs.Key{rs.IPSaddr}, Set: "nowhere"}, rs.Verdict{Kind: rs.DropPacket}),
		}})), unix.ENOENT, "expression 4 of rule 2 of chain c in table inet weir:"},
		{"a jump to nowhere", rs.Diff(have, table(have.Tables[0].Sets, &rs.Chain{Name: "c", Rules: []rs.Rule{
			rule("", rs.Verdict{Kind: rs.JumpTo, Chain: "nowhere"})}})), unix.ENOENT, "rule 1 of chain c in table inet weir:"},
	} {
		_, gen := n.read(nil)
		err := n.applyErr(c.delta, gen)
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.object) {
			t.Errorf("%s: %v; want %v and %q", c.what, err, c.errno, c.object)
		}
		n.same(have)
	}
}

func TestAllRefusalsAreTold(t *testing.T) {
	n := namespace(t)
	d := &rs.TableDelta{Table: &rs.Table{Family: rs.Inet, Name: "weir"}, Create: true}
	chains := 20_000
	if have, _ := unix.GetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_RCVBUF); have < recvBuffer {
		chains = 100 // without privilege there is no room for more
	}
	for i := range chains {
		d.DelChains = append(d.DelChains, &rs.Chain{Name: fmt.Sprintf("c%d", i)})
	}
	_, gen := n.read(nil)
	var e *Error
	if err := n.applyErr(&rs.Delta{Tables: []*rs.TableDelta{d}}, gen); !errors.As(err, &e) {
		t.Fatal(err)
	}
	if len(e.All) != len(d.DelChains) || e.All[7].Object != "chain c7 in table inet weir" {
		t.Errorf("%d refusals, the eighth of %+v", len(e.All), e.All[7])
	}
}

func TestStale(t *testing.T) {
	n := namespace(t)
	_, gen := n.read(nil)
	n.nft("add table inet other", "-f", "-")
	err := n.applyErr(rs.Diff(&rs.Ruleset{}, table(nil)), gen)
	if !errors.Is(err, ErrStale) {
		t.Fatal(err)
	}
	n.same(&rs.Ruleset{})
	n.make(table(nil))
}

// TestGenerationReturned looks whether a commit's generation is the kernel's.
func TestGenerationReturned(t *testing.T) {
	n := namespace(t)
	_, gen := n.read(nil)
	said, err := n.Apply(context.Background(), rs.Diff(&rs.Ruleset{}, full()), gen)
	if err != nil {
		t.Fatal(err)
	}
	if is, err := n.Generation(); err != nil || is != said {
		t.Errorf("generation %d, %v; Apply said %d", is, err, said)
	}
}

// TestAnswerLost makes the receive buffer too small for the answer.
func TestAnswerLost(t *testing.T) {
	n := namespace(t)
	want := full()
	squeeze := func() {
		if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
			t.Fatal(err)
		}
	}
	relax := func() { setBuffer(n.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer) }

	// Many refusals: some of them get lost, but one that arrives is enough.
	d := &rs.TableDelta{Table: want.Tables[0]}
	for i := range 500 {
		d.DelChains = append(d.DelChains, &rs.Chain{Name: fmt.Sprintf("c%d", i)})
	}
	_, gen := n.read(nil)
	squeeze()
	err := n.applyErr(&rs.Delta{Tables: []*rs.TableDelta{d}}, gen)
	relax()
	var e *Error
	if !errors.As(err, &e) || len(e.All) == 0 || len(e.All) >= 500 {
		t.Fatalf("%v", err)
	}

	// No answer at all: the generation tells.
	b, err := Encode(rs.Diff(&rs.Ruleset{}, want), gen)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.sendBatch(b); err != nil {
		t.Fatal(err)
	}
	n.drain()
	if now, err := n.look(gen, unix.ENOBUFS); err != nil || now != next(gen) {
		t.Errorf("a commit whose answer was lost: generation %d, %v", now, err)
	}
	n.same(want)
	if _, err := n.look(next(gen), unix.ENOBUFS); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("no commit and no answer: %v", err)
	}
	if _, err := n.look(gen-1, unix.ENOBUFS); !errors.Is(err, ErrUncertain) {
		t.Errorf("two commits and no answer: %v", err)
	}
}

// TestBatchTooLarge sends more than the send buffer holds.
func TestBatchTooLarge(t *testing.T) {
	n := namespace(t)
	n.sndbuf = 1 << 30 // as if it had been asked for in vain
	if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	_, gen := n.read(nil)
	err := n.applyErr(rs.Diff(&rs.Ruleset{}, full()), gen)
	if !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), "net.core.wmem_max") {
		t.Error(err)
	}
	n.same(&rs.Ruleset{})
}

// TestManyElements has sets that need several messages, in number and in bytes.
func TestManyElements(t *testing.T) {
	n := namespace(t)
	setBuffer(n.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	have, _ := unix.GetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	sixes, ranges := 30_000, 20_000
	if have < sendBuffer { // without privilege net.core.wmem_max is the most; 208 KiB if nobody raised it
		sixes, ranges = 3_000, 2_000
	}
	v6 := &rs.Set{Name: "six", Key: rs.Types{rs.IPv6Addr, rs.Protocol, rs.Port, rs.IPv6Addr, rs.Port}, Parts: part()}
	ports := &rs.Set{Name: "ports", Key: rs.Types{rs.Port}, Range: true, Parts: part()}
	for i := range sixes {
		a := fmt.Sprintf("2001:db8::%x", i)
		v6.Parts[0].Elems = append(v6.Parts[0].Elems, rs.Element{Key: pack(a, model.TCP, 80, a, 8080)})
		if i < ranges {
			ports.Parts[0].Elems = append(ports.Parts[0].Elems, rs.Element{Key: pack(3 * i), KeyEnd: pack(3*i + 1)})
		}
	}
	want := table([]*rs.Set{v6, ports})
	n.make(want)
	n.same(want)
	half := table([]*rs.Set{v6, {Name: "ports", Key: ports.Key, Range: true, Parts: part(ports.Parts[0].Elems[:ranges/2]...)}})
	n.make(half)
	n.same(half)
}

func TestMessagesFit(t *testing.T) {
	b, err := Encode(rs.Diff(&rs.Ruleset{}, large()), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.msgs {
		if len(b.msgs[i].elems) > maxElems {
			t.Errorf("message %d has %d elements", i, len(b.msgs[i].elems))
		}
	}
	for h, body := range messages(string(b.Bytes())) {
		size := 4
		for _, p := range attrs(body[4:]) {
			if len(p) > 1<<16-1-64 {
				t.Fatalf("message %d has an attribute of %d bytes", h.seq, len(p))
			}
			size += align(len(p) + 4)
		}
		if size != len(body) {
			t.Fatalf("message %d has %d bytes, its attributes %d", h.seq, len(body), size)
		}
	}
}

// TestCannotBeWritten has what nft would not load, or not as it is meant.
func TestCannotBeWritten(t *testing.T) {
	inChain := func(s ...rs.Stmt) *rs.Ruleset {
		return table(nil, &rs.Chain{Name: "c", Rules: []rs.Rule{rule("", s...)}})
	}
	inSet := func(s rs.Set) *rs.Ruleset { s.Name = "s"; return table([]*rs.Set{&s}) }
	for _, c := range []struct {
		want *rs.Ruleset
		says string
	}{
		{inChain(rs.InSet{Key: rs.Key{rs.IPSaddr}, Set: "s"}), "ip saddr needs a match of its family"},
		{inChain(rs.IsFamily(model.IPv6), rs.InSet{Key: rs.Key{rs.IPSaddr}, Set: "s"}), "ip saddr needs a match of its family"},
		{inChain(rs.InSet{Key: rs.Key{rs.CtOrigDPort}, Set: "s"}), "ct original proto-dst needs a match of the protocol"},
		{inChain(rs.IsProto(model.UDP), rs.RejectWith{TCPReset: true}), "meta l4proto tcp"},
		{inChain(rs.IsFamily(model.IPv6), rs.InSet{Set: "s", Key: rs.Key{rs.IP6Saddr, rs.IP6Daddr, rs.IP6Saddr, rs.IP6Daddr, rs.L4Proto}}), "rule 1 of chain c in table inet weir: more than 64 bytes"},
		{inChain(rs.Match{Field: rs.CtStatus, Value: 1}), "can't be matched"},
		{inSet(rs.Set{}), "set s in table inet weir: has no key"},
		{inSet(rs.Set{Key: rs.Types{rs.Port}, Dynamic: true}), "needs a size"},
		{inSet(rs.Set{Key: rs.Types{rs.Port, rs.Port, rs.Port, rs.Port, rs.Port, rs.Port}}), "more than 5 fields"},
		{inSet(rs.Set{Key: rs.Types{rs.Integer, rs.Port}, Range: true}), "ranges of integers"},
		{inSet(rs.Set{Key: rs.Types{rs.Port}, Parts: part(rs.Element{Key: "a"})}), "a key of 1 bytes"},
		{inSet(rs.Set{Key: rs.Types{rs.Port}, Parts: part(rs.Element{Key: pack(1), KeyEnd: pack(2)})}), "a range in a set without"},
		{table(nil, &rs.Chain{Name: "c", Base: &rs.Base{Type: "nat", Hook: "ingress"}}), `hook "ingress"`},
		{&rs.Ruleset{Tables: []*rs.Table{{Family: "arp", Name: "weir"}}}, `family "arp" is unknown`},
		{table(nil, &rs.Chain{Name: "c", Rules: []rs.Rule{rule(strings.Repeat("x", 200))}}), "a comment of"},
	} {
		if _, err := Encode(rs.Diff(&rs.Ruleset{}, c.want), 0); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v; want %q in it", err, c.says)
		}
	}
}
