// Package coordination holds the Kinds of the API group coordination: leases.
package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		leaseKind(),
	}
}

func leaseKind() *api.Kind {
	return &api.Kind{
		Group: coordinationv1.GroupName, Kind: "Lease", Resource: "leases", Singular: "lease",
		Namespaced: true,
		Versions:   declare.V1[coordinationv1.Lease, coordinationv1.LeaseList](),
	}
}
