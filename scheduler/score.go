package scheduler

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Weights of the scores in upstream's default profile. Each score is from 0 to 100.
const (
	weightTaints    = 3
	weightAffinity  = 2
	weightSpread    = 2
	weightPods      = 2
	weightFit       = 1
	weightBalance   = 1
	weightImages    = 1
	weightOwners    = 2 // default spreading of a controller's pods
	maxScore        = 100
	zoneLabel       = corev1.LabelTopologyZone
	imageThreshold  = 23 << 20   // of ImageLocality: below counts nothing
	imageThreshold1 = 1000 << 20 // times containers: above counts all
)

// best returns the node with the highest score; among equals the first in the order of
// this pass, which moves on with every pod.
func (c *Cluster) best(cand *candidate, nodes []*node) *node {
	if len(nodes) == 1 {
		return nodes[0]
	}
	scores := make([]float64, len(nodes))
	for i, n := range nodes {
		scores[i] = weightFit*cand.leastAllocated(n) + weightBalance*cand.balanced(n) + weightImages*c.imageLocality(cand, n)
	}
	c.addTaints(cand, nodes, scores)
	c.addNodeAffinity(cand, nodes, scores)
	c.addOwners(cand, nodes, scores)
	c.addSpread(cand, nodes, scores)
	c.addPodAffinity(cand, nodes, scores)
	best := 0
	for i := range scores {
		if scores[i] > scores[best] {
			best = i
		}
	}
	return nodes[best]
}

// leastAllocated prefers nodes with much left (NodeResourcesFit, LeastAllocated).
func (cand *candidate) leastAllocated(n *node) float64 {
	return (free(n.allocatable.cpu, n.scoredCPU+cand.cpu) + free(n.allocatable.memory, n.scoredMemory+cand.memory)) / 2
}

func free(capacity, asked int64) float64 {
	if capacity == 0 || asked > capacity {
		return 0
	}
	return float64((capacity - asked) * maxScore / capacity)
}

// balanced prefers nodes whose resources are used evenly (NodeResourcesBalancedAllocation).
func (cand *candidate) balanced(n *node) float64 {
	cpu := fraction(n.used.cpu+cand.asks.cpu, n.allocatable.cpu)
	memory := fraction(n.used.memory+cand.asks.memory, n.allocatable.memory)
	return (1 - math.Abs(cpu-memory)/2) * maxScore
}

func fraction(asked, capacity int64) float64 {
	if capacity == 0 {
		return 1
	}
	return min(float64(asked)/float64(capacity), 1)
}

// imageLocality prefers nodes that have large images of the pod already, weighted by how
// many nodes have them, so that not all pods go to one node.
func (c *Cluster) imageLocality(cand *candidate, n *node) float64 {
	if len(n.images) == 0 {
		return 0
	}
	var sum float64
	containers := cand.object.Spec.Containers
	for i := range containers {
		name := normalised(containers[i].Image)
		if _, has := n.images[name]; has {
			s := c.images[name]
			sum += float64(s.size) * float64(s.nodes) / float64(len(c.order))
		}
	}
	low, high := float64(imageThreshold), float64(imageThreshold1)*float64(len(containers))
	return maxScore * (min(max(sum, low), high) - low) / (high - low)
}

// normalised adds ":latest" to an image without tag or digest, as node statuses name it.
func normalised(image string) string {
	if strings.LastIndexByte(image, ':') <= strings.LastIndexByte(image, '/') {
		return image + ":latest"
	}
	return image
}

// addScaled adds raw values scaled so that the largest gives a full score; reverse
// makes the smallest the best.
func addScaled(scores, raw []float64, weight float64, reverse bool) {
	most := 0.0
	for _, v := range raw {
		most = max(most, v)
	}
	if most == 0 {
		return // all are equal
	}
	for i, v := range raw {
		v = v * maxScore / most
		if reverse {
			v = maxScore - v
		}
		scores[i] += weight * v
	}
}

func (c *Cluster) addTaints(cand *candidate, nodes []*node, scores []float64) {
	var raw []float64
	for i, n := range nodes {
		for j := range n.object.Spec.Taints {
			t := &n.object.Spec.Taints[j]
			if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(cand.object.Spec.Tolerations, t) {
				if raw == nil {
					raw = make([]float64, len(nodes))
				}
				raw[i]++
			}
		}
	}
	addScaled(scores, raw, weightTaints, true)
}

