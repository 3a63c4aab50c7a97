package policy

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/nft/filter"
	"coracle.dev/coracle/store"
)

// A stand-in is a part of the program that elsewhere runs in pods: the cluster's DNS, and the proxy of gateways and Ingresses. Policies
// know it as a peer with the namespace and labels that such a pod has; they never select it as their subject, and its traffic is not
// the node's.

// StandInNamespace is the namespace of all stand-ins.
const StandInNamespace = "kube-system"

// Names of the stand-ins, by which a Peer means them.
const (
	GatewayStandIn = "coracle-gateway"
	DNSStandIn     = "kube-dns"
)

// standIns are the stand-ins by name, with the labels of their namespace.
func standIns(spaces map[string]labels.Set) map[string]*pod {
	space, known := spaces[StandInNamespace]
	made := func(name string, l labels.Set, ports ...namedPort) *pod {
		return &pod{namespace: StandInNamespace, name: name, labels: l, nsLabels: space, known: known, ports: ports, standIn: true}
	}
	return map[string]*pod{
		GatewayStandIn: made(GatewayStandIn, labels.Set{"app.kubernetes.io/name": GatewayStandIn}),
		DNSStandIn: made(DNSStandIn, labels.Set{"k8s-app": DNSStandIn},
			namedPort{"dns", protoUDP, 53}, namedPort{"dns-tcp", protoTCP, 53}),
	}
}

// GatewayAddress is the address of a node's pod range from which its gateways speak to pods: the range's first, which no pod gets.
func GatewayAddress(podRange netip.Prefix) netip.Addr { return podRange.Masked().Addr().Next() }

// gatewayAddrs are those of a node.
func gatewayAddrs(n *corev1.Node) (addrs []netip.Addr) {
	for _, text := range n.Spec.PodCIDRs {
		if r, err := netip.ParsePrefix(text); err == nil {
			addrs = append(addrs, GatewayAddress(r))
		}
	}
	return addrs
}

// readStandIns adds the stand-ins to a model.
func (m *Model) readStandIns(s store.Snapshot) {
	m.standIns = standIns(m.spaces)
	give := func(name string, a netip.Addr) {
		p := m.standIns[name]
		p.addrs = append(p.addrs, a)
		m.byAddr[a] = party{pod: p, addr: a}
	}
	for _, n := range m.nodes {
		for _, a := range n.gateways {
			give(GatewayStandIn, a)
		}
	}
	if svc, ok := client.Services.Get(s, StandInNamespace, DNSStandIn); ok {
		for _, text := range svc.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(text); err == nil {
				give(DNSStandIn, a)
			}
		}
	}
}

// standing is the stand-in at an address, nil if there is none.
func (p *plan) standing(a netip.Addr) *pod {
	switch {
	case p.dns[a]:
		return p.standIns[DNSStandIn]
	case p.gateways[a] > 0:
		return p.standIns[GatewayStandIn]
	}
	return nil
}

// eachStandIn walks the addresses of stand-ins.
func (p *plan) eachStandIn(do func(netip.Addr)) {
	for a := range p.dns {
		do(a)
	}
	for a := range p.gateways {
		do(a)
	}
}

// takeStandIns tells the filter which stand-ins have addresses on this machine.
func (p *plan) takeStandIns(change *filter.Change) {
	here := map[netip.Addr]bool{}
	for a := range p.dns {
		here[a] = true
	}
	if n := p.nodes[p.node]; n != nil {
		for _, a := range n.gateways {
			here[a] = true
		}
	}
	for a := range here {
		if !p.stands[a] {
			change.AddStandIns = append(change.AddStandIns, a)
		}
	}
	for a := range p.stands {
		if !here[a] {
			change.RemoveStandIns = append(change.RemoveStandIns, a)
		}
	}
	p.stands = here
}
