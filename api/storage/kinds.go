// Package storage holds the Kinds of the API group storage.k8s.io: storage classes and volume
// attributes classes, and what CSI drivers, nodes and attachments say of themselves.
package storage

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/api"
)

const group = storagev1.GroupName

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

func or[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }
