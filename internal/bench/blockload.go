package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"weir/internal/blocklist"
	"weir/internal/engine"
	"weir/internal/lab"
	"weir/internal/model"
	"weir/internal/nft"
	"weir/internal/plan"
	"weir/internal/ruleset"
)

// blocksWord makes the program a process that holds lists: it loads a file, and changes
// some of it if asked.
const blocksWord = "blocks"

// changedEntries is how many entries are changed, of how many, and how often.
const (
	changedOf      = 100_000
	changedEntries = changedOf / 100
	changeTimes    = 10
)

// holder is a process that holds lists.
type holder struct {
	conn *nft.Conn
	now  *plan.Plan
	res  result
}

// blockLists does a part of the work in a process of its own: what weir does from the text
// of a list to the kernel's yes.
func blockLists(file string, change bool) result {
	h := &holder{now: &plan.Plan{Config: &model.Config{}, Ruleset: &ruleset.Ruleset{}}}
	var err error
	if h.conn, err = nft.Open(); err != nil {
		return result{Problem: err.Error()}
	}
	defer h.conn.Close()
	start, before := time.Now(), processTime(os.Getpid())
	f, err := os.Open(file)
	if err != nil {
		return result{Problem: err.Error()}
	}
	defer f.Close()
	h.apply(f)
	h.res.MS, h.res.CPU = millis(time.Since(start)), millis(processTime(os.Getpid())-before)
	if change {
		h.changes(file)
	}
	h.res.RSSKiB = peakKiB(os.Getpid())
	return h.res
}

// apply blocks what the list says. It returns what compiling took, and the rest.
func (h *holder) apply(text io.Reader) (compile, rest Times) {
	if h.res.Problem != "" {
		return
	}
	lap := laps()
	b := blocklist.NewBuilder("list", blocklist.Options{})
	err := b.Add("list", text)
	if err == nil {
		var c *blocklist.Compiled
		if c, err = blocklist.Compile([]blocklist.Use{{List: b.List(), Action: blocklist.Drop}}, nil); err == nil {
			compile = lap()
			empty := &plan.Plan{Config: h.now.Config, Ruleset: &ruleset.Ruleset{}}
			next := empty.WithBlocks(plan.NewBlocks(c, h.now.Blocks))
			d := ruleset.Diff(h.now.Ruleset, next.Ruleset)
			if err = engine.SettleCounts(context.Background(), h.conn, d, next.Blocks); err == nil {
				_, err = h.conn.Apply(context.Background(), d, 0)
			}
			h.now = next
			rest = lap()
		}
	}
	if err != nil {
		h.res.Problem = err.Error()
	}
	return compile, rest
}

// laps returns a function that tells the time since it was last called.
func laps() func() Times {
	start, cpu := time.Now(), processTime(os.Getpid())
	return func() Times {
		now, nowCPU := time.Now(), processTime(os.Getpid())
		t := Times{millis(now.Sub(start)), millis(nowCPU - cpu)}
		start, cpu = now, nowCPU
		return t
	}
}

// changes gives 1 % of the entries for others, several times.
func (h *holder) changes(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		h.res.Problem = err.Error()
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	rnd := rand.New(rand.NewPCG(3, 3))
	for range changeTimes {
		for range changedEntries {
			i := rnd.IntN(len(lines))
			old, err := netip.ParsePrefix(lines[i])
			if err != nil {
				h.res.Problem = err.Error()
				return
			}
			lines[i] = netip.PrefixFrom(publicAddr(rnd), old.Bits()).Masked().String()
		}
		compile, rest := h.apply(strings.NewReader(strings.Join(lines, "\n")))
		h.res.Changes, h.res.ChangeCPU = append(h.res.Changes, rest.Clock), append(h.res.ChangeCPU, rest.CPU)
		h.res.Health, h.res.HealthCPU = append(h.res.Health, compile.Clock), append(h.res.HealthCPU, compile.CPU)
	}
}

// blockChange measures the change of 1 %.
func (b *bench) blockChange(ctx context.Context, rep *BlocksReport) error {
	var text strings.Builder
	for _, p := range blockEntries(changedOf, true) {
		text.WriteString(p.String() + "\n")
	}
	file, err := b.file("change.txt", []byte(text.String()))
	if err != nil {
		return err
	}
	b.say("blocklists: change %d of %d entries", changedEntries, changedOf)
	return b.inFresh(func(h *lab.Host) {
		res := b.self(ctx, h, []string{blocksWord, file, "change"})
		if res.Problem != "" {
			b.note("blocklists: no change: %s", res.Problem)
			return
		}
		rep.Change = Times{median(res.Changes), median(res.ChangeCPU)}
		rep.Compile = Times{median(res.Health), median(res.HealthCPU)}
		rep.Changes = len(res.Changes)
	})
}

