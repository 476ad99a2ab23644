package nft

import "golang.org/x/sys/unix"

// Settle waits until packets that were under way when it was called have left the chain they were
// in: some 10 to 30 ms. A processor may rest for as long in the middle of a chain, as that of a
// virtual machine does, and the packet keeps to the rules of before. Where the kernel cannot say
// when, Settle returns at once.
//
// MEMBARRIER_CMD_GLOBAL is a grace period of RCU (kernel/sched/membarrier.c), and chains are
// walked under the lock of RCU (nf_hook in include/linux/netfilter.h).
func (c *Conn) Settle() {
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1
