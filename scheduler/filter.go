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

// Reasons, in the order in which they are found (the order of the default plugins): of each node,
// those of the first rule that refuses it are told.
var (
	reasonUnschedulable = &reason{"node(s) were unschedulable", true, nodeAdded | nodeTaints}
	reasonTaint         = &reason{"node(s) had untolerated taint(s)", true, nodeAdded | nodeTaints}
	reasonNodeAffinity  = &reason{"node(s) didn't match Pod's node affinity/selector", true, nodeAdded | nodeLabels}
	reasonEnforced      = &reason{"node(s) didn't match scheduler-enforced node affinity", true, nodeAdded | nodeLabels}
	reasonNotNamed      = &reason{"node(s) didn't satisfy plugin(s) [NodeAffinity]", true, nodeAdded}
	reasonPorts         = &reason{"node(s) didn't have free ports for the requested pod ports", false, nodeAdded | podGone}
	reasonPods          = &reason{"Too many pods", false, nodeAdded | nodeAllocatable | podGone}
	scarceCPU           = newScarcity("cpu")
	scarceMemory        = newScarcity("memory")
	scarceStorage       = newScarcity("ephemeral-storage")
	reasonExclusive     = &reason{"node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod", false, podGone | volumes}
	reasonNoVolume      = &reason{"node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)", true, volumes}
	reasonPVAffinity    = &reason{"node(s) didn't match PersistentVolume's node affinity", true, nodeAdded | nodeLabels | volumes}
	reasonFeatures      = &reason{"node(s) didn't match Pod's required features", true, nodeAdded | nodeAllocatable}
	reasonDisk          = &reason{"node(s) had no available disk", false, nodeAdded | podGone}
	reasonLimit         = &reason{"node(s) exceed max volume count", false, nodeAdded | podGone | volumes}
	reasonNoBinding     = &reason{"node(s) didn't find available persistent volumes to bind", true, nodeAdded | nodeLabels | volumes}
	reasonNoSpace       = &reason{"node(s) did not have enough free storage", true, nodeAdded | nodeLabels | volumes}
	reasonZone          = &reason{"node(s) had no available volume zone", true, nodeAdded | nodeLabels | volumes}
	reasonSpread        = &reason{"node(s) didn't match pod topology spread constraints", false, nodeDomains | podPeers}
	reasonSpreadLabel   = &reason{"node(s) didn't match pod topology spread constraints (missing required label)", true, nodeAdded | nodeLabels}
	reasonAffinity      = &reason{"node(s) didn't match pod affinity rules", true, nodeDomains | podPeers}
	reasonAntiAffinity  = &reason{"node(s) didn't match pod anti-affinity rules", false, nodeDomains | podPeers}
	reasonGuarded       = &reason{"node(s) didn't satisfy existing pods anti-affinity rules", false, nodeDomains | podPeers}
)

// scarcity is the reason that there is too little of a resource: now, or even on the empty node.
type scarcity struct{ now, ever *reason }

func newScarcity(name corev1.ResourceName) *scarcity {
	text := "Insufficient " + string(name)
	return &scarcity{&reason{text, false, nodeAdded | nodeAllocatable | podGone}, &reason{text, true, nodeAdded | nodeAllocatable | podGone}}
}

func (s *scarcity) of(asked, capacity int64) *reason {
	if asked > capacity {
		return s.ever
	}
	return s.now
}

func (c *Cluster) scarcity(name corev1.ResourceName) *scarcity {
	s := c.scarce[name]
	if s == nil {
		if len(c.scarce) > 1000 { // pods can ask for anything
			clear(c.scarce)
		}
		s = newScarcity(name)
		s.now.wakes |= deviceClasses
		s.ever.wakes |= deviceClasses
		c.scarce[name] = s
	}
	return s
}

