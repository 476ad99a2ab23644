package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"weir/internal/lab"
)

// The numbers of entries that blocklists are measured with, and with how many linear
// rules still make sense.
var sizesOfBlocks = []int{650, 10_000, 100_000, 1_000_000}

const mostLinear = 10_000

// BlockCell is one contender with a list of some size: what loading it took, and what a
// packet costs that no entry is about.
type BlockCell struct {
	Name    string  `json:"name"`
	Entries int     `json:"entries"`
	Mixed   bool    `json:"mixed"` // prefixes of ten lengths, /8 to /32; else single addresses
	Load    Times   `json:"load"`
	Memory  float64 `json:"memory_mib"` // the most that the loading process had
	Packet  Cost    `json:"packet"`
	Rounds  int     `json:"rounds"`
	Problem string  `json:"problem,omitempty"`
}

// BlocksReport is the part about blocklists. The first cell has no list.
type BlocksReport struct {
	Cells []BlockCell `json:"cells"`
	// Change is giving 1 % of 100,000 entries of ten lengths for others in a process that
	// holds the lists: compile, plan, compare, commit. Commit is the last part of it.
	Change  Times `json:"change"`
	Compile Times `json:"compile"`
	Changes int   `json:"changes"`
}

// Names of the rows.
const (
	oneRule    = "one rule, no list"
	weirBlocks = "weir"
)

// blockEntries returns n entries: single addresses, or prefixes as they are in public
// lists, ten lengths from /8 to /32.
func blockEntries(n int, mixed bool) []netip.Prefix {
	rnd := rand.New(rand.NewPCG(7, uint64(n)))
	share := []struct {
		bits int
		part float64
	}{{8, 0.00005}, {10, 0.0001}, {12, 0.0005}, {14, 0.002}, {16, 0.02}, {18, 0.05}, {20, 0.1}, {22, 0.2}, {24, 0.3}}
	seen := make(map[netip.Prefix]bool, n)
	out := make([]netip.Prefix, 0, n)
	add := func(bits, want int) {
		for want > 0 && len(out) < n {
			p := netip.PrefixFrom(publicAddr(rnd), bits).Masked()
			if !seen[p] {
				seen[p] = true
				out = append(out, p)
				want--
			}
			if want < 1<<bits/4 || bits > 12 {
				continue
			}
			want = 0 // there are not so many of that length
		}
	}
	if mixed {
		for _, s := range share {
			add(s.bits, min(int(math.Ceil(s.part*float64(n))), 1<<s.bits/4))
		}
	}
	add(32, n)
	return out
}

// publicAddr draws an address that may be a source.
func publicAddr(rnd *rand.Rand) netip.Addr {
	for {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rnd.Uint32())
		if b[0] > 0 && b[0] != 127 && b[0] < 224 {
			return netip.AddrFrom4(b)
		}
	}
}

