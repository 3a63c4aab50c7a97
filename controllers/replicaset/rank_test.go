package replicaset

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestRankOrder gives pods in the order in which they are to go, each differing from the next in one criterion.
func TestRankOrder(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }
	ready := func(d time.Duration) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: ago(d)}}
	}
	restarted := func(n int32) []corev1.ContainerStatus { return []corev1.ContainerStatus{{Name: "c", RestartCount: n}} }
	cost := func(n string) map[string]string { return map[string]string{corev1.PodDeletionCost: n} }
	always := corev1.ContainerRestartPolicyAlways
	sidecar := []corev1.Container{{Name: "s", RestartPolicy: &always}}
	order := []*corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{Name: "unassigned"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}},
		{ObjectMeta: metav1.ObjectMeta{Name: "pending"}, Spec: corev1.PodSpec{NodeName: "full"}, Status: corev1.PodStatus{Phase: corev1.PodPending}},
		{ObjectMeta: metav1.ObjectMeta{Name: "unknown"}, Spec: corev1.PodSpec{NodeName: "full"}, Status: corev1.PodStatus{Phase: corev1.PodUnknown}},
		{ObjectMeta: metav1.ObjectMeta{Name: "not ready"}, Spec: corev1.PodSpec{NodeName: "full"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}},
		{ObjectMeta: metav1.ObjectMeta{Name: "cheap", Annotations: cost("-5")}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "doubled"}, Spec: corev1.PodSpec{NodeName: "full"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "just ready"}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Minute)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "restarted"}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour), ContainerStatuses: restarted(3)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "sidecar restarted"}, Spec: corev1.PodSpec{NodeName: "n", InitContainers: sidecar},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour), InitContainerStatuses: []corev1.ContainerStatus{{Name: "s", RestartCount: 1}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "young", CreationTimestamp: ago(2 * time.Hour)}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "old, first by UID", UID: "a", CreationTimestamp: ago(20 * time.Hour)}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "old, a little older", UID: "b", CreationTimestamp: ago(20*time.Hour - time.Second)}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour)}},
		{ObjectMeta: metav1.ObjectMeta{Name: "dear", Annotations: cost("7")}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready(time.Hour)}},
	}
	related := []*corev1.Pod{{Spec: corev1.PodSpec{NodeName: "full"}}, {Spec: corev1.PodSpec{NodeName: "full"}}, {Spec: corev1.PodSpec{NodeName: "n"}}}
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		shuffled := slices.Clone(order)
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		for i, pod := range toDelete(shuffled, related, len(order)-1, now) {
			if pod != order[i] {
				t.Fatalf("seed %d: %q goes as number %d, want %q", seed, pod.Name, i, order[i].Name)
			}
		}
	}
}

// TestRankIsAnOrder holds that the comparison is consistent for random pods, as sorting needs.
func TestRankIsAnOrder(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	rnd := rand.New(rand.NewPCG(5, 5))
	var pods []*corev1.Pod
	for i := range 60 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(fmt.Sprint(i)), CreationTimestamp: metav1.NewTime(now.Add(-time.Duration(rnd.IntN(9)) * time.Hour))}}
		pod.Spec.NodeName = []string{"", "a", "b"}[rnd.IntN(3)]
		pod.Status.Phase = []corev1.PodPhase{corev1.PodPending, corev1.PodRunning}[rnd.IntN(2)]
		if rnd.IntN(2) == 0 {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Duration(rnd.IntN(5)) * time.Minute))}}
		}
		pods = append(pods, pod)
	}
	on := map[string]int{"a": 2, "b": 1}
	for _, a := range pods {
		for _, b := range pods {
			if compare(a, b, on, now) != -compare(b, a, on, now) {
				t.Fatalf("%s and %s compare differently each way", a.UID, b.UID)
			}
		}
	}
}
