package job_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/job"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// template is a pod that runs until something is done to it.
func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"test/phase": ""}},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

func begin(h *reconciletest.Harness, spec batchv1.JobSpec) {
	spec.Template = template()
	h.Create("jobs.batch", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "work"}, Spec: spec})
	h.Settle()
}

func status(h *reconciletest.Harness) batchv1.JobStatus {
	return reconciletest.Get(h, client.Jobs, "default", "work").Status
}

func has(s batchv1.JobStatus, t batchv1.JobConditionType) bool {
	return slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t && c.Status == corev1.ConditionTrue })
}

// finish ends a pod as its node would report it.
func finish(h *reconciletest.Harness, name string, phase corev1.PodPhase, code int32) {
	reconciletest.Change(h, client.Pods, "default", name, "status", func(p *corev1.Pod) {
		reconciletest.NotReady(p, time.Now())
		p.Status.Phase = phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: "i", ImageID: "i",
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()}}}}
	})
	h.Settle()
}

// running are the pods that run, by their index.
func running(h *reconciletest.Harness) map[string]*corev1.Pod {
	pods := map[string]*corev1.Pod{}
	for _, p := range reconciletest.All(h, client.Pods, "default") {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			pods[p.Annotations[batchv1.JobCompletionIndexAnnotation]] = p
		}
	}
	return pods
}

func run(t *testing.T, f func(h *reconciletest.Harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, append(job.Loops(), reconciletest.Kubelet(c))...)
		defer h.Stop()
		f(h)
	})
}

// TestSuccessPolicyCountsNoFailure: the pods that a job deletes because its policy is met have not failed.
func TestSuccessPolicyCountsNoFailure(t *testing.T) {
	run(t, func(h *reconciletest.Harness) {
		indexed, first := batchv1.IndexedCompletion, "0"
		begin(h, batchv1.JobSpec{Completions: new(int32(3)), Parallelism: new(int32(3)), CompletionMode: &indexed,
			SuccessPolicy: &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: &first}}}})
		finish(h, running(h)["0"].Name, corev1.PodSucceeded, 0)
		h.Advance(time.Minute)
		if s := status(h); !has(s, batchv1.JobComplete) || s.Succeeded != 1 || s.Failed != 0 || s.CompletedIndexes != "0" {
			t.Fatalf("status %+v", s)
		}
	})
}

// TestFailuresOfAnIndexOutliveItsPod deletes a failed pod before the next one is made.
func TestFailuresOfAnIndexOutliveItsPod(t *testing.T) {
	run(t, func(h *reconciletest.Harness) {
		indexed := batchv1.IndexedCompletion
		begin(h, batchv1.JobSpec{Completions: new(int32(1)), Parallelism: new(int32(1)), CompletionMode: &indexed, BackoffLimitPerIndex: new(int32(1))})
		first := running(h)["0"].Name
		finish(h, first, corev1.PodFailed, 1)
		h.Delete("pods", "default", first, metav1.DeletePropagationBackground)
		h.Advance(time.Second)
		if p := reconciletest.Get(h, client.Pods, "default", first); p == nil || len(p.Finalizers) == 0 {
			t.Fatal("the failed pod was let go before another knew of its failure")
		}
		h.Advance(11 * time.Second)
		second := running(h)["0"]
		if second == nil || second.Annotations[batchv1.JobIndexFailureCountAnnotation] != "1" {
			t.Fatalf("the second pod: %v", second)
		}
		if n := len(reconciletest.All(h, client.Pods, "default")); n != 1 {
			t.Fatalf("%d pods are left", n)
		}
		finish(h, second.Name, corev1.PodFailed, 1)
		h.Advance(time.Minute)
		if s := status(h); !has(s, batchv1.JobFailed) || *s.FailedIndexes != "0" || s.Failed != 2 {
			t.Fatalf("status %+v", s)
		}
	})
}

// TestIgnoredFailuresBackOff counts failures that a policy lets pass, for the back-off only.
func TestIgnoredFailuresBackOff(t *testing.T) {
	run(t, func(h *reconciletest.Harness) {
		indexed := batchv1.IndexedCompletion
		begin(h, batchv1.JobSpec{Completions: new(int32(1)), Parallelism: new(int32(1)), CompletionMode: &indexed, BackoffLimitPerIndex: new(int32(0)),
			PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionIgnore,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{7}}}}}})
		finish(h, running(h)["0"].Name, corev1.PodFailed, 7)
		h.Advance(9 * time.Second)
		if p := running(h)["0"]; p != nil {
			t.Fatal("replaced too early")
		}
		h.Advance(2 * time.Second)
		p := running(h)["0"]
		if p == nil || p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] != "1" || p.Annotations[batchv1.JobIndexFailureCountAnnotation] != "0" {
			t.Fatalf("the second pod: %v", p)
		}
		finish(h, p.Name, corev1.PodFailed, 7)
		h.Advance(19 * time.Second)
		if p := running(h)["0"]; p != nil {
			t.Fatal("the second back-off is not longer")
		}
		h.Advance(2 * time.Second)
		if p := running(h)["0"]; p == nil || status(h).Failed != 0 {
			t.Fatalf("pod %v, status %+v", p, status(h))
		}
	})
}

