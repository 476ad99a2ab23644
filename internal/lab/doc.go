// Package lab builds small networks out of Linux network namespaces: hosts, links
// and segments with real servers and clients on them, for demonstrations, tests
// and benchmarks.
//
// Its one idea: everything happens in a process that lives in namespaces of its
// own. Isolate (or Main, for a test binary) runs the program again in a new network
// and mount namespace, and in a new user namespace where the caller is not root.
// From there New makes hosts, each a further network namespace known only by a file
// descriptor. Nothing has a name outside, so nothing can be left behind: when the
// process ends, however it ends, the kernel takes all of it away. (One exception:
// what a program on a host has started itself ends with Close, but not when this
// process is killed with SIGKILL.) The network namespace of the machine is never
// entered.
//
// Namespaces belong to threads, and Go moves goroutines between threads. The rule
// of this package: a thread enters a host's namespace only while a goroutine is
// locked to it, and a thread that cannot be put back is thrown away by letting its
// goroutine end while it is locked (see runtime.LockOSThread). Sockets, on the
// other hand, belong to the namespace they were made in for good, so they are made
// in the namespace and used from anywhere.
package lab
