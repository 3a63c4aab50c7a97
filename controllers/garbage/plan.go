package garbage

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// burst is how many dependents one pass releases at most.
const burst = 500

// collector decides. Its methods are pure but for what relations remember.
type collector struct {
	registry  *api.Registry
	relations relations
}

// plan is one pass over an object: as an owner that is being deleted, or as a dependent.
func (c *collector) plan(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
	entry := s.Get(store.Key{Resource: key.Resource, Namespace: key.Namespace, Name: key.Name})
	if entry == nil {
		return reconcile.Plan{}, nil
	}
	obj, ok := entry.Object.(api.Object)
	if !ok {
		return reconcile.Plan{}, nil
	}
	switch {
	case orphaning(obj):
		return c.orphan(s, entry, obj), nil
	case foreground(obj):
		return c.await(s, entry, obj), nil
	case obj.GetDeletionTimestamp() != nil:
		return reconcile.Plan{}, nil
	}
	return c.dependent(s, entry, obj), nil
}

func hasFinalizer(obj api.Object, name string) bool {
	return slices.Contains(obj.GetFinalizers(), name)
}

// orphaning tells whether an object waits for its dependents to be released, foreground whether it
// waits for them to be deleted.
func orphaning(obj api.Object) bool {
	return obj.GetDeletionTimestamp() != nil && hasFinalizer(obj, metav1.FinalizerOrphanDependents)
}

func foreground(obj api.Object) bool {
	return obj.GetDeletionTimestamp() != nil && hasFinalizer(obj, metav1.FinalizerDeleteDependents)
}

func update(entry *store.Entry, obj api.Object) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: entry.Resource, Object: obj}
}

func withoutFinalizer(obj api.Object, name string) api.Object {
	out := obj.DeepCopyObject().(api.Object)
	out.SetFinalizers(slices.DeleteFunc(slices.Clone(out.GetFinalizers()), func(f string) bool { return f == name }))
	return out
}

// withoutOwners is a copy of obj that no longer names those owners.
func withoutOwners(obj api.Object, uids ...types.UID) api.Object {
	out := obj.DeepCopyObject().(api.Object)
	out.SetOwnerReferences(slices.DeleteFunc(slices.Clone(out.GetOwnerReferences()), func(r metav1.OwnerReference) bool {
		return slices.Contains(uids, r.UID)
	}))
	return out
}

// orphan releases the dependents of an object, and then the object.
func (c *collector) orphan(s store.Snapshot, entry *store.Entry, obj api.Object) reconcile.Plan {
	plan := reconcile.Plan{Parallel: true}
	for dep := range c.dependents(s, entry.Resource, obj) {
		if len(plan.Writes) == burst {
			return plan
		}
		plan.Writes = append(plan.Writes, update(dep, withoutOwners(dep.Object.(api.Object), obj.GetUID())))
	}
	if len(plan.Writes) == 0 {
		plan.Writes = []reconcile.Write{update(entry, withoutFinalizer(obj, metav1.FinalizerOrphanDependents))}
	}
	return plan
}

// await lets an object go that waits for its dependents, once none of them blocks it. Their own passes delete them.
func (c *collector) await(s store.Snapshot, entry *store.Entry, obj api.Object) reconcile.Plan {
	for _, ref := range c.dependents(s, entry.Resource, obj) {
		if ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion {
			return reconcile.Plan{}
		}
	}
	return reconcile.Plan{Writes: []reconcile.Write{update(entry, withoutFinalizer(obj, metav1.FinalizerDeleteDependents))}}
}

// owners is how an object stands to those it names.
type owners struct {
	solid             bool
	dangling, waiting []types.UID
	unknown           bool // at least one could not be judged
	events            []reconcile.Event
}

func (c *collector) classify(s store.Snapshot, entry *store.Entry, obj api.Object) owners {
	var o owners
	refs := obj.GetOwnerReferences()
	for i := range refs {
		ref := &refs[i]
		owner, key, known := c.owner(s, entry.Namespace, ref)
		switch {
		case !known:
			o.unknown = true
			if kind := c.registry.ByKind(groupKind(ref)); kind != nil && kind.Namespaced {
				o.events = append(o.events, c.invalid(entry, obj, ref))
			}
		case owner == nil:
			o.dangling = append(o.dangling, ref.UID)
			if elsewhere(s, key, ref) {
				o.events = append(o.events, c.invalid(entry, obj, ref))
			}
		case foreground(owner):
			o.waiting = append(o.waiting, ref.UID)
		default:
			o.solid = true
		}
	}
	return o
}

