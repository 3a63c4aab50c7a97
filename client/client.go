// Package client is how anything in the program reads and writes objects: the
// same interface in one process and over HTTPS.
//
// Reads come from a store snapshot and share its objects, which nobody may
// change. Writes pass the whole chain of the API server (defaulting, admission,
// validation, store). Errors of writes are *apierrors.StatusError in upstream's words.
package client

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// Reader is the present and the history of the cluster. A store.Store is one.
type Reader interface {
	Snapshot() store.Snapshot
	Cursor(from store.Revision, resources ...string) (store.Cursor, error)
}

// Ref names an object for a write. Resource is the canonical resource name.
type Ref struct {
	Resource, Namespace, Name string
}

// Writer changes objects. An object that is passed in belongs to the Writer
// from then on; one that is returned is shared and must not be changed.
type Writer interface {
	// Create adds an object. Its name may come from generateName.
	Create(ctx context.Context, resource string, obj api.Object, opts WriteOptions) (api.Object, error)
	// Update replaces an object, or the part of it that a subresource is about. The
	// resourceVersion in obj is the condition: the update fails with a conflict unless
	// the object stands there.
	Update(ctx context.Context, resource string, obj api.Object, opts WriteOptions) (api.Object, error)
	// Delete removes an object or, where it has finalizers or a grace period, marks it.
	Delete(ctx context.Context, ref Ref, opts DeleteOptions) error
	// Bind assigns a pod to a node, as the binding subresource does: it fails with a
	// conflict if the pod has a node, is being deleted, or uid is not its own.
	Bind(ctx context.Context, namespace, pod string, uid types.UID, node string) error
}

// WriteOptions qualify a create or update.
type WriteOptions struct {
	Subresource  string // "status", "" for the main resource
	FieldManager string
}

// DeleteOptions qualify a delete.
type DeleteOptions struct {
	UID             types.UID // precondition, "" for none
	ResourceVersion string    // precondition, "" for none
	// Propagation is the kind's default if empty.
	Propagation metav1.DeletionPropagation
	// GraceSeconds is the kind's default if nil.
	GraceSeconds *int64
}

// Client is everything that a loop needs.
type Client interface {
	Reader
	Writer
}

// Mutate reads the present version, lets change edit a deep copy, and writes
// it back on condition that nothing else changed it, again and again until it
// succeeds or ctx ends. change returns false if there is nothing to do. An absent
// object gives the NotFound error of the Writer's Update.
func Mutate[T api.Object](ctx context.Context, c Client, r Resource[T], namespace, name, subresource string, change func(T) bool) (T, error) {
	for {
		current, ok := r.Get(c.Snapshot(), namespace, name)
		if !ok {
			var zero T
			return zero, r.notFound(name)
		}
		obj := current.DeepCopyObject().(T)
		if !change(obj) {
			return current, nil
		}
		out, err := c.Update(ctx, r.Name, obj, WriteOptions{Subresource: subresource})
		if err == nil {
			return out.(T), nil
		}
		if !isConflict(err) || ctx.Err() != nil {
			var zero T
			return zero, err
		}
	}
}
