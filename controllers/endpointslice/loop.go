package endpointslice

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the endpoint slice controller. Its keys are services.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "endpointslice-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name},
			{Resource: client.Pods.Name, Keys: ofPod},
			{Resource: client.EndpointSlices.Name, Keys: ofSlice},
			{Resource: client.Nodes.Name, Keys: ofNode},
		},
		Outputs: []reconcile.Output{{Resource: client.EndpointSlices.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			svc, ok := client.Services.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil // its slices are the garbage collector's
			}
			return plan(s, svc), nil
		},
	}
}

// ofPod gives the services that select a pod that changed as an endpoint, now or before.
func ofPod(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod, ok := ev.Entry.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
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

// ofSlice gives the service of a slice of ours.
func ofSlice(_ store.Snapshot, ev store.Event) []reconcile.Key {
	var keys []reconcile.Key
	for _, e := range []*store.Entry{ev.Entry, ev.Prev} {
		if e == nil {
			continue
		}
		slice := e.Object.(*discoveryv1.EndpointSlice)
		if slice.Labels[discoveryv1.LabelManagedBy] == manager && slice.Labels[discoveryv1.LabelServiceName] != "" {
			keys = append(keys, reconcile.Key{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]})
		}
	}
	return keys
}

// ofNode gives the services with pods on a node that came, went or moved to another zone.
func ofNode(s store.Snapshot, ev store.Event) []reconcile.Key {
	node := ev.Entry.Object.(*corev1.Node)
	if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(*corev1.Node).Labels[corev1.LabelTopologyZone] == node.Labels[corev1.LabelTopologyZone] {
		return nil
	}
	var keys []reconcile.Key
	for entry := range s.Index(client.Pods.Name, "node", node.Name) {
		keys = append(keys, ofPod(s, store.Event{Entry: entry})...)
	}
	return keys
}
