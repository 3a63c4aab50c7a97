package custom

import (
	"context"
	"errors"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api/apiextensions"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Plugin refuses what is written under a definition that is gone, also if another of its name took its place since the request
// was taken up, and new objects of one that is being deleted or is not established, up to the moment of the commit: what
// is created before its definition says that it is served would not be looked for when the definition goes.
//
// Discovery shows a kind from a moment before its definition says that it is established. A create that comes in that moment waits for
// the word, for at most patience.
func Plugin(reader client.Reader) admission.Plugin {
	return admission.Plugin{Name: "CustomResourceDefinitionTerminating", Mutate: func(ctx context.Context, r *admission.Request) error {
		if r.Operation != admission.Create && r.Operation != admission.Update || r.Kind.Definition == "" && r.Kind.Hub().Settle == nil {
			return nil
		}
		key := store.Key{Resource: Definitions.Name, Name: r.Kind.Name()}
		e := r.Snapshot.Get(key)
		if e != nil && r.Operation == admission.Create && aboutTo(e) {
			e = settled(ctx, reader, key)
		}
		if e == nil {
			return apierrors.NewNotFound(r.Resource(), r.Name)
		}
		crd := e.Object.(*apiextensionsv1.CustomResourceDefinition)
		switch {
		case crd.UID != r.Kind.Definition:
			return apierrors.NewNotFound(r.Resource(), r.Name)
		case r.Operation == admission.Update:
			return nil // while the object is there, its definition is, and the commit is on condition of the object
		case !apiextensions.Established(crd):
			return apierrors.NewNotFound(r.Resource(), r.Name)
		case crd.DeletionTimestamp != nil:
			return apierrors.NewForbidden(r.Resource(), r.Name, errors.New("create not allowed while custom resource definition is terminating"))
		}
		r.Require(key, e.Revision)
		return nil
	}}
}

// patience is how long a create waits for its definition to be established.
const patience = 2 * time.Second

// aboutTo tells that a definition is not established yet, and stays.
func aboutTo(e *store.Entry) bool {
	crd := e.Object.(*apiextensionsv1.CustomResourceDefinition)
	return crd.DeletionTimestamp == nil && !apiextensions.Established(crd)
}

// settled is a definition once it is no longer about to be established, or as it is when patience or ctx ends; nil if it is gone.
func settled(ctx context.Context, reader client.Reader, key store.Key) *store.Entry {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		snap := reader.Snapshot()
		e := snap.Get(key)
		if e == nil || !aboutTo(e) {
			return e
		}
		cursor, err := reader.Cursor(snap.Revision(), key.Resource)
		if err != nil {
			return e
		}
		if _, err := cursor.Next(ctx); err != nil {
			return e
		}
	}
}
