// Package storage holds the Kinds of the API group storage: storage classes and what CSI drivers, nodes and attachments say of themselves.
package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		storageClassKind(),
		csiDriverKind(),
		csiNodeKind(),
		csiStorageCapacityKind(),
		volumeAttachmentKind(),
		volumeAttributesClassKind(),
	}
}

func storageClassKind() *api.Kind {
	return &api.Kind{
		Group: storagev1.GroupName, Kind: "StorageClass", Resource: "storageclasses", Singular: "storageclass",
		ShortNames: []string{"sc"},
		Versions:   declare.V1[storagev1.StorageClass, storagev1.StorageClassList](),
	}
}

func csiDriverKind() *api.Kind {
	return &api.Kind{
		Group: storagev1.GroupName, Kind: "CSIDriver", Resource: "csidrivers", Singular: "csidriver",
		Versions: declare.V1[storagev1.CSIDriver, storagev1.CSIDriverList](),
	}
}

func csiNodeKind() *api.Kind {
	return &api.Kind{
		Group: storagev1.GroupName, Kind: "CSINode", Resource: "csinodes", Singular: "csinode",
		Versions: declare.V1[storagev1.CSINode, storagev1.CSINodeList](),
	}
}

func csiStorageCapacityKind() *api.Kind {
	return &api.Kind{
		Group: storagev1.GroupName, Kind: "CSIStorageCapacity", Resource: "csistoragecapacities", Singular: "csistoragecapacity",
		Namespaced: true,
		Versions:   declare.V1[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](),
	}
}

func volumeAttachmentKind() *api.Kind {
	return &api.Kind{
		Group: storagev1.GroupName, Kind: "VolumeAttachment", Resource: "volumeattachments", Singular: "volumeattachment",
		Versions:     declare.V1[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func volumeAttributesClassKind() *api.Kind {
	return &api.Kind{
		Group: storagev1.GroupName, Kind: "VolumeAttributesClass", Resource: "volumeattributesclasses", Singular: "volumeattributesclass",
		ShortNames: []string{"vac"},
		Versions:   declare.V1[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](),
	}
}
