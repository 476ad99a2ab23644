// Package tap makes figures out of copies of packets: what a mirror sends to a box that
// only looks.
//
// Its one idea: packets and the times they came at go in, figures come out. There is no
// clock, no socket and no goroutine, so that every judgement (is this a retransmission, or
// the same packet mirrored twice?) can be shown with packets made by hand.
//
// A mirror shows what it shows: it may carry one direction alone, every packet twice, or
// only every second one. So what can't be known from what was seen is nil in the figures,
// never 0.
//
// Package capture takes the copies in and keeps them from being routed on, package files
// writes them.
package tap
