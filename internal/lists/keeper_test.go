package lists

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/internal/blocklist"
	"weir/internal/model"
)

// desk is a keeper with files and a clock of its own.
type desk struct {
	*testing.T
	dir  string
	now  time.Time
	o    Options
	k    *Keeper
	cfg  *model.Config
	own  []blocklist.Protected
	file int
}

func newDesk(t *testing.T, lists ...*model.Blocklist) *desk {
	d := &desk{T: t, dir: t.TempDir(), now: time.Now(), cfg: &model.Config{Blocklists: lists}}
	d.o = Options{Config: "weir.yaml", Dir: filepath.Join(d.dir, "kept"), Now: func() time.Time { return d.now },
		Protected: func() ([]blocklist.Protected, error) { return d.own, nil }}
	for _, l := range lists {
		if l.MaxChange == 0 {
			l.MaxChange = model.DefaultMaxChange
		}
		for i, f := range l.Files {
			l.Files[i] = filepath.Join(d.dir, f)
		}
	}
	return d
}

// start is what a weir does that starts.
func (d *desk) start(blocks ...Block) {
	d.k = New(d.o, blocks)
	d.k.Take(d.cfg)
}

// write makes a file as long ago as no one is writing to it any more.
func (d *desk) write(name, text string) {
	d.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
	d.file++
	at := d.now.Add(-time.Hour + time.Duration(d.file)*time.Second)
	if err := os.Chtimes(path, at, at); err != nil {
		d.Fatal(err)
	}
}

// wants what happens to packets from addresses: "192.0.2.1 drop".
func (d *desk) wants(lines ...string) {
	d.Helper()
	for _, line := range lines {
		addr, want, _ := strings.Cut(line, " ")
		got := blocklist.None
		if e, ok := d.k.Compiled().Find(netip.MustParseAddr(addr)); ok {
			got = e.Action
		}
		if got.String() != want {
			d.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// says wants words in what Status says of a list; "" wants no problem.
func (d *desk) says(list, want string) {
	d.Helper()
	for _, st := range d.k.Status() {
		if st.Name == list {
			if (want == "") != (st.Problem == "") || !strings.Contains(st.Problem, want) {
				d.Errorf("list %s says %q, want %q", list, st.Problem, want)
			}
			return
		}
	}
	d.Errorf("there is no list %s in %+v", list, d.k.Status())
}

func numbered(from, n int) string {
	var b strings.Builder
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&b, "198.18.%d.%d\n", i/256, i%256)
	}
	return b.String()
}

func fromFile(name string, action model.BlockAction, files ...string) *model.Blocklist {
	return &model.Blocklist{Name: name, Files: files, Action: action}
}

func TestFilesAreReadAgain(t *testing.T) {
	d := newDesk(t, fromFile("a", model.BlockDrop, "*.netset"), fromFile("b", model.BlockCount, "b.txt"))
	d.write("x.netset", "192.0.2.0/24\n")
	d.write("b.txt", "203.0.113.1\n192.0.2.9\n")
	d.start()
	d.wants("192.0.2.1 drop", "192.0.2.9 drop", "203.0.113.1 count", "198.51.100.1 none")
	if d.k.Poll() {
		t.Error("nothing has changed, and Poll says so")
	}
	d.write("x.netset", "192.0.2.0/25\n")
	d.write("y.netset", "198.51.100.1\n2001:db8::/32\n")
	if !d.k.Poll() {
		t.Fatal("files have changed, and Poll does not notice")
	}
	d.wants("192.0.2.1 drop", "192.0.2.129 none", "198.51.100.1 drop", "2001:db8::1 drop")
	if err := os.Remove(filepath.Join(d.dir, "y.netset")); err != nil {
		t.Fatal(err)
	}
	d.k.Poll()
	d.wants("198.51.100.1 none", "192.0.2.1 drop")
	d.says("a", "")
}

func TestUnsettledFileWaits(t *testing.T) {
	d := newDesk(t, fromFile("a", model.BlockDrop, "a.txt"))
	d.write("a.txt", "192.0.2.1\n")
	d.start()
	path := filepath.Join(d.dir, "a.txt")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, d.now, d.now); err != nil {
			t.Fatal(err)
		}
	}
	write("192.0.2.1\n192.0.2.2\n19")
	if d.k.Poll() {
		t.Error("a file that may still be being written is read")
	}
	d.now = d.now.Add(500 * time.Millisecond)
	write("192.0.2.1\n192.0.2.2\n192.0.2.3\n")
	if d.k.Poll() {
		t.Error("a file that has grown since the last look is read")
	}
	if !d.k.Poll() {
		t.Error("a file that stands still is not read")
	}
	d.wants("192.0.2.3 drop")
}

