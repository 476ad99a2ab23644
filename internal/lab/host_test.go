package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func pairOfHosts(t *testing.T) (n *Net, a, b *Host) {
	t.Helper()
	n = newNet(t)
	a, b = newHost(t, n, "a"), newHost(t, n, "b")
	check(t, n.Link(
		End{Host: a, Name: "to-b", Addrs: prefixes("192.0.2.1/24", "2001:db8::1/64"), MTU: 1400},
		End{Host: b, Name: "to-a", Addrs: prefixes("192.0.2.2/24", "2001:db8::2/64"), MAC: []byte{2, 0, 0, 0, 0, 9}},
	))
	return n, a, b
}

func TestDoIsInTheNamespaceAndBack(t *testing.T) {
	n := newNet(t)
	h := newHost(t, n, "h")
	home := must(here())(t)
	seen := map[uint64]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := h.Do(func() error {
				m, err := here()
				mu.Lock()
				seen[m.net] = true
				mu.Unlock()
				return err
			}); err != nil {
				t.Error(err)
			}
			if m, err := here(); err != nil || m.net != home.net {
				t.Errorf("a pooled thread is in %d, want %d (%v)", m.net, home.net, err)
			}
		})
	}
	wg.Wait()
	if len(seen) != 1 || seen[home.net] {
		t.Errorf("namespaces seen %v, home %d", seen, home.net)
	}
}

func TestDoPassesErrorPanicAndExit(t *testing.T) {
	n := newNet(t)
	h := newHost(t, n, "h")
	oops := errors.New("oops")
	if err := h.Do(func() error { return oops }); err != oops {
		t.Errorf("error: %v", err)
	}
	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("panic: %v", r)
			}
		}()
		_ = h.Do(func() error { panic("oops") })
	}()
	exited := make(chan bool)
	go func() {
		normal := false
		defer func() { exited <- !normal }()
		_ = h.Do(func() error { runtime.Goexit(); return nil })
		normal = true
	}()
	if !<-exited {
		t.Error("Goexit did not reach the caller")
	}
}

func TestLink(t *testing.T) {
	_, a, b := pairOfHosts(t)
	if a.V4.String() != "192.0.2.1" || b.V6.String() != "2001:db8::2" {
		t.Errorf("addresses %v %v", a.V4, b.V6)
	}
	if mac := must(b.MAC("to-a"))(t).String(); mac != "02:00:00:00:00:09" {
		t.Errorf("MAC %s", mac)
	}
	if mtu := must(a.GetSysctl("net/ipv6/conf/to-b/mtu"))(t); mtu != "1400" {
		t.Errorf("MTU %s", mtu)
	}
	for _, addr := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
		must(EchoTCP(b, "tcp-b", addr))(t)
		must(EchoUDP(b, "udp-b", addr))(t)
		for _, network := range []string{"tcp", "udp"} {
			reply := must(a.Ask(network, addr))(t)
			if want := network + "-b "; !strings.HasPrefix(reply, want) {
				t.Errorf("%s %s: %q", network, addr, reply)
			}
		}
	}
	if err := a.net.Link(End{Host: a, Name: "a-name-of-16-byt"}, End{Host: b, Name: "x"}); err == nil {
		t.Error("a device name of 16 bytes was taken")
	}
}

func TestAddressesAndRoutes(t *testing.T) {
	_, a, b := pairOfHosts(t)
	for _, vip := range prefixes("198.51.100.10/32", "2001:db8:f::10/128") {
		ap := netip.AddrPortFrom(vip.Addr(), 80).String()
		if _, err := a.Dial(testContext(t, time.Second), "tcp", "", ap); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s without a route: %v", ap, err)
		}
		via := b.V4
		if vip.Addr().Is6() {
			via = b.V6
		}
		check(t, a.Route(netip.PrefixFrom(vip.Addr(), 0), via, "to-b"))
		check(t, b.AddAddr("lo", vip))
		check(t, b.AddAddr("lo", vip)) // again is fine
		s := must(HTTPServer(b, "vip", ap))(t)
		from := netip.AddrPortFrom(a.V4, 4321)
		if vip.Addr().Is6() {
			from = netip.AddrPortFrom(a.V6, 4321)
		}
		reply := must(a.AskFrom(t.Context(), "http", from.String(), ap))(t)
		if want := "vip " + from.String(); reply != want {
			t.Errorf("%q, want %q", reply, want)
		}
		if s.Requests() != 1 || s.Accepted() != 1 {
			t.Errorf("counted %d requests, %d connections", s.Requests(), s.Accepted())
		}
		check(t, b.DelAddr("lo", vip))
		if err := b.DelAddr("lo", vip); err == nil {
			t.Error("an address was removed twice")
		}
	}
	if err := a.Route(prefixes("10.0.0.0/8")[0], netip.Addr{}, "nowhere"); err == nil {
		t.Error("a route through a device that is not there")
	}
}

func TestSetLinkDown(t *testing.T) {
	_, a, b := pairOfHosts(t)
	must(EchoUDP(b, "b", "192.0.2.2:7"))(t)
	must(a.Ask("udp", "192.0.2.2:7"))(t)
	check(t, b.SetLink("to-a", false))
	if _, err := a.AskFrom(testContext(t, 200*time.Millisecond), "udp", "", "192.0.2.2:7"); err == nil {
		t.Error("an answer over a link that is down")
	}
}

