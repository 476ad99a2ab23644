package health

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/model"
)

func TestTCP(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		reset := make(chan error, 1)
		open := listen(t, addr, func(c net.Conn) {
			_, err := c.Read(make([]byte, 1))
			reset <- err
		})
		tcp := model.Check{Kind: model.CheckTCP}
		expect(t, ask(new(Probes), open, tcp), "good", "connected")
		if err := <-reset; err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("the server saw %v, want a reset", err)
		}
		expect(t, ask(new(Probes), closedPort(t, addr), tcp), "bad", "connection refused")
		// The check's own port goes first.
		tcp.Port = open.Port()
		expect(t, ask(new(Probes), closedPort(t, addr), tcp), "good", "connected")
		<-reset
	})
}

// A listener whose queue is full drops what comes, as a dead machine does.
func TestTCPTimeout(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(families[0].addr, uint16(name.(*unix.SockaddrInet4).Port))
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	r := ask(new(Probes), addr, model.Check{Kind: model.CheckTCP, Timeout: short})
	expect(t, r, "bad", "no answer within 100ms")
	if r.Latency < short || time.Since(start) > long {
		t.Errorf("took %v", r.Latency)
	}
}

// What this machine could not do is no fault of the backend.
func TestVoid(t *testing.T) {
	home := netip.AddrPortFrom(families[0].addr, 9)
	expect(t, ask(new(Probes), netip.AddrPortFrom(home.Addr(), 0), model.Check{Kind: model.CheckTCP}), "void", "no port")
	expect(t, ask(new(Probes), home, model.Check{Kind: model.CheckHTTP, Path: "/a b"}), "void", "cannot stand in a request")
	expect(t, ask(new(Probes), home, model.Check{Kind: model.CheckHTTP, Path: "a"}), "void", "slash")
	expect(t, ask(new(Probes), home, model.Check{Kind: model.CheckDNS, Name: "a..b", Type: "A"}), "void", "not a DNS name")
	expect(t, ask(new(Probes), home, model.Check{Kind: 99}), "void", "no such kind")
	if !isLocal(&net.OpError{Op: "dial", Err: unix.EMFILE}) || isLocal(unix.ECONNREFUSED) {
		t.Error("isLocal")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c := &model.Check{Kind: model.CheckTCP, Timeout: long}
	r := new(Probes).Probe(ctx, Target{Addr: home.Addr(), Port: 9, Check: c})
	expect(t, r, "void", "given up")
}

// A probe that waits ends at once when its target is given up.
func TestGivenUp(t *testing.T) {
	for _, kind := range []model.CheckKind{model.CheckHTTP, model.CheckHTTPS, model.CheckGRPC, model.CheckUDP, model.CheckDNS, model.CheckExec} {
		t.Run(kind.String(), func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			at := listen(t, families[0].addr, func(c net.Conn) { cancel(); silent(c) })
			if kind == model.CheckUDP || kind == model.CheckDNS {
				at = datagrams(t, families[0].addr, func([]byte) [][]byte { cancel(); return nil })
			}
			args := []string{"sh", "-c", "sleep 1000"}
			if kind == model.CheckExec {
				time.AfterFunc(short, cancel)
			}
			c := &model.Check{Kind: kind, Timeout: time.Hour, Send: "x", Name: "a", Type: "A", Args: args}
			expect(t, new(Probes).Probe(ctx, Target{Addr: at.Addr(), Port: at.Port(), Check: c}), "void", "given up")
		})
	}
}

func TestUDP(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		check := func(send, want string) model.Check {
			return model.Check{Kind: model.CheckUDP, Send: send, Expect: want}
		}
		echo := datagrams(t, addr, func(b []byte) [][]byte { return [][]byte{b} })
		expect(t, ask(new(Probes), echo, check("ping\x00", "ping")), "good", `answered: ping\x00`)
		expect(t, ask(new(Probes), echo, check("ping", "")), "good", "answered: ping")
		expect(t, ask(new(Probes), echo, check("", "")), "good", "answered")
		expect(t, ask(new(Probes), echo, check("ping", "pong")), "bad", "unexpected answer: ping")
		expect(t, ask(new(Probes), echo, check("ping", "pings")), "bad", "unexpected answer: ping")
		large := strings.Repeat("x", 3000)
		expect(t, ask(new(Probes), echo, check(large, large)), "good", "answered: xxx")
		expect(t, ask(new(Probes), closedPort(t, addr), check("ping", "")), "bad", "connection refused")
		mute := check("ping", "")
		mute.Timeout = short
		expect(t, ask(new(Probes), datagrams(t, addr, func([]byte) [][]byte { return nil }), mute), "bad", "no answer within")
	})
}

func TestDNS(t *testing.T) {
	c := model.Check{Kind: model.CheckDNS, Name: "www.example", Type: "A"}
	a := dnsRecord(1, 1, 192, 0, 2, 1)
	bothFamilies(t, func(t *testing.T, addr netip.Addr) {
		at := func(answer func(q []byte) [][]byte) netip.AddrPort { return datagrams(t, addr, answer) }
		good := at(func(q []byte) [][]byte {
			other := dnsReply(q, 0, a)
			other[0]++
			return [][]byte{[]byte("garbage"), other, dnsReply(q, 0, a)}
		})
		expect(t, ask(new(Probes), good, c), "good", "NOERROR, 1 of A")
		expect(t, ask(new(Probes), at(func(q []byte) [][]byte { return [][]byte{dnsReply(q, 2)} }), c), "bad", "SERVFAIL")
		expect(t, ask(new(Probes), at(func(q []byte) [][]byte { return [][]byte{dnsReply(q, 0, a[:5])} }), c), "bad", "malformed")
		expect(t, ask(new(Probes), closedPort(t, addr), c), "bad", "connection refused")
		flood := at(func(q []byte) (out [][]byte) {
			for range maxStrays {
				out = append(out, []byte("garbage"))
			}
			return out
		})
		expect(t, ask(new(Probes), flood, c), "bad", errStray.Error())
		slow := c
		slow.Timeout = short
		expect(t, ask(new(Probes), at(func([]byte) [][]byte { return nil }), slow), "bad", "no answer within")
		expect(t, ask(new(Probes), at(func([]byte) [][]byte { return [][]byte{[]byte("garbage")} }), slow), "bad", "no answer within")
	})
}

