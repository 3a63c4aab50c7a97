// Package disruption keeps the status of PodDisruptionBudgets: how many of their pods
// may be evicted now.
//
// It owns that status, but for disruptedPods, which the eviction endpoint fills and this loop
// empties. It also takes back the condition DisruptionTarget from pods that were meant to go and stayed. It
// never evicts anything.
package disruption

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loops are the disruption controller, whose keys are budgets, and the one that looks after
// pods whose disruption came to nothing. reg knows what has a scale.
func Loops(reg *api.Registry) []reconcile.Loop {
	return []reconcile.Loop{{
		Name:           "disruption-controller",
		ServiceAccount: "disruption-controller",
		Source:         "controllermanager",
		Inputs: []reconcile.Input{
			{Resource: client.PodDisruptionBudgets.Name},
			{Resource: client.Pods.Name, Keys: ofPod},
		},
		Outputs: []reconcile.Output{{Resource: client.PodDisruptionBudgets.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Workers: 2,
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			pdb, ok := client.PodDisruptionBudgets.Get(s, key.Namespace, key.Name)
			if !ok || pdb.DeletionTimestamp != nil {
				return reconcile.Plan{}, nil
			}
			return plan(s, reg, pdb, now), nil
		},
	}, {
		Name:           "stale-disruption-controller",
		ServiceAccount: "disruption-controller",
		Source:         "controllermanager",
		Inputs:         []reconcile.Input{{Resource: client.Pods.Name, Keys: marked}},
		Outputs:        []reconcile.Output{{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan:           planStale,
	}}
}

// selector is what a budget selects: without a selector nothing, with an empty one everything.
func selector(pdb *policyv1.PodDisruptionBudget) labels.Selector {
	if pdb.Spec.Selector == nil {
		return labels.Nothing()
	}
	s, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
	if err != nil {
		return labels.Nothing()
	}
	return s
}

// ofPod gives the budgets that select a pod whose health changed, now or before.
func ofPod(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	was := pod
	if ev.Prev != nil {
		was = ev.Prev.Object.(*corev1.Pod)
		if !ev.Deleted && !podstate.Changed(was, pod) {
			return nil
		}
	}
	var keys []reconcile.Key
	for pdb := range client.PodDisruptionBudgets.List(s, pod.Namespace) {
		if sel := selector(pdb); sel.Matches(labels.Set(pod.Labels)) || sel.Matches(labels.Set(was.Labels)) {
			keys = append(keys, reconcile.Key{Namespace: pdb.Namespace, Name: pdb.Name})
		}
	}
	return keys
}

// staleAfter is how long a pod that was meant to be disrupted may go on before that is taken back.
const staleAfter = 2 * time.Minute

// marked gives a pod that is meant to be disrupted and is not being deleted.
func marked(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	if ev.Deleted || !disrupted(pod) {
		return nil
	}
	return reconcile.Self(s, ev)
}

// disrupted tells such a pod. What a node's agent said about its own end takes as long as it takes.
func disrupted(pod *corev1.Pod) bool {
	c := podstate.Condition(pod, corev1.DisruptionTarget)
	return pod.DeletionTimestamp == nil && !podstate.Terminal(pod) && c != nil && c.Status == corev1.ConditionTrue && c.Reason != corev1.PodReasonTerminationByKubelet
}

// planStale takes the condition DisruptionTarget back when nothing came of it.
func planStale(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
	if !ok || !disrupted(pod) {
		return reconcile.Plan{}, nil
	}
	left := podstate.Condition(pod, corev1.DisruptionTarget).LastTransitionTime.Add(staleAfter).Sub(now)
	if left > 0 {
		return reconcile.Plan{After: left}, nil
	}
	pod = pod.DeepCopy()
	c := podstate.Condition(pod, corev1.DisruptionTarget)
	*c = corev1.PodCondition{Type: corev1.DisruptionTarget, ObservedGeneration: c.ObservedGeneration, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: pod}}}, nil
}
