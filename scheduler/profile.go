package scheduler

import (
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Profile is one way of choosing nodes, for the pods whose schedulerName is its name
// (kubernetes.io/docs/reference/scheduling/config/#multiple-profiles). It is not changed once it is used.
type Profile struct {
	// Name is the schedulerName of the pods that it is for.
	Name string

	// off are the rules that do not count, weights those of scorings (0: not scored).
	off     rule
	weights []int64
	// noPreemption is set if pods of the profile never make others go.
	noPreemption bool
	// candidatesShare (in percent) and candidatesLeast say how many nodes preemption looks at.
	candidatesShare, candidatesLeast int
	// enforced has to match nodes beside the pod's own affinity, and prefers scores them, nil for none (NodeAffinityArgs.addedAffinity).
	enforced *nodeaffinity.NodeSelector
	prefers  []corev1.PreferredSchedulingTerm
	// defaults are the spread constraints of pods that have none and belong to a service or controller; plain says that
	// the system's own are not used in their place.
	defaults []corev1.TopologySpreadConstraint
	plain    bool
	// hard is the weight of required pod affinity of others in scores; ownTermsOnly leaves their preferred terms out.
	hard         int64
	ownTermsOnly bool
	// fit scores resources, nil for the default; ignored are resources that are not compared, by name or group.
	fit     *strategy
	ignored func(corev1.ResourceName) bool
	// volumes is the shape of the score for storage, bindTimeout how long to wait for volumes.
	volumes     shape
	bindTimeout time.Duration
}

// rule is a set of plugins that refuse nodes.
type rule uint16

const (
	ruleUnschedulable rule = 1 << iota
	ruleTaints
	ruleNodeAffinity
	rulePorts
	ruleFit
	ruleRestrictions
	ruleLimits
	ruleBinding
	ruleZone
	ruleSpread
	rulePodAffinity
	ruleFeatures
	ruleDevices
)

// ruleNames are the plugins that refuse nodes, by upstream's name.
var ruleNames = map[string]rule{
	"NodeUnschedulable": ruleUnschedulable, "TaintToleration": ruleTaints, "NodeAffinity": ruleNodeAffinity, "NodePorts": rulePorts,
	"NodeResourcesFit": ruleFit, "VolumeRestrictions": ruleRestrictions, "NodeVolumeLimits": ruleLimits, "VolumeBinding": ruleBinding,
	"VolumeZone": ruleZone, "PodTopologySpread": ruleSpread, "InterPodAffinity": rulePodAffinity, "NodeDeclaredFeatures": ruleFeatures, "DynamicResources": ruleDevices,
}

// DefaultProfile is upstream's default profile under a name.
func DefaultProfile(name string) *Profile {
	p := &Profile{Name: name, candidatesShare: 10, candidatesLeast: alwaysConsidered, hard: hardAffinityWeight,
		volumes: shape{{0, maxScore}, {100, 0}}, bindTimeout: bindTimeout}
	for i := range scorings {
		p.weights = append(p.weights, scorings[i].weight)
	}
	return p
}

var defaultProfile = DefaultProfile(Name)

func (p *Profile) uses(r rule) bool { return p.off&r == 0 }

// weight returns the place of a plugin's weight, nil if it scores nothing.
func (p *Profile) weight(plugin string) *int64 {
	i := slices.IndexFunc(scorings, func(s scoring) bool { return s.name == plugin })
	if i < 0 {
		return nil
	}
	return &p.weights[i]
}

// shape is a broken line: scores by utilization, both in percent.
type shape []point

type point struct{ utilization, score int64 }

func (s shape) at(used int64) int64 {
	for i, p := range s {
		if used <= p.utilization {
			if i == 0 {
				return p.score
			}
			q := s[i-1]
			return q.score + (p.score-q.score)*(used-q.utilization)/(p.utilization-q.utilization)
		}
	}
	return s[len(s)-1].score
}

// strategy is NodeResourcesFitArgs.scoringStrategy.
type strategy struct {
	resources []weighted
	// score is of one resource. sparse leaves resources with the score 0 out of the mean, which is then rounded.
	score  func(asked, capacity int64) int64
	sparse bool
}

type weighted struct {
	name   corev1.ResourceName
	weight int64
}

func mostAllocated(asked, capacity int64) int64 { return min(asked, capacity) * maxScore / capacity }

func (s shape) ratio(asked, capacity int64) int64 {
	if asked > capacity {
		return s.at(100)
	}
	return s.at(asked * 100 / capacity)
}

// of scores a node for a pod.
func (s *strategy) of(cand *candidate, n *node) int64 {
	var sum, weights int64
	for _, r := range s.resources {
		asked, capacity := cand.wouldUse(n, r.name)
		if capacity == 0 {
			continue
		}
		score := s.score(asked, capacity)
		if s.sparse && score <= 0 {
			continue
		}
		sum, weights = sum+score*r.weight, weights+r.weight
	}
	switch {
	case weights == 0:
		return 0
	case s.sparse:
		return int64(math.Round(float64(sum) / float64(weights)))
	}
	return sum / weights
}

// wouldUse is how much of a resource is used with the pod, and how much there is: nothing of what the pod does not ask for, but for
// those that every pod uses.
func (cand *candidate) wouldUse(n *node, name corev1.ResourceName) (asked, capacity int64) {
	switch name {
	case corev1.ResourceCPU:
		return n.scoredCPU + cand.cpu, n.allocatable.cpu
	case corev1.ResourceMemory:
		return n.scoredMemory + cand.memory, n.allocatable.memory
	case corev1.ResourceEphemeralStorage:
		return n.used.storage + cand.asks.storage, n.allocatable.storage
	}
	if cand.asks.extended[name] == 0 {
		return 0, 0
	}
	return n.used.extended[name] + cand.asks.extended[name], n.allocatable.extended[name]
}
