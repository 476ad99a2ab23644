//go:build race

package config

// garbageSizes are small here: the race detector makes all of it ten times slower.
var garbageSizes = []int{1 << 20}
