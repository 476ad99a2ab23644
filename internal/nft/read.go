package nft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/ruleset"
)

// TableRef names a table.
type TableRef struct {
	Family ruleset.Family
	Name   string
}

// String returns "table inet weir".
func (t TableRef) String() string { return fmt.Sprintf("table %s %s", t.Family, t.Name) }

// readTries is how often Read begins anew because somebody changed the ruleset meanwhile.
const readTries = 10

// Read returns those of the tables that the kernel has, and the generation they are of.
// Elements of dynamic sets are not read (see Elements). Rules come back as fingerprints
// (see ruleset.ReadBack). What weir would never make comes back as something that equals
// nothing, so that ruleset.Diff replaces it.
//
// A fingerprint is but a comment, which stays when somebody edits the rule. So expect says
// which rules it is to stand for: a rule whose fingerprint is one of the same chain in
// expect, but which does something else, comes back without. Where expect is nil, or has
// no such rule, the comment is believed.
//
// Where a table of expect has a Marker, and the kernel's chain of that name has the same
// rules, the elements of sets that expect has packed are believed to be as in expect (if
// their number is, where the kernel tells it: from 6.17 on), and not read: a million take
// many seconds. Whoever knows that somebody else changed the table leaves the marker out.
// Where the marker says that they are others, and there are more than 131,072 of them, the
// table comes back Unread. A table that expect has not is not read at all, but for its name.
func (c *Conn) Read(ctx context.Context, tables []TableRef, expect *ruleset.Ruleset) (*ruleset.Ruleset, uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range readTries {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		before, err := c.generation()
		if err != nil {
			return nil, 0, err
		}
		rs, readErr := c.readAll(tables, expect)
		after, err := c.generation()
		if err != nil {
			return nil, 0, err
		}
		if before != after || errors.Is(readErr, errInterrupted) {
			continue
		}
		if readErr != nil {
			return nil, 0, readErr
		}
		return rs, after, nil
	}
	return nil, 0, errInterrupted
}

func (c *Conn) readAll(refs []TableRef, expect *ruleset.Ruleset) (*ruleset.Ruleset, error) {
	rs := &ruleset.Ruleset{}
	for _, ref := range refs {
		if nfFamilies[ref.Family] == 0 {
			return nil, fmt.Errorf("nft: read %s: the family is unknown", ref)
		}
		var want *ruleset.Table
		if expect != nil {
			want = expect.Table(ref.Family, ref.Name)
		}
		t, err := c.readTable(ref, want, expect == nil || want != nil)
		if err != nil {
			return nil, err
		}
		if t != nil {
			rs.Tables = append(rs.Tables, t)
		}
	}
	return rs, nil
}

// readErr wraps the kernel's errno with what was to be read.
func readErr(err error, format string, args ...any) error {
	if errno, ok := err.(unix.Errno); ok {
		return &Error{Op: "read", Object: fmt.Sprintf(format, args...), Errno: errno}
	}
	return err
}

// readTable returns nil where there is no such table. Unless the whole is asked for, it
// says no more than that there is one: it goes as a whole.
func (c *Conn) readTable(ref TableRef, want *ruleset.Table, whole bool) (*ruleset.Table, error) {
	t := &ruleset.Table{Family: ref.Family, Name: ref.Name}
	err := c.request(msgType(unix.NFT_MSG_GETTABLE), 0,
		ofFamily(ref.Family, func(w *buf) { w.str(unix.NFTA_TABLE_NAME, ref.Name) }),
		func(_ header, body string) error {
			t.Dormant = be32(attr(body, unix.NFTA_TABLE_FLAGS))&unix.NFT_TABLE_F_DORMANT != 0
			return nil
		})
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, readErr(err, "%s", ref)
	}
	if !whole {
		return t, nil
	}
	if err := c.readChains(ref, t, want); err != nil {
		return nil, err
	}
	return t, c.readSets(ref, t, want)
}

