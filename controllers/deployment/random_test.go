package deployment_test

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/deployment"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

// seconds gives each pod a time of its own between 0 and n seconds.
func seconds(salt string, n uint32) func(*corev1.Pod) time.Duration {
	return func(pod *corev1.Pod) time.Duration {
		h := fnv.New32a()
		_, _ = h.Write([]byte(salt + pod.Name))
		return time.Duration(h.Sum32()%(n+1)) * time.Second
	}
}

func randomDeployment(rnd *rand.Rand) *appsv1.Deployment {
	n, limit, deadline := int32(1+rnd.IntN(8)), int32(rnd.IntN(3)), int32(600)
	surge, unavailable := intstr.FromInt32(int32(rnd.IntN(3))), intstr.FromString(fmt.Sprintf("%d%%", rnd.IntN(4)*20))
	if surge.IntVal == 0 {
		unavailable = intstr.FromString("25%")
	}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, RevisionHistoryLimit: &limit, ProgressDeadlineSeconds: &deadline,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "web:0"}}}},
		},
	}
	if rnd.IntN(4) == 0 {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
	return d
}

func TestRandomRollouts(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			c := reconciletest.NewCluster(1 << 20)
			loops := func() []reconcile.Loop {
				return []reconcile.Loop{deployment.Loop(), replicaset.Loop(), reconciletest.SlowKubelet(c, seconds("start", 5), seconds("stop", 3))}
			}
			h := reconciletest.New(t, c, loops()...)
			defer func() { h.Stop() }()
			h.Create("deployments.apps", randomDeployment(rnd))
			settled(t, h, seed, "created")
			for round := range 6 {
				when := fmt.Sprint("round ", round)
				from := h.Snapshot().Revision()
				for range 1 + rnd.IntN(3) { // new templates while the last one is still being rolled out
					edit(h, func(d *appsv1.Deployment) {
						d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("web:", rnd.IntN(6))
					})
					h.Advance(time.Duration(rnd.IntN(8)) * time.Second)
				}
				settled(t, h, seed, when+" rolled")
				bounded(t, h, from, seed, when)
				for range 1 + rnd.IntN(4) {
					disturb(h, rnd)
					if rnd.IntN(5) == 0 {
						h.Stop()
						h.Start(loops()...)
					}
					h.Advance(time.Duration(rnd.IntN(6)) * time.Second)
				}
				edit(h, func(d *appsv1.Deployment) { d.Spec.Paused = false })
				settled(t, h, seed, when+" disturbed")
			}
		})
	}
}

func edit(h *reconciletest.Harness, change func(*appsv1.Deployment)) {
	h.T.Helper()
	reconciletest.Change(h, client.Deployments, "default", "web", "", change)
}