// Circumstances are what a pass needs to know of other objects that a pod names.
type Circumstances struct {
	// Problem, if not empty, keeps the pod off all nodes.
	Problem string
	// Volumes are the node affinities of the persistent volumes that its claims are bound to.
	Volumes []*corev1.VolumeNodeAffinity
	// MissingVolume says that a claim is bound to a volume that does not exist.
	MissingVolume bool
	// Exclusive are the claims ("namespace/name") that only one pod may use (ReadWriteOncePod).
	Exclusive []string
	// Siblings are the pods from which it is spread when it has no constraints of its own: those of the same services
	// and controller. Nil for none.
	Siblings *Siblings

	// delayed are the claims that get a volume when the pod gets a node, zones the places of the volumes of the others.
	delayed []*delayed
	zones   []volumeZone
	// spread are the constraints that its profile gives a pod without any.
	spread []spreadConstraint
	// attach is what nodes have to attach for the pod, nil for nothing.
	attach *attaches
	// needs are its resource claims, nil for none.
	needs *needs
	// claimProblem says that Problem is one of resource claims, waits that these are still being made.
	claimProblem, waits bool
}

// candidate is a pod with all that one pass works out before it looks at nodes.
type candidate struct {
	*pod
	affinity  *affinityState
	spread    *spreadState
	siblings  *Siblings
	volumes   []*nodeaffinity.NodeSelector
	noVolume  bool
	exclusive []string
	contended int // pods that use an exclusive claim
	delayed   []*delayed
	zones     []volumeZone
	attach    *attaches
	needs     *needs
}

func (c *Cluster) candidate(p *pod, about *Circumstances) *candidate {
	cand := &candidate{pod: p, siblings: about.Siblings, noVolume: about.MissingVolume, exclusive: about.Exclusive,
		delayed: about.delayed, zones: about.zones, attach: about.attach, needs: about.needs}
	for _, v := range about.Volumes {
		if s, err := nodeaffinity.NewNodeSelector(v.Required); err == nil {
			cand.volumes = append(cand.volumes, s)
		} else {
			cand.noVolume = true
		}
	}
	for _, claim := range about.Exclusive {
		cand.contended += c.claims[claim]
	}
	cand.affinity = c.affinityFor(p)
	cand.spread = c.spreadFor(p, true)
	return cand
}

// fits returns why a pod cannot go to a node, nothing if it can. Pods of at least its
// priority that are nominated there count as if they ran, and then again as if they did not, for
// it may depend on one that never comes. extra holds the room for the reasons, so that the common case allocates nothing.
func (c *Cluster) fits(cand *candidate, n *node, extra []*reason) []*reason {
	if len(n.nominated) > 0 {
		var counted []*pod
		for uid, p := range n.nominated {
			if uid != cand.object.UID && p.priority >= cand.priority {
				counted = append(counted, p)
				c.try(cand, p, 1)
			}
		}
		if len(counted) > 0 {
			extra = c.check(cand, n, extra)
			for _, p := range counted {
				c.try(cand, p, -1)
			}
			if len(extra) > 0 {
				return extra
			}
		}
	}
	return c.check(cand, n, extra)
}

// try counts a pod in or out of its node's totals and of what a pass has worked out, and of nothing else.
func (c *Cluster) try(cand *candidate, p *pod, sign int32) {
	p.node.add(p, int(sign))
	cand.affinity.change(c, cand.pod, p, sign)
	cand.spread.change(c, cand.pod, p, sign)
	for _, claim := range cand.exclusive {
		for _, used := range p.claims {
			if claim == used {
				cand.contended += int(sign)
			}
		}
	}
}

func (c *Cluster) check(cand *candidate, n *node, extra []*reason) []*reason {
	if one := cand.static(n); one != nil {
		return append(extra, one)
	}
	uses := cand.profile.uses
	if len(cand.ports) > 0 && uses(rulePorts) && portsTaken(cand.ports, n.ports) {
		return append(extra, reasonPorts)
	}
	if uses(ruleFit) {
		if extra = c.room(cand.pod, n, extra); len(extra) > 0 {
			return extra
		}
	}
	if one := c.volumesAllow(cand, n); one != nil {
		return append(extra, one)
	}
	if one := cand.spread.allows(n); one != nil && uses(ruleSpread) {
		return append(extra, one)
	}
	if one := cand.affinity.allows(n); one != nil && uses(rulePodAffinity) {
		return append(extra, one)
	}
	if one := cand.devicesAllow(n); one != nil {
		return append(extra, one)
	}
	if len(cand.features) > 0 && uses(ruleFeatures) && !cand.featuresOn(n) {
		return append(extra, reasonFeatures)
	}
	return extra
}

