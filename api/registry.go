package api

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Registry holds the Kinds that are served. Readers see an immutable table
// without a lock; CRDs come and go by replacing it.
type Registry struct {
	mu      sync.Mutex // guards writers of table, and removed
	removed []func()
	table   atomic.Pointer[table]
}

type table struct {
	byName     map[string]*Kind
	byKind     map[schema.GroupKind]*Kind
	byResource map[schema.GroupVersionResource]*Kind
	all        []*Kind
	generation int64
}

// NewRegistry returns a registry with the given Kinds. Two with the same
// resource or the same kind are a programming error and panic.
func NewRegistry(kinds ...*Kind) *Registry {
	r := &Registry{}
	r.table.Store(newTable(nil, 0))
	if err := r.Add(kinds...); err != nil {
		panic(err)
	}
	return r
}

func newTable(kinds []*Kind, generation int64) *table {
	t := &table{
		byName:     make(map[string]*Kind, len(kinds)),
		byKind:     make(map[schema.GroupKind]*Kind, len(kinds)),
		byResource: make(map[schema.GroupVersionResource]*Kind, len(kinds)),
		all:        kinds,
		generation: generation,
	}
	for _, k := range kinds {
		t.byName[k.Name()] = k
		t.byKind[schema.GroupKind{Group: k.Group, Kind: k.Kind}] = k
		for _, v := range k.Versions {
			t.byResource[schema.GroupVersionResource{Group: k.Group, Version: v.Name, Resource: k.Resource}] = k.In(v.Name)
		}
	}
	return t
}

// Add registers Kinds. All are added or, on a clash of names, none.
func (r *Registry) Add(kinds ...*Kind) error {
	return r.Change(nil, kinds...)
}

// Change takes Kinds out, by their canonical resource names, and adds others, in one step: nobody sees the table
// between. On a clash of names nothing changes. Names that are not there are passed over.
func (r *Registry) Change(remove []string, add ...*Kind) error {
	err := r.change(remove, add)
	if err != nil || len(remove) == 0 {
		return err
	}
	r.mu.Lock()
	told := r.removed
	r.mu.Unlock()
	for _, f := range told {
		f()
	}
	return nil
}

// OnRemove has f called after each change that may have taken Kinds out, or put others in their place, by whoever made that change: for
// those who keep something for a Kind (Serves). f is quick, and is called without a lock of the registry, perhaps by several at once.
func (r *Registry) OnRemove(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = append(slices.Clip(r.removed), f)
}

// Serves tells that this very Kind, as a whole or as one of its versions sees it (Kind.In), is in the registry.
func (r *Registry) Serves(k *Kind) bool {
	have := r.ByName(k.Name())
	if have == nil || have == k {
		return have == k
	}
	for _, p := range have.PerVersion {
		if p == k {
			return true
		}
	}
	return false
}

func (r *Registry) change(remove []string, add []*Kind) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.table.Load()
	names := make(map[string]bool, len(old.all)+len(add))
	all := make([]*Kind, 0, len(old.all)+len(add))
	for _, k := range old.all {
		if name := k.Name(); !slices.Contains(remove, name) {
			names[name] = true
			all = append(all, k)
		}
	}
	for _, k := range add {
		if names[k.Name()] {
			return fmt.Errorf("resource %q is registered already", k.Name())
		}
		if k.Hub() == nil {
			return fmt.Errorf("kind %s.%s has no hub version", k.Kind, k.Group)
		}
		names[k.Name()] = true
		all = append(all, k)
	}
	sort.Slice(all, func(i, j int) bool {
		if all[i].Group != all[j].Group {
			return all[i].Group < all[j].Group
		}
		return all[i].Resource < all[j].Resource
	})
	r.table.Store(newTable(all, old.generation+1))
	return nil
}

// Remove takes a Kind out, by its canonical resource name.
func (r *Registry) Remove(name string) {
	if r.ByName(name) != nil {
		_ = r.Change([]string{name}) // nothing is added: no clash
	}
}

// ByName finds a Kind by its canonical resource name ("deployments.apps").
func (r *Registry) ByName(name string) *Kind { return r.table.Load().byName[name] }

// ByKind finds a Kind by group and kind.
func (r *Registry) ByKind(gk schema.GroupKind) *Kind { return r.table.Load().byKind[gk] }

// ByResource finds a Kind by group, version and plural: the one whose rules hold for that version (Kind.In).
func (r *Registry) ByResource(gvr schema.GroupVersionResource) *Kind {
	return r.table.Load().byResource[gvr]
}

// All returns every Kind, ordered by group and resource. The slice is shared.
func (r *Registry) All() []*Kind { return r.table.Load().all }

// Generation grows with each change, so that what is derived from the
// registry (discovery, OpenAPI) can tell when to be made again.
func (r *Registry) Generation() int64 { return r.table.Load().generation }
