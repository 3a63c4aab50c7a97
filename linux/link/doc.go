// Package link makes and removes the network links, addresses, routes and
// neighbour entries of pods over netlink.
//
// It owns nothing between calls: what exists is asked of the kernel. It
// knows nothing of pods, only of pairs: an end in the host and an end in another
// network namespace. It never runs an external program.
package link
