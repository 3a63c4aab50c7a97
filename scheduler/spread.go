package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"
)

// spreadConstraint is one topology spread constraint of a pod, parsed
// (kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints).
type spreadConstraint struct {
	topology   string
	maxSkew    int32
	minDomains int
	hard       bool
	peers      peers
	// counts is false for a selector that is empty, which counts no pod.
	counts bool
	// honorAffinity and honorTaints are nodeAffinityPolicy (default Honor) and nodeTaintsPolicy
	// (default Ignore).
	honorAffinity, honorTaints bool
}

func parseSpread(p *corev1.Pod) []spreadConstraint {
	var parsed []spreadConstraint
	for i := range p.Spec.TopologySpreadConstraints {
		t := &p.Spec.TopologySpreadConstraints[i]
		selector := requireKeys(parseSelector(t.LabelSelector), p.Labels, t.MatchLabelKeys, false)
		s := spreadConstraint{topology: t.TopologyKey, maxSkew: t.MaxSkew, minDomains: 1,
			hard: t.WhenUnsatisfiable != corev1.ScheduleAnyway, counts: !selector.Empty(),
			peers:         newPeers(newNamespaceSet([]string{p.Namespace}, nil), selector, true),
			honorAffinity: t.NodeAffinityPolicy == nil || *t.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor,
			honorTaints:   t.NodeTaintsPolicy != nil && *t.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
		}
		if t.MinDomains != nil {
			s.minDomains = int(*t.MinDomains)
		}
		parsed = append(parsed, s)
	}
	return parsed
}

// eligible tells whether the pods of a node count.
func (s *spreadConstraint) eligible(p *pod, n *node) bool {
	return (!s.honorAffinity || p.matches(n)) && (!s.honorTaints || !n.closed || untolerated(p.object, n.object) == nil)
}

// spreadState is what a pod's constraints of one kind mean in one pass.
type spreadState struct {
	rules []spreadRule
}

type spreadRule struct {
	*spreadConstraint
	tally *tally
	// domains are the matching pods; none for a domain that no eligible node is in.
	domains
	self    int32 // 1 if the pod itself matches
	minimum int32
}

const none = math.MinInt32

// spreadFor prepares the constraints of one kind, and nil if there are none. It costs
// one walk over the nodes for each constraint.
func (c *Cluster) spreadFor(p *pod, hard bool) *spreadState {
	var s *spreadState
	for i := range p.spread {
		if p.spread[i].hard != hard {
			continue
		}
		if s == nil {
			s = &spreadState{}
		}
		s.rules = append(s.rules, c.newRule(p, &p.spread[i]))
	}
	if s == nil {
		return nil
	}
	for i := range s.rules {
		s.rules[i].fill(c, p, s)
		s.rules[i].findMinimum()
	}
	return s
}

func (c *Cluster) newRule(p *pod, of *spreadConstraint) spreadRule {
	r := spreadRule{spreadConstraint: of, domains: newDomains(c.topology(of.topology))}
	if of.counts {
		r.tally = c.tally(&of.peers)
	}
	if of.peers.selector.Matches(labels.Set(p.object.Labels)) {
		r.self = 1
	}
	return r
}

// fill counts by domain, over the eligible nodes that have every label which the constraints of s
// name (s nil: whatever labels they have).
func (r *spreadRule) fill(c *Cluster, p *pod, s *spreadState) {
	for i := range r.count {
		r.count[i] = none
	}
	for _, n := range c.order {
		id := r.of[n.slot]
		if id < 0 || (s != nil && len(s.rules) > 1 && !s.hasAllKeys(n)) || !r.eligible(p, n) {
			continue
		}
		r.count[id] = max(r.count[id], 0)
		if r.tally != nil {
			r.count[id] += r.tally.counts[n.slot]
		}
	}
}

// hasAllKeys tells whether a node has every topology key that the pod's constraints name; others
// are left out of the count.
func (s *spreadState) hasAllKeys(n *node) bool {
	for i := range s.rules {
		if s.rules[i].of[n.slot] < 0 {
			return false
		}
	}
	return true
}

func (r *spreadRule) findMinimum() {
	r.minimum = math.MaxInt32
	found := 0
	for _, n := range r.count {
		if n != none {
			found++
			r.minimum = min(r.minimum, n)
		}
	}
	if found < r.minDomains {
		r.minimum = 0
	}
}

// allows applies hard constraints to one node.
func (s *spreadState) allows(n *node) *reason {
	if s == nil {
		return nil
	}
	for i := range s.rules {
		r := &s.rules[i]
		count, in := r.at(n)
		if !in {
			return reasonSpreadLabel
		}
		if max(count, 0)+r.self-r.minimum > r.maxSkew {
			return reasonSpread
		}
	}
	return nil
}

// change counts one pod in or out, as preemption and nominations try it.
func (s *spreadState) change(c *Cluster, incoming, p *pod, sign int32) {
	if s == nil || !s.hasAllKeys(p.node) {
		return
	}
	for i := range s.rules {
		if r := &s.rules[i]; r.counts && r.peers.matches(c, p) && r.eligible(incoming, p.node) {
			r.domains.change(p.node, sign)
			r.findMinimum()
		}
	}
}

// untolerated returns the first taint that keeps a pod off a node, nil if none does.
func untolerated(p *corev1.Pod, n *corev1.Node) *corev1.Taint {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectNoSchedule && t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if !tolerates(p.Spec.Tolerations, t) {
			return t
		}
	}
	return nil
}

func tolerates(tolerations []corev1.Toleration, t *corev1.Taint) bool {
	for i := range tolerations {
		if tolerations[i].ToleratesTaint(klog.Logger{}, t, false) {
			return true
		}
	}
	return false
}
