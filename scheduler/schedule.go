package scheduler

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Decision is the outcome of one pass.
type Decision struct {
	// Node is where the pod goes, "" if nowhere.
	Node string
	// Message says why nowhere, as the PodScheduled condition and the FailedScheduling event
	// show it.
	Message string
	// Victims are to be removed so that the pod fits on Nominated.
	Victims   []*corev1.Pod
	Nominated string
	// Unnominate says that a nomination which the pod has is in vain and is to be taken back.
	Unnominate bool

	wakes change
	plan  volumePlan
	// needs are the pod's resource claims, and on the node that it gets.
	needs *needs
	on    *node
	// silent says that there is nothing to tell: what it waits for is on its way.
	silent bool
	err    error // of an extender or a claim: the pass came to nothing
}

// Considered nodes: all below this number, above it a share that falls with the size of
// the cluster to 5 % (percentageOfNodesToScore, unset).
const alwaysConsidered = 100

func enough(nodes int) int {
	if nodes < alwaysConsidered {
		return nodes
	}
	share := max(50-nodes/125, 5)
	return max(nodes*share/100, alwaysConsidered)
}

// Schedule chooses a node for a pod. Its cost is that of the nodes considered
// (all up to 100, then a falling share), some 50 ns each; only rules between pods walk over
// all nodes, once for each rule.
func (c *Cluster) Schedule(object *corev1.Pod, about Circumstances) Decision {
	return c.schedule(newPod(object), &about)
}

func (c *Cluster) schedule(p *pod, about *Circumstances) Decision {
	if len(c.order) == 0 {
		return Decision{Message: "no nodes available to schedule pods", Unnominate: true, wakes: nodeAdded}
	}
	if problem := p.problem(about); problem != "" {
		d := c.preempt(nil, p, &refusals{})
		d.Message = fmt.Sprintf("0/%d nodes are available: %s.%s", len(c.order), problem, d.Message)
		if d.wakes, d.silent = volumes, about.waits; about.claimProblem {
			d.wakes = deviceChanges
		}
		return d
	}
	if about.spread != nil {
		p.spread = about.spread
	}
	cand := c.candidate(p, about)
	feasible, refused := c.feasible(cand)
	nominated := refused == nil
	feasible, refused, err := c.extendFilter(cand, feasible, refused)
	if err == nil && nominated && len(feasible) == 0 { // an extender does not want it there
		feasible, refused = c.search(cand)
		feasible, refused, err = c.extendFilter(cand, feasible, refused)
	}
	if err == nil && cand.needs != nil {
		err = cand.needs.err
	}
	if err != nil {
		return Decision{Message: err.Error(), err: err}
	}
	if len(feasible) > 0 {
		n := c.best(cand, feasible)
		c.turn++
		n.chosen = c.turn
		plan, _ := cand.plan(n)
		return Decision{Node: n.name, plan: plan, needs: cand.needs, on: n}
	}
	d := c.preempt(cand, p, refused)
	d.Message = fmt.Sprintf("0/%d nodes are available: %s.%s", len(c.order), refused, d.Message)
	d.wakes, d.needs = refused.wakes, cand.needs
	return d
}

// problem is what keeps a pod off all nodes, "" for nothing.
func (p *pod) problem(about *Circumstances) string {
	if p.pinned && len(p.names) == 0 && p.profile.uses(ruleNodeAffinity) {
		return "pod affinity terms conflict"
	}
	return about.Problem
}

// considered are the nodes that come into question: all, or those that the pod names.
func (c *Cluster) considered(p *pod) []*node {
	if !p.pinned || !p.profile.uses(ruleNodeAffinity) {
		return c.order
	}
	var named []*node
	for _, name := range p.names {
		if n := c.nodes[name]; n != nil && n.object != nil {
			named = append(named, n)
		}
	}
	slices.SortFunc(named, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	return named
}

// feasible returns the nodes that a pod fits on, enough of them to choose from, or
// why there is none. They are valid until the next pass.
func (c *Cluster) feasible(cand *candidate) ([]*node, *refusals) {
	// A node that was made free for the pod is tried first, alone.
	if n := c.nomination(cand.object); n != nil && n.object != nil && len(c.fits(cand, n, nil)) == 0 {
		return []*node{n}, nil
	}
	return c.search(cand)
}

// search is feasible without regard to a nomination.
func (c *Cluster) search(cand *candidate) ([]*node, *refusals) {
	refused := &refusals{}
	nodes := c.considered(cand.pod)
	if others := len(c.order) - len(nodes); others > 0 {
		refused.count(reasonNotNamed, others)
	}
	want := enough(len(nodes))
	feasible := c.scratch.feasible[:0]
	reasons := c.scratch.reasons[:0]
	seen := 0
	for ; seen < len(nodes) && len(feasible) < want; seen++ {
		i := c.start + seen
		if i >= len(nodes) {
			i %= len(nodes)
		}
		n := nodes[i]
		if why := c.fits(cand, n, reasons); len(why) > 0 {
			refused.add(n, why)
		} else {
			feasible = append(feasible, n)
		}
	}
	c.start = (c.start + seen) % len(c.order)
	c.scratch.feasible = feasible
	return feasible, refused
}

// extendFilter lets extenders refuse nodes that the rules allow. One that fails ends the pass, unless it may be passed over.
func (c *Cluster) extendFilter(cand *candidate, nodes []*node, refused *refusals) ([]*node, *refusals, error) {
	for _, e := range c.extenders {
		if e.FilterVerb == "" || len(nodes) == 0 || !e.interested(cand.object) {
			continue
		}
		if refused == nil {
			refused = &refusals{}
		}
		left, err := e.filter(cand.object, nodes, refused)
		if err != nil && !e.Ignorable {
			return nil, refused, err
		}
		if err == nil {
			nodes = left
		}
	}
	return nodes, refused, nil
}

// Explain returns, for every node, why a pod could not go there ("" where it could), in order of
// name.
func (c *Cluster) Explain(object *corev1.Pod, about Circumstances) []Explanation {
	p := newPod(object)
	problem := p.problem(&about)
	cand := c.candidate(p, &about)
	all := make([]Explanation, 0, len(c.order))
	for _, n := range c.order {
		if problem != "" {
			all = append(all, Explanation{Node: n.name, Refused: problem})
			continue
		}
		var texts []string
		for _, r := range c.fits(cand, n, nil) {
			texts = append(texts, r.text)
		}
		all = append(all, Explanation{Node: n.name, Refused: strings.Join(texts, ", ")})
	}
	return all
}

// Explanation is what one node says to a pod.
type Explanation struct {
	Node    string
	Refused string
}
