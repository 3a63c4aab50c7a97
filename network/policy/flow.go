package policy

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ICMP is the protocol of a Flow that has no ports. The rules of NetworkPolicy and ClusterNetworkPolicy v1alpha2 have no word
// for it: it is matched by rules that do not restrict ports.
const ICMP corev1.Protocol = "ICMP"

// Flow is traffic that is asked about: who opens a connection to whom, after any translation by a Service.
type Flow struct {
	From, To Peer
	// Protocol is TCP (if empty), UDP, SCTP or ICMP.
	Protocol corev1.Protocol
	// Port is that of To, without a meaning for ICMP.
	Port uint16
	// IPv6 asks about the IPv6 addresses of pods that have both families.
	IPv6 bool
}

// Peer is one end of a Flow: a pod that exists, a pod that might (Namespace and Labels), a node, or an address. Exactly one of
// Pod, Namespace without Pod, Node and Addr says which. An address that belongs to a pod or node stands for it.
type Peer struct {
	// Namespace and Pod name a pod. Without Pod the peer is a pod of that namespace with Labels and no address.
	Namespace, Pod string
	Labels         map[string]string
	// Node names a node: its own address, its host processes and its hostNetwork pods.
	Node string
	// Addr is anything else that has an address, outside of the cluster for instance.
	Addr netip.Addr
}

// String names the peer as the command line does: "pod/ns/name", "namespace/ns", "node/n", or the address.
func (p Peer) String() string {
	switch {
	case p.Pod != "":
		return "pod/" + p.Namespace + "/" + p.Pod
	case p.Namespace != "":
		return "namespace/" + p.Namespace
	case p.Node != "":
		return "node/" + p.Node
	case p.Addr.IsValid():
		return p.Addr.String()
	}
	return "nobody"
}

// Direction says for which end of a flow something was decided.
type Direction uint8

// The two directions, as pods see them.
const (
	Ingress Direction = iota // into the pod
	Egress                   // out of the pod
)

// String gives "ingress" or "egress".
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// Tier says in which of the tiers of policies a decision fell (policy.networking.k8s.io, ClusterNetworkPolicySpec.tier).
type Tier uint8

// The tiers in the order in which they are asked, and what holds if none of them decides.
const (
	TierAdmin Tier = iota
	TierNetworkPolicy
	TierBaseline
	TierDefault
)

// String gives the tier's name.
func (t Tier) String() string {
	return [...]string{"Admin", "NetworkPolicy", "Baseline", "Default"}[t]
}

// Ref names a policy.
type Ref struct {
	// Cluster tells a ClusterNetworkPolicy from a NetworkPolicy.
	Cluster         bool
	Namespace, Name string
}

// String gives "networkpolicy/ns/name" or "clusternetworkpolicy/name".
func (r Ref) String() string {
	if r.Cluster {
		return "clusternetworkpolicy/" + r.Name
	}
	return "networkpolicy/" + r.Namespace + "/" + r.Name
}

// Reason says what kind of thing decided at one end.
type Reason uint8

// The reasons of a Step.
const (
	// ReasonNoPod: the end is not a pod of the pods' network, policies do not concern it.
	ReasonNoPod Reason = iota
	// ReasonSelf: a pod always reaches itself.
	ReasonSelf
	// ReasonOwnNode: traffic between a pod and the node on which it runs.
	ReasonOwnNode
	// ReasonRule: a rule of a policy matched.
	ReasonRule
	// ReasonIsolated: NetworkPolicies select the pod and none of their rules matched.
	ReasonIsolated
	// ReasonDefault: no policy has a say, so that all is allowed.
	ReasonDefault
)

// Step is what was decided at one end of a flow.
type Step struct {
	Direction Direction
	Allowed   bool
	Reason    Reason
	Tier      Tier
	// Policy and Rule, counted from 0 in the direction's list of rules, are set with ReasonRule.
	Policy Ref
	Rule   int
	// RuleName is the name of a ClusterNetworkPolicy's rule, if it has one.
	RuleName string
	// Isolating are the NetworkPolicies that select the pod for this direction, in order of name, with ReasonIsolated.
	Isolating []Ref
}

// String says in one line what decided.
func (s Step) String() string {
	word := "denied"
	if s.Allowed {
		word = "allowed"
	}
	switch s.Reason {
	case ReasonNoPod:
		return s.Direction.String() + " is not restricted: not a pod of the pods' network"
	case ReasonSelf:
		return s.Direction.String() + " " + word + ": a pod always reaches itself"
	case ReasonOwnNode:
		return s.Direction.String() + " " + word + ": a pod and its own node always reach each other"
	case ReasonDefault:
		return s.Direction.String() + " " + word + ": no policy has a say"
	case ReasonIsolated:
		names := make([]string, len(s.Isolating))
		for i, r := range s.Isolating {
			names[i] = r.String()
		}
		return s.Direction.String() + " " + word + ": no rule matches of " + strings.Join(names, ", ")
	}
	rule := fmt.Sprintf("rule %d", s.Rule+1)
	if s.RuleName != "" {
		rule += fmt.Sprintf(" %q", s.RuleName)
	}
	return fmt.Sprintf("%s %s by %s, %s %s", s.Direction, word, s.Policy, s.Direction, rule)
}

// Verdict is the answer to a Flow.
type Verdict struct {
	Allowed bool
	// Egress is what was decided where the flow begins, Ingress where it ends. Both have to allow it.
	Egress, Ingress Step
}

// Decided is the step that decided: the one that denies, else the one at which a policy matched, else ingress.
func (v Verdict) Decided() Step {
	switch {
	case !v.Egress.Allowed:
		return v.Egress
	case !v.Ingress.Allowed:
		return v.Ingress
	case v.Ingress.Reason != ReasonRule && v.Egress.Reason == ReasonRule:
		return v.Egress
	}
	return v.Ingress
}
