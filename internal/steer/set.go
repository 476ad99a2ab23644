package steer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weir/internal/flow"
	"weir/internal/steer/match"
)

// By says which part of a packet the choice of a member depends on.
type By uint8

const (
	// BySourcePort is the source address and port, as in nft's "ip saddr . th sport". Packets
	// without ports, such as later fragments, are chosen for as with BySource.
	BySourcePort By = iota
	// BySource is the source address alone: all connections of a client have the same member.
	BySource
)

// Config is what a [Set] is made of.
type Config struct {
	Seed    uint32 // of the hash: the same on every node, and in the kernel's rules
	Mask    uint32 // the bits of a packet's mark that may be written, at least one
	Rules   []Rule
	Targets []Target
	// None is the mark, within Mask, of packets that no rule wants or whose target has no
	// member with weight. With 0 they stay without a mark, and where the kernel asks about
	// connections that have none it asks about each of their packets.
	None    uint32
	Workers int // how many may ask at the same time, at least 1
}

// Rule sends packets to a target. What it leaves out matches everything.
type Rule struct {
	Name      string // unique
	Priority  int    // the rule with the lowest is asked first; of several alike, the one that stands first
	Protocols []uint8
	// Sources and Destinations may be of both families. A packet of a family of which there is no
	// prefix, where there are any, does not match.
	Sources, Destinations []netip.Prefix
	// SourcePorts and DestinationPorts are those of TCP, UDP, SCTP, DCCP and UDP-Lite. A packet
	// without ports does not match where there are any.
	SourcePorts, DestinationPorts []PortRange
	Bytes                         match.Conditions
	To                            string // the name of a target
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Target is a group of which one member is chosen. The members of each family have a table of their
// own, as a service's have in the kernel.
type Target struct {
	Name    string // unique
	By      By
	Members []Member // all that are configured, at most 10485; weight 0 takes one out
}

// Member is one of a group.
type Member struct {
	flow.Member
	V6   bool   // for packets of IPv6; else for those of IPv4
	Mark uint32 // what tells it in the kernel: within the mask, not 0
}

// Choice is what a set says of a packet. -1 stands for none.
type Choice struct {
	Rule, Target, Member int    // indices in the configuration
	Mark                 uint32 // of the mask's bits
}

// Set is rules and targets, ready to be asked. It is immutable.
type Set struct {
	cfg     Config
	rules   []rule // by priority
	byProto [256][]*rule
	targets []target
	counts  *counts
}

type target struct {
	tables [2]table // of IPv4 and IPv6
	by     By
	marks  []uint32
}

// table is the members of one family.
type table struct {
	slots []int32 // by hash, the index of a member of either family; empty where none has weight
	size  uint32
}

// New makes a set. An error says which rule or target is wrong: whoever reads a file has checked
// it before. What before counted, which may be nil, goes on under the same names.
func New(cfg Config, before *Set) (*Set, error) {
	s := &Set{cfg: cfg}
	if cfg.Workers < 1 || cfg.Mask == 0 || cfg.None&^cfg.Mask != 0 {
		return nil, fmt.Errorf("steer: %d workers, mask 0x%x and mark 0x%x for no target do not fit", cfg.Workers, cfg.Mask, cfg.None)
	}
	names := map[string]int{}
	for i := range cfg.Targets {
		t := &cfg.Targets[i]
		if _, twice := names[t.Name]; twice {
			return nil, fmt.Errorf("steer: target %s is there twice", t.Name)
		}
		names[t.Name] = i
		made, err := newTarget(t, cfg.Mask)
		if err != nil {
			return nil, fmt.Errorf("steer: target %s: %w", t.Name, err)
		}
		s.targets = append(s.targets, made)
	}
	if err := s.compile(names); err != nil {
		return nil, err
	}
	s.counts = newCounts(&s.cfg, before)
	return s, nil
}

// mostMembers is how many a Maglev table is made for (flow.TableSize).
const mostMembers = 10485

func newTarget(t *Target, mask uint32) (target, error) {
	made := target{by: t.By}
	if len(t.Members) > mostMembers {
		return made, fmt.Errorf("%d members, where %d are the most", len(t.Members), mostMembers)
	}
	seen := map[string]bool{}
	for _, m := range t.Members {
		switch {
		case m.Mark == 0 || m.Mark&^mask != 0:
			return made, fmt.Errorf("mark 0x%x of %s is 0 or not within the mask 0x%x", m.Mark, m.ID, mask)
		case seen[m.ID]:
			return made, fmt.Errorf("member %s is there twice", m.ID)
		}
		seen[m.ID] = true
		made.marks = append(made.marks, m.Mark)
	}
	made.tables = [2]table{newTable(t.Members, false), newTable(t.Members, true)}
	return made, nil
}

func newTable(all []Member, v6 bool) table {
	var members []flow.Member
	var index []int32
	some := false
	for i, m := range all {
		if m.V6 == v6 {
			members, index = append(members, m.Member), append(index, int32(i))
			some = some || m.Weight > 0
		}
	}
	if !some {
		return table{}
	}
	size := flow.TableSize(len(members))
	slots := flow.Maglev(members, size)
	for i := range slots {
		slots[i] = index[slots[i]]
	}
	return table{slots, uint32(size)}
}

func (s *Set) compile(targets map[string]int) error {
	seen := map[string]bool{}
	for i := range s.cfg.Rules {
		r := &s.cfg.Rules[i]
		to, ok := targets[r.To]
		switch {
		case !ok:
			return fmt.Errorf("steer: rule %s: there is no target %q", r.Name, r.To)
		case seen[r.Name]:
			return fmt.Errorf("steer: rule %s is there twice", r.Name)
		}
		seen[r.Name] = true
		made, err := newRule(r, i, to)
		if err != nil {
			return fmt.Errorf("steer: rule %s: %w", r.Name, err)
		}
		s.rules = append(s.rules, made)
	}
	slices.SortStableFunc(s.rules, func(a, b rule) int { return cmp.Compare(a.priority, b.priority) })
	for proto := range s.byProto {
		for i := range s.rules {
			if r := &s.rules[i]; len(r.protocols) == 0 || slices.Contains(r.protocols, uint8(proto)) {
				s.byProto[proto] = append(s.byProto[proto], r)
			}
		}
	}
	return nil
}

// CopyLength returns how many bytes of a packet the rules may look at.
func (s *Set) CopyLength() int {
	n := match.Conditions(nil).CopyLength()
	for i := range s.cfg.Rules {
		n = max(n, s.cfg.Rules[i].Bytes.CopyLength())
	}
	return n
}

// Choose returns what the rules say of a packet. It counts nothing.
func (s *Set) Choose(p *match.Packet) Choice {
	var a addrs
	a.read(p)
	for _, r := range s.byProto[p.Proto] {
		if r.match(p, &a) {
			c := Choice{Rule: r.index, Target: r.target, Member: -1, Mark: s.cfg.None}
			t := &s.targets[r.target]
			if c.Member = t.choose(p, s.cfg.Seed); c.Member >= 0 {
				c.Mark = t.marks[c.Member]
			}
			return c
		}
	}
	return Choice{-1, -1, -1, s.cfg.None}
}

// choose returns the index of the packet's member, or -1.
func (t *target) choose(p *match.Packet, seed uint32) int {
	table := &t.tables[0]
	if p.V6 {
		table = &t.tables[1]
	}
	if table.size == 0 {
		return -1
	}
	var buf [flow.KeySize]byte
	var key []byte
	if t.by == BySource || !p.HasPorts {
		key = flow.KeySource(&buf, p.Src)
	} else {
		key = flow.KeySourcePort(&buf, p.Src, p.SrcPort)
	}
	return int(table.slots[flow.Choose(key, seed, table.size, 0)])
}
