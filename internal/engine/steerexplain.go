package engine

import (
	"encoding/binary"
	"fmt"
	"slices"

	"weir/internal/model"
	"weir/internal/plan"
	"weir/internal/ruleset"
	"weir/internal/steer"
	"weir/internal/steer/match"
)

// Steered is what rules say of a packet. Its JSON form is part of weir's interface.
type Steered struct {
	Rule    string `json:"rule"`    // "default" where no other wants it
	Target  string `json:"target"`  // of the rule
	Backend string `json:"backend"` // "" where the target has nobody to choose
}

// Steer returns what answers for steered services in an evaluation of p, as a running weir
// does, and tells what it said. payload is what stands behind the packet's transport header.
func Steer(p *plan.Plan, payload []byte, tell func(Steered)) func(ruleset.Queue, ruleset.Packet, uint32) ruleset.Answer {
	return func(q ruleset.Queue, packet ruleset.Packet, mark uint32) ruleset.Answer {
		for _, s := range p.Config.Services {
			if s.Steered() && s.Steering.Queues == (model.QueueRange{First: q.First, Last: q.Last}) {
				return steerOne(p, s, packet, payload, mark, tell)
			}
		}
		return ruleset.Answer{Mark: mark, Words: "the queue is of no steered service"}
	}
}

func steerOne(p *plan.Plan, s *model.Service, from ruleset.Packet, payload []byte, mark uint32, tell func(Steered)) ruleset.Answer {
	cfg := SteerConfig(p.Config, s, p.Marks())
	set, err := steer.New(cfg, nil)
	if err != nil {
		return ruleset.Answer{Mark: mark, Words: err.Error()}
	}
	var packet match.Packet
	packet.Parse(firstPacket(from, payload))
	c := set.Choose(&packet)
	said := Steered{Rule: cfg.Rules[c.Rule].Name, Target: cfg.Targets[c.Target].Name}
	words := fmt.Sprintf("no rule wants it, so target %s gets it", said.Target)
	if said.Rule != DefaultRule {
		words = fmt.Sprintf("rule %s sends it to target %s", said.Rule, said.Target)
	}
	if c.Member < 0 {
		words += ", which has nobody to choose"
	} else {
		said.Backend = cfg.Targets[c.Target].Members[c.Member].ID
		words += fmt.Sprintf(", whose table chooses %s", said.Backend)
	}
	if len(payload) == 0 && packet.Proto != uint8(model.TCP) && slices.ContainsFunc(s.Steering.Rules, func(r model.SteerRule) bool { return len(r.Bytes) > 0 }) {
		words += " (rules on bytes were asked with an empty payload)"
	}
	tell(said)
	return ruleset.Answer{Mark: mark&^cfg.Mask | c.Mark, Words: words}
}

// firstPacket writes the first packet of a connection: a SYN, a datagram, or the common header
// of SCTP (RFC 9260 section 3.1). Sums are 0.
func firstPacket(p ruleset.Packet, payload []byte) []byte {
	src, dst := p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice()
	var b []byte
	if p.Src.Addr().Is4() {
		b = make([]byte, 12, 64)
		b[0], b[8], b[9] = 0x45, 64, byte(p.Proto)
	} else {
		b = make([]byte, 8, 64)
		b[0], b[6], b[7] = 0x60, byte(p.Proto), 64
	}
	b = append(append(b, src...), dst...)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, p.Src.Port())
	b = binary.BigEndian.AppendUint16(b, p.Dst.Port())
	switch p.Proto {
	case model.TCP:
		b = append(b, make([]byte, 16)...)
		b[at+12], b[at+13] = 0x50, byte(ruleset.SYN)
	case model.UDP:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
		b = append(b, 0, 0)
	default:
		b = append(b, make([]byte, 8)...)
	}
	b = append(b, payload...)
	if p.Src.Addr().Is4() {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	return b
}
