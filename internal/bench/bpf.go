package main

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Instructions of eBPF (RFC 9669), as many as the generator's program has.
const (
	opLoad32  = 0x61 // dst = *(u32 *)(src + off)
	opLoad64  = 0x79
	opStore32 = 0x63 // *(u32 *)(dst + off) = src
	opStore64 = 0x7b
	opMove    = 0xbf // dst = src
	opMoveImm = 0xb7 // dst = imm
	opAddImm  = 0x07
	opModReg  = 0x9f // dst %= src
	opJumpGt  = 0x2d // if dst > src skip off
	opJumpEq  = 0x15 // if dst == imm skip off
	opLoadMap = 0x18 // dst = the map of descriptor imm; takes two slots
	opCall    = 0x85
	opExit    = 0x95

	helperLookup = 1 // bpf_map_lookup_elem
)

// The program's verdicts (enum xdp_action of include/uapi/linux/bpf.h).
const (
	xdpAborted = 0
	xdpPass    = 2
)

// insn is one instruction as the kernel takes it: struct bpf_insn.
type insn struct {
	op   uint8
	regs uint8 // dst in the low half, src in the high
	off  int16
	imm  int32
}

// program puts instructions together. Jumps to the end that fails are filled in last.
type program struct {
	insns []insn
	fails []int
}

func (p *program) add(op uint8, dst, src uint8, off int16, imm int32) {
	p.insns = append(p.insns, insn{op, dst | src<<4, off, imm})
}

// orFail adds a jump that leads to the end that fails.
func (p *program) orFail(op uint8, dst, src uint8) {
	p.fails = append(p.fails, len(p.insns))
	p.add(op, dst, src, 0, 0)
}

// lookup leaves in r0 the value of the map at the u32 key in r9.
func (p *program) lookup(fd int) {
	p.add(opStore32, 10, 9, -4, 0)
	p.add(opMove, 2, 10, 0, 0)
	p.add(opAddImm, 2, 0, 0, -4)
	p.add(opLoadMap, 1, unix.BPF_PSEUDO_MAP_FD, 0, int32(fd))
	p.add(0, 0, 0, 0, 0)
	p.add(opCall, 0, 0, 0, helperLookup)
	p.orFail(opJumpEq, 0, 0)
}

// sender returns the generator's program: it overwrites all of the frame it gets with
// frame number (count++ mod total) of the map, and passes it on to the stack. All of it,
// because the kernel uses the pages again, with what the stack made of them before.
func sender(state, frames int) []insn {
	var p program
	p.add(opLoad32, 7, 1, 0, 0) // the packet's begin and end
	p.add(opLoad32, 8, 1, 4, 0)
	p.add(opMove, 1, 7, 0, 0)
	p.add(opAddImm, 1, 0, 0, frameSize)
	p.orFail(opJumpGt, 1, 8)
	p.add(opMoveImm, 9, 0, 0, 0)
	p.lookup(state)
	p.add(opLoad64, 9, 0, 0, 0)
	p.add(opMove, 1, 9, 0, 0)
	p.add(opAddImm, 1, 0, 0, 1)
	p.add(opStore64, 0, 1, 0, 0)
	p.add(opLoad64, 2, 0, 8, 0)
	p.add(opModReg, 9, 2, 0, 0)
	p.lookup(frames)
	for off := int16(0); off < frameSize; off += 8 {
		p.add(opLoad64, 1, 0, off, 0)
		p.add(opStore64, 7, 1, off, 0)
	}
	p.add(opMoveImm, 0, 0, 0, xdpPass)
	p.add(opExit, 0, 0, 0, 0)
	for _, at := range p.fails {
		p.insns[at].off = int16(len(p.insns) - at - 1)
	}
	p.add(opMoveImm, 0, 0, 0, xdpAborted)
	p.add(opExit, 0, 0, 0, 0)
	return p.insns
}

// bpf is the system call bpf(2).
func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// newArray makes an array of which the program and this process see the same memory.
func newArray(valueSize, entries int) (fd int, mem []byte, err error) {
	attr := struct{ mapType, keySize, valueSize, maxEntries, flags uint32 }{
		unix.BPF_MAP_TYPE_ARRAY, 4, uint32(valueSize), uint32(entries), unix.BPF_F_MMAPABLE}
	if fd, err = bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return -1, nil, fmt.Errorf("bpf: make a map: %w", err)
	}
	size := (valueSize*entries + unix.Getpagesize() - 1) &^ (unix.Getpagesize() - 1)
	if mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("bpf: map the memory of a map: %w", err)
	}
	return fd, mem, nil
}

func loadXDP(insns []insn) (int, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	license := []byte("Apache-2.0\x00")
	log := make([]byte, 64<<10)
	attr := struct {
		progType, insnCount    uint32
		insns, license         uint64
		logLevel, logSize      uint32
		log                    uint64
		kernVersion, progFlags uint32
	}{
		progType: unix.BPF_PROG_TYPE_XDP, insnCount: uint32(len(insns)),
		insns: address(&pin, &insns[0]), license: address(&pin, &license[0]),
		logLevel: 1, logSize: uint32(len(log)), log: address(&pin, &log[0]),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("bpf: load the generator: %w: %s", err, unix.ByteSliceToString(log))
	}
	return fd, nil
}

// address is for fields of the kernel's structs that hold one. What is there stays there
// until pin lets it go.
func address[T any](pin *runtime.Pinner, p *T) uint64 {
	pin.Pin(p)
	return uint64(uintptr(unsafe.Pointer(p)))
}

// runLive runs the program on repeat frames as if the device had received them
// (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18). A signal ends it early with EINTR.
func runLive(prog int, ifindex, repeat int) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	data := make([]byte, frameSize)
	ctx := struct{ data, dataEnd, dataMeta, ifindex, queue, egress uint32 }{dataEnd: frameSize, ifindex: uint32(ifindex)}
	attr := struct {
		prog, retval, sizeIn, sizeOut uint32
		dataIn, dataOut               uint64
		repeat, duration              uint32
		ctxSizeIn, ctxSizeOut         uint32
		ctxIn, ctxOut                 uint64
		flags, cpu, batch, _          uint32
	}{
		prog: uint32(prog), sizeIn: frameSize, dataIn: address(&pin, &data[0]), repeat: uint32(repeat),
		ctxSizeIn: uint32(unsafe.Sizeof(ctx)), ctxIn: address(&pin, &ctx), flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES,
	}
	_, err := bpf(unix.BPF_PROG_TEST_RUN, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("bpf: send: %w", err)
	}
	return err
}
