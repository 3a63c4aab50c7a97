package daemonset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the daemon set controller.
func Loop() reconcile.Loop {
	ended := &tries{}
	return reconcile.Loop{
		Name:           "daemonset-controller",
		ServiceAccount: "daemon-set-controller",
		Workers:        2,
		Inputs: []reconcile.Input{
			{Resource: client.DaemonSets.Name},
			{Resource: client.Pods.Name, Keys: claim.Keys(client.DaemonSets, "DaemonSet", selects, podstate.Changed)},
			{Resource: client.ControllerRevisions.Name, Keys: claim.Keys[*appsv1.ControllerRevision](client.DaemonSets, "DaemonSet", selects, nil)},
			{Resource: client.Nodes.Name, Keys: ofNode},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.ControllerRevisions.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.DaemonSets.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			ds, ok := client.DaemonSets.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return plan(s, ds, ended, now), nil
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, _ error) reconcile.Plan {
			ds, ok := client.DaemonSets.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}
			}
			return failed(s, ds, now)
		},
	}
}

func selects(ds *appsv1.DaemonSet) labels.Selector { return claim.Selector(ds.Spec.Selector) }

// ofNode gives the daemon sets for which a node that came, went or changed matters.
func ofNode(s store.Snapshot, ev store.Event) []reconcile.Key {
	node := ev.Entry.Object.(*corev1.Node)
	var was *corev1.Node
	if ev.Prev != nil {
		was = ev.Prev.Object.(*corev1.Node)
		if !ev.Deleted && equality.Semantic.DeepEqual(was.Labels, node.Labels) && equality.Semantic.DeepEqual(was.Spec.Taints, node.Spec.Taints) {
			return nil
		}
	}
	var keys []reconcile.Key
	for ds := range client.DaemonSets.List(s, "") {
		place := placementOf(ds)
		run, stay := place.fits(node)
		wasRun, wasStay := false, false
		if was != nil {
			wasRun, wasStay = place.fits(was)
		}
		if ev.Deleted && (wasRun || wasStay) || !ev.Deleted && (run != wasRun || stay != wasStay) {
			keys = append(keys, reconcile.Key{Namespace: ds.Namespace, Name: ds.Name})
		}
	}
	return keys
}
