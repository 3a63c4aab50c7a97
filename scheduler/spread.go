package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// spreadState is what a pod's hard topology spread constraints mean in one pass
// (kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints).
type spreadState struct {
	rules []spreadRule
}

type spreadRule struct {
	constraint *corev1.TopologySpreadConstraint
	selector   labels.Selector
	counts     map[string]int // matching pods by domain, over eligible nodes
	self       int            // 1 if the pod itself matches
	minimum    int
}

// spreadFor prepares the constraints of one kind, and nil if there are none. It costs
// one walk over the nodes for each constraint.
func (c *Cluster) spreadFor(p *pod, action corev1.UnsatisfiableConstraintAction) *spreadState {
	var s *spreadState
	all := p.object.Spec.TopologySpreadConstraints
	for i := range all {
		if all[i].WhenUnsatisfiable != action {
			continue
		}
		if s == nil {
			s = &spreadState{}
		}
		s.rules = append(s.rules, spreadRule{constraint: &all[i]})
	}
	if s == nil {
		return nil
	}
	wanted := nodeaffinity.GetRequiredNodeAffinity(p.object)
	for i := range s.rules {
		c.countSpread(p, s, &s.rules[i], wanted)
	}
	return s
}

func (c *Cluster) countSpread(p *pod, s *spreadState, r *spreadRule, wanted nodeaffinity.RequiredNodeAffinity) {
	r.selector = requireKeys(parseSelector(r.constraint.LabelSelector), p.object.Labels, r.constraint.MatchLabelKeys, false)
	if r.selector.Matches(labels.Set(p.object.Labels)) {
		r.self = 1
	}
	tally := c.tally(newNamespaceSet([]string{p.object.Namespace}, nil), r.selector, true)
	r.counts = map[string]int{}
	for _, n := range c.order {
		if value, ok := n.labels[r.constraint.TopologyKey]; ok && s.hasAllKeys(n) && eligible(r.constraint, p.object, n, wanted) {
			r.counts[value] += tally.counts[n]
		}
	}
	r.findMinimum()
}

// hasAllKeys tells whether a node has every topology key that the pod's constraints name; others
// are left out of the count.
func (s *spreadState) hasAllKeys(n *node) bool {
	for i := range s.rules {
		if _, ok := n.labels[s.rules[i].constraint.TopologyKey]; !ok {
			return false
		}
	}
	return true
}

// eligible applies nodeAffinityPolicy (default Honor) and nodeTaintsPolicy (default Ignore).
func eligible(t *corev1.TopologySpreadConstraint, p *corev1.Pod, n *node, wanted nodeaffinity.RequiredNodeAffinity) bool {
	if t.NodeAffinityPolicy == nil || *t.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor {
		if match, err := wanted.Match(n.object); err != nil || !match {
			return false
		}
	}
	if t.NodeTaintsPolicy != nil && *t.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
		return untolerated(p, n.object) == nil
	}
	return true
}

func (r *spreadRule) findMinimum() {
	r.minimum = math.MaxInt
	for _, n := range r.counts {
		r.minimum = min(r.minimum, n)
	}
	if len(r.counts) == 0 || (r.constraint.MinDomains != nil && len(r.counts) < int(*r.constraint.MinDomains)) {
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
		value, ok := n.labels[r.constraint.TopologyKey]
		if !ok {
			return reasonSpreadLabel
		}
		if r.counts[value]+r.self-r.minimum > int(r.constraint.MaxSkew) {
			return reasonSpread
		}
	}
	return nil
}

// change counts one pod in or out, as preemption tries it.
func (s *spreadState) change(incoming *corev1.Pod, p *pod, sign int) {
	if s == nil || p.object.Namespace != incoming.Namespace || p.object.DeletionTimestamp != nil {
		return
	}
	for i := range s.rules {
		r := &s.rules[i]
		value, ok := p.node.labels[r.constraint.TopologyKey]
		if _, counted := r.counts[value]; ok && counted && r.selector.Matches(labels.Set(p.object.Labels)) {
			r.counts[value] += sign
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
