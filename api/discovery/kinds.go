// Package discovery holds the Kinds of the API group discovery: endpoint slices.
package discovery

import (
	discoveryv1 "k8s.io/api/discovery/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		endpointSliceKind(),
	}
}

func endpointSliceKind() *api.Kind {
	return &api.Kind{
		Group: discoveryv1.GroupName, Kind: "EndpointSlice", Resource: "endpointslices", Singular: "endpointslice",
		Namespaced: true,
		Versions:   declare.V1[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](),
	}
}
