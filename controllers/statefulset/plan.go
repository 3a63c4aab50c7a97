package statefulset

import (
	"fmt"
	"slices"
	"strings"
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

// pass is one pass over a stateful set.
type pass struct {
	snap store.Snapshot
	now  time.Time
	set  *appsv1.StatefulSet

	// replicas are the pods with an ordinal in the range, nil where there is none; condemned are those
	// beyond it, the highest first.
	replicas  []*corev1.Pod
	condemned []*corev1.Pod

	history         *revision.History
	current, update *appsv1.ControllerRevision
	status          appsv1.StatefulSetStatus
	wait            time.Duration

	revisions []reconcile.Write // come first
	pods      []reconcile.Write
}

func plan(s store.Snapshot, set *appsv1.StatefulSet, now time.Time) (reconcile.Plan, error) {
	if set.Spec.Selector == nil || len(set.Spec.Selector.MatchLabels)+len(set.Spec.Selector.MatchExpressions) == 0 {
		return reconcile.Plan{}, nil
	}
	p := &pass{snap: s, now: now, set: set}
	selector := claim.Selector(set.Spec.Selector)
	ref := claim.Reference("apps/v1", "StatefulSet", set)
	owned := claim.Objects(s, client.Pods, set, ref, selector, func(pod *corev1.Pod) bool {
		_, ok := ordinal(set, pod)
		return ok
	})
	p.history = revision.Of(s, set, ref, selector)
	if set.DeletionTimestamp != nil {
		return reconcile.Plan{}, nil
	}
	if claims := append(owned.Writes, p.history.Claims...); len(claims) > 0 {
		return reconcile.Plan{Writes: claims}, nil // the new owner references wake the next pass
	}
	if collided := p.findRevisions(); collided {
		return p.countCollision(), nil
	}
	p.sort(owned.Owned)
	p.observe()
	if err := p.act(); err != nil {
		return reconcile.Plan{}, err
	}
	return p.plan(), nil
}

func (p *pass) findRevisions() (collided bool) {
	rev, w, collided := p.history.Current(p.snap, &p.set.Spec.Template, nil, p.set.Status.CollisionCount)
	if collided {
		return true
	}
	if w != nil {
		p.revisions = append(p.revisions, *w)
	}
	p.update, p.current = rev, rev
	if r := p.history.Named(p.set.Status.CurrentRevision); r != nil {
		p.current = r
	}
	return false
}

func (p *pass) countCollision() reconcile.Plan {
	set := p.set.DeepCopy()
	n := int32(1)
	if c := set.Status.CollisionCount; c != nil {
		n = *c + 1
	}
	set.Status.CollisionCount = &n
	return reconcile.Plan{Writes: []reconcile.Write{p.statusWrite(set)}}
}

func (p *pass) statusWrite(set *appsv1.StatefulSet) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: client.StatefulSets.Name, Subresource: "status", Object: set}
}

func (p *pass) size() int {
	if p.set.Spec.Replicas == nil {
		return 1
	}
	return int(*p.set.Spec.Replicas)
}

func (p *pass) sort(pods []*corev1.Pod) {
	p.replicas = make([]*corev1.Pod, p.size())
	for _, pod := range pods {
		n, ok := ordinal(p.set, pod)
		if !ok {
			continue
		}
		if i := n - start(p.set); i >= 0 && i < len(p.replicas) {
			p.replicas[i] = pod
		} else {
			p.condemned = append(p.condemned, pod)
		}
	}
	slices.SortFunc(p.condemned, func(a, b *corev1.Pod) int {
		x, _ := ordinal(p.set, a)
		y, _ := ordinal(p.set, b)
		return y - x
	})
}

