// Package declare holds the pieces from which the group packages put together
// their Kinds: versions made from Go types, subresources that every group has,
// and table cells that many kinds show in the same way.
//
// It knows no kind and no rule of one: it never defaults, validates or registers anything.
package declare

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
)

// Struct is a pointer to T that is an API object or list.
type Struct[T any] interface {
	*T
	runtime.Object
}

// V1 is the versions of a Kind that has only v1: T is the object, L the list.
func V1[T, L any, PT Struct[T], PL Struct[L]]() []api.Version {
	return []api.Version{Hub[T, L, PT, PL]("v1")}
}

// Hub is the version, by name, in which the objects of a Kind live.
func Hub[T, L any, PT Struct[T], PL Struct[L]](name string) api.Version {
	return api.Version{
		Name:    name,
		New:     func() runtime.Object { return PT(new(T)) },
		NewList: func() runtime.Object { return PL(new(L)) },
		Hub:     true,
	}
}

// Review is the versions of a virtual v1 Kind, which has no list of its own.
func Review[T any, PT Struct[T]]() []api.Version {
	return []api.Version{{
		Name:    "v1",
		New:     func() runtime.Object { return PT(new(T)) },
		NewList: func() runtime.Object { return nil },
		Hub:     true,
	}}
}

// ReviewVerbs are the verbs of a virtual Kind that answers a question.
var ReviewVerbs = []string{"create"}

// View is a subresource that shows the stored object through a strategy of its own,
// with GET, PUT and PATCH.
func View(name string, s api.Strategy) api.Subresource {
	return api.Subresource{Name: name, Verbs: []string{"get", "patch", "update"}, Strategy: &s}
}

// Status is the "status" subresource.
func Status(s api.Strategy) api.Subresource { return View("status", s) }

// Scale is the "scale" subresource, which shows the replica count as an
// autoscaling/v1 Scale. The server answers it (see api/autoscaling.ScaleOf).
func Scale() api.Subresource {
	return api.Subresource{
		Name:  "scale",
		Type:  schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"},
		Verbs: []string{"get", "patch", "update"},
	}
}
