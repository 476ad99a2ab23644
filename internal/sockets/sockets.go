// Package sockets sees on which ports of the box somebody listens, and which addresses the box
// has. It only reads, and needs no rights for that.
//
// A listener is a TCP socket that listens, or a UDP socket that is bound and not connected.
// The ports that the box's own connections have are none.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weir/internal/model"
)

// Listener is a port on which somebody listens.
type Listener struct {
	Proto model.Proto // TCP or UDP
	// Addr is the address; 0.0.0.0 is all of IPv4, :: all of both families, or of IPv6 alone
	// (which of them, is not told).
	Addr netip.Addr
	Port uint16
}

// States of enum in include/net/tcp_states.h.
const (
	stateClose  = 7 // of a UDP socket: not connected
	stateListen = 10
)

// dumpTries is how often a dump is asked for that was not consistent.
const dumpTries = 5

// Looker looks at the network namespace in which it was opened, whichever thread asks. Its
// methods must not be called at the same time.
type Looker struct {
	diag   *nl.SocketHandle
	routes *netlink.Handle
}

// Open returns a Looker for the network namespace of the calling thread.
func Open() (*Looker, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sockets: open: %w", err)
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("sockets: open: %w", err)
	}
	return &Looker{&nl.SocketHandle{Socket: s}, routes}, nil
}

// Close frees the sockets.
func (l *Looker) Close() {
	l.diag.Close()
	l.routes.Close()
}

// diagRequest is struct inet_diag_req_v2 of include/uapi/linux/inet_diag.h, with a zero
// struct inet_diag_sockid.
type diagRequest struct {
	family, proto uint8
	states        uint32
}

func (r diagRequest) Len() int { return 56 }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return b
}

// Listeners returns who listens, in no order, and some perhaps more than once.
func (l *Looker) Listeners() ([]Listener, error) {
	var out []Listener
	for _, r := range []diagRequest{
		{unix.AF_INET, unix.IPPROTO_TCP, 1 << stateListen},
		{unix.AF_INET6, unix.IPPROTO_TCP, 1 << stateListen},
		{unix.AF_INET, unix.IPPROTO_UDP, 1 << stateClose},
		{unix.AF_INET6, unix.IPPROTO_UDP, 1 << stateClose},
	} {
		msgs, err := l.dump(r)
		if errors.Is(err, unix.ENOENT) { // a kernel without this family or its module
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sockets: dump: %w", err)
		}
		for _, m := range msgs {
			if li, ok := parse(m, model.Proto(r.proto)); ok {
				out = append(out, li)
			}
		}
	}
	return out, nil
}

func (l *Looker) dump(r diagRequest) (msgs [][]byte, err error) {
	for range dumpTries {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_SOCK_DIAG: l.diag}
		req.AddData(r)
		msgs, err = req.Execute(unix.NETLINK_SOCK_DIAG, 0)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return msgs, err
}

// parse reads a struct inet_diag_msg: family, state, timer, retransmissions, then the socket's
// struct inet_diag_sockid, of which the ports and the own address come first.
func parse(b []byte, p model.Proto) (Listener, bool) {
	if len(b) < 24 {
		return Listener{}, false
	}
	li := Listener{Proto: p, Port: binary.BigEndian.Uint16(b[4:])}
	switch b[0] {
	case unix.AF_INET:
		li.Addr = netip.AddrFrom4([4]byte(b[8:12]))
	case unix.AF_INET6:
		li.Addr = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
	return li, li.Addr.IsValid() && li.Port != 0
}

// Addresses returns the addresses of the box, of all devices or of the one of that name. A
// device that does not exist has none.
func (l *Looker) Addresses(dev string) ([]netip.Addr, error) {
	var link netlink.Link
	var err error
	if dev != "" {
		link, err = l.routes.LinkByName(dev)
		var none netlink.LinkNotFoundError
		if errors.As(err, &none) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	list, err := l.routes.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	out := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// Ephemeral returns the ports that the kernel gives to sockets that ask for none
// (net.ipv4.ip_local_port_range, of IPv6 too), of the calling thread's namespace.
func Ephemeral() model.PortRange {
	usual := model.PortRange{Lo: 32768, Hi: 60999}
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	f := strings.Fields(string(text))
	if len(f) != 2 {
		return usual
	}
	lo, err1 := strconv.ParseUint(f[0], 10, 16)
	hi, err2 := strconv.ParseUint(f[1], 10, 16)
	if err1 != nil || err2 != nil || lo > hi || lo == 0 {
		return usual
	}
	return model.PortRange{Lo: uint16(lo), Hi: uint16(hi)}
}
