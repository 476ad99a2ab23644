package nft

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// Encode writes the delta as one transaction that the kernel refuses unless its ruleset
// is of generation gen; 0 guards nothing. It needs no kernel. An error names the object
// that can't be written, and why. Queues are written as nft's own statement.
func Encode(d *ruleset.Delta, gen uint32) (*Batch, error) { return encode(d, gen, queueNative) }

func encode(d *ruleset.Delta, gen uint32, queue queueForm) (*Batch, error) {
	b := &Batch{w: buf{queue: queue}}
	b.grow(d)
	e := encoder{Batch: b}
	b.frame(gen, func() {
		for _, td := range d.Tables {
			e.table(td)
		}
	})
	return b, e.err
}

type encoder struct {
	*Batch
	sets uint32 // ids given to new sets
	err  error
}

// Rough sizes, in bytes, to get the buffer right at once.
const (
	ruleBytes  = 640
	otherBytes = 128
	elemBytes  = 64 // and its key and data
)

func (b *Batch) grow(d *ruleset.Delta) {
	bytes, msgs := otherBytes, 2
	for _, td := range d.Tables {
		other := 1 + len(td.Flush) + len(td.DelChains) + len(td.DelSets) + len(td.DelTimeouts) + 4*len(td.AddTimeouts) + len(td.AddChains) + len(td.AddSets)
		bytes += other*otherBytes + len(td.AddSets)*otherBytes
		for _, c := range td.AddRules {
			msgs += len(c.Rules)
			bytes += len(c.Rules) * ruleBytes
		}
		for _, list := range [][]*ruleset.ElemChange{td.DelElems, td.AddElems} {
			for _, c := range list {
				other += 1 + c.Len()/maxElems
				if c.Packed != nil {
					bytes += otherBytes + c.Len()*packedBytes(c)
					continue
				}
				bytes += otherBytes + len(c.Elems)*(elemBytes+3*c.Set.Key.Len()+c.Set.Data.Len())
			}
		}
		msgs += other
	}
	b.w.b = make([]byte, 0, bytes)
	b.msgs = make([]message, 0, msgs)
}

func (e *encoder) table(td *ruleset.TableDelta) {
	t := td.Table
	if !slices.Contains(tableFamilies, t.Family) {
		e.fail(message{table: t}, fmt.Errorf("family %q is unknown", t.Family))
		return
	}
	if td.Delete {
		e.simple(message{op: opDelTable, table: t}, unix.NFTA_TABLE_NAME, t.Name)
		return
	}
	if td.Create {
		e.tableFlags(message{op: opAddTable, table: t})
	}
	for _, c := range td.Flush {
		e.named(message{op: opFlush, table: t, chain: c}, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, c.Name)
	}
	for _, c := range td.DelElems {
		e.elems(opDelElems, t, c)
	}
	for _, c := range td.DelChains {
		e.named(message{op: opDelChain, table: t, chain: c}, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, c.Name)
	}
	for _, s := range td.DelSets {
		e.named(message{op: opDelSet, table: t, set: s}, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, s.Name)
	}
	for _, o := range td.DelTimeouts {
		e.delTimeouts(t, o)
	}
	for _, o := range td.AddTimeouts {
		e.addTimeouts(t, o)
	}
	for _, c := range td.AddChains {
		e.chain(t, c)
	}
	for _, s := range td.AddSets {
		e.set(t, s)
	}
	// In a commit rules come into force first and elements one after the other. A packet that
	// meets a dynamic set before its element is in force makes another of the same key
	// (nft_rhash_update in net/netfilter/nft_set_hash.c), so these are not to wait for the rest.
	for _, dynamic := range []bool{true, false} {
		for _, c := range td.AddElems {
			if c.Set.Dynamic == dynamic {
				e.elems(opAddElems, t, c)
			}
		}
	}
	for _, c := range td.AddRules {
		for i := range c.Rules {
			e.rule(t, c, i, td.Counted[c.Name])
		}
	}
	// Last, because the kernel takes no new base chain after it in one transaction.
	if td.Wake {
		e.tableFlags(message{op: opWakeTable, table: t})
	}
}

// tableFlags writes a message that makes a table, or one that is there, run.
func (e *encoder) tableFlags(m message) {
	at := e.open(m)
	e.w.str(unix.NFTA_TABLE_NAME, m.table.Name)
	flags := uint32(0)
	if m.table.Owned {
		flags = tableOwner
	}
	e.w.u32(unix.NFTA_TABLE_FLAGS, flags)
	e.w.end(at)
}

func (e *encoder) fail(m message, err error) {
	if e.err == nil {
		e.err = fmt.Errorf("nft: %s: %w", m.object(), err)
	}
}

// simple writes a message that holds one name.
func (e *encoder) simple(m message, typ uint16, name string) {
	at := e.open(m)
	e.w.str(typ, name)
	e.w.end(at)
}

// named writes a message that holds the names of a table and of something in it.
func (e *encoder) named(m message, tableAttr, nameAttr uint16, name string) {
	at := e.open(m)
	e.w.str(tableAttr, m.table.Name)
	e.w.str(nameAttr, name)
	e.w.end(at)
}

var hooks = []ruleset.Hook{
	unix.NF_INET_PRE_ROUTING:  ruleset.Prerouting,
	unix.NF_INET_LOCAL_IN:     ruleset.Input,
	unix.NF_INET_FORWARD:      ruleset.Forward,
	unix.NF_INET_LOCAL_OUT:    ruleset.Output,
	unix.NF_INET_POST_ROUTING: ruleset.Postrouting,
}

