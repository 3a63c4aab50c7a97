package daemonset

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/revision"
	"coracle.dev/coracle/store"
)

// burst is how many pods one pass creates, and how many it deletes, at most.
const burst = 250

// pass is one pass over a daemon set.
type pass struct {
	now   time.Time
	ds    *appsv1.DaemonSet
	hash  string
	tries *tries
	nodes []*spot
	lost  []*corev1.Pod // of nodes that are not there

	creates, deletes []reconcile.Write
	events           []reconcile.Event
	wait             time.Duration
}

// spot is a node with the set's pods on it, the oldest first.
type spot struct {
	node      *corev1.Node
	run, stay bool
	pods      []*corev1.Pod
}

func plan(s store.Snapshot, ds *appsv1.DaemonSet, tries *tries, now time.Time) reconcile.Plan {
	p := &pass{now: now, ds: ds, tries: tries}
	if sel := ds.Spec.Selector; sel == nil || len(sel.MatchLabels)+len(sel.MatchExpressions) == 0 {
		return reconcile.Plan{Events: []reconcile.Event{*p.event("Warning", "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")}}
	}
	selector, ref := claim.Selector(ds.Spec.Selector), claim.Reference("apps/v1", "DaemonSet", ds)
	owned := claim.Objects(s, client.Pods, ds, ref, selector, nil)
	history := revision.Of(s, ds, ref, selector)
	if ds.DeletionTimestamp != nil {
		return reconcile.Plan{}
	}
	if claims := append(owned.Writes, history.Claims...); len(claims) > 0 {
		return reconcile.Plan{Writes: claims} // the new owner references wake the next pass
	}
	rev, w, collided := history.Current(s, &ds.Spec.Template, map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: ""}, ds.Status.CollisionCount)
	if collided {
		return p.countCollision()
	}
	p.hash = rev.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	p.sort(s, owned.Owned)
	for _, n := range p.nodes {
		p.manage(n)
	}
	for _, pod := range p.lost {
		if pod.Spec.NodeName == "" {
			p.remove(pod) // nobody will ever schedule it; those that were are the pod garbage collector's
		}
	}
	if len(p.creates)+len(p.deletes) == 0 && ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		p.roll()
	}
	return p.plan(w, history)
}

func (p *pass) event(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("apps/v1", "DaemonSet", p.ds), Type: kind, Reason: reason, Message: message}
}

func (p *pass) countCollision() reconcile.Plan {
	ds := p.ds.DeepCopy()
	n := int32(1)
	if c := ds.Status.CollisionCount; c != nil {
		n = *c + 1
	}
	ds.Status.CollisionCount = &n
	return reconcile.Plan{Writes: []reconcile.Write{statusWrite(ds)}}
}

func statusWrite(ds *appsv1.DaemonSet) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: client.DaemonSets.Name, Subresource: "status", Object: ds}
}

