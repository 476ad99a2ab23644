package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// LoadSpec says what a load generator does. It opens short connections (one
// question each) at a fixed rate, and beside them keeps long ones that ask again and
// again.
type LoadSpec struct {
	Host    *Host
	Network string   // "tcp", "http" or "udp"
	Targets []string // literal addresses, taken in turn

	// Rate is how many short connections are due per second, whether earlier ones
	// have been answered or not; 0 opens the next when one ends, at most Concurrency
	// at once.
	Rate float64
	// Concurrency is how many short connections may be open at once, default 256.
	// With a Rate, more than that wait their turn, and the wait is part of their
	// latency.
	Concurrency int
	// Count (of short connections) and Duration end the load, whichever comes first; 0
	// means no limit. With neither, the end of ctx ends it.
	Count    int
	Duration time.Duration
	// Timeout bounds each short connection, and each question of a long one; default
	// 5 s.
	Timeout time.Duration
	// Reset ends TCP connections by RST, so that no port is kept in TIME_WAIT.
	Reset bool
	// NoShort leaves the short connections out.
	NoShort bool

	// Long is the number of long connections; each asks every LongEvery, default
	// 100 ms. The short ones begin when all the long ones have been opened.
	Long      int
	LongEvery time.Duration
}

// LoadResult is what came of it.
type LoadResult struct {
	Opened    int            // short connections that were answered
	Failed    int            // short connections that were not
	Errors    map[string]int // how often each error came, short and long
	ByBackend map[string]int // answers to short connections, by the server's id
	Latency   Latency        // of answered short connections, from when they were due
	Long      LongResult
	Elapsed   time.Duration
}

// LongResult is about the long connections.
type LongResult struct {
	Opened  int           // answered at least once
	Failed  int           // never answered
	Broken  int           // of the opened: no answer to a later question, or one by another server
	Answers int           // all answers
	MaxWait time.Duration // the longest wait for an answer
}

// String returns the figures in one line.
func (r LoadResult) String() string {
	s := fmt.Sprintf("%d answered, %d failed in %s; latency %s; by backend %v", r.Opened, r.Failed,
		r.Elapsed.Round(time.Millisecond), r.Latency, r.ByBackend)
	if l := r.Long; l.Opened+l.Failed > 0 {
		s += fmt.Sprintf("; long: %d opened, %d failed, %d broken, %d answers, longest wait %s",
			l.Opened, l.Failed, l.Broken, l.Answers, l.MaxWait)
	}
	if len(r.Errors) > 0 {
		s += fmt.Sprintf("; errors %v", r.Errors)
	}
	return s
}

// Running is a load in progress.
type Running struct {
	spec   LoadSpec
	start  time.Time // when the first short connection is due
	next   atomic.Int64
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	res     LoadResult
	latency histogram
}

// Load runs a load to its end. Ending ctx ends it early: connections that are open
// then may still finish and are counted.
func Load(ctx context.Context, spec LoadSpec) (LoadResult, error) {
	r, err := StartLoad(ctx, spec)
	if err != nil {
		return LoadResult{}, err
	}
	return r.Wait(), nil
}

// StartLoad starts a load and returns when its long connections have been opened.
func StartLoad(ctx context.Context, spec LoadSpec) (*Running, error) {
	if spec.Host == nil || len(spec.Targets) == 0 {
		return nil, errors.New("lab: a load needs a host and a target")
	}
	if spec.Timeout <= 0 {
		spec.Timeout = AskTimeout
	}
	if spec.LongEvery <= 0 {
		spec.LongEvery = 100 * time.Millisecond
	}
	if spec.Concurrency <= 0 {
		spec.Concurrency = 256
	}
	if spec.Count > 0 {
		spec.Concurrency = min(spec.Concurrency, spec.Count)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Running{spec: spec, cancel: cancel, done: make(chan struct{})}
	r.res.Errors, r.res.ByBackend = map[string]int{}, map[string]int{}
	var long, opening, short sync.WaitGroup
	longCtx, endLong := context.WithCancel(ctx)
	for i := range spec.Long {
		opening.Add(1)
		long.Go(func() { r.long(longCtx, spec.Targets[i%len(spec.Targets)], opening.Done) })
	}
	opening.Wait()

	r.start = time.Now()
	timed := func() {}
	if spec.Duration > 0 {
		timer := time.AfterFunc(spec.Duration, cancel)
		timed = func() { timer.Stop() }
	}
	if !spec.NoShort {
		for range spec.Concurrency {
			short.Go(func() { r.worker(ctx) })
		}
	} else {
		short.Go(func() { <-ctx.Done() })
	}
	go func() {
		short.Wait()
		timed()
		endLong()
		long.Wait()
		cancel()
		r.mu.Lock()
		r.res.Elapsed = time.Since(r.start)
		r.mu.Unlock()
		close(r.done)
	}()
	return r, nil
}

// Stop ends the load as the end of its context would, and returns the result.
func (r *Running) Stop() LoadResult {
	r.cancel()
	return r.Wait()
}

// Wait waits for the end of the load.
func (r *Running) Wait() LoadResult {
	<-r.done
	return r.Snapshot()
}

// Snapshot returns the figures so far.
func (r *Running) Snapshot() LoadResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	res := r.res
	if res.Elapsed == 0 {
		res.Elapsed = time.Since(r.start)
	}
	res.Errors, res.ByBackend = maps.Clone(res.Errors), maps.Clone(res.ByBackend)
	res.Latency = r.latency.summary()
	return res
}