func TestSysctlIsTheHostsOwn(t *testing.T) {
	n := newNet(t)
	a, b := newHost(t, n, "a"), newHost(t, n, "b")
	check(t, a.Sysctl("net.ipv4.ip_default_ttl", "33"))
	if v := must(a.GetSysctl("net.ipv4.ip_default_ttl"))(t); v != "33" {
		t.Errorf("a: %s", v)
	}
	if v := must(b.GetSysctl("net/ipv4/ip_default_ttl"))(t); v != "64" {
		t.Errorf("b: %s", v)
	}
	if err := a.Sysctl("net.ipv4.nothing", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestDialRefuses(t *testing.T) {
	n := newNet(t)
	h := newHost(t, n, "h")
	for _, tc := range []struct{ network, from, to string }{
		{"tcp", "", "localhost:80"}, {"tcp", "x", "127.0.0.1:80"}, {"unix", "", "127.0.0.1:80"}, {"tcp", "", "127.0.0.1:http"},
	} {
		if c, err := h.Dial(t.Context(), tc.network, tc.from, tc.to); err == nil {
			c.Close()
			t.Errorf("dialled %+v", tc)
		}
	}
	if _, err := h.Dial(t.Context(), "tcp", "", "127.0.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("lo of the host: %v", err)
	}
}

func TestRunAndProcesses(t *testing.T) {
	_, a, _ := pairOfHosts(t)
	inode := must(a.Run("readlink", "/proc/self/ns/net"))(t)
	var st unix.Stat_t
	check(t, unix.Stat(a.NetnsPath(), &st))
	if want := fmt.Sprintf("net:[%d]\n", st.Ino); inode != want {
		t.Errorf("a process is in %q, the host is %q", inode, want)
	}
	out, err := a.Run("sh", "-c", "echo words; exit 3")
	var exit *exec.ExitError
	if out != "words\n" || !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "words") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := a.Run("no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("missing program: %v", err)
	}
	// A grandchild that would outlive its parent ends with it.
	pid := must(a.Run("sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"))(t)
	var grandchild int
	_, err = fmt.Sscan(pid, &grandchild)
	check(t, err)
	waitGone(t, grandchild)
	p := must(a.Start(a.Command("sleep", "60")))(t)
	check(t, p.Signal(unix.SIGTERM))
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("after SIGTERM: %v", err)
	}
	p.Kill() // of an ended process: nothing
}

func TestCloseLeavesNothing(t *testing.T) {
	Require(t)
	count := func(dir string) int { return len(must(os.ReadDir(dir))(t)) }
	build := func() *Process {
		topo, err := Gateway(GatewayOptions{Clients: 2, Backends: 2})
		check(t, err)
		c, b := topo.Clients[0], topo.Backends[0]
		must(HTTPServer(b, "b", "0.0.0.0:80"))(t)
		must(EchoTCP(b, "b", "0.0.0.0:7"))(t)
		must(EchoUDP(b, "b", "0.0.0.0:7"))(t)
		must(EchoSCTP(b, "b", b.V4.String()+":7"))(t)
		must(b.Capture(HostDev))(t)
		must(c.Dial(t.Context(), "tcp", "", b.V4.String()+":7"))(t).Close()
		p := must(b.Start(b.Command("sleep", "60")))(t)
		check(t, topo.Net.Close())
		check(t, topo.Net.Close())
		if _, err := topo.Net.Host("late"); !errors.Is(err, ErrClosed) {
			t.Errorf("a host of a closed network: %v", err)
		}
		if err := b.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("Do after Close: %v", err)
		}
		if _, err := EchoTCP(b, "late", "0.0.0.0:9"); !errors.Is(err, ErrClosed) {
			t.Errorf("a server after Close: %v", err)
		}
		if _, err := b.Run("true"); !errors.Is(err, ErrClosed) {
			t.Errorf("a process after Close: %v", err)
		}
		return p
	}
	build() // the first opens files that stay: the poller's
	fds := count("/proc/self/fd")
	waitGone(t, build().PID())
	if now := count("/proc/self/fd"); now != fds {
		t.Errorf("%d files open, before %d", now, fds)
	}
	if out := must(exec.Command("ip", "-br", "link").Output())(t); strings.Count(string(out), "\n") != 1 {
		t.Errorf("devices left:\n%s", out)
	}
	// The keepers' threads end, and no thread is left in another namespace.
	home := must(here())(t).net
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		strays := 0
		for _, task := range must(os.ReadDir("/proc/self/task"))(t) {
			var st unix.Stat_t
			if unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st) == nil && st.Ino != home {
				strays++
			}
		}
		if strays == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads in namespaces that are closed", strays)
		}
	}
}

func TestDialEndsWithContext(t *testing.T) {
	_, a, _ := pairOfHosts(t)
	check(t, a.Route(prefixes("198.51.100.0/24")[0], netip.MustParseAddr("192.0.2.77"), "")) // nobody
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := a.Dial(ctx, "tcp", "", "198.51.100.1:80")
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v", err)
	}
}
