package e2e

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/lab"
)

// TestOnDown cuts a backend off the network, so that nobody hears from it any more: with
// `on_down: reset` its TCP clients get a reset as soon as they say something, in place of
// silence, and its UDP flows go on with another backend, over the same socket.
func TestOnDown(t *testing.T) {
	t.Parallel()
	s, _ := checkedSite(t, 2)
	sick, well := s.Backends[0], s.Backends[1]
	s.awaitStates("web", sick, "up")
	s.awaitStates("web", well, "up")
	var streams []*talk
	var flows []net.Conn
	for _, f := range families {
		for found := false; !found; {
			k := s.talk(t, s.Clients[0], target(f, 1, 7))
			if found = k.ask(t) == sick.Name; found {
				streams = append(streams, k)
			}
		}
		for found := false; !found; {
			c, err := s.Clients[0].Dial(within(t, patience), "udp", "", target(f, 1, 7).String())
			check(t, err)
			t.Cleanup(func() { c.Close() })
			if found = askFlow(t, c) == sick.Name; found {
				flows = append(flows, c)
			}
		}
	}
	check(t, sick.SetLink(lab.HostDev, false))
	s.awaitStates("web", sick, "down")
	for _, c := range flows {
		if id := askFlow(t, c); id != well.Name {
			t.Errorf("%s goes on with %s, want %s", c.RemoteAddr(), id, well.Name)
		}
	}
	for _, k := range streams {
		if err := ending(k); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", k.RemoteAddr(), err)
		}
	}
	s.stop()
}

// askFlow asks over a UDP socket until there is an answer, and returns who gave it.
func askFlow(t *testing.T, c net.Conn) string {
	t.Helper()
	buf := make([]byte, 512)
	for range 50 {
		if _, err := c.Write([]byte("who?")); err != nil {
			t.Fatal(err)
		}
		check(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
		n, err := c.Read(buf)
		if err == nil {
			id, _, _ := strings.Cut(string(buf[:n]), " ")
			return id
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	t.Fatalf("no answer from %s", c.RemoteAddr())
	return ""
}

// ending says something on a connection whose server is gone, and returns how that ends.
func ending(k *talk) error {
	if _, err := k.Write([]byte("still there?\n")); err != nil {
		return err
	}
	if err := k.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := k.r.ReadString('\n')
	return err
}
