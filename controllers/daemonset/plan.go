package daemonset

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
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
	now     time.Time
	ds      *appsv1.DaemonSet
	hash    string // of the present template
	history *revision.History
	tries   *tries
	nodes   []*spot
	desired int             // nodes that are to run a pod
	lost    []*corev1.Pod   // of nodes that are not there
	live    map[string]bool // hashes that pods have, and the present one

	generation    int64 // of the template, as old clients count
	hasGeneration bool

	creates, deletes []reconcile.Write
	events           []reconcile.Event
	wait             time.Duration
}

// spot is a node with the set's pods on it in the order of compare.
type spot struct {
	node      *corev1.Node
	run, stay bool
	pods      []*corev1.Pod
}

func plan(s store.Snapshot, ds *appsv1.DaemonSet, tries *tries, now time.Time) reconcile.Plan {
	p, early := begin(s, ds, now)
	if p == nil {
		return early
	}
	p.tries = tries
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
	return p.plan()
}

// failed reports the pods of a set when one of them could not be made or deleted.
func failed(s store.Snapshot, ds *appsv1.DaemonSet, now time.Time) reconcile.Plan {
	p, _ := begin(s, ds, now)
	if p == nil {
		return reconcile.Plan{}
	}
	return reconcile.Plan{Writes: p.report(), After: p.wait}
}

// begin finds the pods and the revision of a set. It returns no pass but a plan where something else comes first.
func begin(s store.Snapshot, ds *appsv1.DaemonSet, now time.Time) (*pass, reconcile.Plan) {
	p := &pass{now: now, ds: ds}
	if sel := ds.Spec.Selector; sel == nil || len(sel.MatchLabels)+len(sel.MatchExpressions) == 0 {
		return nil, reconcile.Plan{Events: []reconcile.Event{*p.event("Warning", "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")}}
	}
	if ds.DeletionTimestamp != nil {
		return nil, reconcile.Plan{}
	}
	selector, ref := claim.Selector(ds.Spec.Selector), claim.Reference("apps/v1", "DaemonSet", ds)
	owned := claim.Objects(s, client.Pods, ds, ref, selector, nil)
	p.history = revision.Of(s, ds, ref, selector)
	if claims := append(owned.Writes, p.history.Claims...); len(claims) > 0 {
		return nil, reconcile.Plan{Writes: claims} // the new owner references wake the next pass
	}
	rev, w, collided := p.history.Current(s, &ds.Spec.Template, map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: ""}, ds.Status.CollisionCount)
	switch {
	case collided:
		return nil, p.countCollision()
	case w != nil:
		return nil, reconcile.Plan{Writes: []reconcile.Write{*w}} // the revision wakes the next pass
	}
	p.hash = rev.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	p.generation, p.hasGeneration = generation(ds)
	p.sort(s, owned.Owned)
	return p, reconcile.Plan{}
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
	place := placementOf(p.ds)
	for node := range client.Nodes.List(s, "") {
		n := &spot{node: node}
		n.run, n.stay = place.fits(node)
		if n.run {
			p.desired++
		}
		p.nodes = append(p.nodes, n)
		byNode[node.Name] = n
	}
	slices.SortStableFunc(pods, compare)
	p.live = map[string]bool{p.hash: true}
	for _, pod := range pods {
		p.live[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
		n := byNode[nodeOf(pod)]
		switch {
		case podstate.Terminal(pod) && pod.DeletionTimestamp != nil: // gone but for somebody's finalizer
		case n != nil:
			n.pods = append(n.pods, pod)
		default:
			p.lost = append(p.lost, pod)
		}
	}
}

