package write

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/managed"
)

// Written is what managed.Tracker has to know of a write through this target.
func (t *Target) Written(ctx context.Context, now time.Time) *managed.Write {
	return &managed.Write{Ctx: ctx, Kind: t.Kind, Version: t.Version, Subresource: t.Subresource, Manager: t.Manager, Now: now}
}

// track brings metadata.managedFields up to date, before admission, which owns nothing of what it changes. old is nil for a
// create.
func (c *Chain) track(ctx context.Context, t *Target, obj, old api.Object, now time.Time) {
	if c.Fields != nil && !t.kept {
		c.Fields.Update(t.Written(ctx, now), obj, old)
	}
}

// retrack takes back what admission made of managedFields if it is not sound.
func (c *Chain) retrack(t *Target, obj api.Object, before []metav1.ManagedFieldsEntry) {
	after := obj.GetManagedFields()
	if c.Fields == nil || len(after) == 0 || len(after) == len(before) && &after[0] == &before[0] {
		return
	}
	if err := c.Fields.Validate(after); err != nil {
		obj.SetManagedFields(slices.Clone(before))
		t.warn(fmt.Sprintf(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: %v", err))
	}
}

// keepFields holds managedFields over a strategy that may take all of metadata from the old object.
func keepFields(obj api.Object, prepare func()) {
	if _, loose := obj.(*unstructured.Unstructured); loose {
		prepare() // which keeps them itself: reading and setting them costs a conversion
		return
	}
	fields := obj.GetManagedFields()
	prepare()
	obj.SetManagedFields(fields)
}