func TestBadFileKeepsTheLastGood(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"gone", "", "no such file"},
		{"words", "<html>not found</html>\n" + strings.Repeat("what\n", 50), "a.txt"},
		{"strict", "192.0.2.1\nword\n", "a.txt:2"},
		{"shrunk", numbered(0, 100), "max_change"},
		{"grown", numbered(0, 2000), "max_change"},
		{"everything", "0.0.0.0/0\n" + numbered(0, 900), "0.0.0.0/0"},
		{"itself", "192.0.2.77\n" + numbered(0, 900), "192.0.2.77"},
		{"management", "203.0.113.0/26\n" + numbered(0, 900), "management 203.0.113.16/28"},
		{"backend", "10.0.0.0/8\n" + numbered(0, 900), "backend 10.1.1.1:80 of service web"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := fromFile("a", model.BlockDrop, "a.txt")
			l.Strict = true
			d := newDesk(t, l)
			if c.name == "everything" || c.name == "backend" {
				l.MaxChange = 0 // else that guard speaks first
			}
			d.own = []blocklist.Protected{{Prefix: netip.MustParsePrefix("192.0.2.77/32"), What: "this machine"}}
			d.cfg.Services = []*model.Service{{Name: "web", Backends: []model.Backend{{Addr: netip.MustParseAddr("10.1.1.1"), Ports: model.Port(80)}}}}
			d.cfg.Edge = &model.Edge{Management: []netip.Prefix{netip.MustParsePrefix("203.0.113.16/28")}}
			d.write("a.txt", numbered(0, 900))
			d.start()
			d.says("a", "")
			if c.text == "" {
				if err := os.Remove(filepath.Join(d.dir, "a.txt")); err != nil {
					t.Fatal(err)
				}
			} else {
				d.write("a.txt", c.text)
			}
			if d.k.Poll() {
				t.Error("Poll says that something else is in use")
			}
			d.wants("198.18.0.1 drop", "198.18.3.1 drop", "10.1.1.1 none", "192.0.2.77 none")
			d.says("a", c.want)

			// A restart knows the last good one too.
			d.start()
			d.wants("198.18.0.1 drop", "198.18.3.1 drop", "10.1.1.1 none")
			d.says("a", c.want)
			if m := d.k.Lookup(netip.MustParseAddr("198.18.0.1")).Matches; len(m) != 1 || m[0].File != filepath.Join(d.dir, "a.txt") {
				t.Errorf("an entry of a copy: %+v", m)
			}

			d.write("a.txt", numbered(1, 900))
			if !d.k.Poll() {
				t.Error("a good file is not taken again")
			}
			d.wants("198.18.0.0 none", "198.18.3.132 drop")
			d.says("a", "")
		})
	}
}

func TestAccept(t *testing.T) {
	d := newDesk(t, fromFile("a", model.BlockDrop, "a.txt"))
	d.write("a.txt", numbered(0, 900))
	d.start()
	d.write("a.txt", numbered(0, 100))
	d.k.Poll()
	d.says("a", "weir blocks accept a")
	if err := d.k.Accept("a"); err != nil {
		t.Error(err)
	}
	d.says("a", "")
	d.wants("198.18.0.1 drop", "198.18.3.1 none")
	d.write("a.txt", "0.0.0.0/0\n")
	if err := d.k.Accept("a"); err == nil {
		t.Error("a list of all addresses is accepted")
	}
	d.wants("198.18.0.1 drop", "203.0.113.1 none")
	if err := d.k.Accept("b"); err != ErrNoList {
		t.Errorf("a list that is not there: %v", err)
	}
}

