package replicaset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the replica set controller.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "replicaset-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.ReplicaSets.Name},
			{Resource: client.Pods.Name, Keys: claim.Keys(client.ReplicaSets, "ReplicaSet",
				func(rs *appsv1.ReplicaSet) labels.Selector { return claim.Selector(rs.Spec.Selector) }, podstate.Changed)},
		},
		Outputs: outputs(client.ReplicaSets.Name),
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			rs, ok := client.ReplicaSets.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return plan(s, ofReplicaSet(rs), now), nil
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
			rs, ok := client.ReplicaSets.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}
			}
			return failed(s, ofReplicaSet(rs), now, err)
		},
	}
}

// ReplicationControllerLoop is the replication controller.
func ReplicationControllerLoop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "replication-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.ReplicationControllers.Name},
			{Resource: client.Pods.Name, Keys: claim.Keys(client.ReplicationControllers, "ReplicationController",
				func(rc *corev1.ReplicationController) labels.Selector { return ofReplicationController(rc).selector }, podstate.Changed)},
		},
		Outputs: outputs(client.ReplicationControllers.Name),
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			rc, ok := client.ReplicationControllers.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return plan(s, ofReplicationController(rc), now), nil
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
			rc, ok := client.ReplicationControllers.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}
			}
			return failed(s, ofReplicationController(rc), now, err)
		},
	}
}

func outputs(resource string) []reconcile.Output {
	return []reconcile.Output{
		{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
		{Resource: resource, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
	}
}
