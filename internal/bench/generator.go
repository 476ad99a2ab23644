package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/internal/lab"
)

// Sizes of frames: Ethernet, IPv4 and TCP headers, rounded up to what the program
// copies at once.
const (
	frameSize = 56
	maxFrames = 20480
)

// generator puts frames into a device of a namespace, from one processor, and tells
// what that and all that follows from it cost: each packet's way through the stack is
// done by the thread that sends it.
type generator struct {
	processor
	state, frames int // maps
	prog          int
	counter       *[2]uint64 // frames sent; frames loaded
	mem           []byte
	stateMem      []byte
}

// processor is the one that packets are sent from.
type processor struct {
	cpu       int
	ksoftirqd string // schedstat file of the processor's own thread; "" if not seen
}

// lastProcessor is the one for all that is sent.
func lastProcessor() processor {
	cpu := runtime.NumCPU() - 1
	return processor{cpu, findKsoftirqd(cpu)}
}

func newGenerator() (*generator, error) {
	g := &generator{processor: lastProcessor(), state: -1, frames: -1, prog: -1}
	var err error
	if g.state, g.stateMem, err = newArray(16, 1); err != nil {
		return nil, err
	}
	g.counter = (*[2]uint64)(unsafe.Pointer(&g.stateMem[0]))
	if g.frames, g.mem, err = newArray(frameSize, maxFrames); err != nil {
		g.close()
		return nil, err
	}
	if g.prog, err = loadXDP(sender(g.state, g.frames)); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *generator) close() {
	for _, fd := range []int{g.prog, g.frames, g.state} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, m := range [][]byte{g.mem, g.stateMem} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
}

// load makes frames what is sent next, from the first on.
func (g *generator) load(frames []byte) {
	copy(g.mem, frames)
	g.counter[0], g.counter[1] = 0, uint64(len(frames)/frameSize)
}

// sendTries bounds how often a run is taken up again after a signal.
const sendTries = 10000

// send receives n frames on the device, in the calling thread's namespace, and returns
// the time that the processor spent on it: the thread's own and that of the processor's
// softirq thread. The thread must belong to the caller (lab.Host.Do).
func (g *generator) send(dev string, n int) (time.Duration, error) {
	iface, err := net.InterfaceByName(dev)
	if err != nil {
		return 0, err
	}
	return g.hold(func() error {
		sent := g.counter[0]
		for range sendTries {
			left := n - int(g.counter[0]-sent)
			if left <= 0 {
				return nil
			}
			if err := runLive(g.prog, iface.Index, left); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
		return errors.New("bpf: signals keep ending the run")
	})
}

// hold has the calling thread do fn on the processor, and returns the time that this spent
// on it: the thread's own and that of the processor's softirq thread.
func (p processor) hold(fn func() error) (time.Duration, error) {
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return 0, err
	}
	var only unix.CPUSet
	only.Set(p.cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return 0, fmt.Errorf("stay on processor %d: %w", p.cpu, err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	start := p.spent()
	err := fn()
	return p.spent() - start, err
}

// spent is the processor time of the calling thread and of the softirq thread.
func (p processor) spent() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	total := ts.Nano()
	if b, err := os.ReadFile(p.ksoftirqd); err == nil {
		var ns int64
		fmt.Sscan(string(b), &ns)
		total += ns
	}
	return time.Duration(total)
}

func findKsoftirqd(cpu int) string {
	want := fmt.Sprintf("ksoftirqd/%d\n", cpu)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		if b, err := os.ReadFile("/proc/" + e.Name() + "/comm"); err == nil && string(b) == want {
			return "/proc/" + e.Name() + "/schedstat"
		}
	}
	return ""
}

// ether puts an Ethernet header before each packet and pads it to frameSize.
func ether(dst, src net.HardwareAddr, packets [][]byte) []byte {
	out := make([]byte, 0, len(packets)*frameSize)
	for _, p := range packets {
		at := len(out)
		out = append(out, dst...)
		out = append(out, src...)
		out = binary.BigEndian.AppendUint16(out, unix.ETH_P_IP)
		out = append(out, p...)
		out = out[:at+frameSize]
	}
	return out
}

// Sequence numbers of every connection: the client's first and the server's.
const clientSeq, serverSeq = 1000, 5000

// clientPackets returns the first packets of flows connections, each from a port of its
// own to a service chosen at random (the same every time), and a later one of each.
func clientPackets(flows, services int) (syns, acks [][]byte) {
	rnd := rand.New(rand.NewPCG(1, uint64(services)))
	for i := range flows {
		src := netip.AddrPortFrom(nth(clients, 1+i%250), uint16(1024+i))
		dst := netip.AddrPortFrom(listenAddr(rnd.IntN(services)), listenPort)
		syns = append(syns, lab.TCPPacket(src, dst, lab.SYN, clientSeq, 0))
		acks = append(acks, lab.TCPPacket(src, dst, lab.ACK, clientSeq+1, serverSeq+1))
	}
	return syns, acks
}