// declarations returns the sets of a table and how many elements each has; see parseSet.
func (c *Conn) declarations(ref TableRef) (sets []*ruleset.Set, counts []int, err error) {
	err = c.request(msgType(unix.NFT_MSG_GETSET), unix.NLM_F_DUMP,
		ofFamily(ref.Family, func(w *buf) { w.str(unix.NFTA_SET_TABLE, ref.Name) }),
		func(_ header, body string) error {
			if attr(body, unix.NFTA_SET_TABLE) != ref.Name+"\x00" {
				return nil
			}
			if s, count := parseSet(body); s != nil {
				sets, counts = append(sets, s), append(counts, count)
			}
			return nil
		})
	return sets, counts, readErr(err, "the sets of %s", ref)
}

func (c *Conn) readSets(ref TableRef, t, want *ruleset.Table) (err error) {
	var counts []int
	if t.Sets, counts, err = c.declarations(ref); err != nil {
		return err
	}
	marked := marked(t, want)
	if !marked && want != nil && want.Marker != "" && elements(want, counts) > maxDump {
		t.Unread = true
		return nil
	}
	for i, s := range t.Sets {
		if s.Dynamic || len(s.Key) == 0 {
			continue
		}
		if w := wantedPacked(want, s); w != nil {
			if marked && (counts[i] < 0 || counts[i] == w.Len()) {
				s.Packed = w.Packed
			} else if err := c.readPacked(ref, s, counts[i]); err != nil {
				return readErr(err, "the elements of %s in %s", setText(s), ref)
			}
			continue
		}
		if err := c.readElems(ref, s, counts[i]); err != nil {
			return readErr(err, "the elements of %s in %s", setText(s), ref)
		}
	}
	return nil
}

// maxDump is how many elements of marked tables are read at most.
const maxDump = 1 << 17

// elements returns how many elements a table may have: as many as the kernel says, or, where
// it does not, as are wanted.
func elements(want *ruleset.Table, counts []int) int {
	n, known := 0, true
	for _, c := range counts {
		n, known = n+c, known && c >= 0
	}
	if known {
		return n
	}
	n = 0
	for _, s := range want.Sets {
		n += s.Len()
	}
	return n
}

// Declarations returns the sets of a table without their elements; none where there is no
// such table.
func (c *Conn) Declarations(ctx context.Context, ref TableRef) ([]*ruleset.Set, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range readTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		sets, _, err := c.declarations(ref)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, nil // there is no table
		case !errors.Is(err, errInterrupted):
			return sets, err
		}
	}
	return nil, errInterrupted
}

// foreignSize is the size of a set that weir would not make.
const foreignSize = -1

// parseSet reads a set's declaration and how many elements the kernel says it has, -1
// where it doesn't. It returns nil for the anonymous set of a rule, which comes and goes
// with the rule.
func parseSet(body string) (s *ruleset.Set, count int) {
	var flags, keyType, keyLen, dataType, dataLen, size, exprs uint32
	s, count = &ruleset.Set{}, -1
	for typ, p := range attrs(body) {
		switch typ {
		case setCount:
			count = int(be32(p))
		case unix.NFTA_SET_NAME:
			s.Name = cstr(p)
		case unix.NFTA_SET_FLAGS:
			flags = be32(p)
		case unix.NFTA_SET_KEY_TYPE:
			keyType = be32(p)
		case unix.NFTA_SET_KEY_LEN:
			keyLen = be32(p)
		case unix.NFTA_SET_DATA_TYPE:
			dataType = be32(p)
		case unix.NFTA_SET_DATA_LEN:
			dataLen = be32(p)
		case unix.NFTA_SET_DESC:
			size = be32(attr(p, unix.NFTA_SET_DESC_SIZE))
		case setExpr:
			exprs++
			s.Counter = cstr(attr(p, unix.NFTA_EXPR_NAME)) == "counter"
		case setExpressions, unix.NFTA_SET_TIMEOUT: // a default timeout, several expressions
			exprs += 2
		}
	}
	if flags&unix.NFT_SET_ANONYMOUS != 0 {
		return nil, 0
	}
	s.Key = rulesetTypes(keyType, int(keyLen))
	s.Range = flags&unix.NFT_SET_INTERVAL != 0
	s.Dynamic = flags&unix.NFT_SET_EVAL != 0
	s.Timeout = flags&unix.NFT_SET_TIMEOUT != 0
	s.Size = int(size)
	if flags&unix.NFT_SET_MAP != 0 {
		s.Verdict = dataType == unix.NFT_DATA_VERDICT
		if !s.Verdict {
			s.Data = rulesetTypes(dataType, int(dataLen))
		}
	}
	counters := uint32(0)
	if s.Counter {
		counters = 1
	}
	if exprs != counters || len(s.Key) == 0 || setFlags(s) != flags {
		return &ruleset.Set{Name: s.Name, Size: foreignSize}, 0
	}
	return s, count
}

