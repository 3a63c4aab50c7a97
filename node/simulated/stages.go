package simulated

import (
	"hash/fnv"
	"math"
	"path"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Version and Kind of the document that ParseStages reads.
const (
	StagesVersion = "simulate.coracle.dev/v1alpha1"
	StagesKind    = "Stages"
)

// State is where a pod is in its life on a simulated node. It follows from the pod's status.
type State string

// The states of a pod. Those of Pending, Running and Terminating that no stage takes up go on by themselves: containers start at
// once, become ready when their probes' delays are over, and end as soon as they are asked to.
const (
	// Pending: bound to the node, no container has started.
	Pending State = "Pending"
	// Waiting: a stage said why the containers cannot start; only a stage starts them.
	Waiting State = "Waiting"
	// Running: containers have started, and not all are ready yet. It is entered anew with each restart.
	Running State = "Running"
	// Ready: all containers are ready.
	Ready State = "Ready"
	// NotReady: a stage took the readiness away; only a stage gives it back.
	NotReady State = "NotReady"
	// Terminating: deletion was asked for.
	Terminating State = "Terminating"

	// initializing and over are states of which no stage can speak.
	initializing State = "initializing"
	over         State = "over"
)

// Verb is what a stage does.
type Verb string

// The verbs of stages of pods, and of nodes.
const (
	Start    Verb = "start"   // Pending, Waiting: the init containers run, then the others
	Wait     Verb = "wait"    // Pending: the containers wait for Reason
	Fail     Verb = "fail"    // the pod fails as a whole, as by an eviction
	GetReady Verb = "ready"   // Running, NotReady: all containers become ready
	Unready  Verb = "unready" // Running, Ready: the containers' readiness probe fails
	Exit     Verb = "exit"    // Running, Ready, NotReady: containers end with Code
	Remove   Verb = "remove"  // Terminating: the containers have stopped

	NodeNotReady  Verb = "notReady"  // the node reports that it is not ready
	NodeSilent    Verb = "silent"    // the node reports nothing, and nothing happens to its pods
	NodeReboot    Verb = "reboot"    // as silent; its pods' containers restart when it is back
	NodeTaint     Verb = "taint"     // the node has Taints
	NodeCondition Verb = "condition" // the node reports Condition
)

// Stages is what happens to simulated pods and nodes. It is not changed once it is in use.
type Stages struct {
	// Seed is what all draws come from: the same seed gives the same objects, by name, the same course.
	Seed  uint64
	Pods  []PodStage
	Nodes []NodeStage
}

// Delay is a time between two bounds, drawn evenly.
type Delay struct{ Min, Max time.Duration }

// Stage is what stages of pods and nodes have in common.
type Stage struct {
	// Name is for people, and part of what draws come from.
	Name   string
	Select Selection
	// After is how long after the object came into the state the stage happens.
	After Delay
	// Chance is in how many cases the stage comes up at all, drawn each time an object comes into the state.
	Chance float64
	// Weight, if not 0, makes one choice of all selected stages with a weight: one of them comes up.
	Weight int
	// Times is how often the stage happens to one object, 0 for any number.
	Times int
}

// PodStage is one thing that can happen to pods. Of the stages that come up for a pod in a state, the one whose time comes first
// happens, the first in the file if two are due together.
type PodStage struct {
	Stage
	From State
	Do   Verb
	// Init is how long each init container runs (start).
	Init Delay
	// Reason and Message go into the status (wait, fail, exit).
	Reason, Message string
	// Code is the exit code, Containers those that end; all but init containers if empty (exit).
	Code       int32
	Containers []string
}

// NodeStage is one thing that can happen to nodes that are healthy. One stage is in force for a node at a time.
type NodeStage struct {
	Stage
	Do Verb
	// For is how long it lasts; zero is for ever.
	For Delay
	// Reason and Message go into the condition (notReady, condition).
	Reason, Message string
	// Condition and Status are what is reported (condition).
	Condition corev1.NodeConditionType
	Status    corev1.ConditionStatus
	Taints    []corev1.Taint
}

// Selection chooses objects. All that it says must hold.
type Selection struct {
	// Names and Nodes are patterns as of path.Match. Nodes and Namespaces are for pods.
	Names, Nodes, Namespaces []string
	Labels, Annotations      labels.Selector // nil selects all
	// Owners are kinds of which one must be the controller's ("Job").
	Owners []string
}

func (s *Selection) matches(obj metav1.Object, node string) bool {
	switch {
	case len(s.Names) > 0 && !globs(s.Names, obj.GetName()),
		len(s.Nodes) > 0 && !globs(s.Nodes, node),
		len(s.Namespaces) > 0 && !globs(s.Namespaces, obj.GetNamespace()),
		s.Labels != nil && !s.Labels.Matches(labels.Set(obj.GetLabels())),
		s.Annotations != nil && !s.Annotations.Matches(labels.Set(obj.GetAnnotations())):
		return false
	case len(s.Owners) == 0:
		return true
	}
	owner := metav1.GetControllerOfNoCopy(obj)
	return owner != nil && slices.Contains(s.Owners, owner.Kind)
}

func globs(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, name); return ok })
}

