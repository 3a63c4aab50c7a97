package garbage

import (
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const crds = "customresourcedefinitions.apiextensions.k8s.io"

// Loop is the garbage collector over all kinds of reg, now and later.
func Loop(reg *api.Registry) reconcile.Loop {
	c := &collector{registry: reg}
	return reconcile.Loop{
		Name:           "garbage-collector-controller",
		ServiceAccount: "generic-garbage-collector",
		Workers:        20,
		Inputs: []reconcile.Input{
			{Resource: reconcile.AnyResource, Resources: c.stored, Keys: c.keys},
			{Resource: crds, Keys: c.declared},
		},
		Outputs: []reconcile.Output{{Resource: reconcile.AnyResource, Verbs: []reconcile.Verb{reconcile.Update, reconcile.Delete}}},
		Plan:    c.plan,
	}
}

// stored names the resources whose objects the store may hold.
func (c *collector) stored() []string {
	var names []string
	for _, k := range c.registry.All() {
		if !k.Virtual && k.StoredAs == "" {
			names = append(names, k.Name())
		}
	}
	return names
}

// declared gives the objects of a custom resource that was declared, which may have
// been in the store for long, and the objects that such ones own.
func (c *collector) declared(s store.Snapshot, ev store.Event) []reconcile.Key {
	crd, ok := ev.Entry.Object.(*apiextensionsv1.CustomResourceDefinition)
	if !ok || ev.Deleted {
		return nil
	}
	var keys []reconcile.Key
	for entry := range s.List(ev.Entry.Name, "", nil) {
		keys = append(keys, c.keys(s, store.Event{Entry: entry})...)
	}
	gk := schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}
	for _, resource := range c.relations.of(gk) {
		for entry := range s.List(resource, "", nil) {
			refs := entry.Object.(api.Object).GetOwnerReferences()
			if slices.ContainsFunc(refs, func(r metav1.OwnerReference) bool { return groupKind(&r) == gk }) {
				keys = append(keys, keyOf(entry))
			}
		}
	}
	return keys
}

// keys gives the objects that a change concerns: the object as a dependent or as an owner that waits,
// its dependents if it is gone or wants them gone, and its owners if they wait for it.
func (c *collector) keys(s store.Snapshot, ev store.Event) []reconcile.Key {
	obj, ok := ev.Entry.Object.(api.Object)
	if !ok {
		return nil
	}
	var was api.Object
	if ev.Prev != nil {
		was, _ = ev.Prev.Object.(api.Object)
	}
	refs := obj.GetOwnerReferences()
	refsChanged := was == nil && len(refs) > 0 || was != nil && !equality.Semantic.DeepEqual(was.GetOwnerReferences(), refs)
	if refsChanged {
		c.relations.learn(ev.Entry.Resource, refs)
	}
	var keys []reconcile.Key
	if ev.Deleted {
		return append(c.dependentKeys(s, ev, obj), c.waitingOwners(s, ev.Entry.Namespace, obj)...)
	}
	going := was == nil || was.GetDeletionTimestamp() == nil || !slices.Equal(was.GetFinalizers(), obj.GetFinalizers())
	if refsChanged || going && (orphaning(obj) || foreground(obj)) {
		keys = append(keys, keyOf(ev.Entry))
	}
	if foreground(obj) && (was == nil || !foreground(was)) {
		keys = append(keys, c.dependentKeys(s, ev, obj)...)
	}
	if refsChanged && was != nil {
		keys = append(keys, c.waitingOwners(s, ev.Entry.Namespace, was)...)
	}
	return keys
}

func keyOf(e *store.Entry) reconcile.Key {
	return reconcile.Key{Resource: e.Resource, Namespace: e.Namespace, Name: e.Name}
}

func (c *collector) dependentKeys(s store.Snapshot, ev store.Event, obj api.Object) []reconcile.Key {
	var keys []reconcile.Key
	for dep := range c.dependents(s, ev.Entry.Resource, obj) {
		keys = append(keys, keyOf(dep))
	}
	return keys
}

// waitingOwners gives the owners of obj that are being deleted and wait for their dependents.
func (c *collector) waitingOwners(s store.Snapshot, namespace string, obj api.Object) []reconcile.Key {
	var keys []reconcile.Key
	refs := obj.GetOwnerReferences()
	for i := range refs {
		if owner, key, _ := c.owner(s, namespace, &refs[i]); owner != nil && (foreground(owner) || orphaning(owner)) {
			keys = append(keys, reconcile.Key{Resource: key.Resource, Namespace: key.Namespace, Name: key.Name})
		}
	}
	return keys
}
