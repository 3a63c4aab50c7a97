package policy

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Protocols as the model knows them: those with ports by number, all others as one.
const (
	protoOther uint8 = 0
	protoTCP   uint8 = 6
	protoUDP   uint8 = 17
	protoSCTP  uint8 = 132
)

func protocol(p corev1.Protocol) uint8 {
	switch p {
	case "", corev1.ProtocolTCP:
		return protoTCP
	case corev1.ProtocolUDP:
		return protoUDP
	case corev1.ProtocolSCTP:
		return protoSCTP
	}
	return protoOther
}

type action uint8

const (
	accept action = iota
	deny
	pass
)

// ruleset is one policy, read once: selectors parsed, ranges parsed.
type ruleset struct {
	ref      Ref
	tier     Tier
	priority int32
	// subject selects pods: by namespace name (NetworkPolicy) or by the labels of namespaces.
	subject selector
	// isolates says for which directions selected pods are isolated (NetworkPolicy only).
	isolates [2]bool
	rules    [2][]rule
}

// concerns says whether the policy has a say about a direction of the pods that it selects.
func (r *ruleset) concerns(d Direction) bool { return r.isolates[d] || len(r.rules[d]) > 0 }

// rule is one entry of the list of a direction.
type rule struct {
	action action
	name   string
	index  int
	// anyPeer and anyPort say that the rule does not restrict peers or ports.
	anyPeer, anyPort bool
	peers            []peer
	ports            []portRange
}

// selector selects pods by their namespace and their labels. A selector that selects nothing is nil.
type selector struct {
	namespace  string          // "" for those that namespaces selects
	namespaces labels.Selector // unused if namespace is set
	pods       labels.Selector
}

func (s *selector) selects(p *pod) bool {
	if s.namespace != "" {
		if p.namespace != s.namespace {
			return false
		}
	} else if s.namespaces == nil || !p.known || !s.namespaces.Matches(p.nsLabels) {
		return false
	}
	return s.pods != nil && s.pods.Matches(p.labels)
}

// peer is one entry of from or to: pods, addresses, or nodes.
type peer struct {
	pods   *selector
	nodes  labels.Selector
	block  netip.Prefix
	except []netip.Prefix
}

// matches says whether other is among the peers.
func (p *peer) matches(other *party) bool {
	switch {
	case p.pods != nil:
		return other.pod != nil && p.pods.selects(other.pod)
	case p.nodes != nil:
		return other.node != nil && p.nodes.Matches(other.node.labels)
	case p.block.IsValid():
		return p.contains(other.addr)
	}
	return false
}

func (p *peer) contains(a netip.Addr) bool {
	if !p.block.Contains(a) {
		return false
	}
	for _, e := range p.except {
		if e.Contains(a) {
			return false
		}
	}
	return true
}

// portRange is one entry of ports: numbers of one protocol, or a name that the pod which is the destination gives a number.
type portRange struct {
	proto uint8 // unused with a name of any protocol
	// name is set instead of lo and hi. anyProto takes the port of that name whatever its protocol.
	name     string
	anyProto bool
	lo, hi   uint16
}

// spans gives the numbers for a destination: dst is nil where it is no pod.
func (r *portRange) spans(dst *pod, yield func(proto uint8, lo, hi uint16)) {
	if r.name == "" {
		yield(r.proto, r.lo, r.hi)
		return
	}
	if dst == nil {
		return
	}
	for _, p := range dst.ports {
		if p.name == r.name && (r.anyProto || p.proto == r.proto) {
			yield(p.proto, p.number, p.number)
		}
	}
}

func (r *portRange) matches(proto uint8, port uint16, dst *pod) (hit bool) {
	r.spans(dst, func(p uint8, lo, hi uint16) { hit = hit || (p == proto && lo <= port && port <= hi) })
	return hit
}

// matches says whether traffic with other, to proto and port of dst, is meant by the rule.
func (r *rule) matches(other *party, proto uint8, port uint16, dst *pod) bool {
	return r.matchesPeer(other) && r.matchesPort(proto, port, dst)
}

func (r *rule) matchesPeer(other *party) bool {
	if r.anyPeer {
		return true
	}
	for i := range r.peers {
		if r.peers[i].matches(other) {
			return true
		}
	}
	return false
}

func (r *rule) matchesPort(proto uint8, port uint16, dst *pod) bool {
	if r.anyPort {
		return true
	}
	for i := range r.ports {
		if r.ports[i].matches(proto, port, dst) {
			return true
		}
	}
	return false
}

