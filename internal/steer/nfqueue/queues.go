package nfqueue

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Queues are some queues of one network namespace.
type Queues struct {
	queues []*queue
	proc   *os.File
	room   int // bytes of a packet that the buffers hold

	mu      sync.Mutex
	serving bool
	closing bool
	closed  bool
	ended   chan struct{} // closed with closed
}

// Open takes the queues of the calling thread's network namespace over. From then on the kernel
// puts packets into them, so call Serve soon. It needs CAP_NET_ADMIN, and that nobody else has one
// of them.
func Open(o Options) (*Queues, error) {
	switch {
	case o.Count < 1 || int(o.First)+o.Count > 1<<16:
		return nil, fmt.Errorf("nfqueue: %d queues from %d on: their numbers are between 0 and 65535", o.Count, o.First)
	case o.Copy < 1 || o.Copy > maxCopy:
		return nil, fmt.Errorf("nfqueue: %d bytes of a packet are not between 1 and %d", o.Copy, maxCopy)
	case o.CPUs != nil && len(o.CPUs) != o.Count:
		return nil, fmt.Errorf("nfqueue: %d processors for %d queues", len(o.CPUs), o.Count)
	case o.Waiting < 0:
		return nil, fmt.Errorf("nfqueue: %d packets can't wait", o.Waiting)
	}
	if o.Waiting == 0 {
		o.Waiting = defaultWaiting
	}
	// Opened here, the file goes on showing the queues of this namespace.
	proc, err := os.Open(procFile)
	if err != nil {
		return nil, fmt.Errorf("nfqueue: the kernel has no queues (nfnetlink_queue): %w", err)
	}
	qs := &Queues{proc: proc, room: max(o.Copy, roomForCopy), ended: make(chan struct{})}
	for worker := range o.Count {
		q, err := openQueue(&o, worker)
		if err != nil {
			qs.Close()
			return nil, err
		}
		qs.queues = append(qs.queues, q)
	}
	return qs, nil
}

// SetCopy changes how many bytes of each packet are copied, up to 2048 or what Open was told if that
// is more; packets that wait have been copied already. Who takes rules into force that look further
// into packets calls it before.
func (qs *Queues) SetCopy(n int) error {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	switch {
	case qs.closing:
		return ErrClosed
	case n < 1 || n > qs.room:
		return fmt.Errorf("nfqueue: %d bytes of a packet are not between 1 and %d", n, qs.room)
	}
	for _, q := range qs.queues {
		if err := q.setCopy(n); err != nil {
			return fmt.Errorf("nfqueue: queue %d: copy %d bytes of a packet: %w", q.num, n, err)
		}
	}
	return nil
}

// maxCopy is the longest part of a packet that a netlink attribute can carry; the kernel copies
// no more (NFQNL_MAX_COPY_RANGE).
const maxCopy = 0xffff - 4

// ErrClosed is returned by Serve when the queues were closed before.
var ErrClosed = errors.New("nfqueue: closed")

// Serve asks decide about every packet, from one goroutine for each queue, until Close; then it
// returns nil. Where a queue fails it ends the others and returns why.
func (qs *Queues) Serve(decide Decide) error {
	qs.mu.Lock()
	if qs.closing || qs.serving {
		qs.mu.Unlock()
		return ErrClosed
	}
	qs.serving = true
	qs.mu.Unlock()
	errs := make(chan error)
	for _, q := range qs.queues {
		q.decide = decide
		go func() {
			err := q.run()
			close(q.done)
			errs <- err
		}()
	}
	var first error
	for range qs.queues {
		if err := <-errs; err != nil && first == nil {
			first = err
			go qs.Close()
		}
	}
	return first
}

const (
	// The acknowledgement that ends a queue finds no room where the socket's buffer is full.
	stopAgain = 50 * time.Millisecond
	stopTries = 100
)

// Close answers the packets that wait, if they are served, and gives the queues back. It waits until that is done, also
// where somebody else has called it before.
func (qs *Queues) Close() error {
	qs.mu.Lock()
	if qs.closing {
		qs.mu.Unlock()
		<-qs.ended
		return nil
	}
	qs.closing = true
	serving := qs.serving
	qs.mu.Unlock()
	var errs []error
	for _, q := range qs.queues {
		if serving {
			errs = append(errs, q.end())
		}
	}
	for _, q := range qs.queues {
		errs = append(errs, q.unbind())
	}
	qs.mu.Lock()
	qs.closed = true
	qs.mu.Unlock()
	defer close(qs.ended)
	return errors.Join(append(errs, qs.proc.Close())...)
}

// end waits until the worker has answered what was in the queue.
func (q *queue) end() error {
	again := time.NewTicker(stopAgain)
	defer again.Stop()
	for range stopTries {
		if err := q.stop(); err != nil {
			return fmt.Errorf("nfqueue: stop queue %d: %w", q.num, err)
		}
		select {
		case <-q.done:
			return nil
		case <-again.C:
		}
	}
	return fmt.Errorf("nfqueue: queue %d does not end", q.num)
}
