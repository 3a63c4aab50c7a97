package write

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/store"
)

// Deleted is the outcome of a delete: either the object as it now is or last was, or
// only the word that it is gone.
type Deleted struct {
	// Entry is what the client is shown, nil for Status.
	Entry *store.Entry
	// Status is the answer for a kind that does not show what it deleted.
	Status *metav1.Status
	// Gone tells a removed object from one that is only marked.
	Gone bool
}

// shownWhenGone are the kinds whose delete answers with the object.
var shownWhenGone = map[string]bool{
	"pods": true, "persistentvolumes": true, "persistentvolumeclaims": true, "podtemplates": true,
	"resourcequotas": true, "serviceaccounts": true, "services": true,
}

// orphansByDefault are the kinds whose dependents stay if the client says nothing, as in the time before garbage
// collection.
var orphansByDefault = map[string]bool{"jobs.batch": true, "replicationcontrollers": true}

// noDependents are the kinds that garbage collection leaves alone.
var noDependents = map[string]bool{"events": true, "events.events.k8s.io": true}

// Delete removes an object, or marks it where a grace period or finalizers hold it. opts may be changed.
func (c *Chain) Delete(ctx context.Context, t Target, opts *metav1.DeleteOptions) (Deleted, error) {
	if errs := validation.ValidateDeleteOptions(opts); len(errs) > 0 {
		return Deleted{}, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", errs)
	}
	if g := opts.GracePeriodSeconds; g != nil && *g < 0 {
		one := int64(1)
		opts.GracePeriodSeconds = &one
	}
	for {
		out, err := c.delete(ctx, &t, opts)
		var again *retryError
		if !errors.As(err, &again) {
			return out, err
		}
		if ctx.Err() != nil {
			return Deleted{}, ctx.Err()
		}
	}
}

// delete is one attempt on one version.
func (c *Chain) delete(ctx context.Context, t *Target, opts *metav1.DeleteOptions) (Deleted, error) {
	snap := c.Store.Snapshot()
	// The object stays in the form in which it is stored: all that a delete changes is metadata, and a conversion that is broken
	// must not keep what it cannot convert. Who is to see the object in another version (a webhook) has it converted.
	current := snap.Get(Key(t.Kind, t.Namespace, t.Name))
	if current == nil {
		return Deleted{}, apierrors.NewNotFound(t.Kind.GroupResource(), t.Name)
	}
	old := current.Object.(api.Object)
	if err := preconditions(t.Kind, old, opts.Preconditions); err != nil {
		return Deleted{}, err
	}
	req := t.request(admission.Delete, nil, old, snap, c.Now())
	req.Options = opts
	if err := c.mutate(ctx, t, req); err != nil {
		return Deleted{}, err
	}
	if err := c.validate(ctx, t, req); err != nil {
		return Deleted{}, err
	}
	obj := old.DeepCopyObject().(api.Object)
	verdict := decideDelete(t.Kind, obj, opts, req.Now)
	if verdict == pending {
		return c.shown(t, current, false), nil
	}
	if t.DryRun {
		return c.shown(t, &store.Entry{Key: current.Key, Object: obj}, verdict == remove), nil
	}
	return c.carryOut(ctx, t, req, current, obj, verdict)
}

func (c *Chain) carryOut(ctx context.Context, t *Target, req *admission.Request, current *store.Entry, obj api.Object, v verdict) (Deleted, error) {
	if v == mark && unchangedDeletion(obj, current.Object.(api.Object)) {
		return Deleted{Entry: current}, nil
	}
	op := store.Op{Key: current.Key, Object: obj, Expect: current.Revision, Delete: v == remove}
	entry, err := c.commit(ctx, t.Kind, op, req)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return Deleted{}, &retryError{conflict.Key}
	}
	if err != nil {
		return Deleted{}, err
	}
	if v == remove {
		return c.shown(t, &store.Entry{Key: current.Key, Object: obj}, true), nil
	}
	return Deleted{Entry: entry}, nil
}

// shown picks between the object and a Status.
func (c *Chain) shown(t *Target, e *store.Entry, gone bool) Deleted {
	if shownWhenGone[t.Kind.Name()] || !gone && t.Kind.Name() == "namespaces" {
		return Deleted{Entry: e, Gone: gone}
	}
	return Deleted{Gone: gone, Status: &metav1.Status{
		Status: metav1.StatusSuccess,
		Code:   http.StatusOK,
		Details: &metav1.StatusDetails{
			Name: e.Name, Group: t.Kind.Group, Kind: t.Kind.Resource, UID: e.Object.(api.Object).GetUID(),
		},
	}}
}

