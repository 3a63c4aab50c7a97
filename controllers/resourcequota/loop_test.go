package resourcequota_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/api/quota"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/resourcequota"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func loop() reconcile.Loop { return resourcequota.Loop(api.NewRegistry(builtin.Kinds()...)) }

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{resourcequota.Loop(c.Registry)}
	})
}

// TestPodsThatOutstayTheirGraceCountNoMore: a pod of a lost node must not keep its namespace from making another.
func TestPodsThatOutstayTheirGraceCountNoMore(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create(client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "apps"}})
		h.Create(client.ResourceQuotas.Name, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "q"},
			Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resource.MustParse("2"), "count/pods": resource.MustParse("2")}}})
		grace := int64(30)
		h.Create(client.Pods.Name, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "p", Finalizers: []string{"example.com/stay"}},
			Spec: corev1.PodSpec{NodeName: "lost", TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
		h.Settle()
		used := func() string {
			return quota.Text(reconciletest.Get(h, client.ResourceQuotas, "apps", "q").Status.Used)
		}
		if got := used(); got != "count/pods=1,pods=1" {
			t.Errorf("used is %s", got)
		}
		h.Delete(client.Pods.Name, "apps", "p", "")
		h.Settle()
		if got := used(); got != "count/pods=1,pods=1" {
			t.Errorf("used is %s as soon as the pod is being deleted", got)
		}
		h.Advance(2 * time.Minute)
		if got := used(); got != "count/pods=1,pods=0" {
			t.Errorf("used is %s after the grace period", got)
		}
	}, loop())
}
