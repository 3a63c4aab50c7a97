package deployment_test

import (
	"errors"
	"math/rand/v2"
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
	"coracle.dev/coracle/controllers/deployment"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func loops(c *reconciletest.Cluster) []reconcile.Loop {
	return []reconcile.Loop{deployment.Loop(), replicaset.Loop(), reconciletest.Kubelet(c)}
}

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", loops)
}

// TestATakenNameIsACollision puts a stranger where the new replica set would be.
func TestATakenNameIsACollision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, loops(c)...)
		defer h.Stop()
		d := randomDeployment(rand.New(rand.NewPCG(1, 1)))
		h.Create("deployments.apps", d.DeepCopy())
		h.Settle()
		name := reconciletest.All(h, client.ReplicaSets, "default")[0].Name
		h.Delete("deployments.apps", "default", "web", "")
		h.Delete("replicasets.apps", "default", name, "")
		h.Settle()
		squatter := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: appsv1.ReplicaSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "other"}}, Spec: d.Spec.Template.Spec}}}
		h.Create("replicasets.apps", squatter)
		h.Create("deployments.apps", d)
		h.Settle()
		got := reconciletest.Get(h, client.Deployments, "default", "web")
		if got.Status.CollisionCount == nil || *got.Status.CollisionCount != 1 || got.Status.AvailableReplicas != *d.Spec.Replicas {
			t.Errorf("status %+v", got.Status)
		}
		if n := h.Snapshot().Count("replicasets.apps", "default"); n != 2 {
			t.Errorf("%d replica sets", n)
		}
	})
}

// TestARefusedReplicaSetIsReported shows in the status why there is none.
func TestARefusedReplicaSetIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		var refuse atomic.Bool
		refuse.Store(true)
		c.Refuse = func(verb string, ref client.Ref, _ api.Object) error {
			if refuse.Load() && verb == "create" && ref.Resource == "replicasets.apps" {
				return apierrors.NewForbidden(c.Registry.ByName(ref.Resource).GroupResource(), "x", errors.New("exceeded quota"))
			}
			return nil
		}
		h := reconciletest.New(t, c, loops(c)...)
		defer h.Stop()
		h.Create("deployments.apps", randomDeployment(rand.New(rand.NewPCG(1, 1))))
		h.Advance(time.Second)
		cond := progressing(h)
		if cond.Status != corev1.ConditionFalse || cond.Reason != "ReplicaSetCreateError" || !strings.Contains(cond.Message, "exceeded quota") {
			t.Errorf("condition %+v", cond)
		}
		if ev := h.EventsOf("Deployment"); len(ev) == 0 || !strings.HasPrefix(ev[0], "Warning ReplicaSetCreateError Failed to create new replica set ") {
			t.Errorf("events %q", ev)
		}
		refuse.Store(false)
		h.Advance(20 * time.Minute)
		if cond = progressing(h); cond.Reason != "NewReplicaSetAvailable" {
			t.Errorf("condition %+v after the quota was raised", cond)
		}
	})
}

func progressing(h *reconciletest.Harness) appsv1.DeploymentCondition {
	for _, c := range reconciletest.Get(h, client.Deployments, "default", "web").Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing {
			return c
		}
	}
	return appsv1.DeploymentCondition{}
}
