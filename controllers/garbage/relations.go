package garbage

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// relations remembers, for each kind of owner, the resources that have had objects
// with such an owner. It only grows, and is complete for everything that the dispatcher has shown: the
// start shows every object. Safe for concurrent use.
type relations struct {
	mu    sync.Mutex // of writers
	table atomic.Pointer[map[schema.GroupKind][]string]
}

// learn notes the owners of an object.
func (r *relations) learn(resource string, refs []metav1.OwnerReference) {
	for i := range refs {
		gk := groupKind(&refs[i])
		if !slices.Contains(r.of(gk), resource) {
			r.add(gk, resource)
		}
	}
}

func (r *relations) of(gk schema.GroupKind) []string {
	if t := r.table.Load(); t != nil {
		return (*t)[gk]
	}
	return nil
}

func (r *relations) add(gk schema.GroupKind, resource string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	table := map[schema.GroupKind][]string{}
	if t := r.table.Load(); t != nil {
		table = maps.Clone(*t)
	}
	if !slices.Contains(table[gk], resource) {
		table[gk] = append(slices.Clip(table[gk]), resource)
		slices.Sort(table[gk])
	}
	r.table.Store(&table)
}

func groupKind(ref *metav1.OwnerReference) schema.GroupKind {
	return schema.GroupKind{Group: reconcile.Group(ref.APIVersion), Kind: ref.Kind}
}

// dependents walks the objects that name obj as an owner.
func (c *collector) dependents(s store.Snapshot, resource string, obj api.Object) iter.Seq2[*store.Entry, *metav1.OwnerReference] {
	return func(yield func(*store.Entry, *metav1.OwnerReference) bool) {
		kind := c.registry.ByName(resource)
		if kind == nil {
			return
		}
		for _, name := range c.relations.of(schema.GroupKind{Group: kind.Group, Kind: kind.Kind}) {
			for entry := range s.Index(name, "owner", string(obj.GetUID())) {
				if ref := reference(entry.Object.(api.Object), obj); ref != nil && !yield(entry, ref) {
					return
				}
			}
		}
	}
}

// reference is the reference of obj to owner, nil if it has none.
func reference(obj, owner api.Object) *metav1.OwnerReference {
	refs := obj.GetOwnerReferences()
	for i := range refs {
		if refs[i].UID == owner.GetUID() {
			return &refs[i]
		}
	}
	return nil
}

// owner finds the object that a reference names: nil if it is absent or another by now. known is
// false if nothing can be said, because its kind is unknown or cannot own the object.
func (c *collector) owner(s store.Snapshot, namespace string, ref *metav1.OwnerReference) (owner api.Object, key store.Key, known bool) {
	kind := c.registry.ByKind(groupKind(ref))
	if kind == nil || kind.Virtual || kind.Namespaced && namespace == "" {
		return nil, store.Key{}, false
	}
	key = store.Key{Resource: kind.Name(), Name: ref.Name}
	if kind.StoredAs != "" {
		key.Resource = kind.StoredAs
	}
	if kind.Namespaced {
		key.Namespace = namespace
	}
	entry := s.Get(key)
	if entry == nil {
		return nil, key, true
	}
	if obj := entry.Object.(api.Object); obj.GetUID() == ref.UID {
		return obj, key, true
	}
	return nil, key, true
}
