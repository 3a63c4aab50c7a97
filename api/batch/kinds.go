// Package batch holds the Kinds of the API group batch: jobs and cron jobs.
//
// It owns their defaults, generated selectors, validation and columns, and what a
// schedule text means (ParseSchedule). It never starts a job: that is the controllers'.
package batch

import (
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/api"
)

const group = batchv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{jobKind(), cronJobKind()}
}

func or[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func is[T comparable](p *T, value T) bool { return p != nil && *p == value }

// changed compares as Kubernetes does: nil and empty are the same.
func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }
