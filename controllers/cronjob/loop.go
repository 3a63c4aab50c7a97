package cronjob

import (
	"time"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Loop is the cron job controller.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "cronjob-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.CronJobs.Name},
			{Resource: client.Jobs.Name, Keys: reconcile.Controllers("batch", "CronJob")},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Jobs.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Delete}},
			{Resource: client.CronJobs.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			cj, ok := client.CronJobs.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return plan(s, cj, now), nil
		},
	}
}