type chainRead struct {
	name   string
	base   *ruleset.Base
	prints []string

	want       *ruleset.Chain // what it should be; nil where that is not known
	wantPrints []string       // its fingerprints, from the first rule on
}

func (c *Conn) readChains(ref TableRef, t, want *ruleset.Table) error {
	var chains []*chainRead
	byName := map[string]*chainRead{}
	err := c.request(msgType(unix.NFT_MSG_GETCHAIN), unix.NLM_F_DUMP,
		ofFamily(ref.Family, func(w *buf) { w.str(unix.NFTA_CHAIN_TABLE, ref.Name) }),
		func(_ header, body string) error {
			if attr(body, unix.NFTA_CHAIN_TABLE) == ref.Name+"\x00" {
				if r := parseChain(body); r != nil {
					chains = append(chains, r)
					byName[r.name] = r
				}
			}
			return nil
		})
	if err != nil {
		return readErr(err, "the chains of %s", ref)
	}
	if want != nil {
		for _, w := range want.Chains {
			if r := byName[w.Name]; r != nil {
				r.want = w
			}
		}
	}
	var v verifier
	err = c.request(msgType(unix.NFT_MSG_GETRULE), unix.NLM_F_DUMP,
		ofFamily(ref.Family, func(w *buf) { w.str(unix.NFTA_RULE_TABLE, ref.Name) }),
		func(_ header, body string) error {
			if attr(body, unix.NFTA_RULE_TABLE) != ref.Name+"\x00" {
				return nil
			}
			if r := byName[cstr(attr(body, unix.NFTA_RULE_CHAIN))]; r != nil {
				r.prints = append(r.prints, r.trusted(&v, want, body))
			}
			return nil
		})
	if err != nil {
		return readErr(err, "the rules of %s", ref)
	}
	for _, r := range chains {
		t.Chains = append(t.Chains, ruleset.ReadBack(r.name, r.base, r.prints))
	}
	return nil
}

// parseChain returns nil for the chain without a name of a rule (`jump { … }`), which
// comes and goes with the rule.
func parseChain(body string) *chainRead {
	r := &chainRead{}
	policy := uint32(1)
	for typ, p := range attrs(body) {
		switch typ {
		case unix.NFTA_CHAIN_NAME:
			r.name = cstr(p)
		case unix.NFTA_CHAIN_HOOK:
			r.base = baseOf(r.base)
			r.base.Priority = int(int32(be32(attr(p, unix.NFTA_HOOK_PRIORITY))))
			if n := be32(attr(p, unix.NFTA_HOOK_HOOKNUM)); int(n) < len(hooks) {
				r.base.Hook = hooks[n]
			}
		case unix.NFTA_CHAIN_TYPE:
			r.base = baseOf(r.base)
			r.base.Type = cstr(p)
		case unix.NFTA_CHAIN_POLICY:
			policy = be32(p)
		case chainFlags:
			if be32(p)&chainBinding != 0 {
				return nil
			}
		}
	}
	if r.base != nil && policy != 1 { // NF_ACCEPT; any other equals nothing of ours
		r.base.Type += " policy drop"
	}
	return r
}

func baseOf(b *ruleset.Base) *ruleset.Base {
	if b == nil {
		b = &ruleset.Base{}
	}
	return b
}

// rulePrint returns the fingerprint in the rule's comment, or "".
func rulePrint(body string) string {
	// A copy, for what it is cut out of is as large as all the rules.
	return strings.Clone(ruleset.CommentFingerprint(ruleComment(body)))
}

