package client

import (
	"coracle.dev/coracle/api"
)

// OwnerIndex is the store index that every resource has: it files an object
// under the UID of each of its owners (metadata.ownerReferences).
const OwnerIndex = "owner"

// Indexes gives the indexes of a registry's kinds in the form that a store
// takes: those that the kind declares, and OwnerIndex. A resource that is not
// registered (a custom resource whose definition is not known yet) has OwnerIndex alone.
func Indexes(reg *api.Registry) func(resource string) map[string]func(obj any) []string {
	return func(resource string) map[string]func(obj any) []string {
		all := map[string]func(any) []string{OwnerIndex: owners}
		if k := storedKind(reg, resource); k != nil {
			for name, values := range k.Indexes {
				all[name] = func(obj any) []string { return values(obj.(api.Object)) }
			}
		}
		return all
	}
}

func owners(obj any) []string {
	refs := obj.(api.Object).GetOwnerReferences()
	if len(refs) == 0 {
		return nil
	}
	uids := make([]string, len(refs))
	for i := range refs {
		uids[i] = string(refs[i].UID)
	}
	return uids
}

// storedKind is the kind in whose form objects of a resource are stored, nil if
// the registry does not have it.
func storedKind(reg *api.Registry, resource string) *api.Kind {
	k := reg.ByName(resource)
	if k != nil && k.StoredAs != "" {
		k = reg.ByName(k.StoredAs)
	}
	return k
}
