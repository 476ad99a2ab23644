// Package vip holds virtual addresses on devices, and tells the network that they are here.
//
// Its one idea: an address that weir put on a device carries weir's mark in the kernel's
// own address table. So the kernel remembers what is weir's, through kill -9 and restart,
// and there is no state file to lose or to believe. An address without the mark is
// somebody else's: it is neither adopted nor removed.
//
// The mark is two attributes, and an address is weir's when it bears both:
//   - IFA_PROTO (Linux 5.18) is [Protocol]. An older kernel drops it silently, and the
//     other one alone is the mark there.
//   - IFA_RT_PRIORITY (Linux 4.18) is [Metric]. It is the metric of the prefix route
//     that an address brings, and weir's addresses bring none, so it changes nothing.
//
// `ip address` shows them as "proto 0x77" and "metric 2003134834". Whoever replaces such
// an address (`ip address replace`) takes it over, except for IPv6 before 5.18, where the
// kernel keeps the metric. Before 4.18 there is no mark, and weir would leave its
// addresses behind.
package vip

import (
	"cmp"
	"net/netip"
	"slices"
)

// The mark of weir's addresses.
const (
	// Metric is the 32-bit part of the mark, the letters "weir".
	Metric uint32 = 0x77656972
	// Protocol is the 8-bit part, for people who look. The kernel uses 1 to 3
	// (include/uapi/linux/if_addr.h, IFAPROT_*), the rest is free.
	Protocol uint8 = 0x77
)

// Want is an address that a device should hold.
type Want struct {
	Dev  string
	Addr netip.Addr // a unicast address, not 4-in-6, without a zone
}

// Have is an address that a device holds.
type Have struct {
	Dev    string
	Prefix netip.Prefix // not masked: the address, and the length of its prefix
	Ours   bool         // it bears weir's mark
}

func (h Have) want() Want { return Want{h.Dev, h.Prefix.Addr()} }

// Diff returns what must be added and deleted to have what is wanted, and what is wanted
// but already held by others on the same device, which stays as it is. Each is sorted
// by device and address and free of duplicates. The same address on another device is
// another matter: the kernel allows it, and what is weir's there is deleted.
func Diff(want []Want, have []Have) (add []Want, del, foreign []Have) {
	wanted := make(map[Want]bool, len(want))
	for _, w := range want {
		wanted[w] = true
	}
	held := make(map[Want]bool, len(have)) // wanted and there, whoever's it is
	for _, h := range have {
		w := h.want()
		switch {
		case wanted[w]:
			held[w] = true
			if !h.Ours {
				foreign = append(foreign, h)
			}
		case h.Ours:
			del = append(del, h)
		}
	}
	for w := range wanted {
		if !held[w] {
			add = append(add, w)
		}
	}
	slices.SortFunc(add, compareWant)
	return add, sorted(del), sorted(foreign)
}

func sorted(h []Have) []Have {
	slices.SortFunc(h, func(a, b Have) int {
		return cmp.Or(compareWant(a.want(), b.want()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return slices.Compact(h)
}

func compareWant(a, b Want) int {
	return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Addr.Compare(b.Addr))
}
