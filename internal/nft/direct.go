package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// tableFamilies are those whose tables can be written and read.
var tableFamilies = []ruleset.Family{ruleset.Inet, ruleset.Netdev, ruleset.IP, ruleset.IP6}

// familyNumber returns the kernel's number of a family.
func familyNumber(f ruleset.Family) uint8 {
	switch f {
	case ruleset.Netdev:
		return unix.NFPROTO_NETDEV
	case ruleset.IP:
		return unix.NFPROTO_IPV4
	case ruleset.IP6:
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_INET
}

// of makes the message, which must be the only one so far, one about a table.
func (w *buf) of(ref TableRef) *buf {
	w.b[unix.SizeofNlMsghdr] = familyNumber(ref.Family) // of struct nfgenmsg
	return w
}

// What nf_tables.h has and golang.org/x/sys/unix lacks.
const (
	fwdSregDev  = 1 // NFTA_FWD_SREG_DEV
	fwdSregAddr = 2 // NFTA_FWD_SREG_ADDR
	fwdNFProto  = 3 // NFTA_FWD_NFPROTO

	hookDevs   = 4 // NFTA_HOOK_DEVS
	deviceName = 1 // NFTA_DEVICE_NAME

	netdevIngress = 0 // NF_NETDEV_INGRESS
)

// netdevHooks are the hooks of the family netdev by number.
var netdevHooks = map[uint32]ruleset.Hook{netdevIngress: ruleset.Ingress}

// hookNumber returns the number of a hook in a family, -1 where there is none.
func hookNumber(f ruleset.Family, b *ruleset.Base) int {
	if f == ruleset.Netdev {
		if b.Hook == ruleset.Ingress && b.Device != "" {
			return netdevIngress
		}
		return -1
	}
	return slices.Index(hooks, b.Hook)
}

// hookDevice returns the device of a base chain; for several, a word that names none.
func hookDevice(hook string) string {
	name := cstr(attr(hook, unix.NFTA_HOOK_DEV))
	n := 0
	for typ := range attrs(attr(hook, hookDevs)) {
		if typ == deviceName {
			n++
		}
	}
	if n > 1 {
		return "several devices"
	}
	return name
}

// isEther compares the frame's protocol (EtherType) with that of the family.
func (r *ruleEnc) isEther(s ruleset.IsEther) {
	proto := uint16(unix.ETH_P_IP)
	if s.Family == model.IPv6 {
		proto = unix.ETH_P_IPV6
	}
	r.nfproto = nfprotoOf(s.Family)
	r.meta(unix.NFT_META_PROTOCOL)
	r.cmp(unix.NFT_CMP_EQ, string(binary.BigEndian.AppendUint16(nil, proto)))
}

func (r *ruleEnc) toThisHost() {
	r.meta(unix.NFT_META_PKTTYPE)
	r.cmp(unix.NFT_CMP_EQ, string([]byte{unix.PACKET_HOST}))
}

// whole compares the fields that fragments have: the flag for more and the offset of an IPv4
// header (RFC 791 section 3.1), the next header of an IPv6 one (RFC 8200 section 4.5).
func (r *ruleEnc) whole(s ruleset.Whole) {
	if r.nfproto != nfprotoOf(s.Family) {
		r.fail("fragments need a match of their family (meta protocol) before them")
	}
	at, n := uint32(6), uint32(2)
	if s.Family == model.IPv6 {
		n = 1
	}
	word := r.alloc(4)
	e := r.open("payload")
	r.w.u32(unix.NFTA_PAYLOAD_DREG, reg(word))
	r.w.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
	r.w.u32(unix.NFTA_PAYLOAD_OFFSET, at)
	r.w.u32(unix.NFTA_PAYLOAD_LEN, n)
	r.close(e)
	if s.Family == model.IPv6 {
		r.cmp(unix.NFT_CMP_NEQ, string([]byte{unix.IPPROTO_FRAGMENT}))
		return
	}
	r.and(word, "\x3f\xff")
	r.cmp(unix.NFT_CMP_EQ, zeros[:2])
}

// meta loads a key of up to four bytes into the first register.
func (r *ruleEnc) meta(key uint32) {
	e := r.open("meta")
	r.w.u32(unix.NFTA_META_DREG, reg(r.alloc(4)))
	r.w.u32(unix.NFTA_META_KEY, key)
	r.close(e)
}

func (r *ruleEnc) counting() {
	e := r.open("counter")
	r.w.u64(unix.NFTA_COUNTER_BYTES, r.counted.Bytes)
	r.w.u64(unix.NFTA_COUNTER_PACKETS, r.counted.Packets)
	r.close(e)
}

func (r *ruleEnc) fwd(s ruleset.Fwd) {
	dev := r.alloc(4)
	r.immediate(dev, host32(uint32(s.Index)))
	addr := r.alloc(ruleset.AddrType(s.Family).Size())
	r.immediate(addr, string(s.To.AsSlice()))
	e := r.open("fwd")
	r.w.u32(fwdSregDev, reg(dev))
	r.w.u32(fwdSregAddr, reg(addr))
	r.w.u32(fwdNFProto, uint32(nfprotoOf(s.Family)))
	r.close(e)
}

// hopsLeft compares the time to live of an IPv4 header (RFC 791 section 3.1), or the hop limit of
// an IPv6 one (RFC 8200 section 3).
func (r *ruleEnc) hopsLeft(s ruleset.HopsLeft) {
	at := uint32(8)
	if s.Family == model.IPv6 {
		at = 7
	}
	r.loadPayload(unix.NFT_PAYLOAD_NETWORK_HEADER, at, 1)
	r.cmp(unix.NFT_CMP_GT, "\x01")
}

// sendOn copies the packet to a neighbour, and drops it.
func (r *ruleEnc) sendOn(s ruleset.SendOn) {
	dev := r.alloc(4)
	r.immediate(dev, host32(uint32(s.Index)))
	addr := r.alloc(16)
	r.immediate(addr, string(s.To.AsSlice()))
	e := r.open("dup")
	r.w.u32(dupAddr, reg(addr))
	r.w.u32(dupDev, reg(dev))
	r.close(e)
	r.verdict(ruleset.Verdict{Kind: ruleset.DropPacket})
}

// RuleCounters returns what the rules of a table have counted: for each chain with rules
// that count, the sum. There is none where there is no such table.
func (c *Conn) RuleCounters(ctx context.Context, table TableRef) (map[string]Counter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for range readTries {
		if err = ctx.Err(); err != nil {
			return nil, err
		}
		out := map[string]Counter{}
		err = c.request(msgType(unix.NFT_MSG_GETRULE), unix.NLM_F_DUMP,
			func(w *buf) { w.of(table).str(unix.NFTA_RULE_TABLE, table.Name) },
			func(_ header, body string) error {
				if attr(body, unix.NFTA_RULE_TABLE) == table.Name+"\x00" {
					addCounters(out, body)
				}
				return nil
			})
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return out, nil
		}
		if !errors.Is(err, errInterrupted) {
			break
		}
	}
	return nil, readErr(err, "the counters of %s", table)
}

