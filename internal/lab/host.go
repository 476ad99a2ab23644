package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is one network namespace: a machine of the network, as far as packets can
// tell. It has lo up and whatever Link and Attach gave it.
type Host struct {
	// Name is for people and for messages.
	Name string
	// V4 and V6 are the first address of each family the host was given (by Link,
	// Attach or AddAddr); invalid until then. Read only.
	V4, V6 netip.Addr

	net    *Net
	nl     *netlink.Handle
	starts chan func() // work for the keeper thread

	mu     sync.RWMutex // held for reading while a thread goes in
	ns     *os.File
	closed bool
}

// hostSysctls make IPv6 addresses usable at once and by nobody's leave: no
// duplicate address detection, no router advertisements. Unlimited ICMP errors keep
// tests of "reject" from depending on how many ran before.
var hostSysctls = [][2]string{
	{"net.ipv6.conf.all.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.dad_transmits", "0"},
	{"net.ipv6.conf.all.accept_ra", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.autoconf", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
	{"net.ipv4.icmp_ratelimit", "0"},
	{"net.ipv6.icmp.ratelimit", "0"},
}

// Host makes a new host. The name need not be unique.
func (n *Net) Host(name string) (*Host, error) {
	n.mu.Lock()
	closed := n.closed
	n.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	h := &Host{Name: name, net: n, starts: make(chan func())}
	ready := make(chan error)
	onOwnThread(func() { h.keep(ready) })
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("lab: host %s: %w", name, err)
	}
	if err := h.setUp(); err != nil {
		h.close()
		return nil, fmt.Errorf("lab: host %s: %w", name, err)
	}
	n.mu.Lock()
	if closed = n.closed; !closed { // it may have been closed meanwhile
		n.hosts = append(n.hosts, h)
	}
	n.mu.Unlock()
	if closed {
		h.close()
		return nil, ErrClosed
	}
	return h, nil
}

// keep is the keeper: one thread per host that makes the namespace and then starts
// the host's processes, one after the other. It lives as long as the host, because
// the kernel sends a process its parent-death signal when the THREAD that started
// it ends. Everything else (Do, Dial, Listen) uses threads of Go's pool, so that it
// runs in parallel. The keeper never unlocks, so its thread ends with it.
func (h *Host) keep(ready chan<- error) {
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		h.ns, err = os.Open("/proc/thread-self/ns/net")
	}
	ready <- err
	if err != nil {
		return
	}
	for start := range h.starts {
		start()
	}
}

func (h *Host) setUp() error {
	err := h.Do(func() (err error) {
		h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range hostSysctls {
		if err := h.Sysctl(s[0], s[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return h.SetLink("lo", true)
}

// close lets the namespace go. Its processes and sockets have been ended before.
func (h *Host) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	close(h.starts)
	if h.nl != nil {
		h.nl.Close()
	}
	h.ns.Close()
}

// enter locks the calling goroutine to its thread and moves the thread into the
// host. leave moves it back and unlocks; only the first call does anything. Where
// that fails the goroutine stays locked and must end, so that the thread ends too:
// enter is only called on goroutines made for it.
func (h *Host) enter() (leave func() error, err error) {
	back, err := home()
	if err != nil {
		return nil, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return nil, ErrClosed
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("lab: enter %s: %w", h.Name, err)
	}
	left := false
	return func() error {
		if left {
			return nil
		}
		left = true
		if err := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("lab: leave %s: %w", h.Name, err)
		}
		runtime.UnlockOSThread()
		return nil
	}, nil
}

// Do runs fn in the host's namespace, on a goroutine and thread of its own. What fn
// opens stays in the namespace; goroutines that fn starts do not run in it, and
// /proc/self and /proc/net are not its own (use /proc/thread-self). A panic or
// runtime.Goexit (t.Fatal) of fn reaches the caller.
func (h *Host) Do(fn func() error) error {
	var (
		err      error
		returned bool
		panicked any
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		leave, enterErr := h.enter()
		if enterErr != nil {
			err, returned = enterErr, true
			return
		}
		defer func() {
			panicked = recover()
			if leaveErr := leave(); err == nil {
				err = leaveErr
			}
		}()
		err = fn()
		returned = true
	}()
	<-done
	if panicked != nil {
		panic(panicked)
	}
	if !returned {
		runtime.Goexit()
	}
	return err
}

// Dial connects from inside the host. laddr may be empty; both addresses are
// literal ("198.51.100.10:80"), names are not looked up. network is a tcp or udp
// one. The thread is in the namespace only while the socket is made, so that any
// number of dials may wait at once.
func (h *Host) Dial(ctx context.Context, network, laddr, raddr string) (net.Conn, error) {
	dialer, err := dialerFrom(network, laddr)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddrPort(raddr); err != nil {
		return nil, fmt.Errorf("lab: dial: %w", err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		leave, err := h.enter()
		if err != nil {
			done <- result{nil, err}
			return
		}
		var made atomic.Bool
		dialer.Control = func(string, string, syscall.RawConn) error {
			// net makes a second socket when the kernel found no local port; that one
			// would be in the wrong namespace.
			if made.Swap(true) {
				return syscall.EADDRNOTAVAIL
			}
			return leave()
		}
		conn, err := dialer.DialContext(ctx, network, raddr)
		_ = leave() // for when no socket was made; else it has been done
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialerFrom(network, laddr string) (*net.Dialer, error) {
	d := &net.Dialer{}
	d.SetMultipathTCP(false)
	if !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
		return nil, fmt.Errorf("lab: dial: network %q is neither tcp nor udp", network)
	}
	if laddr == "" {
		return d, nil
	}
	ap, err := netip.ParseAddrPort(laddr)
	if err != nil {
		return nil, fmt.Errorf("lab: dial from: %w", err)
	}
	if strings.HasPrefix(network, "tcp") {
		d.LocalAddr = net.TCPAddrFromAddrPort(ap)
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(ap)
	}
	return d, nil
}

// Listen listens inside the host on a literal address and port; port 0 takes any.
// The caller closes the listener.
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // plain sockets, whatever the kernel has
	err = h.Do(func() error {
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// ListenPacket is Listen for datagrams.
func (h *Host) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	var lc net.ListenConfig
	err = h.Do(func() error {
		c, err = lc.ListenPacket(context.Background(), network, addr)
		return err
	})
	return c, err
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return "/proc/sys/" + key
}

// Sysctl sets a kernel parameter of the host's namespace, which must be one that
// namespaces have of their own (most of net.*). Dots or, where a device's name has
// a dot, slashes separate the parts.
func (h *Host) Sysctl(key, value string) error {
	return h.Do(func() error { // /proc/sys/net is that of the thread that opens it
		if err := os.WriteFile(sysctlPath(key), []byte(value), 0); err != nil {
			return fmt.Errorf("lab: %s: sysctl %s=%s: %w", h.Name, key, value, err)
		}
		return nil
	})
}

// GetSysctl reads a kernel parameter of the host's namespace.
func (h *Host) GetSysctl(key string) (value string, err error) {
	err = h.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// NetnsPath is the path by which every process that may look into this one reaches
// the namespace, as long as the Net is open.
func (h *Host) NetnsPath() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.ns.Fd())
}

// EnterCommand is the line to type in a shell outside to be on the host, as the
// user that started the program; a command may follow it. It enters the mount
// namespace too, where /run is the lab's.
func (h *Host) EnterCommand() string {
	user := ""
	if InUserNamespace() {
		user = " -U --preserve-credentials"
	}
	return fmt.Sprintf("nsenter -t %d%s -m --net=%s", os.Getpid(), user, h.NetnsPath())
}
