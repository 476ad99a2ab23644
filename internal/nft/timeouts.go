package nft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/model"
	"weir/internal/ruleset"
)

// What nf_tables.h has of objects and golang.org/x/sys/unix lacks.
const (
	objTable = 1 // NFTA_OBJ_TABLE
	objName  = 2 // NFTA_OBJ_NAME
	objType  = 3 // NFTA_OBJ_TYPE
	objData  = 4 // NFTA_OBJ_DATA

	objectCtTimeout = 7 // NFT_OBJECT_CT_TIMEOUT

	ctTimeoutL3Proto = 1 // NFTA_CT_TIMEOUT_L3PROTO
	ctTimeoutL4Proto = 2 // NFTA_CT_TIMEOUT_L4PROTO
	ctTimeoutData    = 3 // NFTA_CT_TIMEOUT_DATA

	objrefType = 1 // NFTA_OBJREF_IMM_TYPE
	objrefName = 2 // NFTA_OBJREF_IMM_NAME
	objrefSreg = 3 // NFTA_OBJREF_SET_SREG
	objrefSet  = 4 // NFTA_OBJREF_SET_NAME
)

func (e *encoder) delTimeouts(t *ruleset.Table, o *ruleset.Timeouts) {
	at := e.open(message{op: opDelTimeouts, table: t, times: o})
	e.w.str(objTable, t.Name)
	e.w.str(objName, o.Name)
	e.w.u32(objType, objectCtTimeout)
	e.w.end(at)
}

func (e *encoder) addTimeouts(t *ruleset.Table, o *ruleset.Timeouts) {
	m := message{op: opAddTimeouts, table: t, times: o}
	at := e.open(m)
	e.w.str(objTable, t.Name)
	e.w.str(objName, o.Name)
	e.w.u32(objType, objectCtTimeout)
	data := e.w.nest(objData)
	e.w.raw(ctTimeoutL3Proto, "\x00\x01") // NFPROTO_INET
	e.w.u8(ctTimeoutL4Proto, uint8(o.Proto))
	values := e.w.nest(ctTimeoutData)
	words := ruleset.TimeoutStates(o.Proto)
	for _, l := range o.States {
		i := slices.Index(words, l.State)
		if i < 0 || l.Time < time.Second || l.Time%time.Second != 0 {
			e.fail(m, fmt.Errorf("%s %s is no state of %s and a time in whole seconds", l.State, l.Time, o.Proto))
			break
		}
		e.w.u32(uint16(i+1), uint32(l.Time/time.Second))
	}
	e.w.close(values)
	e.w.close(data)
	e.w.end(at)
	if len(o.States) == 0 {
		e.fail(m, errors.New("has no state"))
	}
}

// readTimeouts reads the ct timeout objects of a table. A kernel without objects has none.
func (c *Conn) readTimeouts(ref TableRef, t *ruleset.Table) error {
	err := c.request(msgType(unix.NFT_MSG_GETOBJ), unix.NLM_F_DUMP, func(w *buf) {
		w.str(objTable, ref.Name)
		w.u32(objType, objectCtTimeout)
	}, func(_ header, body string) error {
		if attr(body, objTable) == ref.Name+"\x00" && be32(attr(body, objType)) == objectCtTimeout {
			t.Timeouts = append(t.Timeouts, parseTimeouts(body))
		}
		return nil
	})
	if err == unix.EOPNOTSUPP {
		return nil
	}
	return readErr(err, "the ct timeouts of %s", ref)
}

// parseTimeouts reads an object with all its states. What weir would not make has no states,
// and so serves nothing.
func parseTimeouts(body string) *ruleset.Timeouts {
	data := attr(body, objData)
	o := &ruleset.Timeouts{Name: cstr(attr(body, objName)), Proto: model.Proto(beNumber(attr(data, ctTimeoutL4Proto)))}
	words := ruleset.TimeoutStates(o.Proto)
	if beNumber(attr(data, ctTimeoutL3Proto)) != unix.NFPROTO_INET {
		return o
	}
	for typ, p := range attrs(attr(data, ctTimeoutData)) {
		if i := int(typ) - 1; i >= 0 && i < len(words) {
			o.States = append(o.States, ruleset.Lasting{State: words[i], Time: time.Duration(be32(p)) * time.Second})
		}
	}
	return o
}

func (r *ruleEnc) setTimeouts(s ruleset.SetTimeouts) {
	if r.table.Timeout(s.Name) == nil {
		r.fail("ct timeout %s is not in the table", s.Name)
	}
	e := r.open("objref")
	r.w.u32(objrefType, objectCtTimeout)
	r.w.str(objrefName, s.Name)
	r.close(e)
}

// HasTimeouts reports whether the kernel has ct timeout objects (CONFIG_NF_CONNTRACK_TIMEOUT).
// It begins a transaction that makes one and does not end it, so that nothing is changed. An
// error says that it can't be known.
func (c *Conn) HasTimeouts() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := probeTimeouts()
	last := b.Len() - 1
	refused, acked, err := c.try(b)
	switch {
	case err != nil:
		return false, fmt.Errorf("nft: try ct timeouts: %w", err)
	case acked:
		return true, nil
	}
	for _, a := range refused {
		if int(a.seq) == last && (a.errno == unix.EOPNOTSUPP || a.errno == unix.ENOENT || a.errno == unix.EPROTONOSUPPORT) {
			return false, nil
		}
	}
	return false, refusal(b, refused)
}

// probeTimeouts returns a transaction without an end, whose last message makes a ct timeout.
func probeTimeouts() *Batch {
	e := encoder{Batch: &Batch{}}
	t := &ruleset.Table{Family: ruleset.Inet, Name: "weir-try"}
	e.w.end(e.open(message{op: opBegin}))
	e.tableFlags(message{op: opAddTable, table: t})
	e.addTimeouts(t, &ruleset.Timeouts{Name: "try", Proto: model.UDP, States: []ruleset.Lasting{{State: "replied", Time: time.Second}}})
	e.askAck()
	return e.Batch
}