// parseSelector is nil, which selects nothing, for a selector that the API would not have let in.
func parseSelector(s *metav1.LabelSelector) labels.Selector {
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil
	}
	return parsed
}

// readPolicy reads a NetworkPolicy. Its rules allow; what policyTypes leaves out is derived as the API documents it.
func readPolicy(np *networkingv1.NetworkPolicy) *ruleset {
	r := &ruleset{ref: Ref{Namespace: np.Namespace, Name: np.Name}, tier: TierNetworkPolicy,
		subject: selector{namespace: np.Namespace, pods: parseSelector(&np.Spec.PodSelector)}}
	if len(np.Spec.PolicyTypes) == 0 {
		r.isolates[Ingress], r.isolates[Egress] = true, len(np.Spec.Egress) > 0
	}
	for _, t := range np.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			r.isolates[Ingress] = true
		case networkingv1.PolicyTypeEgress:
			r.isolates[Egress] = true
		}
	}
	if r.isolates[Ingress] {
		for i := range np.Spec.Ingress {
			in := &np.Spec.Ingress[i]
			r.rules[Ingress] = append(r.rules[Ingress], readRule(np.Namespace, i, in.From, in.Ports))
		}
	}
	if r.isolates[Egress] {
		for i := range np.Spec.Egress {
			out := &np.Spec.Egress[i]
			r.rules[Egress] = append(r.rules[Egress], readRule(np.Namespace, i, out.To, out.Ports))
		}
	}
	return r
}

func readRule(namespace string, index int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) rule {
	r := rule{index: index, anyPeer: len(peers) == 0, anyPort: len(ports) == 0}
	for i := range peers {
		p := &peers[i]
		if p.IPBlock != nil {
			r.peers = append(r.peers, readBlock(p.IPBlock))
			continue
		}
		s := &selector{pods: labels.Everything()}
		if p.PodSelector != nil {
			s.pods = parseSelector(p.PodSelector)
		}
		if p.NamespaceSelector != nil {
			s.namespaces = parseSelector(p.NamespaceSelector)
		} else {
			s.namespace = namespace
		}
		if p.PodSelector == nil && p.NamespaceSelector == nil {
			continue // nothing is selected by an entry without a field
		}
		r.peers = append(r.peers, peer{pods: s})
	}
	for i := range ports {
		r.ports = append(r.ports, readPort(&ports[i])...)
	}
	return r
}

// readBlock is a peer without a block, which matches nothing, if the text is no range.
func readBlock(b *networkingv1.IPBlock) peer {
	block, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return peer{}
	}
	p := peer{block: block.Masked()}
	for _, text := range b.Except {
		e, err := netip.ParsePrefix(text)
		if err != nil {
			return peer{}
		}
		p.except = append(p.except, e.Masked())
	}
	return p
}

func readPort(p *networkingv1.NetworkPolicyPort) []portRange {
	r := portRange{proto: protoTCP}
	if p.Protocol != nil {
		r.proto = protocol(*p.Protocol)
	}
	switch {
	case p.Port == nil:
		r.hi = math.MaxUint16
	case p.Port.Type == intstr.String:
		r.name = p.Port.StrVal
	default:
		r.lo, r.hi = uint16(p.Port.IntVal), uint16(p.Port.IntVal)
		if p.EndPort != nil {
			r.hi = uint16(*p.EndPort)
		}
	}
	return []portRange{r}
}

// readClusterPolicy reads a ClusterNetworkPolicy.
func readClusterPolicy(cnp *policyv1alpha2.ClusterNetworkPolicy) *ruleset {
	r := &ruleset{ref: Ref{Cluster: true, Name: cnp.Name}, tier: TierBaseline, priority: cnp.Spec.Priority}
	if cnp.Spec.Tier == policyv1alpha2.AdminTier {
		r.tier = TierAdmin
	}
	if s := namespaced(cnp.Spec.Subject.Namespaces, cnp.Spec.Subject.Pods); s != nil {
		r.subject = *s
	}
	for i := range cnp.Spec.Ingress {
		in := &cnp.Spec.Ingress[i]
		c := clusterRule{index: i, name: in.Name, action: in.Action, protocols: in.Protocols}
		for j := range in.From {
			if s := namespaced(in.From[j].Namespaces, in.From[j].Pods); s != nil {
				c.peers = append(c.peers, peer{pods: s})
			} else {
				c.unknown = true
			}
		}
		r.rules[Ingress] = append(r.rules[Ingress], c.read())
	}
	for i := range cnp.Spec.Egress {
		out := &cnp.Spec.Egress[i]
		c := clusterRule{index: i, name: out.Name, action: out.Action, protocols: out.Protocols}
		for j := range out.To {
			c.to(&out.To[j])
		}
		r.rules[Egress] = append(r.rules[Egress], c.read())
	}
	return r
}