// worker takes the next connection, waits until it is due and makes it. The due
// time is fixed by the connection's number, so that slow answers do not slow the
// load down, and what they delay shows in the latency.
func (r *Running) worker(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		i := r.next.Add(1) - 1
		if r.spec.Count > 0 && i >= int64(r.spec.Count) {
			return
		}
		due := time.Now()
		if r.spec.Rate > 0 {
			due = r.start.Add(time.Duration(float64(i) / r.spec.Rate * float64(time.Second)))
			timer.Reset(time.Until(due))
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		r.one(due, r.spec.Targets[i%int64(len(r.spec.Targets))])
	}
}

// one makes a short connection. It does not end with the load's context: a
// connection that was begun is finished.
func (r *Running) one(due time.Time, target string) {
	ctx, cancel := context.WithTimeout(context.Background(), r.spec.Timeout)
	defer cancel()
	var reply string
	c, err := r.spec.Host.dialTalk(ctx, r.spec.Network, "", target)
	if err == nil {
		reply, err = c.ask()
		r.end(c.conn)
	}
	took := time.Since(due)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.res.Failed++
		r.res.Errors[errorText(err)]++
		return
	}
	r.res.Opened++
	r.res.ByBackend[backendID(reply)]++
	r.latency.add(took)
}

func (r *Running) end(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok && r.spec.Reset {
		_ = t.SetLinger(0) // fails only when the connection is gone already
	}
	c.Close()
}

// long keeps one connection until ctx ends; opened is called once when the first
// answer has come or will not come.
func (r *Running) long(ctx context.Context, target string, opened func()) {
	dialCtx, cancel := context.WithTimeout(ctx, r.spec.Timeout)
	defer cancel()
	var reply string
	c, err := r.spec.Host.dialTalk(dialCtx, r.spec.Network, "", target)
	if err == nil {
		defer r.end(c.conn)
		reply, err = c.ask()
	}
	r.mu.Lock()
	if err != nil {
		r.res.Long.Failed++
		r.res.Errors[errorText(err)]++
	} else {
		r.res.Long.Opened++
		r.res.Long.Answers++
	}
	r.mu.Unlock()
	opened()
	if err != nil {
		return
	}
	ticker := time.NewTicker(r.spec.LongEvery)
	defer ticker.Stop()
	for id := backendID(reply); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := r.again(c, id); err != nil {
			return
		}
	}
}

// errMoved is a long connection that another server answers.
var errMoved = errors.New("answered by another server")

// again asks once more on a long connection.
func (r *Running) again(c *talk, id string) error {
	begin := time.Now()
	err := c.conn.SetDeadline(begin.Add(r.spec.Timeout))
	var reply string
	if err == nil {
		reply, err = c.ask()
	}
	if err == nil && backendID(reply) != id {
		err = errMoved
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.res.Long.Broken++
		r.res.Errors["long: "+errorText(err)]++
		return err
	}
	r.res.Long.Answers++
	r.res.Long.MaxWait = max(r.res.Long.MaxWait, time.Since(begin))
	return nil
}

// errorText is an error without addresses, so that equal ones count together.
func errorText(err error) string {
	op := ""
	var opErr *net.OpError
	if errors.As(err, &opErr) {
		op = opErr.Op + ": "
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return op + "timeout"
	case errors.As(err, &errno):
		return op + errno.Error()
	case opErr != nil && opErr.Timeout():
		return op + "timeout"
	case opErr != nil:
		return op + opErr.Err.Error()
	}
	return err.Error()
}
