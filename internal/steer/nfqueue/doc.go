// Package nfqueue takes packets out of the kernel's queues (NFQUEUE), asks what becomes of each,
// and gives them back: accepted, with a mark, or dropped.
//
// Each queue has a netlink socket and a goroutine with a thread of its own, so that the kernel
// spreads connections over cores when it spreads them over queues. What takes time is not the
// choice but the way in and out of the kernel, so:
//
//   - up to [batch] packets are received in one recvmmsg(2), and their verdicts are sent in one
//     write: without waiting for more, so that a single packet waits for nobody;
//   - verdicts that follow each other and are alike become one message, NFQNL_MSG_VERDICT_BATCH,
//     which holds for all packets up to the one it names;
//   - of each packet no more is copied than the rules look at;
//   - packets that the kernel has gathered (GRO, GSO) come as one, instead of being cut for us;
//   - nothing is allocated, and the kernel is told not to report losses (NETLINK_NO_ENOBUFS), since
//     with a report pending it loses everything until the socket is empty. It counts them
//     itself; see [Stats].
//
// A packet is out of the kernel's hands until it has its verdict, and is lost with the process. So
// Close first makes the kernel put no more into the queue, with an acknowledgement that comes
// behind all packets that are in it, and unbinds once that has come. A process that is killed loses
// what waits in its queues at that moment.
//
// The formats are those of the kernel's include/uapi/linux/netfilter/nfnetlink_queue.h; what the
// kernel does with them is in net/netfilter/nfnetlink_queue.c.
package nfqueue