// ruleComment returns the rule's comment, or "".
func ruleComment(body string) string {
	ud := attr(body, unix.NFTA_RULE_USERDATA)
	for len(ud) >= 2 {
		n := int(ud[1])
		if 2+n > len(ud) {
			return ""
		}
		if ud[0] == udComment {
			return cstr(ud[2 : 2+n])
		}
		ud = ud[2+n:]
	}
	return ""
}

// Counter is what the counter of an element counted.
type Counter = ruleset.Count

// Elem is an element of a set as the kernel has it.
type Elem struct {
	ruleset.Element
	Counter Counter       // zero where the set has none
	Timeout time.Duration // 0 where it has none
	Expires time.Duration // what is left of Timeout, as of the reading

	end      bool // it ends the range that an element before it begins
	catchAll bool // it has no key and stands for all that have no element
}

// dumpElems calls each for every element of a set, in the kernel's order, and returns in
// how many messages they came.
func (c *Conn) dumpElems(ref TableRef, s *ruleset.Set, each func(*Elem)) (msgs int, err error) {
	return c.dumpBy(c.request, ref, s, each)
}

// scanElems is dumpElems for very many: the strings of an element are only good until each
// returns.
func (c *Conn) scanElems(ref TableRef, s *ruleset.Set, each func(*Elem)) (msgs int, err error) {
	return c.dumpBy(c.scan, ref, s, each)
}

func (c *Conn) dumpBy(ask func(typ, flags uint16, build func(*buf), each func(header, string) error) error,
	ref TableRef, s *ruleset.Set, each func(*Elem)) (msgs int, err error) {
	err = ask(msgType(unix.NFT_MSG_GETSETELEM), unix.NLM_F_DUMP,
		ofFamily(ref.Family, func(w *buf) {
			w.str(unix.NFTA_SET_ELEM_LIST_TABLE, ref.Name)
			w.str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		}),
		func(_ header, body string) error {
			var e Elem
			msgs++
			for typ, p := range attrs(attr(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				if typ == unix.NFTA_LIST_ELEM && parseElem(s, p, &e) {
					each(&e)
				}
			}
			return nil
		})
	return msgs, err
}

// dataValue returns a value of n bytes in register layout: its attribute with the zeros
// that pad it.
func dataValue(p string, n int) string {
	const head = unix.SizeofRtAttr
	if len(p) < head+n || native16(p[2:])&^unix.NLA_F_NESTED != unix.NFTA_DATA_VALUE {
		return ""
	}
	return p[head : head+n]
}

// parseElem reads one element; false where it does not fit the set.
func parseElem(s *ruleset.Set, p string, e *Elem) bool {
	*e = Elem{}
	for typ, v := range attrs(p) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key = dataValue(v, s.Key.Len())
		case elemKeyEnd:
			e.KeyEnd = dataValue(v, s.Key.Len())
		case unix.NFTA_SET_ELEM_DATA:
			parseData(s, v, e)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = be32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			e.catchAll = be32(v)&elemCatchAll != 0
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.Timeout = millis(v)
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.Expires = millis(v)
		case unix.NFTA_SET_ELEM_EXPR:
			e.Counter = counterOf(v)
		case elemExpressions:
			for _, x := range attrs(v) {
				e.Counter = counterOf(x)
			}
		}
	}
	if e.KeyEnd == e.Key {
		e.KeyEnd = ""
	}
	return e.Key != "" || e.catchAll
}

func millis(s string) time.Duration {
	return time.Duration(min(be64(s), math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
}

func parseData(s *ruleset.Set, v string, e *Elem) {
	if !s.Verdict {
		e.Data = dataValue(v, s.Data.Len())
		return
	}
	e.Jump = jumpOf(attr(v, unix.NFTA_DATA_VERDICT))
}

func counterOf(expr string) Counter {
	if cstr(attr(expr, unix.NFTA_EXPR_NAME)) != "counter" {
		return Counter{}
	}
	data := attr(expr, unix.NFTA_EXPR_DATA)
	return Counter{
		Packets: be64(attr(data, unix.NFTA_COUNTER_PACKETS)),
		Bytes:   be64(attr(data, unix.NFTA_COUNTER_BYTES)),
	}
}