func (p *pass) sort(s store.Snapshot, pods []*corev1.Pod) {
	byNode := map[string]*spot{}
	for node := range client.Nodes.List(s, "") {
		n := &spot{node: node}
		n.run, n.stay = fits(p.ds, node)
		p.nodes = append(p.nodes, n)
		byNode[node.Name] = n
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, pod := range pods {
		if n := byNode[nodeOf(pod)]; n != nil {
			n.pods = append(n.pods, pod)
		} else {
			p.lost = append(p.lost, pod)
		}
	}
}

// plan puts the writes in order. Pods that are written now wake the pass that reports them.
func (p *pass) plan(rev *reconcile.Write, history *revision.History) reconcile.Plan {
	if rev != nil {
		return reconcile.Plan{Writes: []reconcile.Write{*rev}} // the revision wakes the next pass
	}
	if len(p.creates)+len(p.deletes) > 0 {
		writes := append(slices.Clone(p.creates[:min(len(p.creates), burst)]), p.deletes[:min(len(p.deletes), burst)]...)
		return reconcile.Plan{Writes: writes, Parallel: true, Events: p.events, After: p.wait}
	}
	out := reconcile.Plan{Events: p.events, After: p.wait}
	ds := p.ds.DeepCopy()
	p.observe(&ds.Status, &out)
	if !equality.Semantic.DeepEqual(ds.Status, p.ds.Status) {
		out.Writes = append(out.Writes, statusWrite(ds))
	}
	out.Writes = append(out.Writes, history.Surplus(p.inUse(history), p.ds.Spec.RevisionHistoryLimit)...)
	return out
}

// inUse are the revisions that pods run, and the present one.
func (p *pass) inUse(history *revision.History) map[string]bool {
	hashes := map[string]bool{p.hash: true}
	for _, n := range p.nodes {
		for _, pod := range n.pods {
			hashes[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
		}
	}
	names := map[string]bool{}
	for _, r := range history.All {
		names[r.Name] = hashes[r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]]
	}
	return names
}

// manage sees to it that a node has the pod that it is to have and no other.
func (p *pass) manage(n *spot) {
	if !n.stay {
		for _, pod := range n.pods {
			p.remove(pod)
		}
		return
	}
	var alive []*corev1.Pod
	for _, pod := range n.pods {
		switch {
		case pod.DeletionTimestamp != nil:
			alive = append(alive, pod)
		case podstate.Terminal(pod):
			p.bury(n.node.Name, pod)
			alive = append(alive, pod) // its place is taken until it is gone
		default:
			alive = append(alive, pod)
		}
	}
	if len(alive) == 0 {
		if n.run {
			p.create(n.node.Name)
		}
		return
	}
	if p.maxSurge() == 0 {
		for _, pod := range running(alive)[min(1, len(running(alive))):] {
			p.remove(pod)
		}
		return
	}
	p.manageSurge(n, running(alive))
}

// running leaves out the pods that have ended or are being deleted.
func running(pods []*corev1.Pod) []*corev1.Pod {
	var kept []*corev1.Pod
	for _, pod := range pods {
		if podstate.Active(pod) {
			kept = append(kept, pod)
		}
	}
	return kept
}

// manageSurge keeps at most one old and one new pod, and lets the old one go when the new one is available.
func (p *pass) manageSurge(n *spot, pods []*corev1.Pod) {
	var oldest, newest *corev1.Pod // the ones that stay
	for _, pod := range pods {
		slot := &oldest
		if p.updated(pod) {
			slot = &newest
		}
		if *slot == nil {
			*slot = pod
		} else {
			p.remove(pod)
		}
	}
	if oldest != nil && newest != nil && p.available(newest) {
		p.remove(oldest)
	}
}

// bury deletes a pod that has ended, later each time it happens on the same node.
func (p *pass) bury(node string, pod *corev1.Pod) {
	if left := p.tries.delay(p.ds.UID, node, pod.UID, p.now); left > 0 {
		if p.wait == 0 || left < p.wait {
			p.wait = left
		}
		return
	}
	kind, reason, verb := "Warning", "FailedDaemonPod", "failed daemon pod %s/%s on node %s, will try to kill it"
	if pod.Status.Phase == corev1.PodSucceeded {
		kind, reason, verb = "Normal", "SucceededDaemonPod", "succeeded daemon pod %s/%s on node %s, will try to delete it"
	}
	p.events = append(p.events, *p.event(kind, reason, fmt.Sprintf("Found "+verb, pod.Namespace, pod.Name, node)))
	p.remove(pod)
}

func (p *pass) create(node string) {
	p.creates = append(p.creates, reconcile.Write{
		Verb: reconcile.Create, Resource: client.Pods.Name, Object: newPod(p.ds, node, p.hash),
		OnSuccess: func(created api.Object) *reconcile.Event {
			return p.event("Normal", "SuccessfulCreate", "Created pod: "+created.GetName())
		},
		OnFailure: func(err error) *reconcile.Event {
			return p.event("Warning", "FailedCreate", "Error creating: "+err.Error())
		},
	})
}

func (p *pass) remove(pod *corev1.Pod) {
	if pod.DeletionTimestamp != nil {
		return
	}
	p.deletes = append(p.deletes, reconcile.Write{
		Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		OnSuccess: func(api.Object) *reconcile.Event {
			return p.event("Normal", "SuccessfulDelete", "Deleted pod: "+pod.Name)
		},
		OnFailure: func(err error) *reconcile.Event {
			return p.event("Warning", "FailedDelete", "Error deleting: "+err.Error())
		},
	})
}

// updated tells whether the pod is of the present template.
func (p *pass) updated(pod *corev1.Pod) bool {
	return pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == p.hash
}

func (p *pass) available(pod *corev1.Pod) bool {
	ok, left := podstate.Available(pod, p.ds.Spec.MinReadySeconds, p.now)
	if left > 0 && (p.wait == 0 || left < p.wait) {
		p.wait = left
	}
	return ok
}

// desired is the number of nodes that are to run a pod.
func (p *pass) desired() (n int) {
	for _, node := range p.nodes {
		if node.run {
			n++
		}
	}
	return n
}

func (p *pass) maxSurge() int {
	return p.scaled(func(r *appsv1.RollingUpdateDaemonSet) *intstr.IntOrString { return r.MaxSurge })
}

func (p *pass) maxUnavailable() int {
	n := p.scaled(func(r *appsv1.RollingUpdateDaemonSet) *intstr.IntOrString { return r.MaxUnavailable })
	if n == 0 && p.maxSurge() == 0 {
		return 1
	}
	return n
}

func (p *pass) scaled(field func(*appsv1.RollingUpdateDaemonSet) *intstr.IntOrString) int {
	r := p.ds.Spec.UpdateStrategy.RollingUpdate
	if r == nil || p.ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || field(r) == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(field(r), p.desired(), true)
	if err != nil {
		return 0
	}
	return n
}

// roll replaces pods of an old template, as many at a time as may be unavailable or surplus.
func (p *pass) roll() {
	if surge := p.maxSurge(); surge > 0 {
		p.rollSurge(surge)
		return
	}
	budget := p.maxUnavailable()
	var candidates []*corev1.Pod
	for _, n := range p.nodes {
		pods := running(n.pods)
		switch {
		case !n.run && len(n.pods) == 0:
		case len(pods) != 1:
			budget--
		case p.updated(pods[0]):
			if !p.available(pods[0]) {
				budget--
			}
		case !p.available(pods[0]):
			budget--
			p.remove(pods[0]) // it serves nobody: replace it whatever the budget
		default:
			candidates = append(candidates, pods[0])
		}
	}
	for _, pod := range candidates[:min(max(budget, 0), len(candidates))] {
		p.remove(pod)
	}
}

// rollSurge creates new pods beside old ones; manageSurge removes these when the new ones are available.
func (p *pass) rollSurge(budget int) {
	var candidates []string
	for _, n := range p.nodes {
		var old, fresh *corev1.Pod
		for _, pod := range running(n.pods) {
			if p.updated(pod) {
				fresh = pod
			} else {
				old = pod
			}
		}
		switch {
		case old == nil || !n.run:
		case fresh != nil:
			if !p.available(fresh) {
				budget--
			}
		case !p.available(old):
			p.create(n.node.Name)
		default:
			candidates = append(candidates, n.node.Name)
		}
	}
	for _, node := range candidates[:min(max(budget, 0), len(candidates))] {
		p.create(node)
	}
}

// observe counts pods and nodes into the status.
func (p *pass) observe(s *appsv1.DaemonSetStatus, out *reconcile.Plan) {
	*s = appsv1.DaemonSetStatus{ObservedGeneration: p.ds.Generation, CollisionCount: s.CollisionCount, Conditions: s.Conditions}
	for _, n := range p.nodes {
		pods := running(n.pods)
		switch {
		case n.run:
			s.DesiredNumberScheduled++
		case len(n.pods) > 0:
			s.NumberMisscheduled++
			continue
		default:
			continue
		}
		if len(n.pods) == 0 {
			continue
		}
		s.CurrentNumberScheduled++
		if len(pods) == 0 {
			continue
		}
		if podstate.Ready(pods[0]) {
			s.NumberReady++
			if p.available(pods[0]) {
				s.NumberAvailable++
			}
		}
		if slices.ContainsFunc(pods, p.updated) {
			s.UpdatedNumberScheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	out.After = p.wait
}
