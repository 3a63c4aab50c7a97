// Package node holds the Kinds of the API group node: runtime classes.
package node

import (
	nodev1 "k8s.io/api/node/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		runtimeClassKind(),
	}
}

func runtimeClassKind() *api.Kind {
	return &api.Kind{
		Group: nodev1.GroupName, Kind: "RuntimeClass", Resource: "runtimeclasses", Singular: "runtimeclass",
		Versions: declare.V1[nodev1.RuntimeClass, nodev1.RuntimeClassList](),
	}
}
