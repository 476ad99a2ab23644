// Package capture takes in the copies that a mirror sends to this box, and keeps the box
// from sending them on.
//
// Its one idea: a copy is an IP packet that came in by the device and is not for this box.
// A packet socket sees it before the kernel has looked at where it goes (net/core/dev.c);
// a table of nftables then drops it in prerouting, before anything could be routed or
// answered: no forwarding, no redirect, no "time exceeded", no connection tracking.
package capture
