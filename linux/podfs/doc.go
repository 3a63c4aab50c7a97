// Package podfs is the kernel's side of pod volumes: memory file systems, opening a path beneath a directory that somebody else writes, and walking or removing
// trees without ever following a link or crossing into another mount.
//
// It knows neither pods nor volumes, keeps no state and starts no goroutine. All functions are
// safe for concurrent use on different paths. Paths are absolute.
package podfs
