// Package steer chooses a member of a group for packets that the kernel asks about: rules tell by
// addresses, ports, protocol and bytes which group a packet is for, and the group's own Maglev
// table tells the member. The answer is a mark on the packet; what the mark means, translation or
// a route, is the kernel's rules' business.
//
// The hash is the one of internal/flow, over the key that nft's "jhash ip saddr . th sport" has,
// so the kernel's own table chooses alike where nobody answers, and so does every other node with
// the same seed and the same members.
//
// A [Set] is immutable. A [Steerer] replaces it as a whole between two packets, and any number of
// workers ask it at the same time. Nothing is allocated for a packet. What is counted goes on
// counting in the next set under the same name.
//
// Rules are asked one after the other, those of other protocols left out: one that does not
// match costs some 10 ns. So a hundred rules cost about 1 µs (BenchmarkMark), where the way
// through the queue costs three.
//
// How packets get here and back is internal/steer/nfqueue; what the bytes of a rule look like is
// internal/steer/match. What is written in which mark, which mask, and which packets are asked
// about, is said in the ruleset: those whose connection has no mark yet, so that user space sees
// one packet of a connection, or all.
package steer
