// Package batch holds the Kinds of the API group batch: jobs and cron jobs.
package batch

import (
	batchv1 "k8s.io/api/batch/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		jobKind(),
		cronJobKind(),
	}
}

func jobKind() *api.Kind {
	return &api.Kind{
		Group: batchv1.GroupName, Kind: "Job", Resource: "jobs", Singular: "job",
		Categories:   []string{"all"},
		Namespaced:   true,
		Versions:     declare.V1[batchv1.Job, batchv1.JobList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func cronJobKind() *api.Kind {
	return &api.Kind{
		Group: batchv1.GroupName, Kind: "CronJob", Resource: "cronjobs", Singular: "cronjob",
		ShortNames:   []string{"cj"},
		Categories:   []string{"all"},
		Namespaced:   true,
		Versions:     declare.V1[batchv1.CronJob, batchv1.CronJobList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
