package deployment

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the deployment controller.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "deployment-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.Deployments.Name},
			{Resource: client.ReplicaSets.Name, Keys: claim.Keys(client.Deployments, "Deployment",
				func(d *appsv1.Deployment) labels.Selector { return claim.Selector(d.Spec.Selector) }, setChanged)},
			{Resource: client.Pods.Name, Keys: podGone},
		},
		Outputs: []reconcile.Output{
			{Resource: client.ReplicaSets.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.Deployments.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			d, ok := client.Deployments.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return begin(s, d, now).run(), nil
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
			d, ok := client.Deployments.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}
			}
			return begin(s, d, now).createFailed(err)
		},
	}
}

// setChanged tells whether anything that a deployment looks at differs.
func setChanged(a, b *appsv1.ReplicaSet) bool {
	return a.Generation != b.Generation || !equality.Semantic.DeepEqual(a.Status, b.Status) ||
		!equality.Semantic.DeepEqual(a.ObjectMeta.Labels, b.ObjectMeta.Labels) ||
		!equality.Semantic.DeepEqual(a.Annotations, b.Annotations) ||
		!equality.Semantic.DeepEqual(a.OwnerReferences, b.OwnerReferences) ||
		!equality.Semantic.DeepEqual(a.Spec, b.Spec) || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil)
}

// podGone gives the deployment of a pod that no longer runs, if it waits for that: one
// with the strategy Recreate.
func podGone(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod, ok := ev.Entry.Object.(*corev1.Pod)
	if !ok || !ev.Deleted && !podstate.Terminal(pod) {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	rs, ok := client.ReplicaSets.Get(s, pod.Namespace, ref.Name)
	if !ok || rs.UID != ref.UID {
		return nil
	}
	if ref = metav1.GetControllerOfNoCopy(rs); ref == nil || ref.Kind != "Deployment" {
		return nil
	}
	d, ok := client.Deployments.Get(s, pod.Namespace, ref.Name)
	if !ok || d.UID != ref.UID || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []reconcile.Key{{Namespace: d.Namespace, Name: d.Name}}
}
