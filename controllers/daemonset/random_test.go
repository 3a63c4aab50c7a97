package daemonset_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/daemonset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// TestRandomHistories lets nodes come, change and go while the set is updated and its pods are lost.
func TestRandomHistories(t *testing.T) {
	reconciletest.Random(t, reconciletest.History{
		Seeds: 30, Rounds: 6, Faults: 12, Rest: 10 * time.Minute,
		Loops: func(c *reconciletest.Cluster) []reconcile.Loop {
			wait := func(*corev1.Pod) time.Duration { return 2 * time.Second }
			return []reconcile.Loop{daemonset.Loop(), reconciletest.SlowKubelet(c, wait, wait)}
		},
		Begin: func(h *reconciletest.Harness, rnd *rand.Rand) {
			surge, unavailable := intstr.FromInt32(0), intstr.FromString(fmt.Sprintf("%d%%", 10+rnd.IntN(60)))
			if rnd.IntN(2) == 0 {
				surge, unavailable = unavailable, surge
			}
			h.Create("daemonsets.apps", &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "agent"}, Spec: appsv1.DaemonSetSpec{
				Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": "agent"}},
				UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable}},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "agent"}},
					Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "agent:0"}}}},
			}})
		},
		Step:  step,
		Check: check,
	})
}

func step(h *reconciletest.Harness, rnd *rand.Rand) {
	name := fmt.Sprint("n", rnd.IntN(6))
	_, there := client.Nodes.Get(h.Snapshot(), "", name)
	switch rnd.IntN(6) {
	case 0, 1:
		if !there {
			h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"disk": []string{"ssd", "none"}[rnd.IntN(2)]}}})
		} else if rnd.IntN(3) == 0 {
			h.Delete("nodes", "", name, "")
			for _, pod := range reconciletest.All(h, client.Pods, "default") { // what the pod garbage collector would do
				if pod.Spec.NodeName == name {
					zero := int64(0)
					err := h.Cluster.Delete(h.T.Context(), client.Ref{Resource: "pods", Namespace: "default", Name: pod.Name}, client.DeleteOptions{GraceSeconds: &zero})
					if err != nil && !apierrors.IsNotFound(err) {
						h.T.Fatal(err)
					}
				}
			}
		}
	case 2:
		if there {
			reconciletest.Change(h, client.Nodes, "", name, "", func(n *corev1.Node) {
				effects := []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule}
				n.Spec.Taints = nil
				if rnd.IntN(2) == 0 {
					n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: effects[rnd.IntN(3)]}}
				}
			})
		}
	case 3:
		reconciletest.Change(h, client.DaemonSets, "default", "agent", "", func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("agent:", rnd.IntN(5))
			if rnd.IntN(3) == 0 {
				ds.Spec.Template.Spec.NodeSelector = []map[string]string{nil, {"disk": "ssd"}}[rnd.IntN(2)]
			}
		})
	case 4, 5:
		if pods := reconciletest.All(h, client.Pods, "default"); len(pods) > 0 {
			pod := pods[rnd.IntN(len(pods))]
			if rnd.IntN(2) == 0 {
				h.Delete("pods", "default", pod.Name, "")
			} else if pod.DeletionTimestamp == nil {
				reconciletest.Change(h, client.Pods, "default", pod.Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
			}
		}
	}
}

func check(h *reconciletest.Harness) error {
	ds := reconciletest.Get(h, client.DaemonSets, "default", "agent")
	on := map[string][]*corev1.Pod{}
	for _, pod := range reconciletest.All(h, client.Pods, "default") {
		on[pod.Spec.NodeName] = append(on[pod.Spec.NodeName], pod)
	}
	desired := int32(0)
	for _, node := range reconciletest.All(h, client.Nodes, "") {
		run, stay := true, true
		for k, v := range ds.Spec.Template.Spec.NodeSelector {
			run = run && node.Labels[k] == v
			stay = run
		}
		for _, taint := range node.Spec.Taints {
			run = run && taint.Effect == corev1.TaintEffectPreferNoSchedule
			stay = stay && taint.Effect != corev1.TaintEffectNoExecute
		}
		pods := on[node.Name]
		delete(on, node.Name)
		if run {
			desired++
		}
		switch {
		case run && len(pods) != 1 || !stay && len(pods) > 0 || len(pods) > 1:
			return fmt.Errorf("%d pods on %s (run %v, stay %v)", len(pods), node.Name, run, stay)
		case len(pods) == 0:
			continue
		case !podstate.Active(pods[0]) || !podstate.Ready(pods[0]):
			return fmt.Errorf("pod %s on %s is not ready", pods[0].Name, node.Name)
		case run && pods[0].Spec.Containers[0].Image != ds.Spec.Template.Spec.Containers[0].Image:
			return fmt.Errorf("pod %s on %s runs %s, want %s", pods[0].Name, node.Name, pods[0].Spec.Containers[0].Image, ds.Spec.Template.Spec.Containers[0].Image)
		}
	}
	for node, pods := range on {
		return fmt.Errorf("%d pods on node %q, which is not there", len(pods), node)
	}
	s := ds.Status
	if s.DesiredNumberScheduled != desired || s.CurrentNumberScheduled != desired || s.NumberAvailable != desired || s.UpdatedNumberScheduled != desired || s.ObservedGeneration != ds.Generation {
		return fmt.Errorf("status %+v, want %d of everything", s, desired)
	}
	return nil
}