// TestMachineChanges gives the machine an address that a list in use covers.
func TestMachineChanges(t *testing.T) {
	d := newDesk(t, fromFile("a", model.BlockDrop, "a.txt"), fromFile("b", model.BlockDrop, "b.txt"))
	d.write("a.txt", "192.0.2.0/24\n")
	d.write("b.txt", "203.0.113.0/24\n")
	d.start()
	d.own = []blocklist.Protected{{Prefix: netip.MustParsePrefix("192.0.2.77/32"), What: "address 192.0.2.77 of eth0"}}
	d.k.Take(d.cfg)
	d.wants("192.0.2.1 none", "203.0.113.1 drop")
	d.says("a", "address 192.0.2.77 of eth0")
	d.says("b", "")
	d.cfg.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.64/26")}
	d.k.Take(d.cfg)
	d.wants("192.0.2.1 drop", "192.0.2.77 none", "203.0.113.1 drop")
	d.says("a", "")
}

func TestOperator(t *testing.T) {
	d := newDesk(t, fromFile("a", model.BlockCount, "a.txt"))
	d.own = []blocklist.Protected{{Prefix: netip.MustParsePrefix("192.0.2.77/32"), What: "this machine"}}
	d.cfg.Allow = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	d.write("a.txt", "192.0.2.0/24\n")
	d.start()
	block := func(text string, d time.Duration, now time.Time) Block {
		b := Block{Prefix: netip.MustParsePrefix(text), Why: "scraper", At: now}
		if d > 0 {
			b.Until = now.Add(d)
		}
		return b
	}
	for _, b := range []Block{block("192.0.2.7/32", time.Hour, d.now), block("198.51.100.0/24", 0, d.now), block("2001:db8::/48", 0, d.now)} {
		if err := d.k.Block(b); err != nil {
			t.Error(err)
		}
	}
	d.wants("192.0.2.7 drop", "192.0.2.8 count", "198.51.100.9 drop", "2001:db8::9 drop")
	for _, bad := range []string{"192.0.2.77/32", "192.0.2.0/24", "0.0.0.0/0", "203.0.113.9/32"} {
		if err := d.k.Block(block(bad, 0, d.now)); err == nil {
			t.Errorf("%s can be blocked", bad)
		} else {
			t.Log(err)
		}
	}
	if err := d.k.Block(Block{Prefix: netip.MustParsePrefix("192.0.2.1/24")}); err == nil {
		t.Error("a prefix with host bits can be blocked")
	}
	if err := d.k.Block(Block{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Why: "a\nb"}); err == nil {
		t.Error("a reason of two lines is taken")
	}
	d.wants("192.0.2.7 drop", "192.0.2.8 count", "192.0.2.77 count", "203.0.113.9 none")
	if a := d.k.Lookup(netip.MustParseAddr("192.0.2.7")); a.Block == nil || a.Block.Why != "scraper" || len(a.Matches) != 2 {
		t.Errorf("lookup: %+v", a)
	}

	d.start(d.k.Blocks()...) // a restart
	d.wants("192.0.2.7 drop", "198.51.100.9 drop")
	d.now = d.now.Add(time.Hour)
	if !d.k.Poll() {
		t.Error("an hour is over, and nothing changes")
	}
	d.wants("192.0.2.7 count", "198.51.100.9 drop")
	if err := d.k.Unblock(netip.MustParsePrefix("198.51.100.0/24")); err != nil {
		t.Error(err)
	}
	if err := d.k.Unblock(netip.MustParsePrefix("198.51.100.0/24")); err != ErrNotBlocked {
		t.Errorf("twice: %v", err)
	}
	d.wants("198.51.100.9 none", "2001:db8::9 drop")
}

func TestDeclarationsChange(t *testing.T) {
	inline := &model.Blocklist{Name: "a", Action: model.BlockDrop, Entries: []model.BlockEntry{{Text: "192.0.2.0/24", Line: 3}}}
	d := newDesk(t, inline)
	d.start()
	d.wants("192.0.2.1 drop")
	other := *inline
	other.Action, other.Entries = model.BlockReject, []model.BlockEntry{{Text: "192.0.2.1", Line: 3}}
	d.cfg = &model.Config{Blocklists: []*model.Blocklist{&other}}
	d.k.Take(d.cfg)
	d.wants("192.0.2.1 reject", "192.0.2.2 none")
	d.cfg = &model.Config{}
	d.k.Take(d.cfg)
	d.wants("192.0.2.1 none")
	if st := d.k.Status(); len(st) != 0 {
		t.Errorf("lists that went are still there: %+v", st)
	}
}