// CarryRules makes the rules of chains that the delta loads again begin with what they have
// counted.
func (c *Conn) CarryRules(ctx context.Context, d *ruleset.Delta) error {
	for _, td := range d.Tables {
		if td.Delete || !slices.ContainsFunc(td.AddRules, counts) {
			continue
		}
		var err error
		if td.Counted, err = c.RuleCounters(ctx, TableRef{td.Table.Family, td.Table.Name}); err != nil {
			return err
		}
	}
	return nil
}

// counts reports whether a rule of the chain counts.
func counts(c *ruleset.Chain) bool {
	return slices.ContainsFunc(c.Rules, func(r ruleset.Rule) bool {
		return slices.Contains(r.Stmts, ruleset.Stmt(ruleset.Counting{}))
	})
}

func addCounters(to map[string]Counter, rule string) {
	for _, expr := range attrs(attr(rule, unix.NFTA_RULE_EXPRESSIONS)) {
		if cstr(attr(expr, unix.NFTA_EXPR_NAME)) != "counter" {
			continue
		}
		chain := cstr(attr(rule, unix.NFTA_RULE_CHAIN))
		n, sum := counterOf(expr), to[chain]
		to[chain] = Counter{Packets: sum.Packets + n.Packets, Bytes: sum.Bytes + n.Bytes}
	}
}
