package scheduler

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// change is a set of kinds of change that a waiting pod hopes for.
type change uint16

const (
	nodeAdded       change = 1 << iota // one that may hold the pod
	nodeLabels                         // of such a node
	nodeTaints                         // likewise
	nodeAllocatable                    // likewise, and of the features that it declares
	nodeDomains                        // of any node: what domains there are, and which of them count
	podGone                            // or asks for less
	podPeers                           // a pod that its rules are about, or whose rules are about it, came, went or changed
	podItself
	volumes
	deviceChanges // of claims, classes and what devices there are
	deviceClasses // which stand for extended resources

	anyChange change = 1<<iota - 1
)

// nodeChanges tells what an event about a node changes. old is nil for a new node.
func nodeChanges(old, fresh *corev1.Node) change {
	if old == nil {
		return nodeAdded | nodeDomains
	}
	var what change
	if !sameLabels(old.Labels, fresh.Labels) {
		what |= nodeLabels | nodeDomains
	}
	if old.Spec.Unschedulable != fresh.Spec.Unschedulable || !sameTaints(old.Spec.Taints, fresh.Spec.Taints) {
		what |= nodeTaints | nodeDomains
	}
	if !sameList(old.Status.Allocatable, fresh.Status.Allocatable) || !slices.Equal(old.Status.DeclaredFeatures, fresh.Status.DeclaredFeatures) {
		what |= nodeAllocatable
	}
	if what != 0 {
		// To a pod that it could not hold before it is as good as a new one. Nodes begin with a taint and lose it.
		what |= nodeAdded
	}
	return what
}

func sameTaints(a, b []corev1.Taint) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Key != b[i].Key || a[i].Value != b[i].Value || a[i].Effect != b[i].Effect {
			return false
		}
	}
	return true
}

// wakeForNode wakes whom a change of a node may help: who waits for its domain, or who might be held by it.
func (s *Scheduler) wakeForNode(n *node, what change, now time.Time) {
	s.queue.wake(what, now, func(it *item, what change) bool {
		return what&nodeDomains != 0 || s.cluster.mayHold(it.pod, n)
	})
}

// wakeForPods wakes whom a change of an assigned pod may help: old is what it was, fresh what it is; either may be nil.
func (s *Scheduler) wakeForPods(old, fresh *pod, now time.Time) {
	what := podPeers
	if old != nil && (fresh == nil || fresh.asks.less(&old.asks)) {
		what |= podGone
	}
	s.queue.wake(what, now, func(it *item, what change) bool {
		return what&podGone != 0 || s.cluster.concerns(it.pod, old) || s.cluster.concerns(it.pod, fresh)
	})
}

// concerns tells whether the rules of p are about other, or those of other about p.
func (c *Cluster) concerns(p, other *pod) bool {
	if other == nil {
		return false
	}
	for i := range p.spread {
		if s := &p.spread[i]; s.hard && s.counts && p.object.Namespace == other.object.Namespace &&
			s.peers.selector.Matches(labels.Set(other.object.Labels)) {
			return true
		}
	}
	return len(p.require.with) > 0 && other.matchesAll(c, p.require.with) ||
		other.matchesAny(c, p.require.anti) || p.matchesAny(c, other.require.anti)
}

func (p *pod) matchesAny(c *Cluster, terms []affinityTerm) bool {
	for i := range terms {
		if terms[i].matches(c, p) {
			return true
		}
	}
	return false
}
