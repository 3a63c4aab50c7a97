package scheduler

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Budgets are the disruption budgets of the cluster; the scheduler breaks them only
// if there is no other way.
type Budgets []*policyv1.PodDisruptionBudget

// victims is what one node would have to give up.
type victims struct {
	node       *node
	pods       []*pod // most important first
	violations int
}

// preempt looks for the node where removing pods of lower priority costs least
// (kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption). The
// Message in the result is the second half of what the pod is told. cand is nil if no node was looked at.
func (c *Cluster) preempt(cand *candidate, p *pod, refused *refusals) Decision {
	if p.profile.noPreemption {
		return Decision{}
	}
	if policy := p.object.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return Decision{Message: " preemption: not eligible due to preemptionPolicy=Never."}
	}
	if c.waitsForVictims(p, refused) {
		return Decision{Message: " preemption: not eligible due to a terminating pod on the nominated node."}
	}
	found, why := c.candidates(cand, refused)
	found, err := c.extendPreemption(p.object, found)
	if err != nil {
		return Decision{Message: fmt.Sprintf(" preemption: %v", err)}
	}
	if len(found) == 0 {
		if hopeless := len(c.order) - len(refused.mendable); hopeless > 0 {
			why.count(reasonNotHelpful, hopeless)
		}
		return Decision{Message: fmt.Sprintf(" preemption: 0/%d nodes are available: %s.", len(c.order), why), Unnominate: true}
	}
	best := slices.MinFunc(found, compareVictims)
	d := Decision{Nominated: best.node.name, Message: fmt.Sprintf(
		" preemption: found a potential placement for pod on node %s, preempting %d victims", best.node.name, len(best.pods))}
	for _, p := range best.pods {
		d.Victims = append(d.Victims, p.object)
	}
	return d
}

var (
	reasonNotHelpful = &reason{text: "Preemption is not helpful for scheduling"}
	reasonNoVictims  = &reason{text: "No preemption victims found for incoming pod"}
)

// candidates returns nodes with what each would have to give up, enough of them to choose
// from (a tenth, at least 100, at least one where no budget breaks), or why there are none.
func (c *Cluster) candidates(cand *candidate, refused *refusals) (found []*victims, why *refusals) {
	why = &refusals{}
	if len(refused.mendable) == 0 {
		return nil, why
	}
	var budgets Budgets
	if c.budgets != nil {
		budgets = c.budgets()
	}
	limit := max(len(refused.mendable)*cand.profile.candidatesShare/100, cand.profile.candidatesLeast)
	harmless := false
	for _, n := range refused.mendable {
		v, reasons := c.victimsOn(cand, n, budgets)
		for _, r := range reasons {
			why.count(r, 1)
		}
		if v == nil {
			continue
		}
		found = append(found, v)
		if harmless = harmless || v.violations == 0; harmless && len(found) >= limit {
			break
		}
	}
	return found, why
}

// waitsForVictims tells whether the pod has already made room somewhere and only has to wait
// until the last victim is gone.
func (c *Cluster) waitsForVictims(p *pod, refused *refusals) bool {
	n := c.nomination(p.object)
	if n == nil || !slices.Contains(refused.mendable, n) {
		return false
	}
	for _, other := range n.pods {
		if other.priority < p.priority && preempted(other.object) {
			return true
		}
	}
	return false
}

// preempted tells whether a pod is going away because of a preemption.
func preempted(p *corev1.Pod) bool {
	if p.DeletionTimestamp == nil {
		return false
	}
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.DisruptionTarget {
			return c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
		}
	}
	return false
}

