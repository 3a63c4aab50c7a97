// Package claim settles which objects a controller owns: by controller reference,
// adopting orphans that its selector matches and releasing what it no longer does.
// It plans, and writes nothing itself.
package claim

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Reference is the controller reference that names owner. It blocks the foreground deletion of the owner.
func Reference(apiVersion, kind string, owner metav1.Object) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{
		APIVersion: apiVersion, Kind: kind, Name: owner.GetName(), UID: owner.GetUID(),
		Controller: &yes, BlockOwnerDeletion: &yes,
	}
}

// Claimed is what Objects found.
type Claimed[T api.Object] struct {
	// Owned are the objects of the controller, those that it is about to adopt included (as they will be).
	Owned []T
	// Writes adopt and release.
	Writes []reconcile.Write
}

// Objects finds the objects of the owner's namespace that the owner controls. Objects without a
// controller that sel matches are adopted if adopt (nil: always) says so too, and controlled objects
// that sel does not match are released, both unless one of the two is being deleted.
//
// The kind has the indexes "owner" and api.OrphanIndex: what others of the namespace own is not looked at.
func Objects[T api.Object](s store.Snapshot, r client.Resource[T], owner metav1.Object, ref metav1.OwnerReference, sel labels.Selector, adopt func(T) bool) Claimed[T] {
	var c Claimed[T]
	leaving := owner.GetDeletionTimestamp() != nil
	for obj := range r.Index(s, "owner", string(owner.GetUID())) {
		if !metav1.IsControlledBy(obj, owner) {
			continue
		}
		if sel.Matches(labels.Set(obj.GetLabels())) {
			c.Owned = append(c.Owned, obj)
		} else if !leaving && obj.GetDeletionTimestamp() == nil {
			c.Writes = append(c.Writes, write(r, Released(obj, owner)))
		}
	}
	if leaving {
		return c
	}
	for obj := range r.Index(s, api.OrphanIndex, owner.GetNamespace()) {
		if obj.GetDeletionTimestamp() != nil ||
			!sel.Matches(labels.Set(obj.GetLabels())) || adopt != nil && !adopt(obj) {
			continue
		}
		adopted := Adopted(obj, ref)
		c.Owned = append(c.Owned, adopted)
		c.Writes = append(c.Writes, write(r, adopted.DeepCopyObject().(T)))
	}
	return c
}

func write[T api.Object](r client.Resource[T], obj T) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: r.Name, Object: obj}
}

// Adopted is a copy of obj with the controller reference ref.
func Adopted[T api.Object](obj T, ref metav1.OwnerReference) T {
	obj = obj.DeepCopyObject().(T)
	refs := slices.DeleteFunc(obj.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == ref.UID })
	obj.SetOwnerReferences(append(refs, ref))
	return obj
}

// Released is a copy of obj without its reference to owner.
func Released[T api.Object](obj T, owner metav1.Object) T {
	obj = obj.DeepCopyObject().(T)
	obj.SetOwnerReferences(slices.DeleteFunc(obj.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == owner.GetUID() }))
	return obj
}

// Keys returns an Input.Keys for the objects that controllers of one kind own: it
// gives the controller of the object now and before, and for an object without one the
// controllers of the namespace that could adopt it. changed, if not nil, tells
// whether a change of an owned object matters.
func Keys[T, O api.Object](controllers client.Resource[O], kind string, selects func(O) labels.Selector, changed func(a, b T) bool) func(store.Snapshot, store.Event) []reconcile.Key {
	group := groupOf(controllers.Name)
	owned := reconcile.Controllers(group, kind)
	return func(s store.Snapshot, ev store.Event) []reconcile.Key {
		obj, ok := ev.Entry.Object.(T)
		if !ok {
			return nil
		}
		if changed != nil && ev.Prev != nil && !ev.Deleted {
			if prev, ok := ev.Prev.Object.(T); ok && !changed(prev, obj) {
				return nil
			}
		}
		keys := owned(s, ev)
		if metav1.GetControllerOfNoCopy(obj) != nil || ev.Deleted || obj.GetDeletionTimestamp() != nil {
			return keys
		}
		for c := range controllers.List(s, obj.GetNamespace()) {
			if selects(c).Matches(labels.Set(obj.GetLabels())) {
				keys = append(keys, reconcile.Key{Namespace: c.GetNamespace(), Name: c.GetName()})
			}
		}
		return keys
	}
}

func groupOf(resource string) string {
	for i := range resource {
		if resource[i] == '.' {
			return resource[i+1:]
		}
	}
	return ""
}

// Selector is the selector in its working form. One that cannot be read, and an empty one, select nothing.
func Selector(sel *metav1.LabelSelector) labels.Selector {
	if sel == nil {
		return labels.Nothing()
	}
	if len(sel.MatchExpressions) == 0 && len(sel.MatchLabels) > 0 {
		// The usual case, asked for each selector and orphan of a namespace: the API has checked the labels.
		return labels.ValidatedSetSelector(sel.MatchLabels)
	}
	parsed, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil || parsed.Empty() {
		return labels.Nothing()
	}
	return parsed
}
