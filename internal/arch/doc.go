// Package arch holds nothing but tests of the tree's shape: which package may import
// which, and how long a file may be.
package arch
