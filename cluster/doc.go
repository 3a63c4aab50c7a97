// Package cluster builds every part of a cluster in order, runs it, and stops the
// parts in reverse. It is the only place that knows all of them; the parts know
// only the store and, where DESIGN says so, each other.
//
// It owns the state directory (its lock, identity, keys and layout), the
// control socket, and the user's kubeconfig entry. It never holds cluster
// objects of its own: those are in the store.
package cluster
