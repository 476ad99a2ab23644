package main

import (
	"bytes"
	"context"
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
	"weir/internal/model"
	"weir/internal/plan"
)

// lockFlag is the name of the flag that takes what would lock its owner out.
const lockFlag = "lock-me-out"

func addLockFlag(flags *pflag.FlagSet, to *bool) {
	flags.BoolVar(to, lockFlag, false, "take a configuration that cuts off your SSH session, or leaves nobody a way in")
}

// guard refuses configurations that lock their owner out.
type guard struct {
	lockMeOut bool
	session   string // as SSH_CONNECTION says it; "" where there is none
}

// check returns why cfg is refused, or nil.
func (g guard) check(file string, cfg *model.Config) error {
	if g.lockMeOut {
		return nil
	}
	p := plan.Build(cfg, nil)
	login := here(g.session)
	why := p.ShutsAllOut(login)
	if why == "" && login != nil {
		why = p.Cuts(*login)
	}
	if why == "" {
		return nil
	}
	return config.Errors{{File: file, Msg: fmt.Sprintf(
		"refused: %s. Nothing was changed. Add management or an open rule; --%s takes it as it is", why, lockFlag)}}
}

// here returns the session if its packets come to the network namespace that weir runs in,
// by another device than loopback.
func here(session string) *plan.Login {
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

// guards is the guard of the loads of a running weir: the first is guarded by what weir was
// started from, later ones by who asks for them.
type guards struct {
	mu   sync.Mutex // held while somebody asks for a load
	now  guard
	lock sync.Mutex // of now
}

func (g *guards) set(to guard) {
	g.lock.Lock()
	defer g.lock.Unlock()
	g.now = to
}

func (g *guards) get() guard {
	g.lock.Lock()
	defer g.lock.Unlock()
	return g.now
}

// reload loads anew for somebody who works through a session of his own.
func (g *guards) reload(ctx context.Context, loop *engine.Loop, r api.ReloadRequest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.get()
	g.set(guard{r.LockMeOut || before.lockMeOut, r.SSHConnection})
	defer g.set(before)
	return loop.ReloadNow(ctx)
}
