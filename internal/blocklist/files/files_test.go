package files

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"weir/internal/blocklist"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestExpand(t *testing.T) {
	// The directory's own name has what a pattern would mean something by.
	base := filepath.Join(t.TempDir(), `odd[1]*\`)
	for _, name := range []string{"lists/b.netset", "lists/a.netset", "lists/c.txt", "one.txt"} {
		write(t, filepath.Join(base, name), "")
	}
	other := write(t, filepath.Join(t.TempDir(), "x.txt"), "")
	names, errs := Expand(base, []string{"lists/*.netset", "one.txt", "missing.txt", "lists/[bc].*", "lists/*.ipset", "lists/[", "", other,
		filepath.Join(filepath.Dir(other), "*"), "./lists/../one.txt"})
	want := []string{filepath.Join(base, "lists/a.netset"), filepath.Join(base, "lists/b.netset"), filepath.Join(base, "one.txt"),
		filepath.Join(base, "missing.txt"), filepath.Join(base, "lists/c.txt"), other}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i, err := range errs {
		switch {
		case i == 4 && (err == nil || !strings.HasPrefix(err.Error(), `"lists/*.ipset" matches no file in `)):
			t.Errorf("no match: %v", err)
		case i == 5 && (err == nil || err.Error() != `"lists/[" is no pattern: is a [ not closed?`):
			t.Errorf("bad pattern: %v", err)
		case i == 6 && err == nil:
			t.Error("an empty name is fine")
		case (i < 4 || i > 6) && err != nil:
			t.Errorf("pattern %d: %v", i, err)
		}
	}
}

func TestRead(t *testing.T) {
	name := write(t, filepath.Join(t.TempDir(), "a.txt"), "192.0.2.1\n2001:db8::/32\n")
	link := name + ".link"
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	b := blocklist.NewBuilder("l", blocklist.Options{Strict: true})
	for _, n := range []string{name, link} {
		if err := Read(b, n); err != nil {
			t.Error(err)
		}
	}
	if l := b.List(); l.Len() != 2 || l.Counts.Duplicates != 2 || l.Files[1].Name != link {
		t.Errorf("%+v", l)
	}
}

// TestNotRegular: what is no regular file is refused at once, with the reason. A FIFO that
// nobody writes to, or a device that never ends, would hang here.
func TestNotRegular(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mkfifo(at("fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, target := range map[string]string{"loop": at("loop"), "to-fifo": at("fifo"), "to-zero": "/dev/zero", "dangling": at("nowhere")} {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	// 4 GB of zeros that take no room.
	if err := os.Truncate(write(t, at("sparse"), ""), 4<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(write(t, at("zeros"), ""), 400<<20); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		at("fifo"):     "is a FIFO; want a regular file",
		at("to-fifo"):  "is a FIFO; want a regular file",
		at("socket"):   "is a socket; want a regular file",
		dir:            "is a directory; want a regular file",
		"/dev/zero":    "is a device; want a regular file",
		at("to-zero"):  "is a device; want a regular file",
		at("loop"):     "too many levels of symbolic links",
		at("dangling"): "no such file or directory",
		at("missing"):  "no such file or directory",
		at("sparse"):   "has 4294967296 bytes; a file of a list may hold 536870912",
	} {
		err := Read(blocklist.NewBuilder("l", blocklist.Options{}), name)
		if p := (*blocklist.Problem)(nil); !errors.As(err, &p) || err.Error() != name+": "+want {
			t.Errorf("%v\nwant %s: %s", err, name, want)
		}
	}
	err = Read(blocklist.NewBuilder("l", blocklist.Options{}), at("zeros"))
	if err == nil || !strings.Contains(err.Error(), "is not a list: a line of more than") {
		t.Errorf("zeros: %v", err)
	}
}

// TestOpenIsQuick: even when a FIFO takes the place of a file between the two looks, opening
// it does not wait.
func TestOpenIsQuick(t *testing.T) {
	name := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if f, _, err := openRegular(name); err == nil {
		f.Close()
		t.Error("a FIFO was opened")
	}
}

// TestChangedWhileRead: a file that grows under the reader is not believed.
func TestChangedWhileRead(t *testing.T) {
	name := write(t, filepath.Join(t.TempDir(), "a.txt"), "192.0.2.1\n")
	err := read(name, 1<<20, func(f *os.File) error {
		w, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer w.Close()
		_, err = w.WriteString("192.0.2.2\n")
		return err
	})
	if err == nil || !strings.HasSuffix(err.Error(), "changed while it was read; write lists under another name and rename them") {
		t.Error(err)
	}
}
