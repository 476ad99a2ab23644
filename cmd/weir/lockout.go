package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/pflag"
	"github.com/vishvananda/netlink"

	"weir/internal/api"
	"weir/internal/config"
	"weir/internal/engine"
	"weir/internal/keep"
	"weir/internal/model"
	"weir/internal/plan"
)

// lockFlag is the name of the flag that takes what would lock its owner out.
const lockFlag = "lock-me-out"

func addLockFlag(flags *pflag.FlagSet, to *bool) {
	flags.BoolVar(to, lockFlag, false, "take a configuration that cuts off your SSH session, or leaves nobody a way in")
}

// here says what a request to load a configuration says of the session that asks.
func here(lockMeOut bool) api.ReloadRequest {
	return api.ReloadRequest{SSHConnection: sshSession(), LockMeOut: lockMeOut}
}

// lockout refuses configurations that lock their owner out. It has no word in going back
// to one that was taken before.
type lockout api.ReloadRequest

// check returns why f is refused, or nil.
func (g lockout) check(file string, cfg *model.Config) error {
	if g.LockMeOut {
		return nil
	}
	login := loginHere(g.SSHConnection)
	why := plan.ShutsAllOut(cfg, login)
	if why == "" && login != nil {
		why = plan.Cuts(cfg, *login)
	}
	if why == "" {
		return nil
	}
	return config.Errors{{File: file, Msg: fmt.Sprintf(
		"refused: %s. Nothing was changed. Add management or an open rule; --%s takes it as it is", why, lockFlag)}}
}

// loginHere returns the session if its packets come to the network namespace that weir runs in,
// by another device than loopback.
func loginHere(session string) *plan.Login {
	l, err := plan.ParseLogin(session)
	if err != nil {
		return nil
	}
	own := ownAddrs()
	if !own[l.Server.Addr()] || own[l.Client.Addr()] {
		return nil
	}
	if l.Device == "" {
		l.Device = deviceTo(l.Client.Addr())
	}
	return &l
}

// ownAddrs returns the addresses of the network namespace.
func ownAddrs() map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return own
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr()] = true
		}
	}
	return own
}

// deviceTo returns the device by which packets to a leave, which is where those from there
// come in unless routing is not symmetric; "" if there is none.
func deviceTo(a netip.Addr) string {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}

// sshSession returns SSH_CONNECTION of weir's environment or, because sudo and su leave it
// out, of the nearest process above weir that has it. "" if none has, or none may be asked.
func sshSession() string {
	const key, deepest = "SSH_CONNECTION", 64
	if s := os.Getenv(key); s != "" {
		return s
	}
	pid := os.Getppid()
	for range deepest {
		if pid <= 1 {
			break
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			break
		}
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if s, ok := bytes.CutPrefix(v, []byte(key+"=")); ok {
				return string(s)
			}
		}
		pid = parent(pid)
	}
	return ""
}

// parent returns the parent of a process, 0 if that can't be told: field 4 of
// /proc/PID/stat, counted behind the name in parentheses, which may hold anything.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

// lockouts is the lockout of the loads of a running weir: of whoever asks for one through a
// session of his own; of whoever started weir, until it is ready, for then he may have gone;
// else of nobody, who can still be left without a way in.
type lockouts struct {
	always bool   // nothing is refused
	state  string // beside which configurations are kept

	one   sync.Mutex // held while somebody asks for a load
	mu    sync.Mutex // of what follows
	start string     // the session of whoever started weir
	asked *lockout   // of whoever asks for a load now
}

func newLockouts(always bool, state string) *lockouts {
	return &lockouts{always: always, state: state, start: sshSession()}
}

// reached takes note of a state of the loop's.
func (g *lockouts) reached(state string) {
	if state == "ready" {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.start = ""
	}
}

// during has the loads within load be those of r.
func (g *lockouts) during(r api.ReloadRequest, load func() error) error {
	g.one.Lock()
	defer g.one.Unlock()
	set := func(to *lockout) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.asked = to
	}
	set((*lockout)(&r))
	defer set(nil)
	return load()
}

// now returns the lockout of a load, and whether somebody asked for it.
func (g *lockouts) now() (lockout, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := lockout{SSHConnection: g.start}
	if g.asked != nil {
		l = *g.asked
	}
	l.LockMeOut = l.LockMeOut || g.always
	return l, g.asked != nil
}

// loader returns what reads the file of that name, with the check. A start and SIGHUP get a text that was confirmed
// before without one: whoever took it has seen to it then, and a weir that was killed must
// come back. One that was not confirmed in time they do not take anyway.
func (g *lockouts) loader(name string, read func() (engine.File, error)) func() (engine.File, error) {
	return func() (engine.File, error) {
		f, err := read()
		if err != nil {
			return f, err
		}
		l, asked := g.now()
		if asked || !g.known(f.Text) {
			err = l.check(name, f.Config)
		}
		// A start and SIGHUP take what they get: a device may be away for a moment.
		if err == nil && asked {
			err = checkCollectors(name, f.Config)
		}
		return f, err
	}
}

// known reports whether that text was taken before in this namespace: it is confirmed, or
// was not.
func (g *lockouts) known(text string) bool {
	rec, err := keep.Beside(g.state).Read()
	if err != nil || rec.Place.Elsewhere(keep.Here()) {
		return false
	}
	sum := keep.Sum(text)
	return rec.Confirmed != nil && rec.Confirmed.Sum == sum || rec.Refuses(sum)
}
