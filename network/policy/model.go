package policy

import (
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// ClusterPolicies is the canonical name of the resource ClusterNetworkPolicy.
var ClusterPolicies = client.ClusterNetworkPolicies.Name

// pod is what policies know of a pod.
type pod struct {
	namespace, name string
	labels          labels.Set
	nsLabels        labels.Set
	// known says that the namespace exists, so that selectors of namespaces apply.
	known bool
	node  string
	addrs []netip.Addr
	ports []namedPort
	// standIn says that it is no pod but a part of the program in the place of one.
	standIn bool
}

type namedPort struct {
	name   string
	proto  uint8
	number uint16
}

// addr is the pod's address of a family, the zero value if it has none.
func (p *pod) addr(v6 bool) netip.Addr {
	for _, a := range p.addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

type node struct {
	name   string
	labels labels.Set
	addrs  []netip.Addr
	// gateways are the addresses from which its gateways speak to pods.
	gateways []netip.Addr
}

// party is one end of a flow as rules see it. At most one of pod and node is set.
type party struct {
	pod  *pod
	node *node
	addr netip.Addr
}

type podKey struct{ namespace, name string }

// Model is all that decides, as it was at one revision: policies, pods, namespaces and nodes. It is immutable and safe for
// concurrent use.
type Model struct {
	policies []*ruleset // in the order in which they are asked
	pods     map[podKey]*pod
	nodes    map[string]*node
	byAddr   map[netip.Addr]party
	spaces   map[string]labels.Set
	standIns map[string]*pod
	// programs remembers what was found out about each pod (programKey -> *program): a matrix asks about each many times.
	programs *sync.Map
}

type programKey struct {
	pod       *pod
	direction Direction
}

// program is what decides one direction of a pod.
func (m *Model) program(p *pod, d Direction) *program {
	if g, ok := m.programs.Load(programKey{p, d}); ok {
		return g.(*program)
	}
	g := newProgram(m.policies, p, d)
	if _, exists := m.pods[podKey{p.namespace, p.name}]; exists {
		m.programs.Store(programKey{p, d}, g)
	}
	return g
}

// Read makes the model of a snapshot. It costs a walk over pods, namespaces, nodes and policies: whoever asks about more than one
// flow keeps the Model.
func Read(s store.Snapshot) *Model {
	m := &Model{pods: map[podKey]*pod{}, nodes: map[string]*node{}, byAddr: map[netip.Addr]party{}, spaces: map[string]labels.Set{}}
	for ns := range client.Namespaces.List(s, "") {
		m.spaces[ns.Name] = ns.Labels
	}
	for n := range client.Nodes.List(s, "") {
		read := readNode(n)
		m.nodes[n.Name] = read
		for _, a := range read.addrs {
			m.byAddr[a] = party{node: read, addr: a}
		}
	}
	m.readStandIns(s)
	for p := range client.Pods.List(s, "") {
		if !onNetwork(p) {
			continue
		}
		read := readPod(p, m.spaces)
		m.pods[podKey{p.Namespace, p.Name}] = read
		for _, a := range read.addrs {
			m.byAddr[a] = party{pod: read, addr: a}
		}
	}
	var nps []*networkingv1.NetworkPolicy
	for np := range client.NetworkPolicies.List(s, "") {
		nps = append(nps, np)
	}
	var cnps []*policyv1alpha2.ClusterNetworkPolicy
	for cnp := range client.ClusterNetworkPolicies.List(s, "") {
		cnps = append(cnps, cnp)
	}
	return m.With(nps, cnps)
}

// With is the model with these policies in the place of its own, for what-if questions. The rest is shared.
func (m *Model) With(nps []*networkingv1.NetworkPolicy, cnps []*policyv1alpha2.ClusterNetworkPolicy) *Model {
	fresh := *m
	fresh.programs = &sync.Map{}
	fresh.policies = make([]*ruleset, 0, len(nps)+len(cnps))
	for _, np := range nps {
		fresh.policies = append(fresh.policies, readPolicy(np))
	}
	for _, cnp := range cnps {
		fresh.policies = append(fresh.policies, readClusterPolicy(cnp))
	}
	order(fresh.policies)
	return &fresh
}

// Pods lists the pods of the pods' network as peers, in order of namespace and name.
func (m *Model) Pods() []Peer {
	out := make([]Peer, 0, len(m.pods))
	for k := range m.pods {
		out = append(out, Peer{Namespace: k.namespace, Pod: k.name})
	}
	slices.SortFunc(out, func(a, b Peer) int {
		if a.Namespace != b.Namespace {
			return compare(a.Namespace, b.Namespace)
		}
		return compare(a.Pod, b.Pod)
	})
	return out
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// onNetwork says whether a pod has, or will have, an address of its own. hostNetwork pods are part of their node: policies do not
// select them (ClusterNetworkPolicySubject; NetworkPolicy documents it as undefined). A pod that ended has given its address back.
func onNetwork(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func readPod(p *corev1.Pod, spaces map[string]labels.Set) *pod {
	nsLabels, known := spaces[p.Namespace]
	r := &pod{namespace: p.Namespace, name: p.Name, labels: p.Labels, nsLabels: nsLabels, known: known, node: p.Spec.NodeName,
		addrs: podAddrs(p)}
	// Sidecars, which are init containers, have ports too.
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			for _, port := range list[i].Ports {
				if port.Name != "" {
					r.ports = append(r.ports, namedPort{port.Name, protocol(port.Protocol), uint16(port.ContainerPort)})
				}
			}
		}
	}
	return r
}

func podAddrs(p *corev1.Pod) []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		if a, err := netip.ParseAddr(p.Status.PodIP); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func readNode(n *corev1.Node) *node {
	r := &node{name: n.Name, labels: n.Labels, gateways: gatewayAddrs(n)}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			r.addrs = append(r.addrs, ip)
		}
	}
	return r
}
