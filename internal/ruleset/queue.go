package ruleset

import "fmt"

// Queue gives the packet to user space and ends the base chain: when it comes back, accepted, it
// goes on with the next one (net/netfilter/nf_queue.c). A packet of a connection goes to the same
// queue every time, unless Fanout says otherwise.
//
// It prints as nft's own statement. Kernels without that one (CONFIG_NFT_QUEUE) may have the
// target NFQUEUE of xtables, which does the same; internal/nft sends what there is.
type Queue struct {
	First, Last uint16 // queues; Last is First for one
	Bypass      bool   // where nobody listens the packet goes on with the next base chain; else it is dropped
	Fanout      bool   // the queue is that of the processor, and not of the packet's addresses
}

func (Queue) stmt() {}

func (q Queue) text() string {
	text := "queue"
	switch {
	case q.Bypass && q.Fanout:
		text += " flags bypass,fanout"
	case q.Bypass:
		text += " flags bypass"
	case q.Fanout:
		text += " flags fanout"
	}
	return text + " to " + q.numbers()
}

func (q Queue) numbers() string {
	if q.First == q.Last {
		return fmt.Sprint(q.First)
	}
	return fmt.Sprintf("%d-%d", q.First, q.Last)
}

// queue asks whoever answers for user space.
func (x *ruleRun) queue(q Queue) (bool, Verdict) {
	x.trace.Queued = true
	accept := Verdict{Kind: AcceptPacket}
	if x.env.Queued == nil {
		return x.decide(accept, "goes to user space by queue %s, and on from there: what is chosen is not known here", q.numbers())
	}
	now := x.p
	now.Src, now.Dst = x.src, x.dst
	answer := x.env.Queued(q, now, x.trace.Mark)
	x.note("%s", answer.Words)
	if answer.Drop {
		x.refuse(Dropped)
		return x.decide(Verdict{Kind: DropPacket}, "goes to user space by queue %s: dropped", q.numbers())
	}
	x.trace.Mark = answer.Mark
	return x.decide(accept, "goes to user space by queue %s: comes back with the mark 0x%08x", q.numbers(), answer.Mark)
}

// Answer is what user space says of a packet.
type Answer struct {
	Mark  uint32 // all of it
	Drop  bool
	Words string // why
}