// namespaced is nil if neither field is set.
func namespaced(namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod) *selector {
	switch {
	case namespaces != nil:
		return &selector{namespaces: parseSelector(namespaces), pods: labels.Everything()}
	case pods != nil:
		return &selector{namespaces: parseSelector(&pods.NamespaceSelector), pods: parseSelector(&pods.PodSelector)}
	}
	return nil
}

// clusterRule is a rule of a ClusterNetworkPolicy of either direction while it is read.
type clusterRule struct {
	index     int
	name      string
	action    policyv1alpha2.ClusterNetworkPolicyRuleAction
	protocols []policyv1alpha2.ClusterNetworkPolicyProtocol
	peers     []peer
	// unknown says that there is a part of which no field is known: the rule fails closed.
	unknown bool
}

func (c *clusterRule) to(p *policyv1alpha2.ClusterNetworkPolicyEgressPeer) {
	switch s := namespaced(p.Namespaces, p.Pods); {
	case s != nil:
		c.peers = append(c.peers, peer{pods: s})
	case p.Nodes != nil:
		c.peers = append(c.peers, peer{nodes: parseSelector(p.Nodes)})
	case len(p.Networks) > 0:
		for _, text := range p.Networks {
			block, err := netip.ParsePrefix(string(text))
			if err != nil {
				c.unknown = true
				continue
			}
			c.peers = append(c.peers, peer{block: block.Masked()})
		}
	default:
		// Names of domains are in the experimental channel only and not supported: they are an unknown field.
		c.unknown = true
	}
}

// read makes the rule. With an unknown part an Accept matches nothing, and a Deny or Pass denies all, as the API documents it
// (ClusterNetworkPolicyIngressPeer).
func (c *clusterRule) read() rule {
	r := rule{index: c.index, name: c.name, peers: c.peers, anyPort: len(c.protocols) == 0}
	for i := range c.protocols {
		if p, ok := readProtocol(&c.protocols[i]); ok {
			r.ports = append(r.ports, p)
		} else {
			c.unknown = true
		}
	}
	switch c.action {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
		r.action = accept
	case policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
		r.action = pass
	default:
		r.action = deny
	}
	if c.unknown {
		if r.action == accept {
			return rule{index: c.index, name: c.name, action: accept}
		}
		return rule{index: c.index, name: c.name, action: deny, anyPeer: true, anyPort: true}
	}
	return r
}

func readProtocol(p *policyv1alpha2.ClusterNetworkPolicyProtocol) (portRange, bool) {
	switch {
	case p.TCP != nil:
		return readNumbers(protoTCP, p.TCP.DestinationPort), true
	case p.UDP != nil:
		return readNumbers(protoUDP, p.UDP.DestinationPort), true
	case p.SCTP != nil:
		return readNumbers(protoSCTP, p.SCTP.DestinationPort), true
	case p.DestinationNamedPort != "":
		return portRange{name: p.DestinationNamedPort, anyProto: true}, true
	}
	return portRange{}, false
}

func readNumbers(proto uint8, p *policyv1alpha2.Port) portRange {
	switch {
	case p == nil:
		return portRange{proto: proto, hi: math.MaxUint16}
	case p.Range != nil:
		return portRange{proto: proto, lo: uint16(p.Range.Start), hi: uint16(p.Range.End)}
	}
	return portRange{proto: proto, lo: uint16(p.Number), hi: uint16(p.Number)}
}

// order puts policies in the order in which they are asked: tier, then priority, then name, so that two of the same priority
// are always asked in the same order.
func order(all []*ruleset) { slices.SortFunc(all, compareRulesets) }

func compareRulesets(a, b *ruleset) int {
	return cmp.Or(cmp.Compare(a.tier, b.tier), cmp.Compare(a.priority, b.priority),
		cmp.Compare(a.ref.Namespace, b.ref.Namespace), cmp.Compare(a.ref.Name, b.ref.Name))
}