// compare puts pods that have a node first, and then the oldest.
func compare(a, b *corev1.Pod) int {
	if (a.Spec.NodeName == "") != (b.Spec.NodeName == "") {
		if a.Spec.NodeName != "" {
			return -1
		}
		return 1
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// plan puts the writes in order, pods before the status.
func (p *pass) plan() reconcile.Plan {
	writes := slices.Concat(p.creates[:min(len(p.creates), burst)], p.deletes[:min(len(p.deletes), burst)])
	out := reconcile.Plan{Parallel: len(writes) > 0, Events: p.events}
	out.Writes = slices.Concat(writes, p.report(), p.surplus())
	out.After = p.wait
	return out
}

// report writes a status that differs from the one that is there.
func (p *pass) report() []reconcile.Write {
	ds := p.ds.DeepCopy()
	p.observe(&ds.Status)
	if equality.Semantic.DeepEqual(ds.Status, p.ds.Status) {
		return nil
	}
	return []reconcile.Write{statusWrite(ds)}
}

// surplus deletes old revisions beyond the history limit. Unlike with stateful sets, those that pods run count, too.
func (p *pass) surplus() []reconcile.Write {
	keep := int32(10)
	if p.ds.Spec.RevisionHistoryLimit != nil {
		keep = *p.ds.Spec.RevisionHistoryLimit
	}
	inUse := map[string]bool{}
	for _, r := range p.history.All {
		hash := r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
		inUse[r.Name] = p.live[hash]
		if p.live[hash] && hash != p.hash {
			keep--
		}
	}
	keep = max(keep, 0)
	return p.history.Surplus(inUse, &keep)
}

// manage sees to it that a node has the pod that it is to have and no other.
func (p *pass) manage(n *spot) {
	switch {
	case n.run && len(n.pods) == 0:
		p.create(n.node.Name)
	case n.stay:
		p.tend(n)
	default:
		for _, pod := range n.pods {
			p.remove(pod)
		}
	}
}

// tend deletes the pods of a node that have ended, and those that are too many.
func (p *pass) tend(n *spot) {
	left := false // a pod that failed is left for a while
	for _, pod := range n.pods {
		if pod.DeletionTimestamp == nil && podstate.Terminal(pod) {
			left = !p.bury(n.node.Name, pod) || left
		}
	}
	pods := running(n.pods)
	switch {
	case p.maxSurge() > 0 && len(pods) == 0 && n.run && !left:
		p.create(n.node.Name) // beside one that is being deleted
	case p.maxSurge() > 0:
		p.manageSurge(pods)
	case len(pods) > 1:
		for _, pod := range pods[1:] {
			p.remove(pod)
		}
	}
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

// manageSurge keeps at most one old and one new pod, and lets the old one go when the new one is available or the old
// one is not ready any more.
func (p *pass) manageSurge(pods []*corev1.Pod) {
	var oldest, newest *corev1.Pod // the ones that stay
	for _, pod := range pods {
		slot := &oldest
		if pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == p.hash {
			slot = &newest
		}
		if *slot == nil {
			*slot = pod
		} else {
			p.remove(pod)
		}
	}
	if oldest != nil && newest != nil && (!podstate.Ready(oldest) || p.available(newest)) {
		p.remove(oldest)
	}
}

// bury deletes a pod that has ended, one that failed later each time it happens on the same node, and tells whether it did.
func (p *pass) bury(node string, pod *corev1.Pod) bool {
	kind, reason, verb := "Normal", "SucceededDaemonPod", "succeeded daemon pod %s/%s on node %s, will try to delete it"
	if pod.Status.Phase == corev1.PodFailed {
		if left := p.tries.wait(tryKey{p.ds.UID, p.ds.Generation, node}, pod.UID, p.now); left > 0 {
			p.wake(left)
			return false
		}
		kind, reason, verb = "Warning", "FailedDaemonPod", "failed daemon pod %s/%s on node %s, will try to kill it"
	}
	p.events = append(p.events, *p.event(kind, reason, fmt.Sprintf("Found "+verb, pod.Namespace, pod.Name, node)))
	p.remove(pod)
	return true
}

// wake asks for another pass after d.
func (p *pass) wake(d time.Duration) {
	if p.wait == 0 || d < p.wait {
		p.wait = d
	}
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

// updated tells whether the pod is of the present template, by its hash or by the generation that old clients keep.
func (p *pass) updated(pod *corev1.Pod) bool {
	return pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == p.hash ||
		p.hasGeneration && pod.Labels[generationLabel] == strconv.FormatInt(p.generation, 10)
}

func (p *pass) available(pod *corev1.Pod) bool {
	ok, left := podstate.Available(pod, p.ds.Spec.MinReadySeconds, p.now)
	if left > 0 {
		p.wake(left)
	}
	return ok
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
	n, err := intstr.GetScaledValueFromIntOrPercent(field(r), p.desired, true)
	if err != nil {
		return 0
	}
	return n
}

// pair finds the pod of the present template and that of an old one among the pods of a node that are not being
// deleted; false if there are several of a kind.
func (p *pass) pair(n *spot) (fresh, old *corev1.Pod, ok bool) {
	for _, pod := range n.pods {
		slot := &old
		switch {
		case pod.DeletionTimestamp != nil:
			continue
		case p.updated(pod):
			slot = &fresh
		}
		if *slot != nil {
			return nil, nil, false
		}
		*slot = pod
	}
	return fresh, old, true
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
		if len(n.pods) == 0 {
			continue
		}
		fresh, old, ok := p.pair(n)
		switch {
		case !ok || (fresh == nil) == (old == nil):
			budget--
		case fresh != nil:
			if !p.available(fresh) {
				budget--
			}
		case !p.available(old):
			budget--
			p.remove(old) // it serves nobody: replace it whatever the budget
		default:
			candidates = append(candidates, old)
		}
	}
	for _, pod := range candidates[:min(max(budget, 0), len(candidates))] {
		p.remove(pod)
	}
}

// rollSurge creates new pods beside old ones; manageSurge removes these when the new ones are available. Pods on nodes
// where none is to run any more, but may stay, go when there are enough elsewhere.
func (p *pass) rollSurge(budget int) {
	var candidates []string
	var leaving []*corev1.Pod
	available := 0
	for _, n := range p.nodes {
		fresh, old, ok := p.pair(n)
		if !ok {
			budget--
			continue
		}
		if shown := cmp.Or(old, fresh); shown != nil && p.available(shown) {
			available++
		}
		switch {
		case old == nil:
		case fresh != nil && !p.available(fresh):
			budget--
		case fresh != nil:
			p.remove(old)
		case p.available(old) && n.run:
			candidates = append(candidates, n.node.Name)
		case p.available(old):
			leaving = append(leaving, old)
		case n.run:
			p.create(n.node.Name)
		default:
			p.remove(old)
		}
	}
	for _, pod := range leaving[:min(max(available-p.desired, 0), len(leaving))] {
		p.remove(pod)
	}
	for _, node := range candidates[:min(max(budget, 0), len(candidates))] {
		p.create(node)
	}
}

// observe counts pods and nodes into the status. Of several pods on a node the oldest counts.
func (p *pass) observe(s *appsv1.DaemonSetStatus) {
	*s = appsv1.DaemonSetStatus{ObservedGeneration: p.ds.Generation, CollisionCount: s.CollisionCount, Conditions: s.Conditions}
	for _, n := range p.nodes {
		switch {
		case !n.run && len(n.pods) > 0:
			s.NumberMisscheduled++
			continue
		case n.run:
			s.DesiredNumberScheduled++
		}
		if len(n.pods) == 0 {
			continue
		}
		s.CurrentNumberScheduled++
		pod := n.pods[0]
		if podstate.Ready(pod) {
			s.NumberReady++
			if p.available(pod) {
				s.NumberAvailable++
			}
		}
		if p.updated(pod) {
			s.UpdatedNumberScheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
}
