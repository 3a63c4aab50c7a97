package scheduler

import (
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// reason is why a node was refused, in upstream's words.
type reason struct {
	text string
	// final reasons are not mended by removing pods, so that preemption passes the node over.
	final bool
	// wakes says which changes may make the pod schedulable again.
	wakes change
}

// change is a set of kinds of change that a waiting pod hopes for.
type change uint16

const (
	nodeAdded change = 1 << iota
	nodeLabels
	nodeTaints
	nodeAllocatable
	podGone
	podPlaced // or its labels changed
	podItself
	volumes
	timePassed

	anyChange change = 1<<iota - 1
)

// The reasons that need no figures.
var (
	reasonNodeName      = &reason{"node(s) didn't match the requested node name", true, nodeAdded}
	reasonUnschedulable = &reason{"node(s) were unschedulable", true, nodeAdded | nodeTaints}
	reasonTaint         = &reason{"node(s) had untolerated taint(s)", true, nodeAdded | nodeTaints | podItself}
	reasonNodeAffinity  = &reason{"node(s) didn't match Pod's node affinity/selector", true, nodeAdded | nodeLabels | podItself}
	reasonPorts         = &reason{"node(s) didn't have free ports for the requested pod ports", false, nodeAdded | podGone}
	reasonPods          = &reason{"Too many pods", false, nodeAdded | nodeAllocatable | podGone}
	reasonCPU           = &reason{"Insufficient cpu", false, nodeAdded | nodeAllocatable | podGone | podItself}
	reasonMemory        = &reason{"Insufficient memory", false, nodeAdded | nodeAllocatable | podGone | podItself}
	reasonStorage       = &reason{"Insufficient ephemeral-storage", false, nodeAdded | nodeAllocatable | podGone | podItself}
	reasonAffinity      = &reason{"node(s) didn't match pod affinity rules", true, nodeAdded | nodeLabels | podPlaced}
	reasonAntiAffinity  = &reason{"node(s) didn't match pod anti-affinity rules", false, nodeAdded | nodeLabels | podGone | podPlaced}
	reasonGuarded       = &reason{"node(s) didn't satisfy existing pods anti-affinity rules", false, nodeAdded | nodeLabels | podGone | podPlaced}
	reasonSpread        = &reason{"node(s) didn't match pod topology spread constraints", false, nodeAdded | nodeLabels | nodeTaints | podGone | podPlaced}
	reasonSpreadLabel   = &reason{"node(s) didn't match pod topology spread constraints (missing required label)", true, nodeAdded | nodeLabels}
	reasonPVAffinity    = &reason{"node(s) didn't match PersistentVolume's node affinity", true, nodeAdded | nodeLabels | volumes}
)

// candidate is a pod with all that one pass works out before it looks at nodes.
type candidate struct {
	*pod
	priority int32
	wanted   nodeaffinity.RequiredNodeAffinity
	selects  bool // it has a node selector or required node affinity
	affinity *affinityState
	spread   *spreadState
	volumes  []*corev1.VolumeNodeAffinity // of the volumes that its claims are bound to
}

func (c *Cluster) candidate(object *corev1.Pod, volumes []*corev1.VolumeNodeAffinity) *candidate {
	p := newPod(object)
	cand := &candidate{pod: p, priority: priority(object), volumes: volumes}
	a := object.Spec.Affinity
	cand.selects = len(object.Spec.NodeSelector) > 0 ||
		(a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil)
	if cand.selects {
		cand.wanted = nodeaffinity.GetRequiredNodeAffinity(object)
	}
	cand.affinity = c.affinityFor(p)
	cand.spread = c.spreadFor(p, corev1.DoNotSchedule)
	return cand
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority != nil {
		return *p.Spec.Priority
	}
	return 0
}

// fits returns why a pod cannot go to a node, nil if it can. Pods of at least its
// priority that are nominated there count as if they ran. extra holds the room for the
// reasons, so that the common case allocates nothing.
func (c *Cluster) fits(cand *candidate, n *node, extra []*reason) []*reason {
	if one := cand.static(n); one != nil {
		return append(extra, one)
	}
	nominated := c.nominatedTo(n, cand)
	for _, p := range nominated {
		n.add(p, 1)
	}
	extra = cand.room(n, extra)
	for _, p := range nominated {
		n.add(p, -1)
	}
	if len(extra) > 0 {
		return extra
	}
	if one := cand.spread.allows(n); one != nil {
		return append(extra, one)
	}
	if one := cand.affinity.allows(n); one != nil {
		return append(extra, one)
	}
	return extra
}

func (c *Cluster) nominatedTo(n *node, cand *candidate) []*pod {
	var found []*pod
	for uid, p := range c.nominated {
		if p.node == n && uid != cand.object.UID && priority(p.object) >= cand.priority {
			found = append(found, p)
		}
	}
	return found
}

// static checks what no other pod can change.
func (cand *candidate) static(n *node) *reason {
	spec := &cand.object.Spec
	if n.object.Spec.Unschedulable && !tolerates(spec.Tolerations, &corev1.Taint{
		Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return reasonUnschedulable
	}
	if len(n.object.Spec.Taints) > 0 && untolerated(cand.object, n.object) != nil {
		return reasonTaint
	}
	if cand.selects {
		if match, err := cand.wanted.Match(n.object); err != nil || !match {
			return reasonNodeAffinity
		}
	}
	for _, v := range cand.volumes {
		if s, err := nodeaffinity.NewNodeSelector(v.Required); err != nil || !s.Match(n.object) {
			return reasonPVAffinity
		}
	}
	return nil
}

// room checks ports and resources, and returns every shortage.
func (cand *candidate) room(n *node, short []*reason) []*reason {
	if portsTaken(cand.ports, n.ports) {
		short = append(short, reasonPorts)
	}
	asks, have, used := &cand.asks, &n.allocatable, &n.used
	if used.pods+1 > have.pods {
		short = append(short, reasonPods)
	}
	if asks.cpu > 0 && asks.cpu > have.cpu-used.cpu {
		short = append(short, reasonCPU)
	}
	if asks.memory > 0 && asks.memory > have.memory-used.memory {
		short = append(short, reasonMemory)
	}
	if asks.storage > 0 && asks.storage > have.storage-used.storage {
		short = append(short, reasonStorage)
	}
	for name, v := range asks.extended {
		if v > 0 && v > have.extended[name]-used.extended[name] {
			// A node that has none at all cannot be helped by removing pods.
			short = append(short, &reason{"Insufficient " + string(name), v > have.extended[name], nodeAdded | nodeAllocatable | podGone | podItself})
		}
	}
	return short
}

// portsTaken tells whether a wanted host port clashes. 0.0.0.0 clashes with every address.
func portsTaken(want []hostPort, have map[hostPort]int) bool {
	if len(have) == 0 {
		return false
	}
	for _, w := range want {
		for h := range have {
			if h.port == w.port && h.protocol == w.protocol && (h.ip == w.ip || h.ip == "0.0.0.0" || w.ip == "0.0.0.0") {
				return true
			}
		}
	}
	return false
}

// refusals counts the reasons of one pass, and remembers the reasons of each node for
// preemption.
type refusals struct {
	counts map[string]int
	nodes  map[*node]bool // true: final
	wakes  change
}

func (r *refusals) add(n *node, reasons []*reason) {
	if r.counts == nil {
		r.counts, r.nodes = map[string]int{}, map[*node]bool{}
	}
	final := false
	for _, why := range reasons {
		r.counts[why.text]++
		r.wakes |= why.wakes
		final = final || why.final
	}
	// A pod that waits for its own affinity is helped by none that goes, but by a
	// node's change all the same.
	r.nodes[n] = final
}

// String is "1 Insufficient cpu, 2 node(s) were unschedulable".
func (r *refusals) String() string {
	parts := make([]string, 0, len(r.counts))
	for text, count := range r.counts {
		parts = append(parts, fmt.Sprintf("%d %s", count, text))
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}
