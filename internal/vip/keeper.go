package vip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDevice says that a wanted device does not exist.
	ErrNoDevice = errors.New("no such device")
	// ErrDown says that a device is not up or has no carrier.
	ErrDown = errors.New("device is down")
)

// Options change how a Keeper works. The zero value is right outside of tests.
type Options struct {
	// After is the timer between the rounds of an announcement; nil means time.After.
	After func(time.Duration) <-chan time.Time
}

// Keeper holds virtual addresses in the network namespace in which it was opened. It has
// no memory of its own beyond its sockets: every call looks at the kernel. Its methods
// may be called from several goroutines.
type Keeper struct {
	after  func(time.Duration) <-chan time.Time
	closed chan struct{}
	rounds sync.WaitGroup

	// mu keeps an announcement and a change apart: an address that was taken away must
	// not be announced after that, for it may be on another box by then.
	mu      sync.Mutex
	rtnl    rtnl
	packets int // an AF_PACKET socket that receives nothing
}

// Open returns a Keeper for the network namespace of the calling thread. It needs
// CAP_NET_ADMIN (to change addresses) and CAP_NET_RAW (to announce them) there.
func Open(o Options) (*Keeper, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("vip: open a packet socket: %w", err)
	}
	r, err := openRTNL()
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("vip: open a routing socket: %w", err)
	}
	if o.After == nil {
		o.After = time.After
	}
	return &Keeper{after: o.After, closed: make(chan struct{}), rtnl: r, packets: fd}, nil
}

// Close ends the announcements under way and frees the sockets. Addresses stay. It must
// be called once, and nothing after it.
func (k *Keeper) Close() error {
	close(k.closed)
	k.rounds.Wait()
	k.rtnl.handle.Socket.Close()
	return unix.Close(k.packets)
}

// Report is what a Sync did and found. The lists are sorted by device and address.
type Report struct {
	Added   []Want // put there now: these are to be announced
	Removed []Have // weir's, no longer wanted, taken away now
	// Foreign is wanted but held by others: somebody put it on that device before. It is
	// left alone, it works, and weir will not remove it.
	Foreign []Have
	// Down names the wanted devices that are not up or have no carrier. Addresses are put
	// on them nevertheless. The kernel drops IPv6 addresses of a device that is set down:
	// sync again when it is up.
	Down []string
}

// Sync makes the wanted addresses, and no others, the ones that weir holds in this
// namespace. It does what can be done: an address that fails does not stop the others,
// the error joins all that failed, and the report tells what was done. Doing it again
// changes nothing. Errors are ErrNoDevice, those of ctx, and the kernel's (as EACCES
// with "IPv6 is disabled on this device").
func (k *Keeper) Sync(ctx context.Context, want []Want) (Report, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var rep Report
	links, err := k.rtnl.links()
	if err != nil {
		return rep, err
	}
	have, err := k.rtnl.addresses(links)
	if err != nil {
		return rep, err
	}
	add, del, foreign := Diff(want, have)
	rep.Foreign = foreign
	rep.Down = down(links, want)
	var errs []error
	// Add first: an address that moves to another device is never on none.
	for _, w := range add {
		if err := ctx.Err(); err != nil {
			return rep, errors.Join(append(errs, fmt.Errorf("vip: %w", err))...)
		}
		errs = append(errs, k.add(links, w, &rep))
	}
	for _, h := range del {
		if err := ctx.Err(); err != nil {
			return rep, errors.Join(append(errs, fmt.Errorf("vip: %w", err))...)
		}
		errs = append(errs, k.remove(links, h, &rep))
	}
	rep.Foreign = sorted(rep.Foreign)
	return rep, errors.Join(errs...)
}

// Clear removes all addresses that are weir's from every device of the namespace.
func (k *Keeper) Clear(ctx context.Context) (Report, error) { return k.Sync(ctx, nil) }

func (k *Keeper) add(links []link, w Want, rep *Report) error {
	l, err := find(links, w.Dev)
	if err != nil {
		return fmt.Errorf("vip: add %s: %w", w.Addr, err)
	}
	switch err := k.rtnl.add(l, w.Addr); {
	case errors.Is(err, unix.EEXIST):
		// Somebody was quicker since the table was read.
		rep.Foreign = append(rep.Foreign, Have{Dev: w.Dev, Prefix: netip.PrefixFrom(w.Addr, w.Addr.BitLen())})
	case err != nil:
		return fmt.Errorf("vip: add %s to %s: %w", w.Addr, w.Dev, err)
	default:
		rep.Added = append(rep.Added, w)
	}
	return nil
}

func (k *Keeper) remove(links []link, h Have, rep *Report) error {
	l, err := find(links, h.Dev)
	if err != nil {
		return fmt.Errorf("vip: remove %s: %w", h.Prefix.Addr(), err)
	}
	switch err := k.rtnl.remove(l, h.Prefix); {
	case errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV):
		// Gone already, with its device perhaps: what was to be reached.
	case err != nil:
		return fmt.Errorf("vip: remove %s from %s: %w", h.Prefix.Addr(), h.Dev, err)
	default:
		rep.Removed = append(rep.Removed, h)
	}
	return nil
}

func find(links []link, name string) (link, error) {
	names := make([]string, 0, len(links))
	for _, l := range links {
		if l.name == name {
			return l, nil
		}
		names = append(names, l.name)
	}
	slices.Sort(names)
	return link{}, fmt.Errorf("%w: %q; there are %s", ErrNoDevice, name, strings.Join(names, ", "))
}

func down(links []link, want []Want) []string {
	var out []string
	for _, w := range want {
		if l, err := find(links, w.Dev); err == nil && !l.up {
			out = append(out, l.name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