func preconditions(k *api.Kind, obj api.Object, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	gr := schema.GroupResource{Group: k.Group, Resource: k.Kind}
	if p.UID != nil && *p.UID != obj.GetUID() {
		return apierrors.NewConflict(gr, obj.GetName(), fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, obj.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != obj.GetResourceVersion() {
		return apierrors.NewConflict(gr, obj.GetName(), fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, obj.GetResourceVersion()))
	}
	return nil
}

// verdict is what a delete comes to.
type verdict int

const (
	// remove takes the object out now.
	remove verdict = iota
	// mark stores the object with what decideDelete set in it.
	mark
	// pending leaves it: it is being deleted already, no later than asked for.
	pending
)

// decideDelete is the pure part of a delete. It sets in obj what the delete changes.
func decideDelete(k *api.Kind, obj api.Object, opts *metav1.DeleteOptions, now time.Time) verdict {
	if k.BeginDelete != nil && obj.GetDeletionTimestamp() == nil {
		k.BeginDelete(obj, now)
	}
	graceful := false
	if k.Grace != nil {
		var done bool
		if graceful, done = beginGrace(k, obj, opts, now); done {
			return pending
		}
	}
	setGarbageFinalizers(k, obj, opts)
	if len(obj.GetFinalizers()) > 0 || heldNamespace(obj) {
		if !graceful {
			markDeleting(obj, now)
		}
		return mark
	}
	if graceful && *obj.GetDeletionGracePeriodSeconds() > 0 {
		return mark
	}
	return remove
}

// beginGrace starts or shortens a grace period. pending says that one is running that ends no later than asked for.
func beginGrace(k *api.Kind, obj api.Object, opts *metav1.DeleteOptions, now time.Time) (graceful, pending bool) {
	if at := obj.GetDeletionTimestamp(); at != nil {
		running := obj.GetDeletionGracePeriodSeconds()
		if running == nil || *running == 0 {
			return false, false
		}
		if opts.GracePeriodSeconds == nil || *opts.GracePeriodSeconds >= *running {
			return false, true
		}
		period := *opts.GracePeriodSeconds
		end := seconds(at.Add(time.Duration(period-*running) * time.Second))
		if present := seconds(now); end.Before(&present) {
			end = present
			if period != 0 {
				period = 1
			}
		}
		obj.SetDeletionTimestamp(&end)
		obj.SetDeletionGracePeriodSeconds(&period)
		return true, false
	}
	period := k.Grace(obj, opts.GracePeriodSeconds)
	end := seconds(now.Add(time.Duration(period) * time.Second))
	obj.SetDeletionTimestamp(&end)
	obj.SetDeletionGracePeriodSeconds(&period)
	if g := obj.GetGeneration(); g > 0 {
		obj.SetGeneration(g + 1)
	}
	return true, false
}

// markDeleting sets the deletion of an object that only finalizers hold.
func markDeleting(obj api.Object, now time.Time) {
	present := seconds(now)
	at := obj.GetDeletionTimestamp()
	if at == nil && obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	if at == nil || at.After(present.Time) {
		obj.SetDeletionTimestamp(&present)
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
		return
	}
	var zero int64
	obj.SetDeletionGracePeriodSeconds(&zero)
}

// heldNamespace tells that a namespace has content to be removed first.
func heldNamespace(obj api.Object) bool {
	ns, ok := obj.(*corev1.Namespace)
	return ok && len(ns.Spec.Finalizers) > 0
}

// setGarbageFinalizers asks the garbage collector, through finalizers, for what the propagation policy says.
func setGarbageFinalizers(k *api.Kind, obj api.Object, opts *metav1.DeleteOptions) {
	if noDependents[k.Name()] {
		return
	}
	have := obj.GetFinalizers()
	orphan, foreground := propagation(k, have, opts)
	kept := make([]string, 0, len(have)+1)
	for _, f := range have {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			kept = append(kept, f)
		}
	}
	if orphan {
		kept = append(kept, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		kept = append(kept, metav1.FinalizerDeleteDependents)
	}
	if !slices.Equal(kept, have) {
		obj.SetFinalizers(kept)
	}
}

// propagation reads the policy from the options, else from the finalizers that stand, else from the kind.
func propagation(k *api.Kind, finalizers []string, opts *metav1.DeleteOptions) (orphan, foreground bool) {
	if o := opts.OrphanDependents; o != nil { //nolint:staticcheck // clients still send it
		return *o, false
	}
	if p := opts.PropagationPolicy; p != nil {
		return *p == metav1.DeletePropagationOrphan, *p == metav1.DeletePropagationForeground
	}
	for _, f := range finalizers {
		switch f {
		case metav1.FinalizerOrphanDependents:
			return true, false
		case metav1.FinalizerDeleteDependents:
			return false, true
		}
	}
	return orphansByDefault[k.Name()], false
}

// unchangedDeletion tells that marking an object again changes nothing.
func unchangedDeletion(obj, old api.Object) bool {
	if old.GetDeletionTimestamp() == nil || !obj.GetDeletionTimestamp().Equal(old.GetDeletionTimestamp()) {
		return false
	}
	a, b := obj.GetDeletionGracePeriodSeconds(), old.GetDeletionGracePeriodSeconds()
	return (a == nil) == (b == nil) && (a == nil || *a == *b) && slices.Equal(obj.GetFinalizers(), old.GetFinalizers())
}

// finished tells that an update leaves nothing that holds a deleted object.
func finished(k *api.Kind, obj, old api.Object) bool {
	if len(obj.GetFinalizers()) > 0 || old.GetDeletionTimestamp() == nil || heldNamespace(obj) {
		return false
	}
	grace := old.GetDeletionGracePeriodSeconds()
	return grace == nil || *grace == 0
}
