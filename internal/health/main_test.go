package health

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/internal/model"
)

// serveEnv makes the test program a server that accepts and drops connections, so that
// its cost is not counted as the prober's.
const serveEnv = "WEIR_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		acceptForever()
		return
	}
	goleak.VerifyTestMain(m)
}

// families are the loopback addresses of both.
var families = []struct {
	name string
	addr netip.Addr
}{
	{"ipv4", netip.MustParseAddr("127.0.0.1")},
	{"ipv6", netip.MustParseAddr("::1")},
}

// bothFamilies runs f for each.
func bothFamilies(t *testing.T, f func(t *testing.T, addr netip.Addr)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam.addr) })
	}
}

// long is a timeout that no good answer needs, and short one that is run into on purpose.
const (
	long  = 20 * time.Second
	short = 100 * time.Millisecond
)

// ask probes addr once with c.
func ask(p *Probes, addr netip.AddrPort, c model.Check) Result {
	if c.Timeout == 0 {
		c.Timeout = long
	}
	return p.Probe(context.Background(), Target{ID: "t", Addr: addr.Addr(), Port: addr.Port(), Check: &c})
}

// expect fails unless the result is of a kind (good, bad, void) and its detail has the words.
func expect(t *testing.T, r Result, kind, detail string) {
	t.Helper()
	got := "bad"
	if r.OK {
		got = "good"
	}
	if r.Void {
		got = "void"
	}
	if got != kind || !strings.Contains(r.Detail, detail) || r.OK && r.Void {
		t.Errorf("%s: %s, want %s: %s", got, r.Detail, kind, detail)
	}
	if r.Latency <= 0 || r.At.IsZero() || len(r.Detail) > MaxDetail {
		t.Errorf("%+v", r)
	}
}

// listen returns a TCP listener's address; serve gets each connection and need not close it.
func listen(t *testing.T, addr netip.Addr, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// answering reads the start of a question and answers with fixed bytes.
func answering(b string) func(net.Conn) {
	return func(c net.Conn) {
		c.Read(make([]byte, 4096))
		c.Write([]byte(b))
	}
}

// silent says nothing until the other side is gone.
func silent(c net.Conn) {
	for buf := make([]byte, 4096); ; {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// closedPort is a port of addr on which nobody listens.
func closedPort(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// datagrams returns the address of a UDP server that sends back what answer makes of each
// datagram; nil is nothing.
func datagrams(t *testing.T, addr netip.Addr, answer func([]byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 4096); ; {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range answer(buf[:n]) {
				c.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func httpAnswer(status int, head, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d Word\r\n%sContent-Length: %d\r\n\r\n%s", status, head, len(body), body)
}
