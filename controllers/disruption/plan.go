package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// evictionTimeout is how long an eviction that was allowed may take to show in the pod.
const evictionTimeout = 2 * time.Minute

// plan is one pass over a budget.
func plan(s store.Snapshot, pdb *policyv1.PodDisruptionBudget, now time.Time) reconcile.Plan {
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
	expected, desired, err := expect(s, pdb, pods)
	if err != nil {
		event("Warning", "CalculateExpectedPodCountFailed", fmt.Sprintf("Failed to calculate the number of expected pods: %v", err))
		next.Status.DisruptionsAllowed = 0
		next.Status.ObservedGeneration = pdb.Generation
		allowed(next, policyv1.SyncFailedReason, err.Error(), now)
	} else {
		pending, wait := evicting(pdb, pods, now)
		out.After = wait
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
		ObservedGeneration: pdb.Generation, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
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

// evicting are the pods whose eviction was allowed and does not show yet, and how long the first of them is
// still to be waited for.
func evicting(pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod, now time.Time) (map[string]metav1.Time, time.Duration) {
	var pending map[string]metav1.Time
	var wait time.Duration
	for _, pod := range pods {
		at, ok := pdb.Status.DisruptedPods[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		left := at.Add(evictionTimeout).Sub(now)
		if left <= 0 {
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
	return pending, wait
}

// expect is how many pods there should be, and how many of them have to be healthy.
func expect(s store.Snapshot, pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, err error) {
	switch min, most := pdb.Spec.MinAvailable, pdb.Spec.MaxUnavailable; {
	case most != nil:
		if expected, err = scale(s, pods); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(most, int(expected), true)
		if err != nil {
			return 0, 0, err
		}
		return expected, max(expected-int32(n), 0), nil
	case min == nil:
		return int32(len(pods)), 0, nil
	case min.Type == intstr.Int:
		return int32(len(pods)), min.IntVal, nil
	default:
		if expected, err = scale(s, pods); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(min, int(expected), true)
		return expected, int32(n), err
	}
}

// scale is the sum of what the controllers of the pods ask for.
func scale(s store.Snapshot, pods []*corev1.Pod) (total int32, err error) {
	seen := map[types.UID]bool{}
	for _, pod := range pods {
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref == nil {
			continue // nobody asks for it
		}
		uid, n, ok := replicas(s, pod.Namespace, ref)
		if !ok {
			return 0, fmt.Errorf("found no controllers for pod %q", pod.Name)
		}
		if !seen[uid] {
			seen[uid] = true
			total += n
		}
	}
	return total, nil
}

// replicas is what the controller of a pod, or that controller's own, asks for.
func replicas(s store.Snapshot, namespace string, ref *metav1.OwnerReference) (types.UID, int32, bool) {
	count := func(n *int32) int32 {
		if n == nil {
			return 1
		}
		return *n
	}
	switch ref.Kind {
	case "ReplicaSet":
		rs, ok := client.ReplicaSets.Get(s, namespace, ref.Name)
		if !ok || rs.UID != ref.UID {
			return "", 0, false
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
			if d, ok := client.Deployments.Get(s, namespace, up.Name); ok && d.UID == up.UID {
				return d.UID, count(d.Spec.Replicas), true
			}
		}
		return rs.UID, count(rs.Spec.Replicas), true
	case "StatefulSet":
		set, ok := client.StatefulSets.Get(s, namespace, ref.Name)
		if ok && set.UID == ref.UID {
			return set.UID, count(set.Spec.Replicas), true
		}
	case "ReplicationController":
		rc, ok := client.ReplicationControllers.Get(s, namespace, ref.Name)
		if ok && rc.UID == ref.UID {
			return rc.UID, count(rc.Spec.Replicas), true
		}
	}
	return "", 0, false
}
