// Package scheduler decides which node each pod goes to.
//
// Its core is pure: Cluster holds running totals of every node, updated by one pod or
// node at a time and never rebuilt; Schedule reads them and returns a node or the
// reasons why there is none, with whom to remove for it. The loop around it owns
// the queue, turns store events into updates, binds, and writes the PodScheduled condition.
//
// It never talks to a node, and reads nothing but what the store tells.
//
// The rules are those of upstream's default profile
// (kubernetes.io/docs/reference/scheduling/config/#scheduling-plugins), with its
// weights and its words.
package scheduler
