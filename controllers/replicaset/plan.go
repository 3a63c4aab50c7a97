package replicaset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// burst is how many pods one pass creates or deletes at most.
const burst = 500

// plan is one pass over a set. A pass either brings the pods to the number
// asked for, or reports them: the pods that it wrote wake it again for that.
func plan(s store.Snapshot, rs *set, now time.Time) reconcile.Plan {
	owned := claim.Objects(s, client.Pods, rs.meta, claim.Reference(rs.apiVersion, rs.kind, rs.meta), rs.selector, podstate.Active)
	p := reconcile.Plan{Writes: owned.Writes, Parallel: true}
	if rs.meta.DeletionTimestamp == nil {
		p.Writes = append(p.Writes, rs.manage(s, active(owned.Owned), now)...)
	}
	if len(p.Writes) > 0 {
		return p
	}
	next, wait := rs.observe(owned.Owned, now)
	next.conditions = without(next.conditions, appsv1.ReplicaSetReplicaFailure)
	return reconcile.Plan{Writes: rs.report(next), After: wait}
}

// failed reports pods that could not be created or deleted.
func failed(s store.Snapshot, rs *set, now time.Time, err error) reconcile.Plan {
	owned := claim.Objects(s, client.Pods, rs.meta, claim.Reference(rs.apiVersion, rs.kind, rs.meta), rs.selector, podstate.Active)
	next, _ := rs.observe(owned.Owned, now)
	if !slices.ContainsFunc(next.conditions, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure }) {
		reason := "FailedCreate"
		if len(active(owned.Owned)) > int(rs.replicas) {
			reason = "FailedDelete"
		}
		next.conditions = append(slices.Clone(next.conditions), appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason, Message: err.Error(),
			LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(),
		})
	}
	return reconcile.Plan{Writes: rs.report(next)}
}

func active(pods []*corev1.Pod) []*corev1.Pod {
	var kept []*corev1.Pod
	for _, pod := range pods {
		if podstate.Active(pod) {
			kept = append(kept, pod)
		}
	}
	return kept
}

func without(conds []appsv1.ReplicaSetCondition, t appsv1.ReplicaSetConditionType) []appsv1.ReplicaSetCondition {
	var kept []appsv1.ReplicaSetCondition
	for _, c := range conds {
		if c.Type != t {
			kept = append(kept, c)
		}
	}
	return kept
}

// manage creates the pods that are missing or deletes those that are too many.
func (rs *set) manage(s store.Snapshot, pods []*corev1.Pod, now time.Time) []reconcile.Write {
	missing := int(rs.replicas) - len(pods)
	var writes []reconcile.Write
	for range min(missing, burst) {
		writes = append(writes, rs.create())
	}
	if missing >= 0 {
		return writes
	}
	for _, pod := range toDelete(pods, rs.related(s), min(-missing, burst), now) {
		writes = append(writes, rs.remove(pod))
	}
	return writes
}

// related are the pods that share nodes with this set's for the sake of spreading: those of all
// replica sets of the same owner.
func (rs *set) related(s store.Snapshot) []*corev1.Pod {
	owners := []string{string(rs.meta.UID)}
	if ref := metav1.GetControllerOfNoCopy(rs.meta); ref != nil && rs.resource == client.ReplicaSets.Name {
		for sibling := range client.ReplicaSets.Index(s, "owner", string(ref.UID)) {
			if sibling.UID != rs.meta.UID && metav1.IsControlledBy(sibling, &metav1.ObjectMeta{UID: ref.UID}) {
				owners = append(owners, string(sibling.UID))
			}
		}
	}
	var pods []*corev1.Pod
	for _, uid := range owners {
		for pod := range client.Pods.Index(s, "owner", uid) {
			if podstate.Active(pod) {
				pods = append(pods, pod)
			}
		}
	}
	return pods
}

// create makes one pod from the template.
func (rs *set) create() reconcile.Write {
	prefix := rs.meta.Name + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = rs.meta.Name
	}
	t := rs.template.DeepCopy()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: rs.meta.Namespace, GenerateName: prefix,
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{claim.Reference(rs.apiVersion, rs.kind, rs.meta)},
		},
		Spec: t.Spec,
	}
	return reconcile.Write{
		Verb: reconcile.Create, Resource: client.Pods.Name, Object: pod,
		OnSuccess: func(created api.Object) *reconcile.Event {
			return rs.event("Normal", "SuccessfulCreate", "Created pod: "+created.GetName())
		},
		OnFailure: func(err error) *reconcile.Event {
			return rs.event("Warning", "FailedCreate", "Error creating: "+err.Error())
		},
	}
}

func (rs *set) remove(pod *corev1.Pod) reconcile.Write {
	return reconcile.Write{
		Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		OnSuccess: func(api.Object) *reconcile.Event {
			return rs.event("Normal", "SuccessfulDelete", "Deleted pod: "+pod.Name)
		},
		OnFailure: func(err error) *reconcile.Event {
			return rs.event("Warning", "FailedDelete", "Error deleting: "+err.Error())
		},
	}
}

func (rs *set) event(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding(rs.apiVersion, rs.kind, rs.meta), Type: kind, Reason: reason, Message: message}
}

// observe counts the pods, and says when the next one becomes available.
func (rs *set) observe(pods []*corev1.Pod, now time.Time) (status, time.Duration) {
	next := status{observed: rs.meta.Generation, conditions: rs.status.conditions}
	whole := labels.SelectorFromSet(rs.template.Labels)
	var terminating int32
	var wait time.Duration
	for _, pod := range pods {
		if podstate.Terminating(pod) {
			terminating++
		}
		if !podstate.Active(pod) {
			continue
		}
		next.replicas++
		if whole.Matches(labels.Set(pod.Labels)) {
			next.labeled++
		}
		if !podstate.Ready(pod) {
			continue
		}
		next.ready++
		ok, left := podstate.Available(pod, rs.minReady, now)
		switch {
		case ok:
			next.available++
		case left > 0 && (wait == 0 || left < wait):
			wait = left
		}
	}
	if rs.resource == client.ReplicaSets.Name {
		next.terminating = &terminating
	}
	return next, wait
}

// report writes a status that differs from the one that is there.
func (rs *set) report(next status) []reconcile.Write {
	if sameStatus(next, rs.status) {
		return nil
	}
	return []reconcile.Write{{Verb: reconcile.Update, Resource: rs.resource, Subresource: "status", Object: rs.with(next)}}
}

func sameStatus(a, b status) bool {
	return a.replicas == b.replicas && a.labeled == b.labeled && a.ready == b.ready && a.available == b.available &&
		a.observed == b.observed && equality.Semantic.DeepEqual(a.terminating, b.terminating) &&
		equality.Semantic.DeepEqual(a.conditions, b.conditions)
}
