// Package nft brings a [ruleset.Delta] into the kernel and reads back what is there,
// over netlink, without the nft program.
//
// A delta is one transaction: [Encode] writes it as one buffer of nfnetlink messages,
// with the bytecode that nft 1.0.6 makes of the text that the ruleset prints, and
// [Conn.Apply] sends the buffer in one call. The transaction is guarded by the
// generation of the kernel's ruleset: if anybody changed anything since it was read,
// nothing happens and the error is [ErrStale]. Errors name the object that the kernel
// refused. Tables other than those asked for are neither read nor touched.
//
// What is read back is not taken at its word: a rule is one of weir's when it does what
// the driver would send for it, not because its comment says so ([Conn.Read]).
//
// The formats are those of the kernel's include/uapi/linux/netfilter/nf_tables.h and
// nfnetlink.h.
package nft
