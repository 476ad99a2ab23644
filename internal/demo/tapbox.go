package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"weir/internal/lab"
	"weir/internal/tap"
)

// TapFigures is what the tap box made of the copies that it got. Its JSON form is part of
// weir's interface, as that of Result.
type TapFigures struct {
	Packets     uint64 `json:"packets"`
	Lost        uint64 `json:"lost"`  // that the tap box had no room for
	Flows       uint64 `json:"flows"` // by addresses and ports, of which a client may use one again
	Connections uint64 `json:"connections"`
	// AnswerP50 is the median of the tap's reports of the time from the first SYN of a connection
	// to its SYN-ACK, in milliseconds; nil where none was seen.
	AnswerP50       *float64 `json:"answer_p50_ms"`
	Retransmissions uint64   `json:"retransmissions"` // by clients and service
	Resets          uint64   `json:"resets"`          // connections that were reset by either
}

// ClientFigures is what the clients' kernels counted of TCP meanwhile, which is to be the same.
type ClientFigures struct {
	Packets         uint64 `json:"packets"` // sent and received
	Connections     uint64 `json:"connections"`
	Retransmissions uint64 `json:"retransmissions"` // by clients
	Resets          uint64 `json:"resets"`          // that clients sent
}

// The segment of the tap box, and its device there and on the gateway.
const (
	copiesDev = "eth-copy"
	tapDev    = lab.HostDev
)

var (
	copiesGateway = []netip.Prefix{netip.MustParsePrefix("10.9.9.254/24"), netip.MustParsePrefix("2001:db8:9::254/64")}
	copiesTap     = []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24"), netip.MustParsePrefix("2001:db8:9::9/64")}
)

// tapEvery is the interval of the tap's reports, tapPatience for how long they are waited for.
const (
	tapEvery    = 200 * time.Millisecond
	tapPatience = 10 * time.Second
)

// tapBox is a host on which weir tap looks at copies.
type tapBox struct {
	host *lab.Host
	proc *lab.Process
	log  tail

	mu      sync.Mutex
	rest    []byte // of a line that is not complete
	sum     TapFigures
	p50s    []float64
	reports int
	first   chan struct{} // closed by the first report
}

// startTap builds the tap box and starts weir tap on it.
func (d *demo) startTap() (err error) {
	t := &tapBox{first: make(chan struct{})}
	if t.host, err = d.topo.Net.Host("tap"); err != nil {
		return err
	}
	err = d.topo.Net.Link(lab.End{Host: d.topo.Gateway, Name: copiesDev, Addrs: copiesGateway},
		lab.End{Host: t.host, Name: tapDev, Addrs: copiesTap})
	if err != nil {
		return err
	}
	cmd := t.host.Command(d.Binary, "tap", tapDev, "--every", tapEvery.String(), "--service", vip4+"/tcp", "--service", vip6+"/tcp", "-o", "json")
	cmd.Stdout, cmd.Stderr = t, &t.log
	if t.proc, err = t.host.Start(cmd); err != nil {
		return fmt.Errorf("start weir tap: %w", err)
	}
	d.tap = t
	return nil
}

// mirrorText is what the configuration says about copies.
func mirrorText() string {
	return fmt.Sprintf("mirrors:\n  - {name: analysis, match: {service: web}, to: [%q, %q]}\n", copiesTap[0].Addr(), copiesTap[1].Addr())
}

// ready waits until weir tap looks.
func (t *tapBox) ready(ctx context.Context) error {
	select {
	case <-t.first:
		return nil
	case <-t.proc.Done():
		return fmt.Errorf("weir tap ended at once:\n%s", &t.log)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(tapPatience):
		return fmt.Errorf("weir tap says nothing after %s:\n%s", tapPatience, &t.log)
	}
}

// Write takes what weir tap says: a line of JSON each time. It never fails.
func (t *tapBox) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	for {
		line, rest, ok := bytes.Cut(t.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		var r struct {
			Lost uint64 `json:"lost"`
			tap.Figures
		}
		if err := json.Unmarshal(line, &r); err == nil {
			t.add(r.Lost, &r.Figures)
		}
		t.rest = bytes.Clone(rest)
	}
}

