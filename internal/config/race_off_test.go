//go:build !race

package config

// garbageSizes are more than the library gets to see, and a little less.
var garbageSizes = []int{50 << 20, 8<<20 - 1024}
