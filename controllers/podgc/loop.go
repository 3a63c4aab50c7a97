// Package podgc removes pods that nobody else will: those on nodes that are gone,
// those that were deleted before they had a node, those that terminate on nodes that are out of
// service, and the oldest ended ones when there are too many.
//
// It owns the end of such pods, for which it deletes without grace after marking
// them as failed. It never touches a pod whose node is there and in service.
package podgc

import (
	"cmp"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

const (
	// quarantine is how long a node has to be gone before its pods go too: it may come back under its name.
	quarantine = 40 * time.Second
	// DefaultThreshold is how many ended pods are kept.
	DefaultThreshold = 12500
	// remembered is how many missing nodes are; beyond that the quarantine of all of them starts again.
	remembered = 4096
	// burst is how many ended pods one pass deletes at most.
	burst = 500
)

// tooMany is the key for the number of ended pods.
var tooMany = reconcile.Key{Name: "terminated"}

// absences remembers since when nodes have been missing.
type absences struct {
	mu    sync.Mutex // guards since
	since map[string]time.Time
}

func (a *absences) of(node string, now time.Time) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.since[node]; ok {
		return at
	}
	if len(a.since) >= remembered {
		clear(a.since)
	}
	a.since[node] = now
	return now
}

func (a *absences) end(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.since, node)
}

// Loop is the pod garbage collector. threshold is how many ended pods are kept, 0 for any number.
func Loop(threshold int) reconcile.Loop {
	gone := &absences{since: map[string]time.Time{}}
	return reconcile.Loop{
		Name:           "pod-garbage-collector",
		ServiceAccount: "pod-garbage-collector",
		Source:         "pod-garbage-collector",
		Workers:        2,
		Inputs: []reconcile.Input{
			{Resource: client.Pods.Name, Keys: ofPod(threshold)},
			{Resource: client.Nodes.Name, Keys: ofNode},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Delete}},
			{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			if key == tooMany {
				return trim(s, threshold), nil
			}
			return plan(s, key, gone, now), nil
		},
	}
}

func ofPod(threshold int) func(store.Snapshot, store.Event) []reconcile.Key {
	return func(s store.Snapshot, ev store.Event) []reconcile.Key {
		if ev.Deleted {
			return nil
		}
		pod := ev.Entry.Object.(*corev1.Pod)
		var keys []reconcile.Key
		if threshold > 0 && podstate.Terminal(pod) && s.Count(client.Pods.Name, "") > threshold {
			keys = append(keys, tooMany)
		}
		if suspect(s, pod) {
			keys = append(keys, reconcile.Key{Namespace: pod.Namespace, Name: pod.Name})
		}
		return keys
	}
}

// suspect tells the pods that a pass has to look at.
func suspect(s store.Snapshot, pod *corev1.Pod) bool {
	if pod.Spec.NodeName == "" {
		return pod.DeletionTimestamp != nil
	}
	node, ok := client.Nodes.Get(s, "", pod.Spec.NodeName)
	return !ok || pod.DeletionTimestamp != nil && outOfService(node)
}

// ofNode gives the pods of a node that came, went or was put out of service.
func ofNode(s store.Snapshot, ev store.Event) []reconcile.Key {
	node := ev.Entry.Object.(*corev1.Node)
	if !ev.Deleted && ev.Prev != nil && outOfService(node) == outOfService(ev.Prev.Object.(*corev1.Node)) {
		return nil
	}
	var keys []reconcile.Key
	for pod := range client.Pods.Index(s, "node", node.Name) {
		keys = append(keys, reconcile.Key{Namespace: pod.Namespace, Name: pod.Name})
	}
	return keys
}

// outOfService tells whether a node that is not ready was declared to be so for good.
func outOfService(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// plan is one pass over a pod.
func plan(s store.Snapshot, key reconcile.Key, gone *absences, now time.Time) reconcile.Plan {
	pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
	if !ok {
		return reconcile.Plan{}
	}
	if pod.Spec.NodeName == "" {
		if pod.DeletionTimestamp == nil {
			return reconcile.Plan{}
		}
		return reconcile.Plan{Writes: end(pod, "", now)}
	}
	node, ok := client.Nodes.Get(s, "", pod.Spec.NodeName)
	if ok {
		gone.end(pod.Spec.NodeName)
		if pod.DeletionTimestamp == nil || !outOfService(node) {
			return reconcile.Plan{}
		}
		return reconcile.Plan{Writes: end(pod, "", now)}
	}
	if left := gone.of(pod.Spec.NodeName, now).Add(quarantine).Sub(now); left > 0 {
		return reconcile.Plan{After: left}
	}
	return reconcile.Plan{Writes: end(pod, "PodGC: node no longer exists", now)}
}

// end marks a pod as failed and deletes it at once. disrupted, if not empty, is the message
// of the condition DisruptionTarget.
func end(pod *corev1.Pod, disrupted string, now time.Time) []reconcile.Write {
	var writes []reconcile.Write
	if !podstate.Terminal(pod) {
		out := pod.DeepCopy()
		out.Status.Phase = corev1.PodFailed
		if disrupted != "" {
			out.Status.Conditions = append(slices.DeleteFunc(out.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }),
				corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", Message: disrupted,
					LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()})
		}
		writes = append(writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: out})
	}
	if grace := pod.DeletionGracePeriodSeconds; pod.DeletionTimestamp != nil && grace != nil && *grace == 0 {
		return writes // only finalizers hold it
	}
	return append(writes, remove(pod))
}

func remove(pod *corev1.Pod) reconcile.Write {
	zero := int64(0)
	return reconcile.Write{Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, GraceSeconds: &zero}
}

// trim deletes the oldest ended pods beyond the threshold, evicted ones first.
func trim(s store.Snapshot, threshold int) reconcile.Plan {
	var ended []*corev1.Pod
	for pod := range client.Pods.List(s, "") {
		if podstate.Terminal(pod) && pod.DeletionTimestamp == nil {
			ended = append(ended, pod)
		}
	}
	surplus := min(len(ended)-threshold, burst)
	if surplus <= 0 {
		return reconcile.Plan{}
	}
	evicted := func(p *corev1.Pod) int {
		if p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(ended, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(evicted(a), evicted(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	plan := reconcile.Plan{Parallel: true}
	for _, pod := range ended[:surplus] {
		plan.Writes = append(plan.Writes, remove(pod))
	}
	if len(ended)-threshold > surplus {
		plan.After = time.Millisecond
	}
	return plan
}
