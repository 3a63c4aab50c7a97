package nodelifecycle

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// sightings remembers since when pods have been under taints that do not say when they were added.
// It also remembers which pods have to leave in time, to tell when one may stay after all.
type sightings struct {
	mu      sync.Mutex // guards what follows
	first   map[types.UID]time.Time
	leaving map[reconcile.Key]bool
}

// leave notes that a pod has to leave later, or need not any more, and returns what was noted before.
func (s *sightings) leave(key reconcile.Key, later bool) (was bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was = s.leaving[key]
	switch {
	case !later:
		delete(s.leaving, key)
	case s.leaving == nil:
		s.leaving = map[reconcile.Key]bool{key: true}
	default:
		s.leaving[key] = true
	}
	return was
}

func (s *sightings) since(uid types.UID, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == nil {
		s.first = map[types.UID]time.Time{}
	}
	if at, ok := s.first[uid]; ok {
		return at
	}
	s.first[uid] = now
	return now
}

func (s *sightings) forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.first, uid)
}

// noExecute are the taints of a node that evict.
func noExecute(node *corev1.Node) []corev1.Taint {
	var taints []corev1.Taint
	for _, t := range node.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			taints = append(taints, t)
		}
	}
	return taints
}

// eviction is when a pod has to leave because of the taints; false for never. since gives when a taint without
// a time of its own began to count.
func eviction(pod *corev1.Pod, taints []corev1.Taint, now time.Time, since func() time.Time) (time.Time, bool) {
	var due time.Time
	found := false
	for i := range taints {
		at, tolerated, forever := until(pod, &taints[i], since)
		switch {
		case forever:
			continue
		case !tolerated:
			at = now
		}
		if !found || at.Before(due) {
			due, found = at, true
		}
	}
	return due, found
}

// until is how long the pod tolerates one taint: the shortest of the tolerations that match.
func until(pod *corev1.Pod, taint *corev1.Taint, since func() time.Time) (at time.Time, tolerated, forever bool) {
	forever = true
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if !tolerates(t, taint) {
			continue
		}
		tolerated = true
		if t.TolerationSeconds == nil {
			continue
		}
		start := time.Time{}
		if taint.TimeAdded != nil {
			start = taint.TimeAdded.Time
		} else {
			start = since()
		}
		end := start.Add(time.Duration(max(*t.TolerationSeconds, 0)) * time.Second)
		if forever || end.Before(at) {
			at, forever = end, false
		}
	}
	return at, tolerated, forever && tolerated
}

func tolerates(t *corev1.Toleration, taint *corev1.Taint) bool {
	switch {
	case t.Effect != "" && t.Effect != taint.Effect, t.Key != "" && t.Key != taint.Key:
		return false
	}
	switch t.Operator {
	case corev1.TolerationOpExists:
		return true
	case "", corev1.TolerationOpEqual:
		return t.Value == taint.Value
	}
	bound, err := strconv.ParseInt(t.Value, 10, 64)
	value, err2 := strconv.ParseInt(taint.Value, 10, 64)
	if err != nil || err2 != nil {
		return false
	}
	return t.Operator == corev1.TolerationOpLt && value < bound || t.Operator == corev1.TolerationOpGt && value > bound
}

// planEviction is one pass over a pod.
func planEviction(s store.Snapshot, key reconcile.Key, now time.Time, seen *sightings) reconcile.Plan {
	pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
	if !ok || pod.DeletionTimestamp != nil || pod.Spec.NodeName == "" {
		seen.leave(key, false)
		return reconcile.Plan{}
	}
	node, ok := client.Nodes.Get(s, "", pod.Spec.NodeName)
	if !ok {
		return reconcile.Plan{}
	}
	taints := noExecute(node)
	if len(taints) == 0 {
		seen.forget(pod.UID)
	}
	due, ok := eviction(pod, taints, now, func() time.Time { return seen.since(pod.UID, now) })
	switch {
	case ok && due.After(now):
		seen.leave(key, true)
		return reconcile.Plan{After: due.Sub(now)}
	case !ok && seen.leave(key, false):
		return reconcile.Plan{Events: []reconcile.Event{*about(pod, "Cancelling deletion of Pod %s/%s")}}
	case !ok:
		return reconcile.Plan{}
	}
	seen.leave(key, false)
	seen.forget(pod.UID)
	return reconcile.Plan{Writes: evict(pod, now)}
}

func about(pod *corev1.Pod, format string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("v1", "Pod", pod), Type: "Normal", Reason: "TaintManagerEviction",
		Message: fmt.Sprintf(format, pod.Namespace, pod.Name)}
}

// evict marks a pod as disrupted and deletes it.
func evict(pod *corev1.Pod, now time.Time) []reconcile.Write {
	event := func(api.Object) *reconcile.Event { return about(pod, "Marking for deletion Pod %s/%s") }
	remove := reconcile.Write{Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, OnSuccess: event}
	if c := podstate.Condition(pod, corev1.DisruptionTarget); c != nil && c.Status == corev1.ConditionTrue {
		return []reconcile.Write{remove}
	}
	out := pod.DeepCopy()
	cond := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager",
		Message: "Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
	if c := podstate.Condition(out, corev1.DisruptionTarget); c != nil {
		*c = cond
	} else {
		out.Status.Conditions = append(out.Status.Conditions, cond)
	}
	return []reconcile.Write{{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: out}, remove}
}
