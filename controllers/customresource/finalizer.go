package customresource

import (
	"fmt"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const cleanup = apiextensionsv1.CustomResourceCleanupFinalizer

const (
	// batch is how many objects one pass deletes.
	batch = 500
	// patience is how long objects may take to go before the condition says that they are waited for.
	patience = time.Minute
)

// finalizer removes the objects of definitions that are deleted, and then lets the definitions go.
type finalizer struct{ Config }

// deleted are the keys of definitions that are being deleted. That the loop itself says that it failed is no reason to try again
// before it is time.
func deleted(_ store.Snapshot, ev store.Event) []reconcile.Key {
	crd := ev.Entry.Object.(*definition)
	if ev.Deleted || !terminating(crd) {
		return nil
	}
	if c := condition(crd, apiextensionsv1.Terminating); ev.Prev != nil && c != nil && c.Reason == deletionFailed {
		if before := ev.Prev.Object.(*definition); terminating(before) && before.Generation == crd.Generation && !isSaid(before, *c) {
			return nil
		}
	}
	return []reconcile.Key{{Name: ev.Entry.Name}}
}

// instances are the keys of definitions that wait for an object which is gone now. An object's resource
// is the name of its definition.
func instances(s store.Snapshot, ev store.Event) []reconcile.Key {
	if !ev.Deleted {
		return nil
	}
	if crd, ok := definitions.Get(s, "", ev.Entry.Resource); !ok || !terminating(crd) {
		return nil
	}
	return []reconcile.Key{{Name: ev.Entry.Resource}}
}

func terminating(crd *definition) bool {
	return crd.DeletionTimestamp != nil && slices.Contains(crd.Finalizers, cleanup)
}

func (f *finalizer) plan(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	old, ok := definitions.Get(s, "", key.Name)
	if !ok || !terminating(old) {
		return reconcile.Plan{}, nil
	}
	crd := old.DeepCopy()
	switch {
	case f.BuiltIn(crd.Name):
		return release(crd, now, "OverlappingBuiltInResource", "instances overlap with built-in resources in storage"), nil
	case s.Count(crd.Name, "") == 0 && !isTrue(crd, apiextensionsv1.Established):
		return release(crd, now, "NeverEstablished", "resource was never established"), nil
	case s.Count(crd.Name, "") == 0:
		return release(crd, now, "InstanceDeletionCompleted", "removed all instances"), nil
	}
	c := condition(crd, apiextensionsv1.Terminating)
	if c == nil || c.Reason != "InstanceDeletionInProgress" && c.Reason != "InstanceDeletionCheck" && c.Reason != deletionFailed {
		setCondition(crd, busy("InstanceDeletionInProgress", "CustomResource deletion is in progress"), now)
		return reconcile.Plan{Writes: []reconcile.Write{updateStatus(crd)}}, nil
	}
	plan := reconcile.Plan{Parallel: true, Writes: removals(s, crd)}
	if len(plan.Writes) > 0 {
		plan.After = time.Second // for what the deletes of this pass did not reach; their events come first
		return plan, nil
	}
	// All that is left waits for its own finalizers.
	if waited := now.Sub(crd.DeletionTimestamp.Time); waited < patience {
		plan.After = patience - waited
		return plan, nil
	}
	if setCondition(crd, busy("InstanceDeletionCheck", "could not confirm zero CustomResources remaining: timed out waiting for the condition"), now) {
		plan.Writes = []reconcile.Write{updateStatus(crd)}
	}
	return plan, nil
}

// deletionFailed is the reason of the condition while objects cannot be deleted.
const deletionFailed = "InstanceDeletionFailed"

// failed says why the objects could not be deleted. The engine tries again, later each time.
func (f *finalizer) failed(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
	old, ok := definitions.Get(s, "", key.Name)
	if !ok || !terminating(old) {
		return reconcile.Plan{}
	}
	crd := old.DeepCopy()
	if !setCondition(crd, busy(deletionFailed, fmt.Sprintf("could not issue all deletes: %v", err)), now) {
		return reconcile.Plan{}
	}
	return reconcile.Plan{Writes: []reconcile.Write{updateStatus(crd)}}
}

// isSaid tells that a definition has a condition with these words.
func isSaid(crd *definition, c apiextensionsv1.CustomResourceDefinitionCondition) bool {
	have := condition(crd, c.Type)
	return have != nil && have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message
}

func busy(reason, message string) apiextensionsv1.CustomResourceDefinitionCondition {
	return apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: reason, Message: message,
	}
}

// removals are deletes of objects that nobody has deleted yet.
func removals(s store.Snapshot, crd *definition) []reconcile.Write {
	var writes []reconcile.Write
	for e := range s.List(crd.Name, "", nil) {
		obj := e.Object.(api.Object)
		if obj.GetDeletionTimestamp() != nil {
			continue
		}
		writes = append(writes, reconcile.Write{
			Verb: reconcile.Delete, Resource: crd.Name, Namespace: e.Namespace, Name: e.Name, UID: obj.GetUID(),
		})
		if len(writes) == batch {
			break
		}
	}
	return writes
}

// release takes the finalizer off.
func release(crd *definition, now time.Time, reason, message string) reconcile.Plan {
	setCondition(crd, apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionFalse, Reason: reason, Message: message,
	}, now)
	crd.Finalizers = slices.DeleteFunc(crd.Finalizers, func(s string) bool { return s == cleanup })
	return reconcile.Plan{Writes: []reconcile.Write{updateStatus(crd)}}
}
