package nft

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	rs "weir/internal/ruleset"
)

const others = `table inet other {
	set s {
		type ipv4_addr
		elements = { 192.0.2.1 }
	}

	chain c {
		type filter hook input priority filter; policy accept;
		ip saddr @s counter packets 0 bytes 0 drop
	}
}
table ip weir {
	chain c {
		accept
	}
}
`

func TestForeignTablesAreLeftAlone(t *testing.T) {
	n := namespace(t)
	n.nft(others, "-f", "-")
	list := func() string {
		return n.nft("", "list", "table", "inet", "other") + n.nft("", "list", "table", "ip", "weir")
	}
	before := list()
	n.make(full())
	got, _ := n.read(nil)
	if len(got.Tables) != 1 {
		t.Errorf("%d tables read", len(got.Tables))
	}
	if list() != before {
		t.Errorf("after a commit:\n%s", list())
	}
	n.make(&rs.Ruleset{})
	if list() != before {
		t.Errorf("after the last table of weir's has gone:\n%s", list())
	}
}

// TestRepair lets somebody else change weir's table in many ways. Every one must be seen
// and undone.
func TestRepair(t *testing.T) {
	n := namespace(t)
	want := full()
	n.make(want)
	for _, change := range []string{
		"flush ruleset",
		"flush table inet weir",
		"flush chain inet weir service/web/4",
		"add rule inet weir prerouting accept",
		"insert rule inet weir nothing drop",
		"add chain inet weir mine; add rule inet weir mine jump odd",
		"add chain inet weir forward { policy drop; }",
		"add set inet weir mine { type ether_addr; }",
		"add set inet weir mine { type ipv4_addr; timeout 5s; }; add rule inet weir nothing ip saddr @mine drop",
		"add rule inet weir nothing ip saddr { 10.0.0.1, 10.0.0.2 } drop",
		"add map inet weir mine { type ipv4_addr : verdict; elements = { 10.0.0.1 : accept } }",
		"add element inet weir protocols { sctp }",
		"delete element inet weir protocols { udp }",
		"flush map inet weir slots4",
		"delete element inet weir slots6 { 0 }; add element inet weir slots6 { 0 : 2001:db8::1 . 1 }",
		"add element inet weir services4 { 192.0.2.1 . tcp . 1 : accept }",
		"delete element inet weir ports { 80-90 }; add element inet weir ports { 80-89 }",
		"add element inet weir blocked6 { 2001:db8:ffff::/48 }",
		"add element inet weir services4 { * : drop }",
		"add element inet weir protocols { * }",
		"add rule inet weir nothing jump { drop; }",
		"insert rule inet weir prerouting jump { accept; }",
		"add table inet weir { flags dormant; }",
		"add table inet weir { flags dormant; }; flush chain inet weir odd; add chain inet weir mine",
		"add table inet weir { flags dormant; }; delete chain inet weir forward",
		"add chain inet weir mine { type filter hook input priority 7; }; add table inet weir { flags dormant; }",
		"add table inet weir { flags dormant; }; add chain inet weir forward { policy drop; }",
	} {
		n.nft(change, "-f", "-")
		have, gen := n.read(want)
		d := rs.Diff(have, want)
		if d.Empty() {
			t.Errorf("%s: not seen", change)
			continue
		}
		if _, err := n.Apply(context.Background(), d, gen); err != nil {
			b, _ := Encode(d, gen)
			t.Errorf("%s: %v\n%s", change, err, b)
		}
		n.same(want)
	}
}