// draw gives a number in [0,1) that depends on nothing but its arguments: who is an object, visit counts
// its states, what names the decision.
func (s *Stages) draw(who string, visit int, what string) float64 {
	h := fnv.New64a()
	for _, part := range []string{who, "\x00", what} {
		_, _ = h.Write([]byte(part))
	}
	x := h.Sum64() ^ s.Seed*0x9e3779b97f4a7c15 ^ uint64(visit)*0xd1342543de82ef95
	// The finalizer of splitmix64: all bits of the result depend on all bits of x.
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

// of draws a time between the bounds.
func (d Delay) of(u float64) time.Duration {
	return d.Min + time.Duration(math.Round(u*float64(d.Max-d.Min)))
}

// pick says which of count stages comes first for an object, and how long after its entry into the state; -1 for none. stage gives
// those that concern the object, nil for the others.
func (s *Stages) pick(who string, visit, count int, stage func(i int) *Stage) (int, time.Duration) {
	weights := 0
	for i := range count {
		if st := stage(i); st != nil {
			weights += st.Weight
		}
	}
	left := -1
	if weights > 0 {
		left = int(s.draw(who, visit, "weight") * float64(weights))
	}
	best, soonest := -1, time.Duration(0)
	for i := range count {
		st := stage(i)
		if st == nil {
			continue
		}
		if st.Weight > 0 {
			chosen := left >= 0 && left < st.Weight
			left -= st.Weight
			if !chosen {
				continue
			}
		}
		if st.Chance < 1 && s.draw(who, visit, "chance "+st.Name) >= st.Chance {
			continue
		}
		if after := st.After.of(s.draw(who, visit, "after "+st.Name)); best < 0 || after < soonest {
			best, soonest = i, after
		}
	}
	return best, soonest
}

// pod is pick for a pod in a state; fired says how often a stage has happened to it.
func (s *Stages) pod(pod *corev1.Pod, state State, visit int, fired func(*PodStage) int) (*PodStage, time.Duration) {
	if s == nil || len(s.Pods) == 0 {
		return nil, 0
	}
	i, after := s.pick(pod.Namespace+"/"+pod.Name, visit, len(s.Pods), func(i int) *Stage {
		st := &s.Pods[i]
		if st.From != state || st.Times > 0 && fired(st) >= st.Times || !st.Select.matches(pod, pod.Spec.NodeName) {
			return nil
		}
		return &st.Stage
	})
	if i < 0 {
		return nil, 0
	}
	return &s.Pods[i], after
}

// node is pick for a healthy node, with how long the stage lasts.
func (s *Stages) node(node *corev1.Node, visit int, fired func(*NodeStage) int) (st *NodeStage, after, lasts time.Duration) {
	if s == nil || len(s.Nodes) == 0 {
		return nil, 0, 0
	}
	i, after := s.pick(node.Name, visit, len(s.Nodes), func(i int) *Stage {
		st := &s.Nodes[i]
		if st.Times > 0 && fired(st) >= st.Times || !st.Select.matches(node, node.Name) {
			return nil
		}
		return &st.Stage
	})
	if i < 0 {
		return nil, 0, 0
	}
	st = &s.Nodes[i]
	return st, after, st.For.of(s.draw(node.Name, visit, "for "+st.Name))
}
