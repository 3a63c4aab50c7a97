package policy

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/store"
)

// Evaluate says whether a flow is allowed in a snapshot, and what decided. An error says which end does not exist.
func Evaluate(s store.Snapshot, f Flow) (Verdict, error) { return Read(s).Evaluate(f) }

// Evaluate says whether a flow is allowed, and what decided. An error says which end does not exist.
func (m *Model) Evaluate(f Flow) (Verdict, error) {
	v6 := f.IPv6 || (f.From.Addr.IsValid() && f.From.Addr.Is6()) || (f.To.Addr.IsValid() && f.To.Addr.Is6())
	from, err := m.party(f.From, v6)
	if err != nil {
		return Verdict{}, err
	}
	to, err := m.party(f.To, v6)
	if err != nil {
		return Verdict{}, err
	}
	return m.decide(&from, &to, protocol(f.Protocol), f.Port), nil
}

// party finds out who is meant.
func (m *Model) party(p Peer, v6 bool) (party, error) {
	switch {
	case p.Pod != "":
		found := m.pods[podKey{p.Namespace, p.Pod}]
		if found == nil && p.Namespace == StandInNamespace {
			found = m.standIns[p.Pod]
		}
		if found == nil {
			return party{}, fmt.Errorf("no pod %s/%s in the pods' network", p.Namespace, p.Pod)
		}
		return party{pod: found, addr: found.addr(v6)}, nil
	case p.Namespace != "":
		nsLabels, known := m.spaces[p.Namespace]
		if !known {
			return party{}, fmt.Errorf("no namespace %s", p.Namespace)
		}
		return party{pod: &pod{namespace: p.Namespace, labels: labels.Set(p.Labels), nsLabels: nsLabels, known: true}}, nil
	case p.Node != "":
		found := m.nodes[p.Node]
		if found == nil {
			return party{}, fmt.Errorf("no node %s", p.Node)
		}
		out := party{node: found}
		for _, a := range found.addrs {
			if a.Is6() == v6 {
				out.addr = a
				break
			}
		}
		return out, nil
	case p.Addr.IsValid():
		return m.at(p.Addr.Unmap()), nil
	}
	return party{}, fmt.Errorf("neither a pod nor a namespace, node or address is given")
}

// at is who has an address.
func (m *Model) at(a netip.Addr) party {
	if p, ok := m.byAddr[a]; ok {
		return p
	}
	return party{addr: a}
}

// decide asks both ends. Traffic between a pod and itself, or a pod and what its node sends to it, is never restricted.
func (m *Model) decide(from, to *party, proto uint8, port uint16) Verdict {
	if from.pod != nil && from.pod == to.pod {
		return Verdict{Allowed: true, Egress: Step{Direction: Egress, Allowed: true, Reason: ReasonSelf},
			Ingress: Step{Direction: Ingress, Allowed: true, Reason: ReasonSelf}}
	}
	v := Verdict{Egress: m.judge(from, to, Egress, proto, port), Ingress: m.judge(to, from, Ingress, proto, port)}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v
}

// judge asks the policies of one end.
func (m *Model) judge(own, other *party, d Direction, proto uint8, port uint16) Step {
	if own.pod == nil || own.pod.standIn {
		return Step{Direction: d, Allowed: true, Reason: ReasonNoPod, Tier: TierDefault}
	}
	near := other.node != nil && own.pod.node == other.node.name
	if near && d == Ingress {
		return Step{Direction: d, Allowed: true, Reason: ReasonOwnNode, Tier: TierDefault}
	}
	return m.program(own.pod, d).judge(own.pod, other, near, proto, port)
}

// program is what decides one direction of a pod: the policies that select it, in order. Pods that have the same ones share it.
type program struct {
	direction Direction
	// rules of the three tiers in the order in which they are asked.
	tiers     [3][]*ruleset
	isolating []Ref // the NetworkPolicies that isolate the pod in this direction
}

func newProgram(policies []*ruleset, p *pod, d Direction) *program {
	g := &program{direction: d}
	for _, r := range policies {
		if r.concerns(d) && r.subject.selects(p) {
			g.add(r)
		}
	}
	return g
}

// add takes in the next policy, in order.
func (g *program) add(r *ruleset) {
	g.tiers[r.tier] = append(g.tiers[r.tier], r)
	if r.isolates[g.direction] {
		g.isolating = append(g.isolating, r.ref)
	}
}

// empty says that no policy has a say.
func (g *program) empty() bool { return len(g.tiers[0])+len(g.tiers[1])+len(g.tiers[2]) == 0 }

// judge decides traffic between own and other to a port of whoever is the destination. near says that other is the node of own,
// of which NetworkPolicies have no say ("traffic to and from the node where a Pod is running is always allowed").
func (g *program) judge(own *pod, other *party, near bool, proto uint8, port uint16) Step {
	dst := own
	if g.direction == Egress {
		dst = other.pod
	}
	step := Step{Direction: g.direction}
	for tier := TierAdmin; tier <= TierBaseline; tier++ {
		if near && tier == TierNetworkPolicy {
			continue
		}
		set, hit := g.first(tier, other, proto, port, dst)
		switch {
		case hit != nil && hit.action != pass:
			step.Tier, step.Reason, step.Allowed = tier, ReasonRule, hit.action == accept
			step.Policy, step.Rule, step.RuleName = set.ref, hit.index, hit.name
			return step
		case tier == TierNetworkPolicy && len(g.isolating) > 0:
			step.Tier, step.Reason, step.Isolating = tier, ReasonIsolated, g.isolating
			return step
		}
	}
	step.Tier, step.Reason, step.Allowed = TierDefault, ReasonDefault, true
	if near {
		step.Reason = ReasonOwnNode
	}
	return step
}

// first is the first rule of a tier that matches.
func (g *program) first(tier Tier, other *party, proto uint8, port uint16, dst *pod) (*ruleset, *rule) {
	for _, set := range g.tiers[tier] {
		for i := range set.rules[g.direction] {
			if r := &set.rules[g.direction][i]; r.matches(other, proto, port, dst) {
				return set, r
			}
		}
	}
	return nil, nil
}