func TestExec(t *testing.T) {
	home := netip.MustParseAddrPort("[::1]:80")
	sh := func(script string) model.Check {
		return model.Check{Kind: model.CheckExec, Args: []string{"sh", "-c", script}}
	}
	t.Setenv("SECRET", "x")
	expect(t, ask(new(Probes), home, sh("exit 0")), "good", "exit status 0")
	expect(t, ask(new(Probes), home, sh(`printf 'well\033\nmore'`)), "good", `well\x1b`)
	expect(t, ask(new(Probes), home, sh("echo no >&2; exit 3")), "bad", "exit status 3: no")
	expect(t, ask(new(Probes), home, sh("kill -9 $$")), "bad", "signal: killed")
	expect(t, ask(new(Probes), home, sh(`echo "$WEIR_ADDRESS $WEIR_PORT <$SECRET>"`)), "good", "::1 80 <>")
	expect(t, ask(new(Probes), home, sh("head -c 10000000 /dev/zero")), "good", `\x00…`)
	expect(t, ask(new(Probes), home, model.Check{Kind: model.CheckExec, Args: []string{"/nonexistent"}}), "void", "no such file")
	expect(t, ask(new(Probes), home, model.Check{Kind: model.CheckExec}), "void", "no command")
	slow := sh("sleep 1000 & sleep 1000")
	slow.Timeout = short
	expect(t, ask(new(Probes), home, slow), "bad", "no answer within 100ms")
}

// Nothing of the command's group is left, be it that it hangs or leaves a child behind.
func TestExecKillsTheGroup(t *testing.T) {
	for name, script := range map[string]string{
		"hangs":  `sleep 1000 & echo $!; wait`,
		"leaves": `sleep 1000 & echo $!`,
	} {
		t.Run(name, func(t *testing.T) {
			r, w := fifo(t)
			defer r.Close()
			c := model.Check{Kind: model.CheckExec, Timeout: time.Second,
				Args: []string{"sh", "-c", "exec 3>" + w.Name() + "; " + script}}
			ask(new(Probes), netip.AddrPortFrom(families[0].addr, 1), c)
			w.Close()
			r.SetReadDeadline(time.Now().Add(long))
			if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("a process is left: %d, %v", n, err)
			}
		})
	}
}

func TestICMP(t *testing.T) {
	c := model.Check{Kind: model.CheckICMP}
	inNamespace(t, func() {
		for _, kind := range []string{"raw", "ping"} {
			if kind == "ping" {
				write(t, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
			}
			for _, f := range families {
				s, err := openICMP(&Target{Addr: f.addr})
				if err != nil {
					t.Errorf("%s %s: %v", kind, f.name, err)
					continue
				}
				if s.raw != (kind == "raw") {
					t.Errorf("%s %s: raw is %v", kind, f.name, s.raw)
				}
				s.Close()
				expect(t, ask(new(Probes), netip.AddrPortFrom(f.addr, 0), c), "good", "echo reply")
			}
			expect(t, ask(new(Probes), netip.MustParseAddrPort("192.0.2.1:0"), c), "bad", "unreachable")
			slow := c
			slow.Timeout = short
			write(t, "/proc/sys/net/ipv4/icmp_echo_ignore_all", "1")
			expect(t, ask(new(Probes), netip.AddrPortFrom(families[0].addr, 0), slow), "bad", "no answer within")
			write(t, "/proc/sys/net/ipv4/icmp_echo_ignore_all", "0")
		}
	})
}

func TestICMPAnswers(t *testing.T) {
	for _, s := range []*icmpSocket{{}, {six: true}, {raw: true}, {raw: true, six: true}} {
		request := s.request()
		reply := append([]byte(nil), request...)
		reply[0] = echoReply4
		if s.six {
			reply[0] = echoReply6
		}
		head := []byte{}
		if s.raw && !s.six {
			head = append([]byte{0x46}, make([]byte, 23)...)
		}
		with := func(m []byte) []byte { return append(append([]byte(nil), head...), m...) }
		if !s.answers(with(reply), request) {
			t.Errorf("%+v: the reply is not taken", s)
		}
		for i := range reply {
			wrong := append([]byte(nil), reply...)
			wrong[i] ^= 0x80
			ignored := i == 2 || i == 3 || !s.raw && (i == 4 || i == 5) // checksum; the kernel's identifier
			if got := s.answers(with(wrong), request); got != ignored {
				t.Errorf("%+v: byte %d wrong: %v", s, i, got)
			}
		}
		for n := range with(reply) {
			if s.answers(with(reply)[:n], request) {
				t.Errorf("%+v: %d bytes are taken", s, n)
			}
		}
	}
	if got := checksum([]byte{0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum %#x", got) // the example of RFC 1071 section 3
	}
}

// inNamespace runs f on a thread in a network namespace with nothing but loopback.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		if err := loopbackUp(); err != nil {
			done <- err
			return
		}
		f()
		close(done)
	}()
	if err := <-done; err != nil {
		skip(t, "a network namespace takes root: %v", err)
	}
}
