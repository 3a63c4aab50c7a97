package replicaset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/reconcile/podstate"
)

// toDelete picks the n pods that are missed least. related are the pods that
// count when it comes to several on one node.
//
// The order is upstream's ("ReplicaSet: Scaling down" in its documentation, KEP-2185 for the
// logarithmic ages, KEP-2255 for the deletion cost).
func toDelete(pods, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	onNode := map[string]int{}
	for _, pod := range related {
		onNode[pod.Spec.NodeName]++
	}
	ranked := slices.Clone(pods)
	slices.SortStableFunc(ranked, func(a, b *corev1.Pod) int { return compare(a, b, onNode, now) })
	return ranked[:n]
}

// compare is negative if a is to go before b.
func compare(a, b *corev1.Pod, onNode map[string]int, now time.Time) int {
	return cmp.Or(
		first(a.Spec.NodeName == "", b.Spec.NodeName == ""),
		cmp.Compare(phaseRank(a), phaseRank(b)),
		first(!podstate.Ready(a), !podstate.Ready(b)),
		cmp.Compare(cost(a), cost(b)),
		cmp.Compare(onNode[b.Spec.NodeName], onNode[a.Spec.NodeName]),
		compareReady(a, b, now),
		compareRestarts(a, b),
		compareAge(a.CreationTimestamp, b.CreationTimestamp, a, b, now),
	)
}

// first is negative if only a has the property, positive if only b.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phaseRank(pod *corev1.Pod) int {
	switch pod.Status.Phase {
	case corev1.PodUnknown:
		return 1
	case corev1.PodRunning:
		return 2
	}
	return 0
}

func cost(pod *corev1.Pod) int32 {
	n, err := strconv.ParseInt(pod.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func compareReady(a, b *corev1.Pod, now time.Time) int {
	if !podstate.Ready(a) || !podstate.Ready(b) {
		return 0
	}
	return compareAge(podstate.Condition(a, corev1.PodReady).LastTransitionTime, podstate.Condition(b, corev1.PodReady).LastTransitionTime, a, b, now)
}

// compareAge puts the younger first. Ages that round to the same power of two count as
// equal, and the UID decides, so that a scale-down does not always hit the newest.
func compareAge(a, b metav1.Time, p, q *corev1.Pod, now time.Time) int {
	if a.Equal(&b) {
		return 0
	}
	if a.IsZero() || b.IsZero() {
		return first(a.IsZero(), b.IsZero())
	}
	return cmp.Or(cmp.Compare(logAge(a, now), logAge(b, now)), strings.Compare(string(p.UID), string(q.UID)))
}

func logAge(t metav1.Time, now time.Time) int64 {
	if d := now.Sub(t.Time); d > 0 {
		return int64(math.Log2(float64(d)))
	}
	return -1
}

func compareRestarts(a, b *corev1.Pod) int {
	ac, as := podstate.Restarts(a)
	bc, bs := podstate.Restarts(b)
	return cmp.Or(cmp.Compare(bc, ac), cmp.Compare(bs, as))
}
