package statefulset_test

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/statefulset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func seconds(salt string, n uint32) func(*corev1.Pod) time.Duration {
	return func(pod *corev1.Pod) time.Duration {
		h := fnv.New32a()
		_, _ = h.Write([]byte(salt + string(pod.UID)))
		return time.Duration(h.Sum32()%(n+1)) * time.Second
	}
}

// TestRandomHistories scales, updates and disturbs sets of all shapes, with writes that fail and restarts in between.
func TestRandomHistories(t *testing.T) {
	edit := func(h *reconciletest.Harness, change func(*appsv1.StatefulSet)) {
		reconciletest.Change(h, client.StatefulSets, "default", "db", "", change)
	}
	reconciletest.Random(t, reconciletest.History{
		Seeds: 30, Rounds: 6, Faults: 12, Rest: 10 * time.Minute,
		Loops: func(c *reconciletest.Cluster) []reconcile.Loop {
			return []reconcile.Loop{statefulset.Loop(), reconciletest.SlowKubelet(c, seconds("start", 3), seconds("stop", 2))}
		},
		Begin: func(h *reconciletest.Harness, rnd *rand.Rand) {
			n, limit := int32(rnd.IntN(6)), int32(rnd.IntN(3))
			set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: appsv1.StatefulSetSpec{
				Replicas: &n, ServiceName: "db", RevisionHistoryLimit: &limit, MinReadySeconds: int32(rnd.IntN(2)),
				Selector:            &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
				PodManagementPolicy: []appsv1.PodManagementPolicyType{appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement}[rnd.IntN(2)],
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}},
					Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "db:0"}}}},
			}}
			if rnd.IntN(2) == 0 {
				set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 3}
			}
			if rnd.IntN(2) == 0 {
				set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}}
			}
			h.Create("statefulsets.apps", set)
		},
		Step: func(h *reconciletest.Harness, rnd *rand.Rand) {
			switch rnd.IntN(5) {
			case 0:
				edit(h, func(s *appsv1.StatefulSet) { n := int32(rnd.IntN(7)); s.Spec.Replicas = &n })
			case 1, 2:
				edit(h, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("db:", rnd.IntN(5)) })
			case 3:
				if pods := reconciletest.All(h, client.Pods, "default"); len(pods) > 0 {
					h.Delete("pods", "default", pods[rnd.IntN(len(pods))].Name, "")
				}
			case 4:
				if pods := reconciletest.All(h, client.Pods, "default"); len(pods) > 0 {
					pod := pods[rnd.IntN(len(pods))]
					if pod.DeletionTimestamp == nil {
						reconciletest.Change(h, client.Pods, "default", pod.Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
					}
				}
			}
		},
		Check: check,
	})
}

func check(h *reconciletest.Harness) error {
	set := reconciletest.Get(h, client.StatefulSets, "default", "db")
	n, start := int(*set.Spec.Replicas), 0
	if set.Spec.Ordinals != nil {
		start = int(set.Spec.Ordinals.Start)
	}
	if got := h.Snapshot().Count("pods", "default"); got != n {
		return fmt.Errorf("%d pods, want %d", got, n)
	}
	for i := start; i < start+n; i++ {
		name := fmt.Sprint("db-", i)
		pod, ok := client.Pods.Get(h.Snapshot(), "default", name)
		switch {
		case !ok:
			return fmt.Errorf("no pod %s", name)
		case !podstate.Active(pod) || !podstate.Ready(pod):
			return fmt.Errorf("pod %s is not ready", name)
		case pod.Spec.Containers[0].Image != set.Spec.Template.Spec.Containers[0].Image:
			return fmt.Errorf("pod %s runs %s, want %s", name, pod.Spec.Containers[0].Image, set.Spec.Template.Spec.Containers[0].Image)
		case pod.Labels[appsv1.ControllerRevisionHashLabelKey] != set.Status.UpdateRevision:
			return fmt.Errorf("pod %s is of revision %s, the set of %s", name, pod.Labels[appsv1.ControllerRevisionHashLabelKey], set.Status.UpdateRevision)
		}
		if len(set.Spec.VolumeClaimTemplates) > 0 {
			if _, ok := client.PersistentVolumeClaims.Get(h.Snapshot(), "default", "data-"+name); !ok {
				return fmt.Errorf("pod %s has no claim", name)
			}
		}
	}
	s := set.Status
	if int(s.Replicas) != n || int(s.ReadyReplicas) != n || int(s.AvailableReplicas) != n || int(s.UpdatedReplicas) != n || int(s.CurrentReplicas) != n ||
		s.CurrentRevision != s.UpdateRevision || s.ObservedGeneration != set.Generation {
		return fmt.Errorf("status %+v, want %d of everything", s, n)
	}
	if revs := h.Snapshot().Count("controllerrevisions.apps", "default"); revs > int(*set.Spec.RevisionHistoryLimit)+1 {
		return fmt.Errorf("%d revisions, the history holds %d", revs, *set.Spec.RevisionHistoryLimit)
	}
	return nil
}