// victimsOn returns the fewest and least important pods whose removal lets the pod on to a
// node, or why none does: all of lower priority go, then as many as fit come back, those
// whose removal would break a budget first, then by importance.
func (c *Cluster) victimsOn(cand *candidate, n *node, budgets Budgets) (*victims, []*reason) {
	var lower []*pod
	for _, p := range n.pods {
		if p.priority < cand.priority {
			lower = append(lower, p)
		}
	}
	if len(lower) == 0 {
		return nil, []*reason{reasonNoVictims}
	}
	gone := lower
	defer func() { // put everything back
		for _, p := range gone {
			c.try(cand, p, 1)
		}
	}()
	for _, p := range lower {
		c.try(cand, p, -1)
	}
	if why := c.fits(cand, n, nil); len(why) > 0 {
		return nil, why
	}
	gone = nil
	v := &victims{node: n}
	breaking, others := budgets.split(lower)
	for i, group := range [][]*pod{breaking, others} {
		for _, p := range group {
			if c.try(cand, p, 1); len(c.fits(cand, n, nil)) == 0 {
				continue
			}
			c.try(cand, p, -1)
			gone = append(gone, p)
			if i == 0 {
				v.violations++
			}
		}
	}
	if len(gone) == 0 {
		return nil, []*reason{reasonNoVictims}
	}
	v.pods = slices.Clone(gone)
	slices.SortFunc(v.pods, compareImportance)
	return v, nil
}

// compareImportance orders more important pods first: higher priority, then longer running.
func compareImportance(a, b *pod) int {
	if a.priority != b.priority {
		return cmp.Compare(b.priority, a.priority)
	}
	if x := started(a.object).Compare(started(b.object)); x != 0 {
		return x
	}
	return strings.Compare(string(a.object.UID), string(b.object.UID))
}

func started(p *corev1.Pod) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return p.CreationTimestamp.Time
}

// compareVictims orders nodes: fewest broken budgets, then the lowest priority of the most
// important victim, the lowest sum of priorities, the fewest victims, and the most recently started.
func compareVictims(a, b *victims) int {
	return cmp.Or(
		cmp.Compare(a.violations, b.violations),
		cmp.Compare(a.pods[0].priority, b.pods[0].priority),
		cmp.Compare(a.sum(), b.sum()),
		cmp.Compare(len(a.pods), len(b.pods)),
		-a.earliest().Compare(b.earliest()),
	)
}

// sum adds priorities, shifted so that all are positive and more victims weigh more.
func (v *victims) sum() int64 {
	var sum int64
	for _, p := range v.pods {
		sum += int64(p.priority) + math.MaxInt32 + 1
	}
	return sum
}

// earliest is when the first of the most important victims started.
func (v *victims) earliest() time.Time {
	first := started(v.pods[0].object)
	for _, p := range v.pods {
		if p.priority == v.pods[0].priority && started(p.object).Before(first) {
			first = started(p.object)
		}
	}
	return first
}

// split separates the pods whose removal would break a budget, counting what each
// budget still allows. Both parts are in order of importance.
func (b Budgets) split(pods []*pod) (breaking, others []*pod) {
	pods = slices.SortedFunc(slices.Values(pods), compareImportance)
	selectors := make([]labels.Selector, len(b))
	allowed := make([]int32, len(b))
	for i := range b {
		allowed[i] = b[i].Status.DisruptionsAllowed
		selectors[i] = parseSelector(b[i].Spec.Selector)
	}
	for _, p := range pods {
		breaks := false
		for i, budget := range b {
			if budget.Namespace != p.object.Namespace || len(p.object.Labels) == 0 || selectors[i].Empty() ||
				!selectors[i].Matches(labels.Set(p.object.Labels)) {
				continue
			}
			if _, disrupted := budget.Status.DisruptedPods[p.object.Name]; disrupted {
				continue
			}
			if allowed[i]--; allowed[i] < 0 {
				breaks = true
			}
		}
		if breaks {
			breaking = append(breaking, p)
		} else {
			others = append(others, p)
		}
	}
	return breaking, others
}

// extendPreemption lets extenders choose among candidates.
func (c *Cluster) extendPreemption(p *corev1.Pod, found []*victims) ([]*victims, error) {
	for _, e := range c.extenders {
		if e.PreemptVerb == "" || len(found) == 0 || !e.interested(p) {
			continue
		}
		left, err := e.preempt(p, found)
		if err != nil && !e.Ignorable {
			return nil, err
		}
		if err == nil {
			found = left
		}
	}
	return found, nil
}
