// Package overlay makes the ways from this node's pods to those of the other nodes: routes through a VXLAN tunnel, or direct
// routes where nodes share a link and that was asked for.
//
// It owns one link of its instance, the routes with its protocol number into the cluster's pod ranges, and the rule that gives packets
// into the tunnel a source address that the other side can answer. What it wants is a pure function of the Node objects; all of it
// follows from their names, addresses and ranges, and nodes tell each other nothing else. A cluster with one node has nothing of
// this in its kernel. It never gives addresses to pods and decides nothing about who may speak with whom.
package overlay
