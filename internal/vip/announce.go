package vip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// pauses lie between the rounds of an announcement, which go out after 0, 1 and 3 s: any
// frame may be lost. RFC 4861 section 7.2.6 allows three, a second apart or more; RFC
// 5227 section 2.3 asks for two, 2 s apart.
var pauses = []time.Duration{time.Second, 2 * time.Second}

// Announce tells the network of a device that addresses, which Sync put there, are here:
// gratuitous ARP for IPv4, unsolicited neighbour advertisements for IPv6. The first round
// has gone out when it returns, two more follow by themselves until ctx ends or the
// Keeper is closed; a round leaves out what the device holds no longer. The channel gives
// the outcome of the last round that was sent, once, and needs no reader. A first round
// that cannot be sent is the last: ErrNoDevice, ErrDown, an address that weir does not
// hold, or the kernel's error. A device without neighbours (loopback, a tunnel, NOARP)
// has nobody to tell, and that is no error.
func (k *Keeper) Announce(ctx context.Context, dev string, addrs []netip.Addr) <-chan error {
	result := make(chan error, 1)
	sent, err := k.round(dev, addrs)
	if err == nil && len(sent) < len(addrs) {
		err = fmt.Errorf("vip: announce on %s: %s is not held by weir there", dev, missing(addrs, sent))
	}
	if err != nil || len(addrs) == 0 {
		result <- err
		close(result)
		return result
	}
	k.rounds.Go(func() {
		result <- k.repeat(ctx, dev, addrs)
		close(result)
	})
	return result
}

func (k *Keeper) repeat(ctx context.Context, dev string, addrs []netip.Addr) error {
	var last error
	for _, pause := range pauses {
		select {
		case <-ctx.Done():
			return last
		case <-k.closed:
			return last
		case <-k.after(pause):
		}
		sent, err := k.round(dev, addrs)
		if err == nil && len(sent) == 0 {
			return nil // all of them have been taken away since
		}
		last = err
	}
	return last
}

// round announces those of the addresses that are weir's on the device, and returns them.
func (k *Keeper) round(dev string, addrs []netip.Addr) ([]netip.Addr, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	links, err := k.rtnl.links()
	if err != nil {
		return nil, err
	}
	l, err := find(links, dev)
	if err != nil {
		return nil, fmt.Errorf("vip: announce: %w", err)
	}
	have, err := k.rtnl.addresses(links)
	if err != nil {
		return nil, err
	}
	ours := make(map[netip.Addr]bool)
	for _, h := range have {
		if h.Ours && h.Dev == dev {
			ours[h.Prefix.Addr()] = true
		}
	}
	var sent []netip.Addr
	var errs []error
	for _, a := range addrs {
		if ours[a] {
			sent = append(sent, a)
			errs = append(errs, k.announce(l, a))
		}
	}
	return sent, errors.Join(errs...)
}

func (k *Keeper) announce(l link, addr netip.Addr) error {
	if !l.neighbours {
		return nil
	}
	if !l.up {
		return fmt.Errorf("vip: announce %s on %s: %w", addr, l.name, ErrDown)
	}
	for _, frame := range announcements(l.mac, addr, l.forwards6) {
		to := &unix.SockaddrLinklayer{
			// In network byte order, in the frame and here.
			Protocol: binary.NativeEndian.Uint16(frame[12:]),
			Ifindex:  l.index,
			Halen:    uint8(len(l.mac)),
		}
		copy(to.Addr[:], frame[:len(l.mac)])
		if err := unix.Sendto(k.packets, frame, 0, to); err != nil {
			return fmt.Errorf("vip: announce %s on %s: %w", addr, l.name, err)
		}
	}
	return nil
}

// missing returns the first of the addresses that was not sent.
func missing(addrs, sent []netip.Addr) netip.Addr {
	for i, a := range addrs {
		if i >= len(sent) || sent[i] != a {
			return a
		}
	}
	return netip.Addr{}
}
