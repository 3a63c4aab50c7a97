package nodelifecycle_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/nodelifecycle"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// nodes makes so many nodes of a zone, of which the first ones are not ready.
func nodes(h *reconciletest.Harness, zone string, n, down int) {
	for i := range n {
		status := corev1.ConditionTrue
		if i < down {
			status = corev1.ConditionFalse
		}
		h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%02d", zone, i), Labels: map[string]string{corev1.LabelTopologyZone: zone}},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(time.Now().Add(24 * time.Hour)), LastTransitionTime: metav1.Now()}}}})
	}
	h.Settle()
}

// emptied is how many nodes of a zone evict their pods.
func emptied(h *reconciletest.Harness, zone string) (n int) {
	for _, node := range reconciletest.All(h, client.Nodes, "") {
		for _, t := range node.Spec.Taints {
			if node.Labels[corev1.LabelTopologyZone] == zone && t.Effect == corev1.TaintEffectNoExecute {
				n++
			}
		}
	}
	return n
}

// TestZonesAreEmptiedSlowly holds how many nodes of zones in several states have been emptied in the course of time.
func TestZonesAreEmptiedSlowly(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Stop()
		nodes(h, "healthy", 20, 6)
		nodes(h, "dead", 4, 4)       // full disruption of one zone: the usual rate
		nodes(h, "small", 10, 6)     // partial disruption of a small one: none at all
		nodes(h, "large", 60, 40)    // ... and of a large one: one in 100 s
		nodes(h, "two-of-two", 3, 2) // two do not make a disruption
		h.Start(nodelifecycle.Loops(nodelifecycle.Config{})...)
		for _, c := range []struct {
			after                             time.Duration
			healthy, dead, small, large, pair int
		}{
			{0, 1, 1, 0, 1, 1},
			{9 * time.Second, 1, 1, 0, 1, 1},
			{2 * time.Second, 2, 2, 0, 1, 2},
			{20 * time.Second, 4, 4, 0, 1, 2},
			{30 * time.Second, 6, 4, 0, 1, 2},
			{40 * time.Second, 6, 4, 0, 2, 2},
			{1000 * time.Second, 6, 4, 0, 12, 2},
		} {
			h.Advance(c.after)
			got := fmt.Sprint(emptied(h, "healthy"), emptied(h, "dead"), emptied(h, "small"), emptied(h, "large"), emptied(h, "two-of-two"))
			if want := fmt.Sprint(c.healthy, c.dead, c.small, c.large, c.pair); got != want {
				t.Errorf("after another %s: %s, want %s", c.after, got, want)
			}
		}
		// A small zone that gets better is gone on with.
		reconciletest.Change(h, client.Nodes, "", "small-05", "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
		h.Advance(time.Minute)
		if n := emptied(h, "small"); n != 5 {
			t.Errorf("%d nodes of the zone that got better", n)
		}
	}, nodelifecycle.Loops(nodelifecycle.Config{})...)
}
