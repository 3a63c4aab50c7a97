// Package resourcequota keeps the status of resource quotas: the limits that are in force, and what the objects of the
// namespace use of them (https://kubernetes.io/docs/concepts/policy/resource-quotas/).
//
// It owns status.hard, and status.used together with admission, which charges new objects in the transaction that makes
// them; the loop counts anew whenever something went or shrank. It never refuses anything.
package resourcequota

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/quota"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// countSpacing is the least time between two counts of a quota: a count goes over all objects of the namespace, and one does for
// many that went.
const countSpacing = 100 * time.Millisecond

// Loop is the resource quota controller. Its keys are quotas.
func Loop(registry *api.Registry) reconcile.Loop {
	return reconcile.Loop{
		Name: "resourcequota-controller",
		Inputs: []reconcile.Input{{
			Resource:  reconcile.AnyResource,
			Resources: func() []string { return []string{client.ResourceQuotas.Name} },
			Keys:      concerned,
		}},
		Outputs: []reconcile.Output{{Resource: client.ResourceQuotas.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Workers: 4,
		Spacing: countSpacing,
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			return plan(registry, s, key, now), nil
		},
	}
}

// concerned gives the quotas that a change may have moved away from what their status says.
func concerned(s store.Snapshot, ev store.Event) []reconcile.Key {
	e := ev.Entry
	if e.Resource == client.ResourceQuotas.Name && !ev.Deleted && (ev.Prev == nil || differs(ev)) {
		return []reconcile.Key{{Namespace: e.Namespace, Name: e.Name}}
	}
	if e.Namespace == "" || quota.Ignored(e.Resource) || s.Count(client.ResourceQuotas.Name, e.Namespace) == 0 {
		return nil
	}
	if ev.Prev != nil && !ev.Deleted && !moved(ev) {
		return nil
	}
	var keys []reconcile.Key
	for q := range s.List(client.ResourceQuotas.Name, e.Namespace, nil) {
		// Admission has charged what was made in the same transaction.
		if charged := ev.Prev == nil && q.Revision == e.Revision; !charged && counts(q.Object.(*corev1.ResourceQuota), e.Resource) {
			keys = append(keys, reconcile.Key{Namespace: q.Namespace, Name: q.Name})
		}
	}
	return keys
}

func counts(q *corev1.ResourceQuota, kind string) bool {
	for name := range q.Spec.Hard {
		if quota.Counts(kind, name) {
			return true
		}
	}
	return false
}

// differs tells whether the limits of a quota changed, or its status apart from a charge.
func differs(ev store.Event) bool {
	now, was := ev.Entry.Object.(*corev1.ResourceQuota), ev.Prev.Object.(*corev1.ResourceQuota)
	return !equality.Semantic.DeepEqual(now.Spec, was.Spec) || !equality.Semantic.DeepEqual(now.Status.Hard, was.Status.Hard) ||
		len(quota.Growth(was.Status.Used, now.Status.Used)) > 0
}

// moved tells whether an object that was there before counts differently now.
func moved(ev store.Event) bool {
	now, was := ev.Entry.Object.(api.Object), ev.Prev.Object.(api.Object)
	switch now := now.(type) {
	case *corev1.Pod:
		was := was.(*corev1.Pod)
		if quota.Terminating(now) != quota.Terminating(was) || (now.DeletionTimestamp == nil) != (was.DeletionTimestamp == nil) {
			return true
		}
	case *corev1.Service, *corev1.PersistentVolumeClaim:
	default:
		return false // their number is all that counts
	}
	present := now.GetCreationTimestamp().Time // before every end of a grace period
	return !quota.Equal(quota.Usage(ev.Entry.Resource, now, present), quota.Usage(ev.Entry.Resource, was, present))
}

func plan(registry *api.Registry, s store.Snapshot, key reconcile.Key, now time.Time) reconcile.Plan {
	q, ok := client.ResourceQuotas.Get(s, key.Namespace, key.Name)
	if !ok {
		return reconcile.Plan{}
	}
	used, free := count(registry, s, q, now)
	var p reconcile.Plan
	if !free.IsZero() {
		p.After = free.Sub(now) + time.Second
	}
	if equality.Semantic.DeepEqual(q.Status.Hard, q.Spec.Hard) && q.Status.Used != nil && quota.Equal(q.Status.Used, used) {
		return p
	}
	next := q.DeepCopy()
	next.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: used}
	p.Writes = []reconcile.Write{{Verb: reconcile.Update, Resource: client.ResourceQuotas.Name, Subresource: "status", Object: next}}
	return p
}

// count adds up what the namespace uses of a quota. free is when the first of the pods that are being deleted
// counts no more, zero for none.
func count(registry *api.Registry, s store.Snapshot, q *corev1.ResourceQuota, now time.Time) (used corev1.ResourceList, free time.Time) {
	used = quota.Mask(q.Status.Used, quota.Has(q.Spec.Hard)) // of names that nothing counts, what was said before stays
	byResource := map[string]corev1.ResourceList{}
	for name := range q.Spec.Hard {
		kind := quota.Resource(name)
		k := registry.ByName(kind)
		if k == nil || !k.Namespaced || k.Virtual {
			continue
		}
		if byResource[kind] == nil {
			byResource[kind] = corev1.ResourceList{}
		}
		byResource[kind][name] = resource.Quantity{Format: resource.DecimalSI}
	}
	for kind, sum := range byResource {
		wanted := quota.Has(q.Spec.Hard)
		for e := range s.List(kind, q.Namespace, nil) {
			obj := e.Object.(api.Object)
			if !quota.Scopes(&q.Spec, obj) {
				continue
			}
			for name, n := range quota.Mask(quota.Usage(kind, obj, now), wanted) {
				have := sum[name]
				have.Add(n)
				sum[name] = have
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				if at, ok := quota.Free(pod); ok && !now.After(at) && (free.IsZero() || at.Before(free)) {
					free = at
				}
			}
		}
		for name, n := range sum {
			used[name] = n
		}
	}
	return used, free
}
