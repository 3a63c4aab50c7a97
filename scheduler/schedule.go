package scheduler

import (
	"fmt"
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

	wakes change
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

// Schedule chooses a node for a pod. volumes are the node affinities of the persistent
// volumes that its claims are bound to. Its cost is that of the nodes considered
// (all up to 100, then a falling share), some 100 to 300 ns each; only rules between pods walk over
// all nodes, once for each rule.
func (c *Cluster) Schedule(object *corev1.Pod, volumes []*corev1.VolumeNodeAffinity) Decision {
	if len(c.order) == 0 {
		return Decision{Message: "no nodes available to schedule pods", wakes: nodeAdded}
	}
	cand := c.candidate(object, volumes)
	feasible, refused := c.feasible(cand)
	if len(feasible) > 0 {
		return Decision{Node: c.best(cand, feasible).name}
	}
	d := c.Preempt(cand, refused)
	d.Message = fmt.Sprintf("0/%d nodes are available: %s.", len(c.order), refused) + d.Message
	d.wakes = refused.wakes
	return d
}

// feasible returns the nodes that a pod fits on, enough of them to choose from, or
// why there is none.
func (c *Cluster) feasible(cand *candidate) ([]*node, *refusals) {
	refused := &refusals{}
	// A node that was made free for the pod is tried first, alone.
	if name := cand.object.Status.NominatedNodeName; name != "" {
		if n := c.nodes[name]; n != nil && n.object != nil && len(c.fits(cand, n, nil)) == 0 {
			return []*node{n}, refused
		}
	}
	want := enough(len(c.order))
	feasible := make([]*node, 0, min(want, 128))
	var room [4]*reason
	for i := range c.order {
		n := c.order[(c.start+i)%len(c.order)]
		if why := c.fits(cand, n, room[:0]); len(why) > 0 {
			refused.add(n, why)
			continue
		}
		if feasible = append(feasible, n); len(feasible) == want {
			c.start = (c.start + i + 1) % len(c.order)
			break
		}
	}
	return feasible, refused
}

// Explain returns, for every node, why a pod could not go there ("" where it could), in order of
// name.
func (c *Cluster) Explain(object *corev1.Pod, volumes []*corev1.VolumeNodeAffinity) []Explanation {
	cand := c.candidate(object, volumes)
	var all []Explanation
	for _, n := range c.order {
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
