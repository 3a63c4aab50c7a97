package job

import (
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loops are the job controller and the one that deletes finished jobs after their time to live.
func Loops() []reconcile.Loop {
	ofPod := claim.Keys(client.Jobs, "Job", func(j *batchv1.Job) labels.Selector { return claim.Selector(j.Spec.Selector) }, changed)
	return []reconcile.Loop{{
		Name:    "job-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.Jobs.Name},
			{Resource: client.Pods.Name, Keys: func(s store.Snapshot, ev store.Event) []reconcile.Key {
				return append(ofPod(s, ev), stranded(s, ev)...)
			}},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.Jobs.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			if key.Resource == client.Pods.Name {
				return free(s, key), nil
			}
			job, ok := client.Jobs.Get(s, key.Namespace, key.Name)
			if !ok {
				return orphans(s, key), nil
			}
			return plan(s, job, now), nil
		},
	}, {
		Name:           "ttl-after-finished-controller",
		Inputs:         []reconcile.Input{{Resource: client.Jobs.Name}},
		Outputs:        []reconcile.Output{{Resource: client.Jobs.Name, Verbs: []reconcile.Verb{reconcile.Delete}}},
		ServiceAccount: "ttl-after-finished-controller",
		Plan:           planTTL,
	}}
}

// changed tells whether two versions of a pod differ in what a job counts.
func changed(a, b *corev1.Pod) bool {
	if podstate.Changed(a, b) || tracked(a) != tracked(b) {
		return true
	}
	ac, as := podstate.Restarts(a)
	bc, bs := podstate.Restarts(b)
	return ac != bc || as != bs
}

// stranded gives a tracked pod whose job is gone: nobody else frees it.
func stranded(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	if ev.Deleted || !tracked(pod) || !ownerGone(s, pod) {
		return nil
	}
	return []reconcile.Key{{Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name}}
}

func ownerGone(s store.Snapshot, pod *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return true
	}
	job, ok := client.Jobs.Get(s, pod.Namespace, ref.Name)
	return ref.Kind == "Job" && ref.APIVersion == batchv1.SchemeGroupVersion.String() && (!ok || job.UID != ref.UID)
}

// free takes the finalizer off a stranded pod.
func free(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
	if !ok || !ownerGone(s, pod) {
		return reconcile.Plan{}
	}
	return reconcile.Plan{Writes: release([]*corev1.Pod{pod}, nil)}
}

// orphans frees the pods of a job that is gone.
func orphans(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	var pods []*corev1.Pod
	for pod := range client.Pods.List(s, key.Namespace) {
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref != nil && ref.Kind == "Job" && ref.Name == key.Name && tracked(pod) {
			pods = append(pods, pod)
		}
	}
	return reconcile.Plan{Writes: release(pods, nil), Parallel: true}
}

// planTTL deletes a finished job when its time to live is over.
func planTTL(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	job, ok := client.Jobs.Get(s, key.Namespace, key.Name)
	if !ok || job.Spec.TTLSecondsAfterFinished == nil || job.DeletionTimestamp != nil || !finished(job) {
		return reconcile.Plan{}, nil
	}
	var at time.Time
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			at = c.LastTransitionTime.Time
		}
	}
	if left := at.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second).Sub(now); left > 0 {
		return reconcile.Plan{After: left}, nil
	}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Jobs.Name, Namespace: job.Namespace, Name: job.Name,
		UID: job.UID, ResourceVersion: job.ResourceVersion, Propagation: metav1.DeletePropagationForeground}}}, nil
}
