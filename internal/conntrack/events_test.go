package conntrack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEvents hears connections of both families begin and end, with what they are translated to.
func TestEvents(t *testing.T) {
	c := open(t)
	e, err := OpenEvents(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, x := range []struct{ network, listen, backend string }{
		{"udp4", "198.51.100.10:5300", "10.1.1.1:8080"}, {"udp6", "[2001:db8::10]:5300", "[2001:db8:1::1]:8080"},
		{"tcp4", "198.51.100.10:5301", "10.1.1.1:8080"},
	} {
		conn := connect(t, x.network, x.listen, x.backend)
		heard := map[bool]Flow{}
		wait := func(ended bool) {
			t.Helper()
			for deadline := time.Now().Add(10 * time.Second); ; {
				if _, ok := heard[ended]; ok {
					return
				}
				err := e.Next(deadline, func(f Flow, ended bool) {
					if f.Orig.Dst.String() == x.listen {
						heard[ended] = f
					}
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		wait(false)
		f := heard[false]
		if f.Reply.Src.String() != x.backend || f.Orig.Src.String() != conn.LocalAddr().String() || !f.DNATed() {
			t.Errorf("began: %s", f.String())
		}
		if !del(t, c, f) {
			t.Error("it is not there")
		}
		wait(true)
		if g := heard[true]; g.Orig != f.Orig || g.Reply != f.Reply || g.ID != f.ID {
			t.Errorf("ended: %+v, began as %+v", g, f)
		}
	}
	if err := e.Next(time.Now().Add(10*time.Millisecond), func(Flow, bool) {}); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestEventsLost makes more than a small queue has room for.
func TestEventsLost(t *testing.T) {
	open(t)
	e, err := OpenEvents(1)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := unix.SetsockoptInt(int(e.file.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(e.file.Fd()), true); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		conn, err := net.Dial("udp", fmt.Sprintf("198.51.100.10:%d", 6000+i))
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("hello"))
		conn.Close()
	}
	for range 400 {
		switch err := e.Next(time.Now().Add(5*time.Second), func(Flow, bool) {}); {
		case errors.Is(err, ErrLost):
			return
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Error("nothing was lost")
}

func TestEventsOddMessages(t *testing.T) {
	for _, b := range [][]byte{{1}, []byte(strings.Repeat("\xff", 16)), append([]byte{20, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 12)...)} {
		_ = eachEvent(b, func(Flow, bool) { t.Errorf("%x is an event", b) })
	}
}
