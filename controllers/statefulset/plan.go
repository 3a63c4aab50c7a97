package statefulset

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

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
	events    []reconcile.Event
}

// plan is one pass over a set. A set that is being deleted is only reported.
func plan(s store.Snapshot, set *appsv1.StatefulSet, now time.Time) (reconcile.Plan, error) {
	p, early := begin(s, set, now)
	if p == nil {
		return early, nil
	}
	p.observe()
	if set.DeletionTimestamp != nil {
		return p.report(), nil
	}
	if err := p.act(); err != nil {
		return reconcile.Plan{}, err
	}
	return p.plan(), nil
}

// failed reports the pods of a set when one of them could not be made or deleted.
func failed(s store.Snapshot, set *appsv1.StatefulSet, now time.Time) reconcile.Plan {
	p, _ := begin(s, set, now)
	if p == nil || len(p.revisions) > 0 {
		return reconcile.Plan{}
	}
	p.observe()
	return p.report()
}

// begin finds the pods and revisions of a set. It returns no pass but a plan where something else comes first.
func begin(s store.Snapshot, set *appsv1.StatefulSet, now time.Time) (*pass, reconcile.Plan) {
	if set.Spec.Selector == nil || len(set.Spec.Selector.MatchLabels)+len(set.Spec.Selector.MatchExpressions) == 0 {
		return nil, reconcile.Plan{}
	}
	p := &pass{snap: s, now: now, set: set}
	selector := claim.Selector(set.Spec.Selector)
	ref := claim.Reference("apps/v1", "StatefulSet", set)
	owned := claim.Objects(s, client.Pods, set, ref, selector, func(pod *corev1.Pod) bool {
		_, ok := ordinal(set, pod)
		return ok
	})
	p.history = revision.Of(s, set, ref, selector)
	if claims := append(owned.Writes, p.history.Claims...); len(claims) > 0 {
		return nil, reconcile.Plan{Writes: claims} // the new owner references wake the next pass
	}
	if collided := p.findRevisions(); collided {
		return nil, p.countCollision()
	}
	p.sort(owned.Owned)
	return p, reconcile.Plan{}
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
	if n := int32(p.size()); s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n { // the update is complete
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	p.status = s
}

// report is a plan that changes nothing but the status.
func (p *pass) report() reconcile.Plan {
	out := reconcile.Plan{After: p.wait}
	if !equality.Semantic.DeepEqual(p.status, p.set.Status) {
		set := p.set.DeepCopy()
		set.Status = p.status
		out.Writes = []reconcile.Write{p.statusWrite(set)}
	}
	return out
}

// plan turns what was decided into writes. The status is that of what was observed: pods that are written now wake
// the pass that reports them.
func (p *pass) plan() reconcile.Plan {
	out := p.report()
	out.Events = p.events
	out.Writes = slices.Concat(p.revisions, p.pods, out.Writes)
	inUse := map[string]bool{p.current.Name: true, p.update.Name: true, p.status.CurrentRevision: true}
	for _, pod := range append(slices.Clone(p.replicas), p.condemned...) {
		if pod != nil {
			inUse[revisionOf(pod)] = true
		}
	}
	out.Writes = append(out.Writes, p.history.Surplus(inUse, p.set.Spec.RevisionHistoryLimit)...)
	return out
}

// told adds the events that upstream records about a write. verb is "Create", "Update" or "Delete", what stands
// between it and the outcome.
func (p *pass) told(w reconcile.Write, verb, success, failure string) reconcile.Write {
	w.OnSuccess = func(api.Object) *reconcile.Event {
		return p.event("Normal", "Successful"+verb, verb+" "+success)
	}
	w.OnFailure = func(err error) *reconcile.Event {
		return p.event("Warning", "Failed"+verb, verb+" "+failure+err.Error())
	}
	return w
}

func (p *pass) event(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("apps/v1", "StatefulSet", p.set), Type: kind, Reason: reason, Message: message}
}

// write plans a write of a pod of the set.
func (p *pass) write(verb string, pod *corev1.Pod, w reconcile.Write) {
	w.Resource = client.Pods.Name
	p.pods = append(p.pods, p.told(w, verb, fmt.Sprintf("Pod %s in StatefulSet %s successful", pod.Name, p.set.Name), failure(p.set, pod.Name)))
}

func failure(set *appsv1.StatefulSet, pod string) string {
	return fmt.Sprintf("Pod %s in StatefulSet %s failed error: ", pod, set.Name)
}

func (p *pass) create(n int, pod *corev1.Pod) {
	p.pods = append(p.pods, p.claims(n)...)
	p.write("Create", pod, reconcile.Write{Verb: reconcile.Create, Object: pod})
}

func (p *pass) change(pod *corev1.Pod) {
	p.write("Update", pod, reconcile.Write{Verb: reconcile.Update, Object: pod})
}

func (p *pass) remove(pod *corev1.Pod) {
	p.write("Delete", pod, reconcile.Write{Verb: reconcile.Delete, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID})
}