// volumesAllow applies the rules on volumes.
func (c *Cluster) volumesAllow(cand *candidate, n *node) *reason {
	uses := cand.profile.uses
	if len(cand.disks) > 0 && uses(ruleRestrictions) && n.diskTaken(cand.disks) {
		return reasonDisk
	}
	if cand.contended > 0 && uses(ruleRestrictions) {
		return reasonExclusive
	}
	if cand.attach != nil && uses(ruleLimits) {
		if driver := cand.attach.missing(n.name); driver != "" {
			return c.noDriver(driver)
		}
		if !cand.attach.allows(n) {
			return reasonLimit
		}
	}
	if uses(ruleBinding) {
		if one := cand.bindable(n); one != nil {
			return one
		}
	}
	for i := range cand.zones {
		if uses(ruleZone) && !cand.zones[i].allows(n) {
			return reasonZone
		}
	}
	return nil
}

// bindable applies the rules on volumes that are bound, and on those that are to be (VolumeBinding).
func (cand *candidate) bindable(n *node) *reason {
	if cand.noVolume {
		return reasonNoVolume
	}
	for _, v := range cand.volumes {
		if !v.Match(n.object) {
			return reasonPVAffinity
		}
	}
	_, one := cand.plan(n)
	return one
}

// noDriver is the reason that a driver which volumes need does not run on a node.
func (c *Cluster) noDriver(driver string) *reason {
	text := driver + " CSI driver is not installed on the node"
	if c.drivers[driver] == nil {
		if c.drivers == nil || len(c.drivers) > 100 {
			c.drivers = map[string]*reason{}
		}
		c.drivers[driver] = &reason{text, false, nodeAdded | volumes}
	}
	return c.drivers[driver]
}

// static checks what no other pod can change.
func (p *pod) static(n *node) *reason {
	if n.closed {
		if n.object.Spec.Unschedulable && p.profile.uses(ruleUnschedulable) && !tolerates(p.object.Spec.Tolerations, &corev1.Taint{
			Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
			return reasonUnschedulable
		}
		if p.profile.uses(ruleTaints) && untolerated(p.object, n.object) != nil {
			return reasonTaint
		}
	}
	if !p.profile.uses(ruleNodeAffinity) {
		return nil
	}
	if p.profile.enforced != nil && !p.profile.enforced.Match(n.object) {
		return reasonEnforced
	}
	if !p.matches(n) {
		return reasonNodeAffinity
	}
	return nil
}

// room checks resources, and returns every shortage.
func (c *Cluster) room(p *pod, n *node, short []*reason) []*reason {
	asks, have, used := &p.asks, &n.allocatable, &n.used
	if used.pods+1 > have.pods {
		short = append(short, reasonPods)
	}
	if asks.cpu > have.cpu-used.cpu && asks.cpu > 0 {
		short = append(short, scarceCPU.of(asks.cpu, have.cpu))
	}
	if asks.memory > have.memory-used.memory && asks.memory > 0 {
		short = append(short, scarceMemory.of(asks.memory, have.memory))
	}
	if asks.storage > have.storage-used.storage && asks.storage > 0 {
		short = append(short, scarceStorage.of(asks.storage, have.storage))
	}
	for name, v := range asks.extended {
		if v > 0 && (p.profile.ignored == nil || !p.profile.ignored(name)) && v > have.extended[name]-used.extended[name] && !c.byDevices(n, name) {
			short = append(short, c.scarcity(name).of(v, have.extended[name]))
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

// refusals counts the reasons of one pass.
type refusals struct {
	counts []reasonCount
	// mendable are the nodes where removing pods may help.
	mendable []*node
	wakes    change
}

type reasonCount struct {
	*reason
	count int
}

func (r *refusals) add(n *node, reasons []*reason) {
	final := false
	for _, why := range reasons {
		r.count(why, 1)
		final = final || why.final
	}
	if !final {
		r.mendable = append(r.mendable, n)
	}
}

func (r *refusals) count(why *reason, times int) {
	r.wakes |= why.wakes
	for i := range r.counts {
		if r.counts[i].reason == why {
			r.counts[i].count += times
			return
		}
	}
	r.counts = append(r.counts, reasonCount{why, times})
}

// String is "1 Insufficient cpu, 2 node(s) were unschedulable".
func (r *refusals) String() string {
	byText := map[string]int{}
	for _, c := range r.counts {
		byText[c.text] += c.count
	}
	parts := make([]string, 0, len(byText))
	for text, count := range byText {
		parts = append(parts, fmt.Sprintf("%d %s", count, text))
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}
