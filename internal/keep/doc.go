// Package keep is what weir remembers of configurations, on disk: the last that was
// confirmed, the one that waits to be confirmed, and the one that was not.
//
// Its one idea: one small record says what holds, and names texts by their SHA-256. It is
// replaced whole, after the texts that it names are there, so that a weir which is killed
// at any moment leaves either what was or what is. Who writes holds the lock of the network
// namespace; who reads needs none.
package keep
