package scheduler

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// State collects what someone has read from a cluster's API, so that Why can be asked far from its store. The zero value
// is empty. It belongs to one goroutine.
type State struct{ objects []store.Op }

// batch is how many objects one transaction adds: a store compares all keys of a transaction with each other.
const batch = 16

// Add takes an object in, which belongs to the State from then on. resource is its canonical name, and no object is added twice.
func (s *State) Add(resource string, o api.Object) {
	s.objects = append(s.objects, store.Op{Key: store.Key{Resource: resource, Namespace: o.GetNamespace(), Name: o.GetName()}, Object: o})
}

// Why is Why of what was added. An error means that an object was added twice.
func (s *State) Why(pod *corev1.Pod) (*Report, error) {
	m := memory.New(store.Options{Stamp: func(any, store.Revision) {}, Window: 1})
	for ops := range slices.Chunk(s.objects, batch) {
		if _, _, err := m.Commit(context.Background(), store.Txn{Ops: ops}); err != nil {
			return nil, err
		}
	}
	return Why(m.Snapshot(), pod), nil
}
