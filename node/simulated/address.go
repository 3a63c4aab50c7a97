package simulated

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// pool gives the pods of one node made-up addresses out of its range.
type pool struct {
	block netip.Prefix
	next  netip.Addr
	// again is set once all addresses were given: from then on those in use are looked up.
	again bool
}

func newPool(block netip.Prefix) pool { return pool{block: block, next: first(block)} }

// first is the first address for a pod: those of the network and of the gateway are left out.
func first(block netip.Prefix) netip.Addr { return block.Addr().Next().Next() }

// blockOf is the range of the i-th of count nodes. Each gets 256 IPv4 addresses (64 bits of IPv6), or
// what there is if they are too many for that.
func blockOf(all netip.Prefix, i, count int) netip.Prefix {
	all = all.Masked()
	bits := 24
	if all.Addr().Is6() {
		bits = 64
	}
	bits = max(bits, all.Bits())
	for bits < all.Addr().BitLen()-2 && bits-all.Bits() < 31 && 1<<(bits-all.Bits()) < count {
		bits++
	}
	b := all.Addr().AsSlice()
	for bit := bits - 1; i > 0 && bit >= all.Bits(); bit, i = bit-1, i>>1 {
		b[bit/8] |= byte(i&1) << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(addr, bits)
}

// take returns the next address. inUse tells whether a pod has one; it is asked once all were given.
func (p *pool) take(inUse func(netip.Addr) bool) netip.Addr {
	for tried := 0; ; tried++ {
		out := p.next
		p.next = out.Next()
		if !p.block.Contains(p.next) || !p.block.Contains(p.next.Next()) { // the last is for broadcasts
			p.next, p.again = first(p.block), true
		}
		if !p.again || tried > 1<<16 || !inUse(out) {
			return out
		}
	}
}

// reserve moves behind an address that is in use from an earlier run.
func (p *pool) reserve(addr netip.Addr) {
	if next := addr.Next(); p.block.Contains(next) && p.next.Less(next) {
		p.next = next
	}
}

// address gives a pod of a node an address.
func (a *Agent) address(s store.Snapshot, node string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var used map[string]bool
	return a.nodes[node].pool.take(func(addr netip.Addr) bool {
		if used == nil {
			used = map[string]bool{}
			for pod := range client.Pods.Index(s, "node", node) {
				used[pod.Status.PodIP] = true
			}
		}
		return used[addr.String()]
	}).String()
}

// reserve takes note of an address that a pod has from an earlier run.
func (a *Agent) reserve(pod *corev1.Pod) {
	addr, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nodes[pod.Spec.NodeName].pool.reserve(addr)
}

// adopt takes over the range that a Node object names, for the object may be from an earlier run.
func (a *Agent) adopt(n *simNode, object *corev1.Node) {
	block, err := netip.ParsePrefix(object.Spec.PodCIDR)
	if err != nil || block.Addr().BitLen()-block.Bits() < 2 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n.pool.block != block.Masked() {
		n.pool = newPool(block.Masked())
	}
}
