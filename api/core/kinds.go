// Package core holds the Kinds of the core API group v1: pods, services,
// nodes, namespaces and the others of the group with the empty name, each with
// upstream's defaults, validation, warnings, table columns, selectable fields and indexes.
//
// It owns the rules of a pod spec, which the workload groups (apps, batch)
// reuse through DefaultPodTemplate and ValidatePodTemplateSpec. It never allocates
// (cluster IPs, node ports, UIDs), reads no clock and no store: what needs those
// is the API server's.
package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
)

// Kinds returns new descriptors of every kind of the core group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		bindingKind(),
		componentStatusKind(),
		configMapKind(),
		endpointsKind(),
		eventKind(),
		limitRangeKind(),
		namespaceKind(),
		nodeKind(),
		persistentVolumeKind(),
		persistentVolumeClaimKind(),
		podKind(),
		podTemplateKind(),
		replicationControllerKind(),
		resourceQuotaKind(),
		secretKind(),
		serviceKind(),
		serviceAccountKind(),
	}
}

// object is what a pointer to an API struct is.
type object[T any] interface {
	*T
	runtime.Object
}

// v1 makes the single version of a core kind from its struct and its list.
func v1[T, L any, PT object[T], PL object[L]]() []api.Version {
	return []api.Version{{
		Name:    "v1",
		New:     func() runtime.Object { return PT(new(T)) },
		NewList: func() runtime.Object { return PL(new(L)) },
		Hub:     true,
	}}
}

// coreType is the wire type of a subresource in the core group.
func coreType(kind string) schema.GroupVersionKind {
	return corev1.SchemeGroupVersion.WithKind(kind)
}

// view is a subresource that shows the stored object through a strategy of its own.
func view(name string, s api.Strategy) api.Subresource {
	return api.Subresource{Name: name, Verbs: []string{"get", "patch", "update"}, Strategy: &s}
}

// connect is a subresource that opens a stream or proxies.
func connect(name, kind string, verbs ...string) api.Subresource {
	return api.Subresource{Name: name, Type: coreType(kind), Verbs: verbs}
}

// proxyVerbs are what discovery lists for the proxy subresources.
var proxyVerbs = []string{"create", "delete", "get", "patch", "update"}
