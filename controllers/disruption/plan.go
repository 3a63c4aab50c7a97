package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// evictionTimeout is how long an eviction that was allowed may take to show in the pod.
const evictionTimeout = 2 * time.Minute

// plan is one pass over a budget.
func plan(s store.Snapshot, reg *api.Registry, pdb *policyv1.PodDisruptionBudget, now time.Time) reconcile.Plan {
	var pods []*corev1.Pod
	sel := selector(pdb)
	for pod := range client.Pods.List(s, pdb.Namespace) {
		if sel.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	out := reconcile.Plan{}
	event := func(kind, reason, message string) {
		out.Events = append(out.Events, reconcile.Event{Regarding: reconcile.Regarding("policy/v1", "PodDisruptionBudget", pdb), Type: kind, Reason: reason, Message: message})
	}
	if len(pods) == 0 && pdb.Status.ObservedGeneration != pdb.Generation {
		event("Normal", "NoPods", "No matching pods found")
	}
	next := pdb.DeepCopy()
	expected, desired, unmanaged, err := expect(s, reg, pdb, pods)
	if err != nil {
		event("Warning", "CalculateExpectedPodCountFailed", fmt.Sprintf("Failed to calculate the number of expected pods: %v", err))
		next.Status.DisruptionsAllowed = 0 // and nothing else: what else is known stays
		allowed(next, policyv1.SyncFailedReason, err.Error(), now)
	} else {
		if unmanaged {
			event("Warning", "UnmanagedPods", fmt.Sprintf("Pods selected by this PodDisruptionBudget (selector: %v) were found "+
				"to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
				"To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.", pdb.Spec.Selector))
		}
		pending, stayed, wait := evicting(pdb, pods, now)
		out.After = wait
		for _, pod := range stayed {
			out.Events = append(out.Events, reconcile.Event{Regarding: reconcile.Regarding("v1", "Pod", pod), Type: "Warning", Reason: "NotDeleted",
				Message: fmt.Sprintf("Pod was expected by PDB %s/%s to be deleted but it wasn't", pdb.Namespace, pdb.Name)})
		}
		healthy := int32(0)
		for _, pod := range pods {
			if _, going := pending[pod.Name]; !going && pod.DeletionTimestamp == nil && podstate.Ready(pod) {
				healthy++
			}
		}
		next.Status.DisruptedPods = pending
		next.Status.ExpectedPods, next.Status.DesiredHealthy, next.Status.CurrentHealthy = expected, desired, healthy
		next.Status.DisruptionsAllowed = 0
		if expected > 0 {
			next.Status.DisruptionsAllowed = max(healthy-desired, 0)
		}
		next.Status.ObservedGeneration = pdb.Generation
		reason := policyv1.InsufficientPodsReason
		if next.Status.DisruptionsAllowed > 0 {
			reason = policyv1.SufficientPodsReason
		}
		allowed(next, reason, "", now)
	}
	if !equality.Semantic.DeepEqual(next.Status, pdb.Status) {
		out.Writes = []reconcile.Write{{Verb: reconcile.Update, Resource: client.PodDisruptionBudgets.Name, Subresource: "status", Object: next}}
	}
	return out
}

// allowed sets the condition DisruptionAllowed.
func allowed(pdb *policyv1.PodDisruptionBudget, reason, message string, now time.Time) {
	status := metav1.ConditionFalse
	if pdb.Status.DisruptionsAllowed > 0 {
		status = metav1.ConditionTrue
	}
	cond := metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason, Message: message,
		ObservedGeneration: pdb.Status.ObservedGeneration, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
	for i := range pdb.Status.Conditions {
		if had := &pdb.Status.Conditions[i]; had.Type == cond.Type {
			if had.Status == status {
				cond.LastTransitionTime = had.LastTransitionTime
			}
			*had = cond
			return
		}
	}
	pdb.Status.Conditions = append(pdb.Status.Conditions, cond)
}

// evicting are the pods whose eviction was allowed and does not show yet, how long the first of them is
// still to be waited for, and those that were waited for in vain.
func evicting(pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod, now time.Time) (pending map[string]metav1.Time, stayed []*corev1.Pod, wait time.Duration) {
	for _, pod := range pods {
		at, ok := pdb.Status.DisruptedPods[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		left := at.Add(evictionTimeout).Sub(now)
		if left <= 0 {
			stayed = append(stayed, pod)
			continue
		}
		if pending == nil {
			pending = map[string]metav1.Time{}
		}
		pending[pod.Name] = at
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return pending, stayed, wait
}

// expect is how many pods there should be, and how many of them have to be healthy. unmanaged tells that there are pods
// whose number nobody knows, where that matters.
func expect(s store.Snapshot, reg *api.Registry, pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, unmanaged bool, err error) {
	share, most := pdb.Spec.MinAvailable, pdb.Spec.MaxUnavailable
	switch {
	case most != nil:
		share = most
	case share == nil:
		return 0, 0, false, nil
	case share.Type == intstr.Int:
		return int32(len(pods)), share.IntVal, false, nil
	}
	if expected, unmanaged, err = scale(s, reg, pods); err != nil {
		return 0, 0, unmanaged, err
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(share, int(expected), true)
	switch {
	case err != nil:
		return 0, 0, unmanaged, err
	case most != nil:
		return expected, max(expected-int32(n), 0), unmanaged, nil
	}
	return expected, int32(n), unmanaged, nil
}
