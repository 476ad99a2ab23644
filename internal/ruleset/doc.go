// Package ruleset holds nftables objects as typed values: tables, chains, rules,
// sets, maps and their elements.
//
// One value serves four readers. It prints as nft syntax ([Ruleset.String]) that
// `nft -f` loads unchanged; it compares with another ([Diff]), which gives what has
// to be sent; a packet can be evaluated against it ([Ruleset.Eval]); and internal/nft
// turns it into netlink messages. The package is pure: no kernel, clock or goroutine.
//
// Keys and data of elements are kept in the kernel's register layout: every field is
// followed by zeros up to a multiple of four bytes. Addresses and ports are in network
// order, integers in the order of the host, as nf_tables has them.
package ruleset