func (c *Cluster) addNodeAffinity(cand *candidate, nodes []*node, scores []float64) {
	a := cand.object.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return
	}
	terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	if err != nil {
		return // validation has refused it
	}
	raw := make([]float64, len(nodes))
	for i, n := range nodes {
		raw[i] = float64(terms.Score(n.object))
	}
	addScaled(scores, raw, weightAffinity, false)
}

// addOwners spreads the pods of one controller over nodes and zones, as upstream's
// default constraints do (PodTopologySpread's system defaults). Pods with constraints of their own
// are left to those.
func (c *Cluster) addOwners(cand *candidate, nodes []*node, scores []float64) {
	if cand.owner == "" || len(cand.object.Spec.TopologySpreadConstraints) > 0 {
		return
	}
	zones := map[string]int{}
	for _, n := range c.order {
		if zone := n.labels[zoneLabel]; zone != "" {
			if count := n.owners[cand.owner]; count > 0 {
				zones[zone] += count
			}
		}
	}
	raw := make([]float64, len(nodes))
	for i, n := range nodes {
		raw[i] = float64(n.owners[cand.owner]) + float64(zones[n.labels[zoneLabel]])
	}
	addScaled(scores, raw, weightOwners, true)
}

// addSpread scores the soft constraints (whenUnsatisfiable: ScheduleAnyway).
func (c *Cluster) addSpread(cand *candidate, nodes []*node, scores []float64) {
	s := c.spreadFor(cand.pod, corev1.ScheduleAnyway)
	if s == nil {
		return
	}
	raw := make([]float64, len(nodes))
	for j := range s.rules {
		r := &s.rules[j]
		// Many domains count each pod more, so that constraints on hosts and zones weigh alike.
		weight := math.Log(float64(len(r.counts) + 2))
		for i, n := range nodes {
			if value, ok := n.labels[r.constraint.TopologyKey]; ok {
				raw[i] += float64(r.counts[value])*weight + float64(r.constraint.MaxSkew-1)
			}
		}
	}
	least, most := math.Inf(1), 0.0
	for i, n := range nodes {
		if s.hasAllKeys(n) {
			least, most = min(least, raw[i]), max(most, raw[i])
		}
	}
	for i, n := range nodes {
		switch {
		case !s.hasAllKeys(n):
		case most == 0:
			scores[i] += weightSpread * maxScore
		default:
			scores[i] += weightSpread * maxScore * (most + least - raw[i]) / most
		}
	}
}

// addPodAffinity scores the preferred rules between pods, those of the pod and those of others
// about it (InterPodAffinity).
func (c *Cluster) addPodAffinity(cand *candidate, nodes []*node, scores []float64) {
	prefersWith, prefersNo := cand.require.prefersWith, cand.require.prefersNo
	if len(prefersWith)+len(prefersNo)+len(c.attracted) == 0 {
		return
	}
	weights := map[domain]float64{}
	own := func(terms []affinityTerm, sign float64) {
		for i := range terms {
			t := &terms[i]
			for value, count := range countDomains(c.tally(t.spaces, t.selector, false), t.topology).byValue {
				weights[domain{t.topology, value}] += sign * float64(t.weight) * float64(count)
			}
		}
	}
	own(prefersWith, 1)
	own(prefersNo, -1)
	for _, other := range c.attracted {
		if other.node.object == nil {
			continue
		}
		theirs := func(terms []affinityTerm, sign float64, fixed int64) {
			for i := range terms {
				t := &terms[i]
				if value, ok := other.node.labels[t.topology]; ok && t.matches(c, cand.object) {
					weights[domain{t.topology, value}] += sign * float64(t.weight+fixed)
				}
			}
		}
		theirs(other.require.with, 1, hardAffinityWeight)
		theirs(other.require.prefersWith, 1, 0)
		theirs(other.require.prefersNo, -1, 0)
	}
	if len(weights) == 0 {
		return
	}
	raw := make([]float64, len(nodes))
	least, most := math.Inf(1), math.Inf(-1)
	for i, n := range nodes {
		for d, w := range weights {
			if value, ok := n.labels[d.key]; ok && value == d.value {
				raw[i] += w
			}
		}
		least, most = min(least, raw[i]), max(most, raw[i])
	}
	if most > least {
		for i := range raw {
			scores[i] += weightPods * maxScore * (raw[i] - least) / (most - least)
		}
	}
}
