// Package nodeipam gives each node a range of pod addresses out of the cluster's.
//
// It owns spec.podCIDR and spec.podCIDRs of nodes that have none yet. It never
// changes a range that a node has, and frees a range only by the node being gone.
package nodeipam

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Range is a part of the pod network from which nodes get blocks of equal size.
type Range struct {
	// Cluster is the whole of it.
	Cluster netip.Prefix
	// NodeBits is the prefix length of a node's block; 0 means 24 for IPv4 and 64 for IPv6.
	NodeBits int
}

func (r Range) bits() int {
	switch {
	case r.NodeBits != 0:
		return r.NodeBits
	case r.Cluster.Addr().Is6():
		return 64
	}
	return 24
}

// Loop is the allocator over one range for each family. Its keys are nodes, worked on one at a time, so that no
// block is given away twice.
func Loop(ranges []Range) reconcile.Loop {
	return reconcile.Loop{
		Name:           "node-ipam-controller",
		ServiceAccount: "node-controller",
		Source:         "cidrAllocator",
		Inputs:         []reconcile.Input{{Resource: client.Nodes.Name, Keys: wanting}},
		Outputs:        []reconcile.Output{{Resource: client.Nodes.Name, Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, key.Name, ranges)
		},
	}
}

// wanting gives a node without a range, and when a node is gone those that might get its.
func wanting(s store.Snapshot, ev store.Event) []reconcile.Key {
	node := ev.Entry.Object.(*corev1.Node)
	if !ev.Deleted {
		if node.Spec.PodCIDR != "" {
			return nil
		}
		return []reconcile.Key{{Name: node.Name}}
	}
	var keys []reconcile.Key
	for other := range client.Nodes.List(s, "") {
		if other.Spec.PodCIDR == "" {
			keys = append(keys, reconcile.Key{Name: other.Name})
		}
	}
	return keys
}

func plan(s store.Snapshot, name string, ranges []Range) (reconcile.Plan, error) {
	node, ok := client.Nodes.Get(s, "", name)
	if !ok || node.Spec.PodCIDR != "" || node.DeletionTimestamp != nil || len(ranges) == 0 {
		return reconcile.Plan{}, nil
	}
	used := map[netip.Prefix]bool{}
	for other := range client.Nodes.List(s, "") {
		for _, cidr := range other.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(cidr); err == nil {
				used[p.Masked()] = true
			}
		}
	}
	out := node.DeepCopy()
	out.Spec.PodCIDRs = nil
	for _, r := range ranges {
		block, ok := free(r, used)
		if !ok {
			return exhausted(node), nil
		}
		out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, block.String())
	}
	out.Spec.PodCIDR = out.Spec.PodCIDRs[0]
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Nodes.Name, Object: out}}}, nil
}

// exhausted tells that nothing is left. The node is looked at again when another goes.
func exhausted(node *corev1.Node) reconcile.Plan {
	return reconcile.Plan{Events: []reconcile.Event{{
		Regarding: reconcile.Regarding("v1", "Node", node), Type: "Normal", Reason: "CIDRNotAvailable",
		Message: fmt.Sprintf("Node %s status is now: CIDRNotAvailable", node.Name),
	}}}
}

// free is the lowest block that no block in use overlaps.
func free(r Range, used map[netip.Prefix]bool) (netip.Prefix, bool) {
	bits := r.bits()
	cluster := r.Cluster.Masked()
	if bits < cluster.Bits() || bits > cluster.Addr().BitLen() {
		return netip.Prefix{}, false
	}
	for block := netip.PrefixFrom(cluster.Addr(), bits); cluster.Contains(block.Addr()); {
		if !used[block] && !overlaps(block, used) {
			return block, true
		}
		next, ok := after(block)
		if !ok {
			break
		}
		block = next
	}
	return netip.Prefix{}, false
}

// overlaps tells whether a block of another size is in the way.
func overlaps(block netip.Prefix, used map[netip.Prefix]bool) bool {
	for p := range used {
		if p.Bits() != block.Bits() && p.Overlaps(block) {
			return true
		}
	}
	return false
}

// after is the next block of the same size.
func after(block netip.Prefix) (netip.Prefix, bool) {
	b := block.Addr().AsSlice()
	i := (block.Bits() - 1) / 8
	step := byte(1) << (7 - (block.Bits()-1)%8)
	for ; i >= 0; i-- {
		sum := b[i] + step
		carry := sum < b[i]
		b[i] = sum
		if !carry {
			addr, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(addr, block.Bits()), true
		}
		step = 1
	}
	return netip.Prefix{}, false
}
