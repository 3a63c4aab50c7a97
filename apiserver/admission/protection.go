package admission

import (
	"context"
	"slices"
)

// inUse are the finalizers that keep storage objects until nothing uses them any more; the protection controllers
// take them off.
var inUse = map[string]string{
	"persistentvolumeclaims":                 "kubernetes.io/pvc-protection",
	"persistentvolumes":                      "kubernetes.io/pv-protection",
	"volumeattributesclasses.storage.k8s.io": "kubernetes.io/vac-protection",
}

// storageObjectInUse protects new claims, volumes and volume attributes classes
// (https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection).
func storageObjectInUse() Plugin {
	return Plugin{Name: "StorageObjectInUseProtection", Mutate: func(_ context.Context, r *Request) error {
		finalizer := inUse[r.Kind.Name()]
		if finalizer == "" || r.Operation != Create || r.Subresource != "" {
			return nil
		}
		if have := r.Object.GetFinalizers(); !slices.Contains(have, finalizer) {
			r.Object.SetFinalizers(append(slices.Clone(have), finalizer))
		}
		return nil
	}}
}
