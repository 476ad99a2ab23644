package nft

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// Hook is somebody's chain that packets of IPv4, IPv6 or both walk.
type Hook struct {
	Table TableRef
	Chain string
	Hook  string // "prerouting", "input", "forward", "output" or "postrouting"
	Drop  bool   // its policy is drop
	// Rules is how many rules it has; only counted where its policy is drop, else 0.
	Rules int
}

// hookNames are the hooks by number (NF_INET_*).
var hookNames = [...]string{"prerouting", "input", "forward", "output", "postrouting"}

// ipFamilies are the families whose hooks these are.
var ipFamilies = map[uint8]ruleset.Family{unix.NFPROTO_INET: ruleset.Inet, unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}

// Hooks returns the chains of all tables that hang on a hook, without those of tables that
// are dormant. It is a look, not a transaction: a chain that comes or goes meanwhile may be
// missing.
func (c *Conn) Hooks(ctx context.Context) ([]Hook, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for range readTries {
		if err = ctx.Err(); err != nil {
			return nil, err
		}
		var out []Hook
		if out, err = c.hooks(); !errors.Is(err, errInterrupted) {
			return out, readErr(err, "the chains of all tables")
		}
	}
	return nil, err
}

func (c *Conn) hooks() ([]Hook, error) {
	dormant := map[TableRef]bool{}
	err := c.requestFamily(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, nil, func(h header, body string) error {
		if be32(attr(body, unix.NFTA_TABLE_FLAGS))&unix.NFT_TABLE_F_DORMANT != 0 {
			dormant[TableRef{ipFamilies[h.family], cstr(attr(body, unix.NFTA_TABLE_NAME))}] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []Hook
	var families []uint8
	err = c.requestFamily(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETCHAIN, nil, func(h header, body string) error {
		hook, ok := parseHook(h.family, body)
		if ok && !dormant[hook.Table] {
			out, families = append(out, hook), append(families, h.family)
		}
		return nil
	})
	for i := range out {
		if err == nil && out[i].Drop {
			out[i].Rules, err = c.countRules(families[i], out[i].Table.Name, out[i].Chain)
		}
	}
	return out, err
}

// parseHook reads a chain; ok is false for one that hangs on no hook of an IP family.
func parseHook(family uint8, body string) (h Hook, ok bool) {
	hook := attr(body, unix.NFTA_CHAIN_HOOK)
	number := int(be32(attr(hook, unix.NFTA_HOOK_HOOKNUM)))
	name, known := ipFamilies[family]
	if hook == "" || !known || number >= len(hookNames) {
		return h, false
	}
	policy := attr(body, unix.NFTA_CHAIN_POLICY)
	return Hook{Table: TableRef{name, cstr(attr(body, unix.NFTA_CHAIN_TABLE))}, Chain: cstr(attr(body, unix.NFTA_CHAIN_NAME)),
		Hook: hookNames[number], Drop: policy != "" && be32(policy) == nfDrop}, true
}

// nfDrop is NF_DROP of linux/netfilter.h.
const nfDrop = 0

func (c *Conn) countRules(family uint8, table, chain string) (n int, err error) {
	err = c.requestFamily(family, unix.NFT_MSG_GETRULE, func(w *buf) {
		w.str(unix.NFTA_RULE_TABLE, table)
		w.str(unix.NFTA_RULE_CHAIN, chain)
	}, func(header, string) error {
		n++
		return nil
	})
	if err == unix.ENOENT {
		return 0, errInterrupted // the chain went
	}
	return n, err
}

// requestFamily is request for a dump of what belongs to a family.
func (c *Conn) requestFamily(family uint8, msg uint16, build func(w *buf), each func(h header, body string) error) error {
	return c.request(msgType(msg), unix.NLM_F_DUMP, func(w *buf) {
		w.b[unix.SizeofNlMsghdr] = family // of struct nfgenmsg
		if build != nil {
			build(w)
		}
	}, each)
}
