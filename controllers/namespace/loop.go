package namespace

import (
	"context"
	"slices"
	"time"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Loop is the namespace controller. It asks reg for the kinds at each pass, so that
// those of custom resources are emptied too. With elsewhere nil there are no other servers.
func Loop(reg *api.Registry, elsewhere *Elsewhere) reconcile.Loop {
	c := &controller{registry: reg, elsewhere: elsewhere}
	return reconcile.Loop{
		Name:    "namespace-controller",
		Workers: 10,
		Inputs: []reconcile.Input{
			{Resource: client.Namespaces.Name, Keys: terminating},
			{Resource: reconcile.AnyResource, Resources: func() []string { return nil }, Keys: content},
			{Resource: apiServices, Keys: allTerminating},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Namespaces.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.Namespaces.Name, Subresource: "finalize", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: reconcile.AnyResource, Verbs: []reconcile.Verb{reconcile.Delete}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			ns, ok := client.Namespaces.Get(s, "", key.Name)
			found := c.take(key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return c.plan(s, ns, found, now), nil
		},
		Apply: func(ctx context.Context, key reconcile.Key, _ any) error {
			failing := c.failing() // before: what can be asked from now on was not emptied yet
			left, err := c.elsewhere.Empty(ctx, key.Name)
			c.put(key.Name, &finding{left, failing, err})
			return nil
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
			ns, ok := client.Namespaces.Get(s, "", key.Name)
			if !ok || ns.DeletionTimestamp == nil {
				return reconcile.Plan{}
			}
			w, changed := report(ns, look(s, reg.All(), ns.Name), []error{err}, c.failing(), now)
			if !changed {
				return reconcile.Plan{}
			}
			return reconcile.Plan{Writes: []reconcile.Write{w}}
		},
	}
}

// allTerminating gives the namespaces that are being deleted: an APIService that changed may be what one of them waits for.
func allTerminating(s store.Snapshot, _ store.Event) []reconcile.Key {
	var keys []reconcile.Key
	for ns := range client.Namespaces.List(s, "") {
		if ns.DeletionTimestamp != nil {
			keys = append(keys, reconcile.Key{Name: ns.Name})
		}
	}
	return keys
}

// terminating gives the namespace itself while it is being deleted.
func terminating(s store.Snapshot, ev store.Event) []reconcile.Key {
	if obj, ok := ev.Entry.Object.(api.Object); !ok || ev.Deleted || obj.GetDeletionTimestamp() == nil {
		return nil
	}
	return []reconcile.Key{{Name: ev.Entry.Name}}
}

// content gives the namespace of an object that came, went, or began to go, if that namespace is being deleted.
func content(s store.Snapshot, ev store.Event) []reconcile.Key {
	if ev.Entry.Namespace == "" || !ev.Deleted && ev.Prev != nil && !deletionChanged(ev) {
		return nil
	}
	ns, ok := client.Namespaces.Get(s, "", ev.Entry.Namespace)
	if !ok || ns.DeletionTimestamp == nil {
		return nil
	}
	return []reconcile.Key{{Name: ns.Name}}
}

// deletionChanged tells whether what stands between an object and its end differs.
func deletionChanged(ev store.Event) bool {
	now, ok := ev.Entry.Object.(api.Object)
	was, ok2 := ev.Prev.Object.(api.Object)
	return ok && ok2 && ((now.GetDeletionTimestamp() == nil) != (was.GetDeletionTimestamp() == nil) ||
		!slices.Equal(now.GetFinalizers(), was.GetFinalizers()))
}