// TestCountersStay changes one element of a map and looks at the counter of another.
func TestCountersStay(t *testing.T) {
	n := namespace(t)
	n.nft(`table inet weir {
	map m {
		type inet_service : ipv4_addr
		counter
		elements = { 1 counter packets 7 bytes 70 : 10.0.0.1, 2 counter packets 8 bytes 80 : 10.0.0.2 }
	}
}`, "-f", "-")
	m := &rs.Set{Name: "m", Key: rs.Types{rs.Port}, Data: rs.Types{rs.IPv4Addr}, Counter: true,
		Parts: part(kv(pack(1), pack("10.0.0.1")), kv(pack(2), pack("10.0.0.3")))}
	n.make(table([]*rs.Set{m}))
	got := map[string]Counter{}
	err := n.Elements(context.Background(), weir[0], m, func(e Elem) bool {
		got[m.ElementText(&e.Element)] = e.Counter
		return true
	})
	want := map[string]Counter{"1 : 10.0.0.1": {Packets: 7, Bytes: 70}, "2 : 10.0.0.3": {}}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestDynamicElements(t *testing.T) {
	n := namespace(t)
	ctx := context.Background()
	s := &rs.Set{Name: "s", Key: rs.Types{rs.Integer, rs.IPv4Addr}, Data: rs.Types{rs.IPv4Addr}, Dynamic: true, Timeout: true, Counter: true, Size: 100}
	n.make(table([]*rs.Set{s}))
	n.nft("add element inet weir s { 1 . 192.0.2.1 counter packets 5 bytes 500 timeout 1h expires 30m : 10.0.0.1, 2 . 192.0.2.2 timeout 2h : 10.0.0.2, 3 . 192.0.2.3 : 10.0.0.3 }", "-f", "-")
	n.same(table([]*rs.Set{s})) // what packets put there is no difference
	list := func() []string {
		var out []string
		if err := n.Elements(ctx, weir[0], s, func(e Elem) bool {
			out = append(out, s.ElementText(&e.Element))
			switch {
			case e.Key != pack(uint32(1), "192.0.2.1"):
			case e.Counter != Counter{Packets: 5, Bytes: 500}, e.Timeout != time.Hour, e.Expires > 30*time.Minute || e.Expires < 29*time.Minute:
				t.Errorf("%+v", e)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(out)
		return out
	}
	want := []string{"1 . 192.0.2.1 : 10.0.0.1", "2 . 192.0.2.2 : 10.0.0.2", "3 . 192.0.2.3 : 10.0.0.3"}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for _, old := range []bool{false, true} { // a kernel that knows "destroy", and one that doesn't
		n.noDestr = old
		gone := []rs.Element{{Key: pack(uint32(9), "192.0.2.9")}, {Key: pack(uint32(1), "192.0.2.1")}, {Key: pack(uint32(8), "192.0.2.9")}}
		if old {
			gone[1].Key = pack(uint32(2), "192.0.2.2")
		}
		if err := n.DeleteElements(ctx, weir[0], s, gone); err != nil {
			t.Fatal(err)
		}
		want = want[1:]
		if got := list(); !slices.Equal(got, want) {
			t.Errorf("old kernel %v: %q is left, want %q", old, got, want)
		}
	}
	nowhere := &rs.Set{Name: "nowhere", Key: s.Key}
	if err := n.DeleteElements(ctx, weir[0], nowhere, []rs.Element{{Key: pack(uint32(9), "192.0.2.9")}}); err != nil {
		t.Error(err)
	}
	if err := n.Elements(ctx, weir[0], nowhere, func(Elem) bool { return true }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the elements of a set that is not there: %v", err)
	}
}

func TestMonitor(t *testing.T) {
	n := namespace(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events, err := n.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Monitor(ctx); err == nil {
		t.Error("a second monitor")
	}
	n.make(full())
	gen, _ := n.Generation()
	e := <-events
	if e.Gen != gen || e.PID == 0 || !slices.Equal(e.Tables, weir) || e.Lost {
		t.Errorf("of our own commit: %+v; generation %d", e, gen)
	}
	n.nft(others, "-f", "-")
	want := []TableRef{{rs.Inet, "other"}, {"ip", "weir"}}
	if e = <-events; e.Gen != next(gen) || e.Process != "nft" || !slices.Equal(e.Tables, want) {
		t.Errorf("of nft's commit: %+v", e)
	}

	cancel()
	for range events { // until it is closed
	}
}

// TestMonitorLost commits more than the monitor's buffer holds before it is read.
func TestMonitorLost(t *testing.T) {
	n := namespace(t)
	m := n.monitor
	if err := m.setsockopt(unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.join(); err != nil {
		t.Fatal(err)
	}
	n.make(full())
	n.make(&rs.Ruleset{})
	m.file.SetReadDeadline(time.Now().Add(10 * time.Second))
	events := make(chan Event, 16)
	r := eventReader{out: events}
	for r.next(m.file) {
		if len(events) > 0 && (<-events).Lost {
			return
		}
	}
	t.Error("no event says that some are lost")
}

// TestOtherThread uses a connection from a thread in another namespace.
func TestOtherThread(t *testing.T) {
	n := namespace(t)
	n.make(full())
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		got, _, err := n.Read(context.Background(), weir, nil)
		if err == nil && (len(got.Tables) != 1 || !rs.Diff(got, full()).Empty()) {
			t.Error("another ruleset than that of the namespace in which it was opened")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := n.Read(context.Background(), weir, nil); err == nil {
		t.Error("a closed connection reads")
	}
}
