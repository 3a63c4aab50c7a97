package scheduler

import (
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// Preempt looks for the node where removing pods of lower priority costs least
// (kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption). The
// Message in the result is the second half of what the pod is told.
func (c *Cluster) Preempt(cand *candidate, refused *refusals) Decision {
	if policy := cand.object.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return Decision{Message: " preemption: not eligible due to preemptionPolicy=Never."}
	}
	if why := c.waitsForVictims(cand, refused); why != "" {
		return Decision{Message: " preemption: " + why + "."}
	}
	var budgets Budgets
	if c.budgets != nil {
		budgets = c.budgets()
	}
	var found []*victims
	hopeless, none := 0, 0
	limit := max(len(c.order)/10, alwaysConsidered)
	for i := range c.order {
		n := c.order[(c.start+i)%len(c.order)]
		if final, was := refused.nodes[n]; final || !was {
			hopeless++
			continue
		}
		if v := c.victimsOn(cand, n, budgets); v == nil {
			none++
		} else if found = append(found, v); len(found) >= limit {
			break
		}
	}
	if len(found) == 0 {
		r := refusals{counts: map[string]int{}}
		if hopeless > 0 {
			r.counts["Preemption is not helpful for scheduling"] = hopeless
		}
		if none > 0 {
			r.counts["No preemption victims found for incoming pod"] = none
		}
		return Decision{Message: fmt.Sprintf(" preemption: 0/%d nodes are available: %s.", len(c.order), &r)}
	}
	best := slices.MinFunc(found, compareVictims)
	d := Decision{Nominated: best.node.name}
	for _, p := range best.pods {
		d.Victims = append(d.Victims, p.object)
	}
	return d
}

// waitsForVictims tells whether the pod has already made room somewhere and only has to wait
// until the last victim is gone.
func (c *Cluster) waitsForVictims(cand *candidate, refused *refusals) string {
	n := c.nodes[cand.object.Status.NominatedNodeName]
	if n == nil || n.object == nil || refused.nodes[n] {
		return ""
	}
	for _, p := range n.pods {
		if p.object.DeletionTimestamp != nil && priority(p.object) < cand.priority {
			return "not eligible due to a terminating pod on the nominated node"
		}
	}
	return ""
}

// victimsOn returns the fewest and least important pods whose removal lets the pod on to a
// node, nil if none does: all of lower priority go, then as many as fit come back, those
// whose removal would break a budget first, then by importance.
func (c *Cluster) victimsOn(cand *candidate, n *node, budgets Budgets) *victims {
	var lower []*pod
	for _, p := range n.pods {
		if priority(p.object) < cand.priority {
			lower = append(lower, p)
		}
	}
	if len(lower) == 0 {
		return nil
	}
	take := func(p *pod, sign int) {
		if sign < 0 {
			cand.affinity.change(c, cand.object, p, sign)
			cand.spread.change(cand.object, p, sign)
			n.add(p, sign)
			return
		}
		n.add(p, sign)
		cand.affinity.change(c, cand.object, p, sign)
		cand.spread.change(cand.object, p, sign)
	}
	for _, p := range lower {
		take(p, -1)
	}
	v := &victims{node: n}
	if len(c.fits(cand, n, nil)) == 0 {
		breaking, others := budgets.split(lower)
		for i, group := range [][]*pod{breaking, others} {
			slices.SortFunc(group, compareImportance)
			for _, p := range group {
				take(p, 1)
				if len(c.fits(cand, n, nil)) == 0 {
					continue
				}
				take(p, -1)
				v.pods = append(v.pods, p)
				if i == 0 {
					v.violations++
				}
			}
		}
	} else {
		v = nil
	}
	// Put everything back.
	gone := lower
	if v != nil {
		gone = v.pods
	}
	for _, p := range gone {
		take(p, 1)
	}
	if v == nil || len(v.pods) == 0 {
		return nil
	}
	slices.SortFunc(v.pods, compareImportance)
	return v
}

// compareImportance orders more important pods first: higher priority, then longer running.
func compareImportance(a, b *pod) int {
	if x, y := priority(a.object), priority(b.object); x != y {
		if x > y {
			return -1
		}
		return 1
	}
	return started(a.object).Compare(started(b.object))
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
	if a.violations != b.violations {
		return a.violations - b.violations
	}
	if x, y := priority(a.pods[0].object), priority(b.pods[0].object); x != y {
		return sign(int64(x) - int64(y))
	}
	if x, y := a.sum(), b.sum(); x != y {
		return sign(x - y)
	}
	if len(a.pods) != len(b.pods) {
		return len(a.pods) - len(b.pods)
	}
	return -a.earliest().Compare(b.earliest())
}

func sign(n int64) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

// sum adds priorities, shifted so that all are positive and more victims weigh more.
func (v *victims) sum() int64 {
	var sum int64
	for _, p := range v.pods {
		sum += int64(priority(p.object)) + math.MaxInt32 + 1
	}
	return sum
}

// earliest is when the first of the most important victims started.
func (v *victims) earliest() time.Time {
	first := started(v.pods[0].object)
	for _, p := range v.pods {
		if priority(p.object) == priority(v.pods[0].object) && started(p.object).Before(first) {
			first = started(p.object)
		}
	}
	return first
}

// split separates the pods whose removal would break a budget, counting what each
// budget still allows.
func (b Budgets) split(pods []*pod) (breaking, others []*pod) {
	allowed := make([]int32, len(b))
	for i := range b {
		allowed[i] = b[i].Status.DisruptionsAllowed
	}
	slices.SortFunc(pods, compareImportance)
	for _, p := range pods {
		breaks := false
		for i, budget := range b {
			if budget.Namespace != p.object.Namespace || len(p.object.Labels) == 0 {
				continue
			}
			selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
			if err != nil || selector.Empty() || !selector.Matches(labels.Set(p.object.Labels)) {
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