// add adds a report.
func (t *tapBox) add(lost uint64, f *tap.Figures) {
	count := func(to *uint64, from ...*uint64) {
		for _, n := range from {
			if n != nil {
				*to += *n
			}
		}
	}
	count(&t.sum.Packets, &f.Packets)
	count(&t.sum.Lost, &lost)
	count(&t.sum.Flows, &f.FlowsNew)
	for _, s := range f.Services {
		count(&t.sum.Connections, s.Connections)
		count(&t.sum.Retransmissions, s.RetransmissionsTo, s.RetransmissionsFrom)
		count(&t.sum.Resets, s.ResetsTo, s.ResetsFrom)
		if s.AnswerP50 != nil {
			t.p50s = append(t.p50s, *s.AnswerP50)
		}
	}
	if t.reports++; t.reports == 1 {
		close(t.first)
	}
}

// figures returns what the tap box has seen so far.
func (t *tapBox) figures() TapFigures {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.sum
	if n := len(t.p50s); n > 0 {
		middle := slices.Sorted(slices.Values(t.p50s))[n/2]
		f.AnswerP50 = &middle
	}
	return f
}

// end waits until all copies of what clients sent and got have come, or no more come, and ends
// weir tap.
func (t *tapBox) end(ctx context.Context, packets uint64) TapFigures {
	have := t.figures()
	for since := time.Now(); have.Packets < packets && time.Since(since) < 4*tapEvery && ctx.Err() == nil; {
		time.Sleep(tapEvery / 10)
		now := t.figures()
		if now.Packets != have.Packets {
			since = time.Now()
		}
		have = now
	}
	stop(t.proc)
	return t.figures()
}

// readClients returns what the clients' kernels have counted of TCP (RFC 4022).
func readClients(hosts []*lab.Host) (f ClientFigures, err error) {
	for _, h := range hosts {
		var text []byte
		err := h.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/snmp")
			return err
		})
		if err != nil {
			return f, err
		}
		n := tcpCounters(string(text))
		f.Packets += n["InSegs"] + n["OutSegs"] + n["RetransSegs"] // which are not in OutSegs
		f.Connections += n["ActiveOpens"]
		f.Retransmissions += n["RetransSegs"]
		f.Resets += n["OutRsts"]
	}
	return f, nil
}

// tcpCounters reads the two lines about TCP in /proc/net/snmp: names, then numbers.
func tcpCounters(snmp string) map[string]uint64 {
	out := map[string]uint64{}
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0] != "Tcp:":
		case names == nil:
			names = fields
		default:
			for i := range min(len(names), len(fields)) {
				if n, err := strconv.ParseUint(fields[i], 10, 64); err == nil { // MaxConn is -1
					out[names[i]] = n
				}
			}
		}
	}
	return out
}

// since returns what has been counted since before.
func (f ClientFigures) since(before ClientFigures) ClientFigures {
	return ClientFigures{f.Packets - before.Packets, f.Connections - before.Connections, f.Retransmissions - before.Retransmissions, f.Resets - before.Resets}
}

// copies prints what the copies show, beside what the clients' kernels counted.
func (d *demo) copies(t *TapFigures, c *ClientFigures) {
	d.printf("\nweir tap on the box that gets copies of it all, beside what the clients' kernels counted:\n")
	row := func(what string, copies, clients any) { d.printf("  %-22s%12v%12v\n", what, copies, clients) }
	row("", "COPIES", "CLIENTS")
	row("packets", t.Packets, c.Packets)
	row("connections", t.Connections, c.Connections)
	row("flows", t.Flows, "-")
	if t.AnswerP50 != nil {
		row("time to SYN-ACK, p50", time.Duration(*t.AnswerP50*float64(time.Millisecond)), "-")
	}
	row("retransmissions", t.Retransmissions, c.Retransmissions)
	row("resets", t.Resets, c.Resets)
	row("lost", t.Lost, "-")
	if out, err := d.topo.Gateway.Run(d.Binary, "mirrors"); err == nil {
		d.printf("\nweir mirrors on the gateway:\n%s", indent(out))
	}
}
