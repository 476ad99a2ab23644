package model

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// PortBlock is the address and the ports that one client of a pool has for itself.
type PortBlock struct {
	Client, Addr netip.Addr
	Ports        PortRange
}

// Blocks returns the blocks of ports of each address of the pool, in order; none without
// Block. Ports that Taken names are among them: the client has the others.
//
// The n-th client (of its family; in the order of From, and of the addresses in each prefix)
// has the n-th block: the blocks of the first address come before those of the second. So a
// client's block stays while nothing changes before it: prefixes that are appended to From
// and addresses behind the last one move nobody; another size of blocks, other ports, an
// address or a client before it do. A client whose address is drained gets one of the blocks
// that nobody has, while there are any.
func (p *Pool) Blocks() []PortRange {
	if p.Block == 0 {
		return nil
	}
	var out []PortRange
	for _, r := range p.Ports {
		for lo := int(r.Lo); lo+p.Block-1 <= int(r.Hi); lo += p.Block {
			out = append(out, PortRange{uint16(lo), uint16(lo + p.Block - 1)})
		}
	}
	return out
}

// Clients returns how many clients of family f have a block.
func (p *Pool) Clients(f Family) int {
	n := 0
	for _, c := range p.From {
		if FamilyOf(c.Addr()) == f {
			n += 1 << (c.Addr().BitLen() - c.Bits())
		}
	}
	return n
}

// Client returns the n-th client of family f, from 0.
func (p *Pool) Client(f Family, n int) (netip.Addr, bool) {
	for _, c := range p.From {
		if FamilyOf(c.Addr()) != f || n < 0 {
			continue
		}
		size := 1 << (c.Addr().BitLen() - c.Bits())
		if n < size {
			return plus(c.Addr(), uint64(n)), true
		}
		n -= size
	}
	return netip.Addr{}, false
}

// clientIndex is the inverse of Client.
func (p *Pool) clientIndex(a netip.Addr) (int, bool) {
	n := 0
	for _, c := range p.From {
		switch {
		case FamilyOf(c.Addr()) != FamilyOf(a):
		case c.Contains(a):
			return n + int(low64(a)-low64(c.Addr())), true
		default:
			n += 1 << (c.Addr().BitLen() - c.Bits())
		}
	}
	return 0, false
}

// BlockOf returns the block that new connections of the client get. False: it is no client
// of the pool, or its address is drained and no block is free.
func (p *Pool) BlockOf(client netip.Addr) (PortBlock, bool) {
	l := p.layout(FamilyOf(client))
	i, ok := p.clientIndex(client)
	if !ok || len(l.blocks) == 0 {
		return PortBlock{}, false
	}
	slot := i
	if l.drained[slot/len(l.blocks)] {
		if slot, ok = l.spare(l.displaced(i)); !ok {
			return PortBlock{}, false
		}
	}
	return PortBlock{client, l.addrs[slot/len(l.blocks)], l.blocks[slot%len(l.blocks)]}, true
}

// ClientOf returns whose port of an address of the pool it is: the inverse of BlockOf. Of a
// drained address that is who had it before, and may still have old connections there.
func (p *Pool) ClientOf(addr netip.Addr, port uint16) (PortBlock, bool) {
	f := FamilyOf(addr)
	l := p.layout(f)
	for ai, a := range l.addrs {
		for bi, b := range l.blocks {
			if a != addr || !b.Contains(port) {
				continue
			}
			slot := ai*len(l.blocks) + bi
			if slot >= l.clients {
				slot = l.displacedBy(slot)
			}
			client, ok := p.Client(f, slot)
			return PortBlock{client, addr, b}, ok
		}
	}
	return PortBlock{}, false
}

// blockLayout numbers the blocks of a family: those of the first address, then those of the
// second, and so on.
type blockLayout struct {
	addrs   []netip.Addr
	drained []bool // one for each of addrs
	blocks  []PortRange
	clients int
}

func (p *Pool) layout(f Family) blockLayout {
	l := blockLayout{addrs: p.Addrs(f), blocks: p.Blocks(), clients: p.Clients(f)}
	l.drained = make([]bool, len(l.addrs))
	for i, a := range l.addrs {
		for _, d := range p.Drained {
			l.drained[i] = l.drained[i] || a == d
		}
	}
	return l
}

// displaced returns how many clients before the i-th have a drained address.
func (l *blockLayout) displaced(i int) int {
	n := 0
	for ai, drained := range l.drained {
		if first := ai * len(l.blocks); drained && first < i {
			n += min(i-first, len(l.blocks))
		}
	}
	return n
}

// spare returns the j-th block that nobody has, on an address that is not drained.
func (l *blockLayout) spare(j int) (int, bool) {
	for ai, drained := range l.drained {
		first := max(ai*len(l.blocks), l.clients)
		free := (ai+1)*len(l.blocks) - first
		switch {
		case drained || free <= 0:
		case j < free:
			return first + j, true
		default:
			j -= free
		}
	}
	return 0, false
}

// displacedBy is the inverse of spare and displaced: which client has that spare block; -1
// where none has.
func (l *blockLayout) displacedBy(slot int) int {
	j := 0
	for ai, drained := range l.drained {
		first := max(ai*len(l.blocks), l.clients)
		last := (ai + 1) * len(l.blocks)
		if last <= first || drained {
			if slot < last {
				return -1
			}
			continue
		}
		if slot < last {
			j += slot - first
			break
		}
		j += last - first
	}
	for ai, drained := range l.drained {
		first := ai * len(l.blocks)
		n := min(len(l.blocks), l.clients-first)
		if !drained || n <= 0 {
			continue
		}
		if j < n {
			return first + j
		}
		j -= n
	}
	return -1
}

// low64 returns the last 64 bits of an address.
func low64(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}

// plus returns the address n further on.
func plus(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	lo, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), n, 0)
	binary.BigEndian.PutUint64(b[8:], lo)
	binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])+carry)
	out := netip.AddrFrom16(b)
	if a.Is4() {
		return out.Unmap()
	}
	return out
}
