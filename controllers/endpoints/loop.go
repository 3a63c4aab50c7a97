// Package endpoints keeps the Endpoints object of each service that selects pods,
// for clients that do not read EndpointSlices yet.
//
// It owns the Endpoints named like a service with a selector. It never makes
// slices, and leaves Endpoints of services without a selector to whoever wrote them.
package endpoints

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the endpoints controller. Its keys are services.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "endpoint-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name},
			{Resource: client.Pods.Name, Keys: ofPod},
			{Resource: client.Endpoints.Name, Keys: lost},
		},
		Outputs: []reconcile.Output{{Resource: client.Endpoints.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, key), nil
		},
	}
}

// ofPod gives the services that select a pod that changed as an endpoint, now or before.
func ofPod(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	was := pod
	if ev.Prev != nil {
		was = ev.Prev.Object.(*corev1.Pod)
		if !ev.Deleted && !podstate.EndpointChanged(was, pod) {
			return nil
		}
	}
	var keys []reconcile.Key
	for svc := range client.Services.List(s, pod.Namespace) {
		if svc.Spec.Selector == nil {
			continue
		}
		selector := labels.SelectorFromSet(svc.Spec.Selector)
		if selector.Matches(labels.Set(pod.Labels)) || selector.Matches(labels.Set(was.Labels)) {
			keys = append(keys, reconcile.Key{Namespace: svc.Namespace, Name: svc.Name})
		}
	}
	return keys
}

// lost gives the service whose Endpoints were deleted, or that of Endpoints of ours which outlived it.
func lost(s store.Snapshot, ev store.Event) []reconcile.Key {
	if !ev.Deleted {
		_, ok := client.Services.Get(s, ev.Entry.Namespace, ev.Entry.Name)
		if ok || ev.Entry.Object.(*corev1.Endpoints).Labels[labelManagedBy] != manager { //nolint:staticcheck // still served
			return nil
		}
	}
	return reconcile.Self(s, ev)
}
