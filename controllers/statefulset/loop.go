package statefulset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the stateful set controller.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "statefulset-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.StatefulSets.Name},
			{Resource: client.Pods.Name, Keys: claim.Keys(client.StatefulSets, "StatefulSet", selects, podstate.Changed)},
			{Resource: client.ControllerRevisions.Name, Keys: claim.Keys[*appsv1.ControllerRevision](client.StatefulSets, "StatefulSet", selects, nil)},
			{Resource: client.PersistentVolumeClaims.Name, Keys: ofClaim},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.PersistentVolumeClaims.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}},
			{Resource: client.ControllerRevisions.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.StatefulSets.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			set, ok := client.StatefulSets.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return plan(s, set, now)
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, _ error) reconcile.Plan {
			set, ok := client.StatefulSets.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}
			}
			return failed(s, set, now)
		},
	}
}

func selects(set *appsv1.StatefulSet) labels.Selector { return claim.Selector(set.Spec.Selector) }
