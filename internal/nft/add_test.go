package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	rs "weir/internal/ruleset"
)

// TestAddElements puts more elements into a set than one message holds, some of which are
// there, and too many.
func TestAddElements(t *testing.T) {
	n, ctx := namespace(t), context.Background()
	const size, first = 8000, 6000
	for _, f := range families {
		s := &rs.Set{Name: "resets", Key: rs.Types{f.addr, rs.Port, f.addr, rs.Port}, Dynamic: true, Timeout: true, Size: size}
		n.make(table([]*rs.Set{s}))
		elems := make([]rs.Element, size+first)
		for i := range elems {
			client := []byte(pack(f.server1))
			binary.BigEndian.PutUint16(client[len(client)-2:], uint16(i))
			elems[i].Key = string(client) + pack(i, f.vip, 80)
		}
		add := func(want error, elems ...rs.Element) {
			t.Helper()
			before, err := n.Generation()
			if err != nil {
				t.Fatal(err)
			}
			gen, err := n.AddElements(ctx, weir[0], s, elems, time.Minute)
			if !errors.Is(err, want) || err == nil && gen != before+1 {
				t.Errorf("%d elements: generation %d after %d, %v; want %v", len(elems), gen, before, err, want)
			}
		}
		add(nil, elems[:first]...)
		add(nil, elems[first-3:first+3]...)
		add(unix.ENFILE, elems[first:]...)
		add(nil, elems[:2]...)
		got := map[string]bool{}
		if err := n.Elements(ctx, weir[0], s, func(e Elem) bool {
			got[e.Key] = true
			if e.Timeout != time.Minute || e.Expires <= 0 || e.Expires > time.Minute {
				t.Errorf("timeout %s, expires in %s", e.Timeout, e.Expires)
				return false
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for i := range elems {
			if got[elems[i].Key] != (i < first+3) {
				t.Fatalf("element %d is there: %v", i, got[elems[i].Key])
			}
		}
		n.same(table([]*rs.Set{s}))
		n.make(&rs.Ruleset{})
	}
	none := &rs.Set{Name: "nowhere", Key: rs.Types{rs.Port}, Dynamic: true, Timeout: true, Size: 1}
	if _, err := n.AddElements(ctx, weir[0], none, []rs.Element{{Key: pack(80)}}, time.Minute); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a set that is not there: %v", err)
	}
	for _, wrong := range []rs.Set{
		{Name: "s", Key: rs.Types{rs.Port}, Dynamic: true, Size: 1}, {Name: "s", Key: rs.Types{rs.Port}, Timeout: true, Size: 1},
		{Name: "s", Key: rs.Types{rs.Port}, Data: rs.Types{rs.Port}, Dynamic: true, Timeout: true, Size: 1},
		{Name: "s", Key: rs.Types{rs.IPv4Addr}, Dynamic: true, Timeout: true, Size: 1, Data: nil, Counter: false, Verdict: true},
		{Name: "s", Key: rs.Types{rs.IPv4Addr, rs.Port}, Dynamic: true, Timeout: true, Size: 1}, // and the key is shorter
	} {
		if _, err := encodeAdd(weir[0], &wrong, []rs.Element{{Key: pack(80)}}, time.Minute, 1); err == nil {
			t.Errorf("%+v: elements can be added", wrong)
		}
	}
}
