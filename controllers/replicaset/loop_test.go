package replicaset_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{replicaset.Loop(), replicaset.ReplicationControllerLoop(), reconciletest.Kubelet(c)}
	})
}

func newSet(n int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
}

// TestAQuotaIsReportedAndOvercome lets 3 of 10 pods in.
func TestAQuotaIsReportedAndOvercome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		var limit, tried atomic.Int32
		limit.Store(3)
		c.Refuse = func(verb string, ref client.Ref, _ api.Object) error {
			if verb != "create" || ref.Resource != "pods" {
				return nil
			}
			tried.Add(1)
			if c.Snapshot().Count("pods", "default") >= int(limit.Load()) {
				return apierrors.NewForbidden(c.Registry.ByName("pods").GroupResource(), ref.Name, errors.New("exceeded quota: pods"))
			}
			return nil
		}
		h := reconciletest.New(t, c, replicaset.Loop(), reconciletest.Kubelet(c))
		defer h.Stop()
		h.Create("replicasets.apps", newSet(10))
		h.Advance(10 * time.Second)
		rs := reconciletest.Get(h, client.ReplicaSets, "default", "web")
		if rs.Status.Replicas != 3 || rs.Status.ReadyReplicas != 3 || rs.Status.ObservedGeneration != 1 {
			t.Errorf("status %+v", rs.Status)
		}
		if len(rs.Status.Conditions) != 1 || rs.Status.Conditions[0].Reason != "FailedCreate" || !strings.Contains(rs.Status.Conditions[0].Message, "exceeded quota") {
			t.Errorf("conditions %+v", rs.Status.Conditions)
		}
		failures := 0
		for _, line := range h.EventsOf("ReplicaSet") {
			if strings.HasPrefix(line, "Warning FailedCreate Error creating: pods ") {
				failures++
			}
		}
		if failures == 0 {
			t.Errorf("no event tells of the failure: %q", h.EventsOf("ReplicaSet"))
		}
		if tried.Load() > 40 {
			t.Errorf("%d creates were tried in 10 s: there is no back-off", tried.Load())
		}
		limit.Store(100)
		h.Advance(20 * time.Minute)
		rs = reconciletest.Get(h, client.ReplicaSets, "default", "web")
		if rs.Status.ReadyReplicas != 10 || len(rs.Status.Conditions) != 0 {
			t.Errorf("after the quota was raised: %+v", rs.Status)
		}
	})
}

// TestThousandPods is more than one pass creates.
func TestThousandPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, replicaset.Loop(), reconciletest.Kubelet(c))
		defer h.Stop()
		h.Create("replicasets.apps", newSet(1200))
		h.Settle()
		if s := reconciletest.Get(h, client.ReplicaSets, "default", "web").Status; s.Replicas != 1200 || s.AvailableReplicas != 1200 {
			t.Errorf("status %+v", s)
		}
		for _, n := range []int32{7, 0} {
			reconciletest.Change(h, client.ReplicaSets, "default", "web", "", func(rs *appsv1.ReplicaSet) { rs.Spec.Replicas = &n })
			h.Settle()
			if got := h.Snapshot().Count("pods", "default"); got != int(n) {
				t.Errorf("%d pods, want %d", got, n)
			}
		}
	})
}

// TestTwoSetsShareNoPod has two sets with the same selector compete for orphans.
func TestTwoSetsShareNoPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, replicaset.Loop(), reconciletest.Kubelet(c))
		defer h.Stop()
		for i := range 6 {
			h.Create("pods", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("orphan-", i), Labels: map[string]string{"app": "web"}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
		}
		other := newSet(4)
		other.Name = "other"
		h.Create("replicasets.apps", newSet(4))
		h.Create("replicasets.apps", other)
		h.Settle()
		count := map[string]int{}
		for _, pod := range reconciletest.All(h, client.Pods, "default") {
			ref := metav1.GetControllerOf(pod)
			if ref == nil || len(pod.OwnerReferences) != 1 {
				t.Fatalf("pod %s has owners %v", pod.Name, pod.OwnerReferences)
			}
			count[ref.Name]++
		}
		if count["web"] != 4 || count["other"] != 4 {
			t.Errorf("pods: %v", count)
		}
	})
}