// disturb does one thing to the deployment that its users, nodes or others could do.
func disturb(h *reconciletest.Harness, rnd *rand.Rand) {
	switch rnd.IntN(6) {
	case 0:
		edit(h, func(d *appsv1.Deployment) { n := int32(rnd.IntN(10)); d.Spec.Replicas = &n })
	case 1:
		edit(h, func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
	case 2:
		edit(h, func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("web:", rnd.IntN(6))
		})
	case 3, 4:
		if pods := reconciletest.All(h, client.Pods, "default"); len(pods) > 0 {
			pod := pods[rnd.IntN(len(pods))]
			if rnd.IntN(2) == 0 {
				h.Delete("pods", "default", pod.Name, "")
			} else if pod.DeletionTimestamp == nil {
				reconciletest.Change(h, client.Pods, "default", pod.Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
			}
		}
	case 5:
		if sets := reconciletest.All(h, client.ReplicaSets, "default"); len(sets) > 0 {
			rs := sets[rnd.IntN(len(sets))]
			h.Delete("replicasets.apps", "default", rs.Name, "")
			for _, pod := range reconciletest.All(h, client.Pods, "default") { // what the garbage collector would do
				if metav1.IsControlledBy(pod, rs) {
					h.Delete("pods", "default", pod.Name, "")
				}
			}
		}
	}
}

// settled lets the rollout end and compares what is there with what the deployment asks for.
func settled(t *testing.T, h *reconciletest.Harness, seed uint64, when string) {
	t.Helper()
	h.Advance(3 * time.Minute)
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d, %s: %s", seed, when, fmt.Sprintf(format, args...))
	}
	d := reconciletest.Get(h, client.Deployments, "default", "web")
	n := *d.Spec.Replicas
	var current *appsv1.ReplicaSet
	sets := reconciletest.All(h, client.ReplicaSets, "default")
	var highest string
	for _, rs := range sets {
		if *rs.Spec.Replicas > 0 || n == 0 && rs.Spec.Template.Spec.Containers[0].Image == d.Spec.Template.Spec.Containers[0].Image {
			if current != nil {
				fail("both %s and %s have replicas", current.Name, rs.Name)
			}
			current = rs
		}
		highest = later(highest, rs.Annotations["deployment.kubernetes.io/revision"])
	}
	if current == nil || current.Spec.Template.Spec.Containers[0].Image != d.Spec.Template.Spec.Containers[0].Image {
		fail("no replica set has the template of the deployment: %d sets", len(sets))
	}
	if current.Annotations["deployment.kubernetes.io/revision"] != highest || d.Annotations["deployment.kubernetes.io/revision"] != highest {
		fail("revision %s of the deployment, %s of its set, %s the highest", d.Annotations["deployment.kubernetes.io/revision"], current.Annotations["deployment.kubernetes.io/revision"], highest)
	}
	if len(sets) > int(*d.Spec.RevisionHistoryLimit)+1 {
		fail("%d replica sets, the history holds %d", len(sets), *d.Spec.RevisionHistoryLimit)
	}
	ready := int32(0)
	for _, pod := range reconciletest.All(h, client.Pods, "default") {
		if podstate.Active(pod) && podstate.Ready(pod) && metav1.IsControlledBy(pod, current) {
			ready++
		} else if podstate.Active(pod) {
			fail("pod %s is left over", pod.Name)
		}
	}
	if ready != n {
		fail("%d pods are ready, want %d", ready, n)
	}
	s := d.Status
	if s.Replicas != n || s.UpdatedReplicas != n || s.ReadyReplicas != n || s.AvailableReplicas != n || s.UnavailableReplicas != 0 || s.ObservedGeneration != d.Generation {
		fail("status %+v at generation %d, want %d of everything", s, d.Generation, n)
	}
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Reason != "NewReplicaSetAvailable" {
			fail("condition %+v", c)
		}
	}
}

func later(a, b string) string {
	if len(b) > len(a) || len(b) == len(a) && b > a {
		return b
	}
	return a
}

// bounded walks through every revision of a rollout and holds that the replica sets never asked for more pods than the
// surge allows, and that there were never fewer available ones than the deployment needs.
func bounded(t *testing.T, h *reconciletest.Harness, from store.Revision, seed uint64, when string) {
	t.Helper()
	d := reconciletest.Get(h, client.Deployments, "default", "web")
	n := int(*d.Spec.Replicas)
	most, least := n, 0
	if r := d.Spec.Strategy.RollingUpdate; r != nil {
		surge, _ := intstr.GetScaledValueFromIntOrPercent(r.MaxSurge, n, true)
		unavailable, _ := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, n, false)
		if surge == 0 && unavailable == 0 {
			unavailable = 1
		}
		most, least = n+surge, n-unavailable
	}
	for rev := from; rev <= h.Snapshot().Revision(); rev++ {
		s, err := h.SnapshotAt(rev)
		if err != nil {
			t.Fatal(err)
		}
		asked, available, images := 0, 0, map[string]bool{}
		for rs := range client.ReplicaSets.List(s, "default") {
			asked += int(*rs.Spec.Replicas)
		}
		for pod := range client.Pods.List(s, "default") {
			if !podstate.Active(pod) {
				if d.Spec.Strategy.RollingUpdate == nil && !podstate.Terminal(pod) {
					images[pod.Spec.Containers[0].Image] = true
				}
				continue
			}
			images[pod.Spec.Containers[0].Image] = true
			if podstate.Ready(pod) {
				available++
			}
		}
		if asked > most || available < least {
			dump(t, h, rev-25, rev)
		}
		if asked > most || available < least {
			t.Fatalf("seed %d, %s, revision %d: %d pods asked for (at most %d), %d available (at least %d)", seed, when, rev, asked, most, available, least)
		}
		if d.Spec.Strategy.RollingUpdate == nil && len(images) > 1 {
			t.Fatalf("seed %d, %s, revision %d: pods of two templates run although the strategy is Recreate", seed, when, rev)
		}
	}
}
