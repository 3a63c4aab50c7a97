package job_test

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/garbage"
	"coracle.dev/coracle/controllers/job"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return append(job.Loops(), reconciletest.Kubelet(c))
	})
}

// worker plays nodes on which pods take a second and then succeed, but for a part of them.
func worker(c *reconciletest.Cluster, failing int) reconcile.Loop {
	l := reconciletest.SlowKubelet(c, func(*corev1.Pod) time.Duration { return time.Second }, func(*corev1.Pod) time.Duration { return time.Second })
	inner := l.Plan
	l.Plan = func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
		plan, err := inner(s, key, now)
		for i := range plan.Writes {
			if pod, ok := plan.Writes[i].Object.(*corev1.Pod); ok && pod.Status.Phase == corev1.PodRunning {
				h := fnv.New32a()
				_, _ = h.Write([]byte(pod.Name))
				reconciletest.NotReady(pod, now)
				pod.Status.Phase = corev1.PodSucceeded
				if int(h.Sum32()%100) < failing {
					pod.Status.Phase = corev1.PodFailed
				}
			}
		}
		return plan, err
	}
	return l
}

// TestRandomJobs runs jobs of all shapes with failing pods, pods deleted by others and restarts of the loops, and holds
// that each ends with exactly its completions counted.
func TestRandomJobs(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 9))
			c := reconciletest.NewCluster(0)
			loops := func() []reconcile.Loop { return append(job.Loops(), worker(c, 20)) }
			h := reconciletest.New(t, c, loops()...)
			defer func() { h.Stop() }()
			completions, parallelism, limit := int32(1+rnd.IntN(20)), int32(1+rnd.IntN(6)), int32(1000)
			mode := batchv1.NonIndexedCompletion
			if rnd.IntN(2) == 0 {
				mode = batchv1.IndexedCompletion
			}
			h.Create("jobs.batch", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "work"}, Spec: batchv1.JobSpec{
				Completions: &completions, Parallelism: &parallelism, BackoffLimit: &limit, CompletionMode: &mode,
				Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}})
			for range 10 {
				h.Advance(time.Duration(rnd.IntN(3000)) * time.Millisecond)
				switch pods := reconciletest.All(h, client.Pods, "default"); rnd.IntN(4) {
				case 0:
					if len(pods) > 0 {
						h.Delete("pods", "default", pods[rnd.IntN(len(pods))].Name, "")
					}
				case 1:
					h.Stop()
					h.Start(loops()...)
				case 2:
					j := reconciletest.Get(h, client.Jobs, "default", "work")
					if j.Status.CompletionTime == nil {
						reconciletest.Change(h, client.Jobs, "default", "work", "", func(j *batchv1.Job) {
							suspend := rnd.IntN(2) == 0
							j.Spec.Suspend = &suspend
						})
					}
				}
				if active := reconciletest.Get(h, client.Jobs, "default", "work").Status.Active; active > parallelism {
					t.Fatalf("seed %d: %d pods are active, at most %d may be", seed, active, parallelism)
				}
			}
			reconciletest.Change(h, client.Jobs, "default", "work", "", func(j *batchv1.Job) { no := false; j.Spec.Suspend = &no })
			h.Advance(24 * time.Hour)
			s := reconciletest.Get(h, client.Jobs, "default", "work").Status
			complete := false
			for _, cond := range s.Conditions {
				complete = complete || cond.Type == batchv1.JobComplete && cond.Status == corev1.ConditionTrue
			}
			if !complete || s.Succeeded != completions || s.Active != 0 || len(s.UncountedTerminatedPods.Succeeded)+len(s.UncountedTerminatedPods.Failed) != 0 {
				t.Fatalf("seed %d: %d completions wanted, status %+v", seed, completions, s)
			}
			if want := fmt.Sprintf("0-%d", completions-1); mode == batchv1.IndexedCompletion && completions > 2 && s.CompletedIndexes != want {
				t.Fatalf("seed %d: completed indexes %q, want %q", seed, s.CompletedIndexes, want)
			}
			for _, pod := range reconciletest.All(h, client.Pods, "default") {
				if len(pod.Finalizers) > 0 {
					t.Fatalf("seed %d: pod %s keeps its finalizer", seed, pod.Name)
				}
			}
		})
	}
}

// TestADeletedJobLeavesNoPod deletes a job that runs, with the garbage collector at work.
func TestADeletedJobLeavesNoPod(t *testing.T) {
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground} {
		synctest.Test(t, func(t *testing.T) {
			c := reconciletest.NewCluster(0)
			h := reconciletest.New(t, c, append(job.Loops(), reconciletest.Kubelet(c), garbage.Loop(c.Registry))...)
			defer h.Stop()
			n := int32(4)
			h.Create("jobs.batch", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "work"}, Spec: batchv1.JobSpec{
				Completions: &n, Parallelism: &n, Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}})
			h.Settle()
			if got := h.Snapshot().Count("pods", "default"); got != 4 {
				t.Fatalf("%d pods run", got)
			}
			h.Delete("jobs.batch", "default", "work", policy)
			h.Advance(time.Minute)
			if pods, jobs := h.Snapshot().Count("pods", "default"), h.Snapshot().Count("jobs.batch", "default"); pods != 0 || jobs != 0 {
				t.Errorf("%s: %d pods and %d jobs are left", policy, pods, jobs)
			}
		})
	}
}
