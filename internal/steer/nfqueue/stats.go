package nfqueue

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Stats are the numbers of one queue since it was opened.
type Stats struct {
	Queue    uint16
	Packets  uint64 // that were asked about
	Receives uint64 // system calls that brought some of them
	Verdicts uint64 // messages that answered some of them
	Refused  uint64 // verdicts on packets that had gone meanwhile, say with their device
	Overruns uint64 // times that the kernel said that it lost packets

	Waiting    uint64 // packets without a verdict now
	Dropped    uint64 // lost because too many waited
	Unreceived uint64 // lost because the socket's buffer was full
	Numbered   uint64 // packets that the kernel has given a number: those asked about, waiting or unreceived
}

// procFile is where the kernel tells of its queues.
const procFile = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// Stats returns the numbers of all queues. It fails once they are closed.
func (qs *Queues) Stats() ([]Stats, error) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if qs.closed {
		return nil, ErrClosed
	}
	var out []Stats
	for _, q := range qs.queues {
		out = append(out, Stats{Queue: q.num, Packets: q.counts.packets.Load(), Receives: q.counts.receives.Load(),
			Verdicts: q.counts.verdicts.Load(), Refused: q.counts.refused.Load(), Overruns: q.counts.overruns.Load()})
	}
	text := make([]byte, 128*1024)
	n, err := qs.proc.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("nfqueue: read %s: %w", procFile, err)
	}
	parseProc(string(text[:n]), out)
	return out, nil
}

// parseProc fills in what the kernel tells (seq_show in nfnetlink_queue.c): queue, port, waiting,
// mode and range of copying, dropped, unreceived, numbered, and a 1.
func parseProc(text string, stats []Stats) {
	for line := range strings.Lines(text) {
		var num, port, waiting, mode, length, dropped, unreceived, numbered uint64
		if n, _ := fmt.Sscan(line, &num, &port, &waiting, &mode, &length, &dropped, &unreceived, &numbered); n != 8 {
			continue
		}
		for i := range stats {
			if s := &stats[i]; uint64(s.Queue) == num {
				s.Waiting, s.Dropped, s.Unreceived, s.Numbered = waiting, dropped, unreceived, numbered
			}
		}
	}
}
