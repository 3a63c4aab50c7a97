package scheduler

import (
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// scoring is one rule that scores nodes, from 0 to maxScore each, under the name and the weight that it has in
// upstream's default profile.
type scoring struct {
	name   string
	weight int64
	add    func(c *Cluster, cand *candidate, nodes []*node, scores []int64, weight int64)
}

// scorings in the order of the default plugins.
var scorings = []scoring{
	{"TaintToleration", 3, (*Cluster).addTaints},
	{"NodeAffinity", 2, (*Cluster).addNodeAffinity},
	{"NodeResourcesFit", 1, (*Cluster).addFit},
	{"VolumeBinding", 1, (*Cluster).addVolumes},
	{"PodTopologySpread", 2, (*Cluster).addSpreads},
	{"InterPodAffinity", 2, (*Cluster).addPodAffinity},
	{"DynamicResources", 2, (*Cluster).addDevices},
	{"NodeResourcesBalancedAllocation", 1, (*Cluster).addBalance},
	{"ImageLocality", 1, (*Cluster).addImages},
}

const (
	maxScore = 100

	imageThreshold  = 23 << 20   // of ImageLocality: below counts nothing
	imageThreshold1 = 1000 << 20 // times images: above counts all
)

// Siblings are the pods that the same services and the same controller select: a pod without
// constraints of its own is spread from them over nodes and zones (PodTopologySpread's system defaults).
type Siblings struct{ peers peers }

// NewSiblings returns the pods of a namespace that a selector matches, nil if it is empty.
func NewSiblings(namespace string, selector labels.Selector) *Siblings {
	if selector.Empty() {
		return nil
	}
	return &Siblings{newPeers(newNamespaceSet([]string{namespace}, nil), selector, true)}
}

// The system defaults: maxSkew for nodes and zones.
const (
	hostSkew = 3
	zoneSkew = 5
)

// best returns the node with the highest score; among equals the one that was chosen longest ago, and then
// the first in the order of this pass.
func (c *Cluster) best(cand *candidate, nodes []*node) *node {
	if len(nodes) == 1 {
		return nodes[0]
	}
	scores := c.scores(cand, nodes)
	for _, e := range c.extenders {
		if e.PrioritizeVerb != "" && e.interested(cand.object) {
			e.prioritize(cand.object, nodes, scores)
		}
	}
	best := 0
	for i := range scores {
		if scores[i] > scores[best] || (scores[i] == scores[best] && nodes[i].chosen < nodes[best].chosen) {
			best = i
		}
	}
	return nodes[best]
}

// scores returns the score of each node, valid until the next pass.
func (c *Cluster) scores(cand *candidate, nodes []*node) []int64 {
	if cap(c.scratch.scores) < len(nodes) {
		c.scratch.scores, c.scratch.raw = make([]int64, len(nodes)), make([]int64, len(nodes))
	}
	scores := c.scratch.scores[:len(nodes)]
	clear(scores)
	for i := range scorings {
		if weight := cand.profile.weights[i]; weight != 0 {
			scorings[i].add(c, cand, nodes, scores, weight)
		}
	}
	return scores
}

func (c *Cluster) addFit(cand *candidate, nodes []*node, scores []int64, weight int64) {
	for i, n := range nodes {
		if s := cand.profile.fit; s != nil {
			scores[i] += weight * s.of(cand, n)
		} else {
			scores[i] += weight * cand.leastAllocated(n)
		}
	}
}

func (c *Cluster) addBalance(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if cand.asks.cpu == 0 && cand.asks.memory == 0 {
		return // not for those that ask for nothing
	}
	for i, n := range nodes {
		scores[i] += weight * cand.balanced(n)
	}
}

func (c *Cluster) addSpreads(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if len(cand.pod.spread) > 0 {
		c.addSpread(cand, nodes, scores, weight)
	} else {
		c.addSiblings(cand, nodes, scores, weight)
	}
}

// raw returns room for unscaled scores, all zero.
func (c *Cluster) raw(nodes []*node) []int64 {
	raw := c.scratch.raw[:len(nodes)]
	clear(raw)
	return raw
}

// leastAllocated prefers nodes with much left (NodeResourcesFit, LeastAllocated).
func (cand *candidate) leastAllocated(n *node) int64 {
	var sum, of int64
	if have := n.allocatable.cpu; have != 0 {
		sum, of = free(have, n.scoredCPU+cand.cpu), 1
	}
	if have := n.allocatable.memory; have != 0 {
		sum, of = sum+free(have, n.scoredMemory+cand.memory), of+1
	}
	if of == 0 {
		return 0
	}
	return sum / of
}

func free(capacity, asked int64) int64 {
	if asked > capacity {
		return 0
	}
	return (capacity - asked) * maxScore / capacity
}

// balanced prefers nodes whose CPU and memory the pod makes to be used more evenly
// (NodeResourcesBalancedAllocation).
func (cand *candidate) balanced(n *node) int64 {
	have, used := &n.allocatable, &n.used
	with := evenness(used.cpu+cand.asks.cpu, have.cpu, used.memory+cand.asks.memory, have.memory)
	without := evenness(used.cpu, have.cpu, used.memory, have.memory)
	return maxScore/2 + (maxScore/2+with-without)/2
}

func evenness(cpu, ofCPU, memory, ofMemory int64) int64 {
	if ofCPU == 0 || ofMemory == 0 {
		return maxScore
	}
	a, b := min(float64(cpu)/float64(ofCPU), 1), min(float64(memory)/float64(ofMemory), 1)
	return int64((1 - math.Abs((a-b)/2)) * maxScore)
}

// addImages prefers nodes that have large images of the pod already, weighted by how
// many nodes have them, so that not all pods go to one node (ImageLocality).
func (c *Cluster) addImages(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if len(c.images) == 0 {
		return
	}
	wanted, count := c.imagesOf(cand.object)
	if len(wanted) == 0 {
		return
	}
	high := imageThreshold1 * int64(count)
	for i, n := range nodes {
		var sum int64
		for _, name := range wanted {
			if _, has := n.images[name]; has {
				s := c.images[name]
				sum += int64(float64(s.size) * (float64(s.nodes) / float64(len(c.order))))
			}
		}
		scores[i] += weight * maxScore * (min(max(sum, imageThreshold), high) - imageThreshold) / (high - imageThreshold)
	}
}

// imagesOf returns those images of a pod (containers, init containers, image volumes) that some node has, and how many it has in all.
func (c *Cluster) imagesOf(p *corev1.Pod) (known []string, count int) {
	look := func(image string) {
		count++
		if name := normalised(image); c.images[name] != nil {
			known = append(known, name)
		}
	}
	for i := range p.Spec.InitContainers {
		look(p.Spec.InitContainers[i].Image)
	}
	for i := range p.Spec.Containers {
		look(p.Spec.Containers[i].Image)
	}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Image; v != nil {
			look(v.Reference)
		}
	}
	return known, count
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
func addScaled(scores, raw []int64, weight int64, reverse bool) {
	var most int64
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

func (c *Cluster) addTaints(cand *candidate, nodes []*node, scores []int64, weight int64) {
	var raw []int64
	for i, n := range nodes {
		if !n.discouraged {
			continue
		}
		for j := range n.object.Spec.Taints {
			t := &n.object.Spec.Taints[j]
			if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(cand.object.Spec.Tolerations, t) {
				if raw == nil {
					raw = c.raw(nodes)
				}
				raw[i]++
			}
		}
	}
	addScaled(scores, raw, weight, true)
}

func (c *Cluster) addNodeAffinity(cand *candidate, nodes []*node, scores []int64, weight int64) {
	prefers := cand.profile.prefers
	if a := cand.object.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		prefers = slices.Concat(prefers, a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if len(prefers) == 0 {
		return
	}
	terms, err := nodeaffinity.NewPreferredSchedulingTerms(prefers)
	if err != nil {
		return // validation has refused it
	}
	raw := c.raw(nodes)
	for i, n := range nodes {
		raw[i] = terms.Score(n.object)
	}
	addScaled(scores, raw, weight, false)
}

// topologyWeight makes domains of a label that has many values count more, so that rules on hosts and zones weigh alike.
func topologyWeight(values int) float64 { return math.Log(float64(values + 2)) }

// addSiblings spreads the pods of one service or controller over nodes and zones. A node without a zone is spread
// over by itself.
func (c *Cluster) addSiblings(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if cand.siblings == nil {
		return
	}
	tally := c.tally(&cand.siblings.peers)
	hosts := topologyWeight(len(nodes))
	zones, zoneCount := c.siblingZones(cand.pod, nodes, tally)
	inZone := topologyWeight(zoneCount)
	raw := c.raw(nodes)
	for i, n := range nodes {
		var score float64
		if n.named {
			score = float64(tally.counts[n.slot])*hosts + (hostSkew - 1)
		}
		if zones != nil {
			if count, in := zones.at(n); in {
				score += float64(count)*inZone + (zoneSkew - 1)
			}
		}
		raw[i] = int64(math.Round(score))
	}
	addSpreading(scores, raw, nil, weight)
}

// siblingZones counts siblings by zone, and the zones that the nodes are in; nil if no node is in any.
func (c *Cluster) siblingZones(p *pod, nodes []*node, tally *tally) (*domains, int) {
	top := c.topology(corev1.LabelTopologyZone)
	if len(top.ids) == 0 {
		return nil, 1
	}
	d := newDomains(top)
	found := map[int32]bool{}
	for _, n := range nodes {
		found[top.of[n.slot]] = true // those without a zone count as one
	}
	for _, n := range c.order {
		if id := top.of[n.slot]; id >= 0 && tally.counts[n.slot] != 0 && p.matches(n) {
			d.count[id] += tally.counts[n.slot]
		}
	}
	return &d, len(found)
}

// addSpread scores the soft constraints (whenUnsatisfiable: ScheduleAnyway). Nodes that lack a label which
// one of them names get nothing.
func (c *Cluster) addSpread(cand *candidate, nodes []*node, scores []int64, weight int64) {
	s := c.spreadFor(cand.pod, false)
	if s == nil {
		return
	}
	complete := make([]bool, len(nodes))
	count := 0
	for i, n := range nodes {
		if complete[i] = s.hasAllKeys(n); complete[i] {
			count++
		}
	}
	sums := make([]float64, len(nodes))
	for j := range s.rules {
		s.rules[j].score(nodes, complete, count, sums)
	}
	raw := c.raw(nodes)
	for i := range sums {
		raw[i] = int64(math.Round(sums[i]))
	}
	addSpreading(scores, raw, complete, weight)
}

// score adds what one rule says. Counts on hosts are those of the node itself, whether or not
// it is eligible.
func (r *spreadRule) score(nodes []*node, complete []bool, count int, sums []float64) {
	host := r.key == corev1.LabelHostname
	if !host {
		found := map[int32]bool{}
		for i, n := range nodes {
			if complete[i] {
				found[r.of[n.slot]] = true
			}
		}
		count = len(found)
	}
	scale := topologyWeight(count)
	for i, n := range nodes {
		if !complete[i] {
			continue
		}
		var pods int32
		switch {
		case !host:
			domain, _ := r.at(n)
			pods = max(domain, 0)
		case r.tally != nil:
			pods = r.tally.counts[n.slot]
		}
		sums[i] += float64(pods)*scale + float64(r.maxSkew-1)
	}
}

// addSpreading turns sums of pods into scores: few are better. complete, if not nil, says which nodes are scored.
func addSpreading(scores, raw []int64, complete []bool, weight int64) {
	least, most := int64(math.MaxInt64), int64(0)
	for i, v := range raw {
		if complete == nil || complete[i] {
			least, most = min(least, v), max(most, v)
		}
	}
	for i, v := range raw {
		switch {
		case complete != nil && !complete[i]:
		case most == 0:
			scores[i] += weight * maxScore
		default:
			scores[i] += weight * (maxScore * (most + least - v) / most)
		}
	}
}

// addPodAffinity scores the preferred rules between pods, those of the pod and those of others
// about it (InterPodAffinity).
func (c *Cluster) addPodAffinity(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if len(cand.require.prefersWith)+len(cand.require.prefersNo)+len(c.likes) == 0 {
		return
	}
	var sums []domains
	of := func(key string) *domains {
		for i := range sums {
			if sums[i].key == key {
				return &sums[i]
			}
		}
		sums = append(sums, newDomains(c.topology(key)))
		return &sums[len(sums)-1]
	}
	for _, terms := range [][]affinityTerm{cand.require.prefersWith, cand.require.prefersNo} {
		for i := range terms {
			t := &terms[i]
			d := of(t.topology)
			for id, count := range c.sum(c.tally(&t.peers), t.topology).count {
				d.count[id] += int32(t.weight) * count
			}
		}
	}
	for _, g := range c.likes {
		weight := g.term.weight
		if g.term.required {
			weight = cand.profile.hard
		} else if cand.profile.ownTermsOnly {
			continue
		}
		if weight != 0 && g.term.matches(c, cand.pod) {
			d := of(g.term.topology)
			for n, count := range g.nodes {
				d.change(n, int32(weight)*int32(count))
			}
		}
	}
	if len(sums) == 0 {
		return
	}
	raw := c.raw(nodes)
	least, most := int64(math.MaxInt64), int64(math.MinInt64)
	for i, n := range nodes {
		for j := range sums {
			count, _ := sums[j].at(n)
			raw[i] += int64(count)
		}
		least, most = min(least, raw[i]), max(most, raw[i])
	}
	if most > least {
		for i := range raw {
			scores[i] += weight * int64(maxScore*(float64(raw[i]-least)/float64(most-least)))
		}
	}
}
