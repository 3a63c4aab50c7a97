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

// everyNode is the loop's one key: a pass gives blocks to all nodes that have none, so that thousands that register at
// once cost a few walks over the nodes and not one for each, and no block is given away twice.
var everyNode = reconcile.Key{Name: "nodes"}

// Loop is the allocator over one range for each family.
func Loop(ranges []Range) reconcile.Loop {
	return reconcile.Loop{
		Name:           "node-ipam-controller",
		ServiceAccount: "node-controller",
		Source:         "cidrAllocator",
		Inputs:         []reconcile.Input{{Resource: client.Nodes.Name, Keys: wanting}},
		Outputs:        []reconcile.Output{{Resource: client.Nodes.Name, Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, _ reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, ranges), nil
		},
	}
}

// wanting asks for a pass when a node without a range comes, and when one is gone whose range others may want.
func wanting(_ store.Snapshot, ev store.Event) []reconcile.Key {
	if !ev.Deleted && ev.Entry.Object.(*corev1.Node).Spec.PodCIDR != "" {
		return nil
	}
	return []reconcile.Key{everyNode}
}

func plan(s store.Snapshot, ranges []Range) reconcile.Plan {
	var without []*corev1.Node
	used := map[netip.Prefix]bool{}
	sizes := map[int]bool{}
	for node := range client.Nodes.List(s, "") {
		if node.Spec.PodCIDR == "" && node.DeletionTimestamp == nil {
			without = append(without, node)
		}
		for _, cidr := range node.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(cidr); err == nil {
				used[p.Masked()], sizes[p.Bits()] = true, true
			}
		}
	}
	p := reconcile.Plan{Parallel: true}
	if len(without) == 0 || len(ranges) == 0 {
		return p
	}
	searches := make([]search, len(ranges))
	for i, r := range ranges {
		searches[i] = begin(r, used, sizes)
	}
	for _, node := range without {
		out := node.DeepCopy()
		out.Spec.PodCIDRs = nil
		for i := range searches {
			if block, ok := searches[i].free(); ok {
				out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, block.String())
			}
		}
		if len(out.Spec.PodCIDRs) < len(ranges) {
			p.Events = append(p.Events, exhausted(node))
			continue
		}
		for i := range searches {
			searches[i].take()
		}
		out.Spec.PodCIDR = out.Spec.PodCIDRs[0]
		p.Writes = append(p.Writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Nodes.Name, Object: out})
	}
	return p
}

// exhausted tells that nothing is left. The node is looked at again when another goes.
func exhausted(node *corev1.Node) reconcile.Event {
	return reconcile.Event{
		Regarding: reconcile.Regarding("v1", "Node", node), Type: "Normal", Reason: "CIDRNotAvailable",
		Message: fmt.Sprintf("Node %s status is now: CIDRNotAvailable", node.Name),
	}
}

// search walks over the blocks of a range once, from the lowest.
type search struct {
	cluster, next netip.Prefix
	used          map[netip.Prefix]bool
	// mixed tells that blocks of another size are in use, which have to be compared one by one.
	mixed, over bool
}

func begin(r Range, used map[netip.Prefix]bool, sizes map[int]bool) search {
	bits, cluster := r.bits(), r.Cluster.Masked()
	if bits < cluster.Bits() || bits > cluster.Addr().BitLen() {
		return search{over: true}
	}
	s := search{cluster: cluster, next: netip.PrefixFrom(cluster.Addr(), bits), used: used}
	for size := range sizes {
		s.mixed = s.mixed || size != bits
	}
	return s
}

// free is the lowest block that no block in use overlaps and that was not taken.
func (s *search) free() (netip.Prefix, bool) {
	for ; !s.over; s.advance() {
		if !s.used[s.next] && !(s.mixed && overlaps(s.next, s.used)) {
			return s.next, true
		}
	}
	return netip.Prefix{}, false
}

// take goes on behind the block that free gave.
func (s *search) take() { s.advance() }

func (s *search) advance() {
	next, ok := after(s.next)
	s.next, s.over = next, !ok || !s.cluster.Contains(next.Addr())
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
