// Package storagemigration holds the Kinds of the API group storagemigration: storage version migrations.
package storagemigration

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		storageVersionMigrationKind(),
	}
}

func storageVersionMigrationKind() *api.Kind {
	return &api.Kind{
		Group: storagemigrationv1.GroupName, Kind: "StorageVersionMigration", Resource: "storageversionmigrations", Singular: "storageversionmigration",
		Versions:     declare.V1[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