// strangers returns packets from random sources that no entry holds.
func strangers(entries []netip.Prefix) [][]byte {
	lengths := map[int]bool{}
	in := make(map[netip.Prefix]bool, len(entries))
	for _, p := range entries {
		in[p], lengths[p.Bits()] = true, true
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	dst := netip.AddrPortFrom(listenAddr(0), listenPort)
	var out [][]byte
next:
	for len(out) < maxFrames {
		a := publicAddr(rnd)
		for bits := range lengths {
			if in[netip.PrefixFrom(a, bits).Masked()] {
				continue next
			}
		}
		out = append(out, lab.TCPPacket(netip.AddrPortFrom(a, 1234), dst, lab.SYN, clientSeq, 0))
	}
	return out
}

// dropHere ends every packet after the lists, in the cheapest way.
const dropHere = `table inet bench {
	chain c { type filter hook prerouting priority raw; policy accept; drop; }
}
`

// blockContender loads a list into a gateway.
type blockContender struct {
	name  string
	needs []string
	most  int // entries, 0 for any number
	load  func(ctx context.Context, b *bench, h *lab.Host, entries []netip.Prefix, mixed bool) result
}

var blockContenders = []blockContender{
	{name: weirBlocks, load: loadWeirBlocks},
	{name: "nft set", needs: []string{"nft"}, load: loadNftSet},
	{name: "ipset", needs: []string{"ipset", "iptables-legacy-restore"}, load: loadIpset},
	{name: "iptables, linear", needs: []string{"iptables-legacy-restore"}, most: mostLinear, load: loadLinear},
}

func loadWeirBlocks(ctx context.Context, b *bench, h *lab.Host, entries []netip.Prefix, _ bool) result {
	var text strings.Builder
	for _, p := range entries {
		text.WriteString(p.String() + "\n")
	}
	file, err := b.file("list.txt", []byte(text.String()))
	if err != nil {
		return result{Problem: err.Error()}
	}
	return b.self(ctx, h, []string{blocksWord, file})
}

// loadNftSet loads a hash of addresses or a set of ranges, as one writes them by hand, with
// counters.
func loadNftSet(ctx context.Context, b *bench, h *lab.Host, entries []netip.Prefix, mixed bool) result {
	flags := ""
	if mixed {
		flags = "flags interval\n"
	}
	var text strings.Builder
	text.WriteString("table inet lists {\nset s {\ntype ipv4_addr\n" + flags + "counter\nelements = {\n")
	for _, r := range ranges(entries) {
		if mixed {
			fmt.Fprintf(&text, "%s-%s,\n", r[0], r[1])
		} else {
			fmt.Fprintf(&text, "%s,\n", r[0])
		}
	}
	text.WriteString("}\n}\nchain c {\ntype filter hook prerouting priority raw - 1\nip saddr @s drop\n}\n}\n")
	file, err := b.file("list.nft", []byte(text.String()))
	if err != nil {
		return result{Problem: err.Error()}
	}
	return b.launch(ctx, h, []string{"nft", "-f", file})
}

// ranges returns the first and the last address of entries, those that overlap as one:
// an interval set takes no others. Single addresses stay as they are.
func ranges(entries []netip.Prefix) [][2]netip.Addr {
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var out [][2]netip.Addr
	for _, p := range sorted {
		last := nth(p, 1<<(32-p.Bits())-1)
		if n := len(out); n > 0 && p.Addr().Compare(out[n-1][1]) <= 0 {
			if last.Compare(out[n-1][1]) > 0 {
				out[n-1][1] = last
			}
			continue
		}
		out = append(out, [2]netip.Addr{p.Addr(), last})
	}
	return out
}

func loadIpset(ctx context.Context, b *bench, h *lab.Host, entries []netip.Prefix, mixed bool) result {
	kind := "hash:ip"
	if mixed {
		kind = "hash:net"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "create s %s family inet hashsize 65536 maxelem 2000000 counters\n", kind)
	for _, p := range entries {
		fmt.Fprintf(&text, "add s %s\n", strings.TrimSuffix(p.String(), "/32"))
	}
	file, err := b.file("list.ipset", []byte(text.String()))
	if err != nil {
		return result{Problem: err.Error()}
	}
	res := b.launch(ctx, h, []string{"ipset", "-file", file, "restore"})
	if res.Problem != "" {
		return res
	}
	if rules := b.restoreRaw(ctx, h, "-A PREROUTING -m set --match-set s src -j DROP\n"); rules.Problem != "" {
		return rules
	}
	return res
}

func loadLinear(ctx context.Context, b *bench, h *lab.Host, entries []netip.Prefix, _ bool) result {
	var text strings.Builder
	for _, p := range entries {
		fmt.Fprintf(&text, "-A PREROUTING -s %s -j DROP\n", p)
	}
	return b.restoreRaw(ctx, h, text.String())
}

func (b *bench) restoreRaw(ctx context.Context, h *lab.Host, rules string) result {
	file, err := b.file("list.rules", []byte("*raw\n:PREROUTING ACCEPT [0:0]\n"+rules+"COMMIT\n"))
	if err != nil {
		return result{Problem: err.Error()}
	}
	return b.launch(ctx, h, []string{"iptables-legacy-restore", file})
}

// blockPath is one gateway with a list.
type blockPath struct {
	cell BlockCell
	ending
}

// blocks measures blocklists.
func (b *bench) blocks(ctx context.Context) (*BlocksReport, error) {
	rep := &BlocksReport{}
	if err := b.blockChange(ctx, rep); err != nil {
		return nil, err
	}
	var paths []*blockPath
	err := b.generated("blocklists", func(gen *generator, n *lab.Net) (err error) {
		if paths, err = b.blockPaths(ctx, n); err != nil {
			return err
		}
		return b.inRounds(ctx, "blocklists", len(paths), func(i int) {
			if p := paths[i]; p.cell.Problem == "" {
				if err := p.measure(gen); err != nil {
					p.cell.Problem = err.Error()
				}
			}
		})
	})
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		p.cell.Packet, p.cell.Rounds = costOf(p.costs), len(p.costs)
		rep.Cells = append(rep.Cells, p.cell)
	}
	return rep, nil
}

// blockPaths makes the gateways and loads their lists.
func (b *bench) blockPaths(ctx context.Context, n *lab.Net) ([]*blockPath, error) {
	world, err := b.file("drop.nft", []byte(dropAll))
	if err != nil {
		return nil, err
	}
	here, err := b.file("here.nft", []byte(dropHere))
	if err != nil {
		return nil, err
	}
	var paths []*blockPath
	add := func(cell BlockCell, frames []byte) (*blockPath, error) {
		gw, err := newGateway(n, fmt.Sprintf("lists-%d", len(paths)), world)
		if err != nil {
			return nil, err
		}
		paths = append(paths, &blockPath{cell, ending{gw: gw, frames: frames}})
		_, err = gw.host.Run("nft", "-f", here)
		return paths[len(paths)-1], err
	}
	if _, err := add(BlockCell{Name: oneRule}, ether(outsideMAC, clientMAC, strangers(nil))); err != nil {
		return nil, err
	}
	for _, size := range b.blockSizes {
		for _, mixed := range []bool{false, true} {
			entries := blockEntries(size, mixed)
			frames := ether(outsideMAC, clientMAC, strangers(entries))
			for _, c := range blockContenders {
				if c.most > 0 && size > c.most || !b.has(c.needs) {
					continue
				}
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				b.say("blocklists: %s, %s: load", c.name, kindOf(size, mixed))
				p, err := add(BlockCell{Name: c.name, Entries: size, Mixed: mixed}, frames)
				if err != nil {
					return nil, err
				}
				settle()
				res := c.load(ctx, b, p.gw.host, entries, mixed)
				p.cell.Load, p.cell.Memory, p.cell.Problem = Times{res.MS, res.CPU}, float64(res.RSSKiB)/1024, res.Problem
			}
		}
	}
	return paths, nil
}

func kindOf(size int, mixed bool) string {
	if mixed {
		return fmt.Sprintf("%d prefixes of ten lengths", size)
	}
	return fmt.Sprintf("%d single addresses", size)
}

// has reports whether programs are here, and notes once what is not.
func (b *bench) has(programs []string) bool {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if !b.told[p] {
				b.told[p] = true
				b.note("%s is not on this machine: left out", p)
			}
			return false
		}
	}
	return true
}