// observe counts the pods into the status.
func (p *pass) observe() {
	s := appsv1.StatefulSetStatus{
		ObservedGeneration: p.set.Generation, CurrentRevision: p.current.Name, UpdateRevision: p.update.Name,
		CollisionCount: p.set.Status.CollisionCount, Conditions: p.set.Status.Conditions,
	}
	if s.CollisionCount == nil {
		s.CollisionCount = new(int32)
	}
	for _, pod := range append(slices.Clone(p.replicas), p.condemned...) {
		if pod == nil {
			continue
		}
		s.Replicas++
		if runningAndReady(pod) {
			s.ReadyReplicas++
			if ok, left := podstate.Available(pod, p.set.Spec.MinReadySeconds, p.now); ok {
				s.AvailableReplicas++
			} else if left > 0 && (p.wait == 0 || left < p.wait) {
				p.wait = left
			}
		}
		if pod.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(pod) == p.current.Name {
			s.CurrentReplicas++
		}
		if revisionOf(pod) == p.update.Name {
			s.UpdatedReplicas++
		}
	}
	if p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && s.UpdatedReplicas == s.Replicas && s.ReadyReplicas == s.Replicas {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	p.status = s
}

// plan turns what was decided into writes. The status is that of what was observed: pods that are written now wake
// the pass that reports them.
func (p *pass) plan() reconcile.Plan {
	out := reconcile.Plan{Writes: append(p.revisions, p.pods...), After: p.wait}
	if !equality.Semantic.DeepEqual(p.status, p.set.Status) {
		set := p.set.DeepCopy()
		set.Status = p.status
		out.Writes = append(out.Writes, p.statusWrite(set))
	}
	inUse := map[string]bool{p.current.Name: true, p.update.Name: true, p.status.CurrentRevision: true}
	for _, pod := range append(slices.Clone(p.replicas), p.condemned...) {
		if pod != nil {
			inUse[revisionOf(pod)] = true
		}
	}
	out.Writes = append(out.Writes, p.history.Surplus(inUse, p.set.Spec.RevisionHistoryLimit)...)
	return out
}

// told adds the events that upstream records about a write.
func (p *pass) told(w reconcile.Write, verb, success, failure string) reconcile.Write {
	title := strings.ToUpper(verb[:1]) + verb[1:]
	w.OnSuccess = func(api.Object) *reconcile.Event { return p.event("Normal", "Successful"+title, verb+" "+success) }
	w.OnFailure = func(err error) *reconcile.Event {
		return p.event("Warning", "Failed"+title, verb+" "+failure+err.Error())
	}
	return w
}

func (p *pass) event(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("apps/v1", "StatefulSet", p.set), Type: kind, Reason: reason, Message: message}
}

func (p *pass) create(n int, pod *corev1.Pod) {
	p.pods = append(p.pods, p.claims(n)...)
	p.pods = append(p.pods, p.told(reconcile.Write{Verb: reconcile.Create, Resource: client.Pods.Name, Object: pod},
		"create", fmt.Sprintf("Pod %s in StatefulSet %s successful", pod.Name, p.set.Name), fmt.Sprintf("Pod %s in StatefulSet %s failed error: ", pod.Name, p.set.Name)))
}

