// Package nftfake is a kernel in memory for tests of what stands on internal/nft: it
// holds rulesets, takes deltas as strictly as the kernel does, and fails on demand.
package nftfake