// TestManagedByAnother leaves such a job alone, with its pods' finalizers.
func TestManagedByAnother(t *testing.T) {
	run(t, func(h *reconciletest.Harness) {
		other := "example.com/other"
		begin(h, batchv1.JobSpec{ManagedBy: &other})
		h.Advance(time.Minute)
		if n := len(reconciletest.All(h, client.Pods, "default")); n != 0 || status(h).StartTime != nil {
			t.Fatalf("%d pods, status %+v", n, status(h))
		}
	})
}

// TestManyEndAtOnce lists at most 500 uncounted pods at a time, and counts all.
func TestManyEndAtOnce(t *testing.T) {
	run(t, func(h *reconciletest.Harness) {
		most := 0
		h.Refuse = func(_ string, _ client.Ref, obj api.Object) error {
			if j, ok := obj.(*batchv1.Job); ok && j.Status.UncountedTerminatedPods != nil {
				most = max(most, len(j.Status.UncountedTerminatedPods.Succeeded))
			}
			return nil
		}
		n := int32(600)
		spec := batchv1.JobSpec{Completions: &n, Parallelism: &n}
		begin(h, spec)
		h.Advance(time.Second)
		h.Stop()
		for _, p := range reconciletest.All(h, client.Pods, "default") {
			finish(h, p.Name, corev1.PodSucceeded, 0)
		}
		h.Start(append(job.Loops(), reconciletest.Kubelet(h.Cluster))...)
		h.Advance(time.Minute)
		if s := status(h); s.Succeeded != n || !has(s, batchv1.JobComplete) || most != 500 {
			t.Fatalf("%d listed at most, status %+v", most, s)
		}
	})
}

var errCrashed = apierrors.NewInternalError(errors.New("the controller has crashed"))

// TestNothingIsLostInACrash ends the controller at each of its writes in turn, while pods succeed,
// fail and vanish; a tally of the ends of the pods themselves is what the job has to count.
func TestNothingIsLostInACrash(t *testing.T) {
	for _, mode := range []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion} {
		for at := 0; ; at++ {
			over := false
			synctest.Test(t, func(t *testing.T) { over = crashAt(t, mode, at) })
			if over || t.Failed() {
				t.Logf("%s: %d writes", mode, at)
				break
			}
		}
	}
}

// crashAt gives false if there was a write to crash at.
func crashAt(t *testing.T, mode batchv1.CompletionMode, at int) (over bool) {
	cluster := reconciletest.NewCluster(0)
	rnd := rand.New(rand.NewPCG(uint64(at), 5))
	left, crashed := at, false
	var mu sync.Mutex
	armed := false
	cluster.Refuse = func(_ string, ref client.Ref, _ api.Object) error {
		mu.Lock()
		defer mu.Unlock()
		if !armed || ref.Resource == client.Events.Name {
			return nil
		}
		if crashed {
			return errCrashed
		}
		if left--; left < 0 {
			crashed = true
			return errCrashed
		}
		return nil
	}
	arm := func(on bool) {
		mu.Lock()
		defer mu.Unlock()
		armed = on
	}
	h := reconciletest.New(t, cluster, job.Loops()...)
	defer func() { h.Stop() }()
	n, limit := int32(6), int32(1000)
	h.Create("jobs.batch", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "work"}, Spec: batchv1.JobSpec{
		Completions: &n, Parallelism: new(int32(3)), BackoffLimit: &limit, CompletionMode: &mode, Template: template()}})
	ends := map[types.UID]corev1.PodPhase{} // how each pod ended that was made
	for round := 0; round < 200; round++ {
		arm(true)
		h.Advance(15 * time.Minute)
		arm(false)
		mu.Lock()
		if crashed {
			crashed, left = false, 1<<30
			mu.Unlock()
			h.Stop()
			h.Start(job.Loops()...)
			h.Advance(time.Second)
		} else {
			mu.Unlock()
		}
		s := status(h)
		if has(s, batchv1.JobComplete) {
			break
		}
		for _, p := range reconciletest.All(h, client.Pods, "default") {
			if _, ended := ends[p.UID]; ended || p.DeletionTimestamp != nil {
				continue
			}
			switch rnd.IntN(4) {
			case 0:
				ends[p.UID] = corev1.PodFailed
				finish(h, p.Name, corev1.PodFailed, 1)
			case 1:
				ends[p.UID] = corev1.PodFailed
				h.Delete("pods", "default", p.Name, metav1.DeletePropagationBackground)
			default:
				ends[p.UID] = corev1.PodSucceeded
				finish(h, p.Name, corev1.PodSucceeded, 0)
			}
		}
	}
	h.Advance(time.Hour)
	want := map[corev1.PodPhase]int32{}
	for _, phase := range ends {
		want[phase]++
	}
	s := status(h)
	if !has(s, batchv1.JobComplete) || s.Succeeded != n || want[corev1.PodSucceeded] != n || s.Failed != want[corev1.PodFailed] {
		t.Fatalf("crash at write %d: %d succeeded and %d failed, status %+v", at, want[corev1.PodSucceeded], want[corev1.PodFailed], s)
	}
	for _, p := range reconciletest.All(h, client.Pods, "default") {
		if len(p.Finalizers) > 0 {
			t.Fatalf("crash at write %d: pod %s keeps its finalizer", at, p.Name)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return left >= 0 && left < 1<<29
}