// dependent deletes an object that nobody owns any more, or takes out of it the owners that are gone.
func (c *collector) dependent(s store.Snapshot, entry *store.Entry, obj api.Object) reconcile.Plan {
	o := c.classify(s, entry, obj)
	plan := reconcile.Plan{Events: o.events}
	switch {
	case len(o.dangling)+len(o.waiting) == 0:
	case o.solid:
		plan.Writes = []reconcile.Write{update(entry, withoutOwners(obj, append(o.dangling, o.waiting...)...))}
	case o.unknown:
		// An owner of a kind that is not served may be there all the same.
	case len(o.waiting) > 0 && c.owns(s, entry, obj):
		if c.circular(s, entry, obj) {
			plan.Writes = append(plan.Writes, update(entry, unblocking(obj)))
			return plan // the new version is looked at again
		}
		plan.Writes = []reconcile.Write{remove(entry, obj, metav1.DeletePropagationForeground)}
	default:
		plan.Writes = []reconcile.Write{remove(entry, obj, policy(obj))}
	}
	return plan
}

// policy is how the object itself asks to be deleted.
func policy(obj api.Object) metav1.DeletionPropagation {
	switch {
	case hasFinalizer(obj, metav1.FinalizerOrphanDependents):
		return metav1.DeletePropagationOrphan
	case hasFinalizer(obj, metav1.FinalizerDeleteDependents):
		return metav1.DeletePropagationForeground
	}
	return metav1.DeletePropagationBackground
}

// remove deletes an object on condition that its owners are still those that were judged.
func remove(entry *store.Entry, obj api.Object, p metav1.DeletionPropagation) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Delete, Resource: entry.Resource, Namespace: entry.Namespace, Name: entry.Name,
		UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(), Propagation: p}
}

func (c *collector) owns(s store.Snapshot, entry *store.Entry, obj api.Object) bool {
	for range c.dependents(s, entry.Resource, obj) {
		return true
	}
	return false
}

// circular tells whether a dependent of the object waits for its own dependents, so that the two
// could wait for each other for ever. Objects that block no owner any more are out of the circle.
func (c *collector) circular(s store.Snapshot, entry *store.Entry, obj api.Object) bool {
	if !slices.ContainsFunc(obj.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion }) {
		return false
	}
	for dep := range c.dependents(s, entry.Resource, obj) {
		if foreground(dep.Object.(api.Object)) {
			return true
		}
	}
	return false
}

// unblocking is a copy of obj that no longer blocks the deletion of its owners.
func unblocking(obj api.Object) api.Object {
	out := obj.DeepCopyObject().(api.Object)
	refs := slices.Clone(out.GetOwnerReferences())
	for i := range refs {
		no := false
		refs[i].BlockOwnerDeletion = &no
	}
	out.SetOwnerReferences(refs)
	return out
}

// elsewhere tells whether the owner that a reference names is in another namespace than the object.
func elsewhere(s store.Snapshot, key store.Key, ref *metav1.OwnerReference) bool {
	if key.Namespace == "" {
		return false
	}
	for ns := range client.Namespaces.List(s, "") {
		entry := s.Get(store.Key{Resource: key.Resource, Namespace: ns.Name, Name: key.Name})
		if entry != nil && entry.Object.(api.Object).GetUID() == ref.UID {
			return true
		}
	}
	return false
}

// invalid is the event about an owner that cannot be one because of where it lives.
func (c *collector) invalid(entry *store.Entry, obj api.Object, ref *metav1.OwnerReference) reconcile.Event {
	apiVersion, kind := "", ""
	if k := c.registry.ByName(entry.Resource); k != nil {
		apiVersion, kind = k.Hub().Name, k.Kind
		if k.Group != "" {
			apiVersion = k.Group + "/" + apiVersion
		}
	}
	return reconcile.Event{
		Regarding: reconcile.Regarding(apiVersion, kind, obj), Type: "Warning", Reason: "OwnerRefInvalidNamespace",
		Message: fmt.Sprintf("ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q",
			ref.APIVersion, ref.Kind, entry.Namespace, ref.Name, ref.UID, entry.Namespace),
	}
}