// The aims for blocklists.
const (
	aimNearFloor  = 1.15  // single addresses, the least of the sizes, to one rule
	aimBlocksMem  = 400.0 // MiB for a million
	aimBlocksMove = 100.0 // ms for 1 % of 100,000
)

func (r *BlocksReport) print(w io.Writer) {
	fmt.Fprint(w, `
Blocklists: what a packet costs that no entry is about (received, looked up, dropped by one more rule;
median and least of the rounds in ns, ratios of the least to one rule without a list), and what it takes
to load the list: time on the clock, CPU time and memory of the process, once. Every entry counts, but
those of linear iptables; the counters of weir's are made by the first packet that meets the entry.
`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var floor float64
	kind := ""
	for _, c := range r.Cells {
		if c.Name == oneRule {
			floor = c.Packet.Least
			fmt.Fprintf(tw, "\n%s\t%.0f\t%.0f\t\t\t\t\t\n", c.Name, c.Packet.Median, c.Packet.Least)
			continue
		}
		if k := kindOf(c.Entries, c.Mixed); k != kind {
			kind = k
			fmt.Fprintf(tw, "\n%s\tmedian\tleast\t/one rule\tload\tCPU\tmemory\t\n", kind)
		}
		if c.Problem != "" {
			fmt.Fprintf(tw, "  %s\tfailed: %s\t\t\t\t\t\t\n", c.Name, c.Problem)
			continue
		}
		fmt.Fprintf(tw, "  %s\t%.0f\t%.0f\tx%.2f\t%.0f ms\t%.0f ms\t%.0f MiB\t\n", c.Name, c.Packet.Median, c.Packet.Least,
			quotient(c.Packet.Least, floor), c.Load.Clock, c.Load.CPU, c.Memory)
	}
	tw.Flush()
	fmt.Fprintf(w, `
weir: from the text of the list to the kernel's yes, in a process that stays.
nft set: nft -f; a hash for single addresses; for prefixes a set of ranges, in which those that overlap are
  one, and have one counter.
ipset: ipset restore; hash:ip and hash:net with counters, and one rule of iptables-legacy.

1 %% of 100,000 prefixes for others, weir (median of %d): plan, compare and commit %.0f ms (CPU %.0f ms);
reading and compiling the list before it %.0f ms (CPU %.0f ms). Aim: %.0f ms.
`, r.Changes, r.Change.Clock, r.Change.CPU, r.Compile.Clock, r.Compile.CPU, aimBlocksMove)
	r.printAims(w)
}

func (r *BlocksReport) cell(name string, entries int, mixed bool) BlockCell {
	for _, c := range r.Cells {
		if c.Name == name && c.Entries == entries && c.Mixed == mixed && c.Problem == "" {
			return c
		}
	}
	return BlockCell{}
}

// printAims says where weir is beside the others and the aims.
func (r *BlocksReport) printAims(w io.Writer) {
	for _, c := range r.Cells {
		if c.Name != weirBlocks || c.Problem != "" {
			continue
		}
		ipset, set := r.cell("ipset", c.Entries, c.Mixed), r.cell("nft set", c.Entries, c.Mixed)
		fmt.Fprintf(w, "%s: a packet takes x%.2f of ipset's and x%.2f of the nft set's; loading (CPU) x%.2f and x%.2f\n",
			kindOf(c.Entries, c.Mixed), quotient(c.Packet.Least, ipset.Packet.Least), quotient(c.Packet.Least, set.Packet.Least),
			quotient(c.Load.CPU, ipset.Load.CPU), quotient(c.Load.CPU, set.Load.CPU))
	}
	if len(r.Cells) > 1 {
		least := r.Cells[1].Entries
		fmt.Fprintf(w, "aims: %d single addresses to one rule x%.2f (aim x%.2f); memory at most %.0f MiB (aim %.0f)\n", least,
			quotient(r.cell(weirBlocks, least, false).Packet.Least, r.Cells[0].Packet.Least), aimNearFloor, r.mostMemory(), aimBlocksMem)
	}
}

func (r *BlocksReport) mostMemory() (most float64) {
	for _, c := range r.Cells {
		if c.Name == weirBlocks {
			most = max(most, c.Memory)
		}
	}
	return most
}
