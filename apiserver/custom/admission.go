package custom

import (
	"context"
	"errors"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/store"
)

// Plugin refuses new objects of a definition that is being deleted, or is gone, up to the moment of the commit.
func Plugin() admission.Plugin {
	return admission.Plugin{Name: "CustomResourceDefinitionTerminating", Mutate: func(_ context.Context, r *admission.Request) error {
		if r.Operation != admission.Create || r.Kind.Hub().Settle == nil {
			return nil
		}
		key := store.Key{Resource: Definitions.Name, Name: r.Kind.Name()}
		e := r.Snapshot.Get(key)
		if e == nil {
			return apierrors.NewNotFound(r.Resource(), r.Name)
		}
		if e.Object.(*apiextensionsv1.CustomResourceDefinition).DeletionTimestamp != nil {
			return apierrors.NewForbidden(r.Resource(), r.Name, errors.New("create not allowed while custom resource definition is terminating"))
		}
		r.Require(key, e.Revision)
		return nil
	}}
}