func (e *encoder) chain(t *ruleset.Table, c *ruleset.Chain) {
	m := message{op: opAddChain, table: t, chain: c}
	at := e.open(m)
	e.w.str(unix.NFTA_CHAIN_TABLE, t.Name)
	e.w.str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Base != nil {
		hook := hookNumber(t.Family, c.Base)
		if hook < 0 {
			e.fail(m, fmt.Errorf("hook %q is unknown", c.Base.Hook))
		}
		e.w.str(unix.NFTA_CHAIN_TYPE, c.Base.Type)
		e.w.u32(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
		n := e.w.nest(unix.NFTA_CHAIN_HOOK)
		e.w.u32(unix.NFTA_HOOK_HOOKNUM, uint32(hook))
		e.w.u32(unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Base.Priority)))
		if c.Base.Device != "" {
			e.w.str(unix.NFTA_HOOK_DEV, c.Base.Device)
		}
		e.w.close(n)
	}
	e.w.end(at)
}

func (e *encoder) set(t *ruleset.Table, s *ruleset.Set) {
	m := message{op: opAddSet, table: t, set: s}
	if err := checkSet(s); err != nil {
		e.fail(m, err)
		return
	}
	e.sets++
	at := e.open(m)
	e.w.str(unix.NFTA_SET_TABLE, t.Name)
	e.w.str(unix.NFTA_SET_NAME, s.Name)
	e.w.set(s, e.sets)
	e.w.end(at)
}

func (e *encoder) elems(o op, t *ruleset.Table, c *ruleset.ElemChange) {
	s := c.Set
	if c.Packed != nil {
		e.packed(o, t, c)
		return
	}
	if err := checkSet(s); err != nil {
		e.fail(message{table: t, set: s}, err)
		return
	}
	_, keyLen := kernelType(s.Key)
	dataLen := 0
	if len(s.Data) > 0 && o == opAddElems {
		_, dataLen = kernelType(s.Data)
	}
	for rest := c.Elems; len(rest) > 0 && e.err == nil; {
		at := e.open(message{op: o, table: t, set: s})
		e.w.str(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		e.w.str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		list := e.w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		n := 0
		for n < len(rest) && n < maxElems && len(e.w.b)-list < maxAttr {
			if err := checkElem(s, &rest[n], dataLen > 0); err != nil {
				e.fail(message{table: t, set: s}, err)
				return
			}
			e.w.elem(s, &rest[n], keyLen, dataLen)
			if ranges(s) {
				e.w.elemRangeEnd(&rest[n], keyLen)
			}
			n++
		}
		e.w.close(list)
		e.w.end(at)
		e.msgs[len(e.msgs)-1].elems = rest[:n:n]
		rest = rest[n:]
	}
}

func checkElem(s *ruleset.Set, el *ruleset.Element, data bool) error {
	switch {
	case len(el.Key) != s.Key.Len(), el.KeyEnd != "" && len(el.KeyEnd) != s.Key.Len():
		return fmt.Errorf("a key of %d bytes where it has %d", len(el.Key), s.Key.Len())
	case data && len(el.Data) != s.Data.Len():
		return fmt.Errorf("data of %d bytes where it has %d", len(el.Data), s.Data.Len())
	case el.KeyEnd != "" && !s.Range:
		return fmt.Errorf("a range in a set without ranges")
	}
	return nil
}

// maxComment is how long a comment may be, its fingerprint included: the kernel keeps
// 256 bytes for a rule, and nft 128 for a comment.
const maxComment = 127

// udComment is the tag of a comment in nft's user data of rules.
const udComment = 0

func (e *encoder) rule(t *ruleset.Table, c *ruleset.Chain, i int, counted Counter) {
	m := message{op: opAddRule, table: t, chain: c, rule: i}
	at := e.open(m)
	e.w.str(unix.NFTA_RULE_TABLE, t.Name)
	e.w.str(unix.NFTA_RULE_CHAIN, c.Name)
	err := e.w.exprs(t, &c.Rules[i], counted)
	comment := c.Rules[i].FullComment()
	if len(comment) > maxComment {
		err = cmp.Or(err, fmt.Errorf("a comment of %d bytes, where %d are the most", len(comment), maxComment))
		comment = ""
	}
	e.w.head(unix.NFTA_RULE_USERDATA, 2+len(comment)+1)
	e.w.b = append(e.w.b, udComment, byte(len(comment)+1))
	e.w.b = append(e.w.b, comment...)
	e.w.b = append(e.w.b, 0)
	e.w.pad()
	e.w.end(at)
	if err != nil {
		e.fail(m, err)
	}
}

// exprs writes the attribute of a rule that says what it does, and what it has counted so far.
func (w *buf) exprs(t *ruleset.Table, rule *ruleset.Rule, counted Counter) error {
	list := w.nest(unix.NFTA_RULE_EXPRESSIONS)
	r := ruleEnc{w: w, table: t, counted: counted}
	if f := t.Family.IP(); f != 0 {
		r.nfproto = nfprotoOf(f) // the table sees no others
	}
	for _, s := range rule.Stmts {
		r.stmt(s)
	}
	w.close(list)
	return r.err
}
