package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring: blocks that the kernel fills and hands over when they are full, or after
// blockWait. Together they are what may wait while nobody reads.
const (
	blockSize = 1 << 20 // bytes; the longest packet fits (64 KiB, or BIG TCP's 512 KiB)
	blocks    = 64
	blockWait = 20 // milliseconds
)

// Ring is a packet socket with a ring of TPACKET_V3 (include/uapi/linux/if_packet.h). It is
// for one goroutine.
type Ring struct {
	fd     int
	mem    []byte
	next   int // block
	lost   uint64
	device string
}

// NewRing begins to take in copies from a device, at most snaplen bytes of each. It needs
// CAP_NET_RAW.
func NewRing(d Device, snaplen int) (*Ring, error) {
	// Protocol 0 takes nothing until the socket is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	r := &Ring{fd: fd, device: d.Name}
	if err := r.open(d, snaplen); err != nil {
		r.Close()
		return nil, fmt.Errorf("packet socket on %s: %w", d.Name, err)
	}
	return r, nil
}

func (r *Ring) open(d Device, snaplen int) error {
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return err
	}
	req := unix.TpacketReq3{Block_size: blockSize, Block_nr: blocks, Frame_size: 1 << 11, Frame_nr: blocks * blockSize >> 11, Retire_blk_tov: blockWait}
	if err := unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("a ring of %d MiB: %w", blocks*blockSize>>20, err)
	}
	var err error
	if r.mem, err = unix.Mmap(r.fd, 0, blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	prog := copiesOnly(uint32(snaplen))
	err = unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	runtime.KeepAlive(prog)
	if err != nil {
		return err
	}
	// All protocols: a socket for IP alone would see packets after others may have taken them.
	return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: d.index})
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Where a filter finds what is said of a packet (include/uapi/linux/filter.h).
const (
	skfAdOff      = 0xfffff000 // SKF_AD_OFF
	skfAdProtocol = 0          // SKF_AD_PROTOCOL
	skfAdPktType  = 4          // SKF_AD_PKTTYPE
)

// copiesOnly lets the first snaplen bytes of IPv4 and IPv6 packets pass that were sent to one
// machine, this or another, and not by this one.
func copiesOnly(snaplen uint32) []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		is   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: load, K: skfAdOff + skfAdPktType},
		{Code: is, K: unix.PACKET_HOST, Jt: 1},
		{Code: is, K: unix.PACKET_OTHERHOST, Jf: 4},
		{Code: load, K: skfAdOff + skfAdProtocol},
		{Code: is, K: unix.ETH_P_IP, Jt: 1},
		{Code: is, K: unix.ETH_P_IPV6, Jf: 1},
		{Code: ret, K: snaplen},
		{Code: ret, K: 0},
	}
}

// Offsets in a block and in the header of a packet: struct tpacket_block_desc and
// tpacket3_hdr.
const (
	offStatus = 8
	offCount  = 12
	offFirst  = 16

	offNext    = 0
	offSec     = 4
	offNsec    = 8
	offSnaplen = 12
	offLen     = 16
	offNet     = 26
	hdrLen     = 48
)

// Read hands over what came, each packet from its network header on, in the order of the
// kernel: when, since 1970; what there is of it, good until fn returns; its length on the
// wire, in bytes. It waits for at most a time if nothing is there, and returns after one way
// round the ring at the latest. An error of fn ends it.
func (r *Ring) Read(wait time.Duration, fn func(at time.Duration, data []byte, wire int) error) error {
	if !r.ready() {
		if err := r.wait(wait); err != nil {
			return err
		}
	}
	for range blocks {
		if !r.ready() {
			return nil
		}
		err := r.block(r.mem[r.next*blockSize:(r.next+1)*blockSize], fn)
		atomic.StoreUint32(r.status(), unix.TP_STATUS_KERNEL)
		r.next = (r.next + 1) % blocks
		if err != nil {
			return err
		}
	}
	return nil
}

// status is the word by which the kernel and this program hand a block to each other.
func (r *Ring) status() *uint32 {
	return (*uint32)(unsafe.Pointer(&r.mem[r.next*blockSize+offStatus]))
}

func (r *Ring) ready() bool { return atomic.LoadUint32(r.status())&unix.TP_STATUS_USER != 0 }

func (r *Ring) wait(d time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, int(max(d, 0).Milliseconds()))
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for packets: %w", err)
	}
	if fds[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0 {
		return nil
	}
	if errno, err := unix.GetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 {
		return fmt.Errorf("device %s: %w", r.device, unix.Errno(errno))
	}
	return nil
}

// errRing says that the kernel wrote what it does not write.
var errRing = errors.New("the packet ring is broken")

func (r *Ring) block(b []byte, fn func(time.Duration, []byte, int) error) error {
	u32 := func(off int) int { return int(binary.NativeEndian.Uint32(b[off:])) }
	count, at := u32(offCount), u32(offFirst)
	for range count {
		if at+hdrLen > len(b) {
			return errRing
		}
		from := at + int(binary.NativeEndian.Uint16(b[at+offNet:]))
		to := from + u32(at+offSnaplen)
		if to > len(b) {
			return errRing
		}
		when := time.Duration(u32(at+offSec))*time.Second + time.Duration(u32(at+offNsec))
		if err := fn(when, b[from:to], u32(at+offLen)); err != nil {
			return err
		}
		at += u32(at + offNext)
	}
	return nil
}

// Lost returns how many packets the ring had no room for, since it was opened.
func (r *Ring) Lost() (uint64, error) {
	s, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS) // counts anew each time
	if err != nil {
		return r.lost, fmt.Errorf("statistics of the packet socket: %w", err)
	}
	r.lost += uint64(s.Drops)
	return r.lost, nil
}

// Close ends it.
func (r *Ring) Close() error {
	var err error
	if r.mem != nil {
		err = unix.Munmap(r.mem)
		r.mem = nil
	}
	return errors.Join(err, unix.Close(r.fd))
}