func (p *pass) remove(pod *corev1.Pod) {
	p.pods = append(p.pods, p.told(reconcile.Write{Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		"delete", fmt.Sprintf("Pod %s in StatefulSet %s successful", pod.Name, p.set.Name), fmt.Sprintf("Pod %s in StatefulSet %s failed error: ", pod.Name, p.set.Name)))
}

// ordered tells whether pods come and go one after the other.
func (p *pass) ordered() bool { return p.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement }

// act decides what happens to the pods: the missing ones come in order, then those beyond the range go, the
// highest first, then those of an old revision are replaced, the highest first.
func (p *pass) act() error {
	for i := range p.replicas {
		stop, err := p.replica(i)
		if err != nil || stop {
			return err
		}
	}
	if p.condemn() {
		return nil
	}
	p.roll()
	return nil
}

// replica looks after one pod of the range, and tells whether those behind it have to wait.
func (p *pass) replica(i int) (stop bool, err error) {
	n, pod := start(p.set)+i, p.replicas[i]
	switch {
	case pod == nil:
		template, rev, err := p.templateOf(n)
		if err != nil {
			return true, err
		}
		p.create(n, p.make(n, template, rev))
		return p.ordered(), nil
	case ended(pod):
		if pod.DeletionTimestamp == nil {
			p.remove(pod)
		}
		return p.ordered(), nil // it is made again when it is gone
	case pod.Status.Phase == corev1.PodPending:
		p.pods = append(p.pods, p.claims(n)...)
	}
	p.pods = append(p.pods, p.retain(n, pod, nil)...)
	if p.ordered() && (pod.DeletionTimestamp != nil || !p.available(pod)) {
		return true, nil
	}
	if !identified(pod, n) && pod.DeletionTimestamp == nil {
		fixed := pod.DeepCopy()
		identify(fixed, n)
		p.pods = append(p.pods, reconcile.Write{Verb: reconcile.Update, Resource: client.Pods.Name, Object: fixed})
	}
	return false, nil
}

func (p *pass) available(pod *corev1.Pod) bool {
	ok, _ := podstate.Available(pod, p.set.Spec.MinReadySeconds, p.now)
	return runningAndReady(pod) && ok
}

// templateOf is the template from which pod number n is made, and its revision: the old one below the partition.
func (p *pass) templateOf(n int) (*corev1.PodTemplateSpec, string, error) {
	if p.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType || p.current.Name == p.update.Name {
		return &p.set.Spec.Template, p.update.Name, nil
	}
	limit := start(p.set) + int(p.set.Status.CurrentReplicas)
	if p.set.Spec.UpdateStrategy.RollingUpdate != nil {
		limit = start(p.set) + p.partition()
	}
	if n >= limit {
		return &p.set.Spec.Template, p.update.Name, nil
	}
	t, err := revision.Template(p.current)
	return t, p.current.Name, err
}

func (p *pass) partition() int {
	if r := p.set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		return int(*r.Partition)
	}
	return 0
}

// condemn deletes the pods beyond the range, and tells whether that has to end before anything else goes on.
func (p *pass) condemn() (stop bool) {
	firstUnhealthy := p.firstUnhealthy()
	for _, pod := range p.condemned {
		n, _ := ordinal(p.set, pod)
		switch {
		case pod.DeletionTimestamp != nil:
			if p.ordered() {
				return true
			}
			continue
		case p.ordered() && !p.available(pod) && pod != firstUnhealthy:
			return true
		}
		p.pods = append(p.pods, p.retain(n, pod, pod)...)
		p.remove(pod)
		if p.ordered() {
			return true
		}
	}
	return false
}

// firstUnhealthy is the pod with the lowest ordinal that is not healthy: it may go although it is not.
func (p *pass) firstUnhealthy() *corev1.Pod {
	for _, pod := range p.replicas {
		if pod == nil || !healthy(pod) {
			return pod
		}
	}
	for _, pod := range slices.Backward(p.condemned) {
		if !healthy(pod) {
			return pod
		}
	}
	return nil
}

// roll replaces pods of an old revision from the highest ordinal down to the partition, as many at a
// time as may be unavailable.
func (p *pass) roll() {
	if p.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return
	}
	budget := p.maxUnavailable()
	for i := len(p.replicas) - 1; i >= p.partition() && budget > 0; i-- {
		pod := p.replicas[i]
		switch {
		case pod == nil:
			budget--
		case revisionOf(pod) != p.update.Name && pod.DeletionTimestamp == nil:
			if !ended(pod) { // those are replaced anyway
				p.remove(pod)
			}
			budget--
		case !healthy(pod) || !p.available(pod):
			budget--
		}
	}
}

func (p *pass) maxUnavailable() int {
	r := p.set.Spec.UpdateStrategy.RollingUpdate
	if r == nil || r.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, p.size(), false)
	if err != nil {
		return 1
	}
	return max(n, 1)
}
